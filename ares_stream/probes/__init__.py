"""Finds what production traffic has not stumbled on yet.

| module | what it does |
|---|---|
| taxonomy | topics, personas, tactics, goals and transforms, from YAML |
| space | every allowed composition as one integer |
| composition, transforms, wording | a composition's words, each probe's once |
| attacker | what a model that words probes is asked, and which of its words are said (pure) |
| surrogate, selection, baselines, archive | which composition to try next (pure, seeded) |
| screening | near-duplicates, gibberish and off-topic probes earn nothing |
| targets, local_target, server | who answers |
| campaign | one campaign as a state machine: propose, ask, confirm, learn (pure) |
| plan | campaign files and priors |
| prober, memory, metrics | a campaign on Kafka, whose only memory are the topics |
| triggers | short word sequences that flip an answer or a score (pure) |
| scorecard | a fixed probe set and the score card on it |
"""
