"""Repair methods compared on equal terms, poisoned batches, and cost."""
