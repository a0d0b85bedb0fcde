"""The `ares` command."""
