"""The review console: people decide what models cannot."""
