"""Other tools' formats, in and out.

seeds.py reads what garak, PyRIT, HarmBench, JailbreakBench and openai/evals collected, as a
taxonomy to search around or as conversations to score; record.py is this project's own record
of a campaign; exports.py writes it for openai/evals and Inspect AI.
"""
