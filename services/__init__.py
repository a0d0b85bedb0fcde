"""Entry points of the services: settings in, rooms put together, signals obeyed."""
