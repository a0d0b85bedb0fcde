"""Whether everything was settled, and the proof of it."""
