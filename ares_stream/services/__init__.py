"""The long-running services: settings in, rooms put together, signals obeyed."""
