"""Makes coupled failures of a policy and its reward model visible, and mends them."""

__version__ = "0.1.0"
