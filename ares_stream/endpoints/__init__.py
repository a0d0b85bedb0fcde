"""One client of OpenAI-compatible endpoints, for targets, the attacker and judges.

| module | what |
|---|---|
| client | one rate limit, one retry rule, one bounded reader |
| completion | what a reply says: the answer, or why there is none. Pure |
| limits | how often requests may start |
"""
