"""An invented language and world, with planted weaknesses: pure."""
