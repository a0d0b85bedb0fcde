"""Replay: topic ranges scored again, to prove what was decided or to ask what others would say."""
