"""What a replay's report says of one record. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from ares_stream.errors import InputError

SCHEMA: Final = "ares.replay-report/2"
OLDER: Final = "ares.replay-report/1"
"""Compared values alone; its digests are of other bytes."""


def finding(document: Mapping[str, Any], topic: str, partition: int, offset: int) -> str | None:
    """What a report says of one input record; None where its ranges do not hold it."""
    if document.get("schema") not in (SCHEMA, OLDER):
        raise InputError(f"not a report of a replay: its schema is not {SCHEMA}")
    covered = any(
        item["topic"] == topic
        and item["partition"] == partition
        and any(start <= offset < end for start, end in item["ranges"])
        for item in document["partitions"]
    )
    if not covered:
        return None
    place = topic, partition, offset
    for kind in ("differences", "tolerated"):
        for item in document[kind]:
            if (item["topic"], item["partition"], item["offset"]) == place:
                return f"{item['agreement']}: {item['detail']}"
    if document["differences_total"] > len(document["differences"]):
        return "in its ranges; not among the differences that it lists, and it does not list all"
    if document["chosen_offsets"] is not None:
        return "in its ranges, and not among its differences"
    return "as recorded" if document["mode"] == "proof" else "the same class"
