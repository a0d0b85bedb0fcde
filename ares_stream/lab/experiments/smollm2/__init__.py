"""The whole loop on a real language model that nobody weakened."""
