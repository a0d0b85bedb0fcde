"""What scoring tells whoever listens. Imports no model."""

from __future__ import annotations


class ScoringObserver:
    """Timings and batches, for metrics. Every method does nothing; override what is of interest.
    Called from the event loop's thread."""

    def stage(self, name: str, seconds: float) -> None:
        """A window spent this long on tokenise, queue or infer."""

    def batch(self, model: str, records: int, padding: float) -> None:
        """A run of a model with so many inputs and such a share of padding."""
