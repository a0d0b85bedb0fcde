"""Faults thrown at scorers and their broker, and the count afterwards.

`clients` and `checker` share no code with the package: they use another client library and read
topics, headers and JSON as docs/topics.md describes them.
"""
