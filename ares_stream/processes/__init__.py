"""Processes that this one starts: a broker, a service, a step of a repair."""
