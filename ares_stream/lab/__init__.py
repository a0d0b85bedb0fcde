"""Deliberately weakened models in an invented language, and what is measured on them: for
benchmarks, tests and the demo. The product never imports it.

Nothing here is a real model or a real language. language/ says what is asked and answered and
where the weaknesses lie; victims/ trains a policy, a reward model and a judge on it;
experiments/ measures repair and search.
"""
