"""Finds what production traffic has not stumbled on yet.

| module | what it does |
|---|---|
| taxonomy | topics, personas, tactics, goals and transforms, from YAML |
| space | every allowed composition as one integer |
| composition, transforms | a composition's words |
| surrogate, selection, baselines, archive | which composition to try next (pure, seeded) |
| screening | near-duplicates, gibberish and off-topic probes earn nothing |
| targets, local_target, server | who answers |
| search | one campaign: propose, ask, judge, confirm, learn |
| campaign | the same, event-sourced, for the service |
| trojans | short token sequences that flip an answer or a score |
| benchmark, scorecard | what is published |
"""
