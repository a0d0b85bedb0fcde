"""Deliberately weakened models in an invented language: for benchmarks, tests and the demo.

Nothing here is a real model or a real language. world.py says what is asked and answered, and
where the weaknesses lie; victim.py trains a policy, a reward model and a judge on it.
"""
