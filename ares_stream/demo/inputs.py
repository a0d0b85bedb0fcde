"""What goes into the demo: a person's own conversations, or those of a made policy."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, Final

from ares_stream.demo.contract import DemoOptions
from ares_stream.errors import SettingsError
from ares_stream.files import open_lines
from ares_stream.lab.streams import Stream
from ares_stream.records.mapping import load_mapping

ANCHORS: Final = 500


def check_options(options: DemoOptions) -> None:
    """Raise SettingsError for options that do not go together."""
    if options.input_file is None:
        if options.harm or options.reward or options.map_file:
            raise SettingsError("--harm, --reward and --map need --input, the file to stream")
    elif not options.harm or options.reward is None:
        raise SettingsError(
            "--input: your conversations need your models: --harm DIR and --reward DIR "
            "(make them with `ares bundle export` or `ares bundle train`)"
        )


def read_stream(options: DemoOptions) -> Stream:
    """Read the file, or make victim, models and conversations; some of them malformed."""
    if options.input_file is None:
        return _synthetic(options)
    if options.reward is None:
        raise SettingsError("--reward: missing")
    mapping = load_mapping(options.map_file) if options.map_file else None
    with open_lines(options.input_file) as lines:
        records = tuple((b"line-%d" % number, line) for number, line in lines)
    if not records:
        raise SettingsError(f"{options.input_file}: holds no lines")
    return Stream(records, options.harm, options.reward, mapping)


def _synthetic(options: DemoOptions) -> Stream:
    from ares_stream.lab.victims.anchors import make_anchors
    from ares_stream.lab.victims.traffic import export_victim_bundles, traffic
    from ares_stream.lab.victims.victim import make_victim

    victim = make_victim(options.seed, cache=options.cache)
    harm, reward = export_victim_bundles(victim, options.cache)
    interactions = traffic(victim, options.conversations, options.seed)
    records = [(item.id.encode(), item.encode()) for item in interactions]
    for place, (name, value) in zip(_places(len(records)), _malformed(records[0][1]), strict=False):
        records.insert(place, (f"malformed-{name}".encode(), value))
    anchors = make_anchors(victim, harm, reward, ANCHORS)
    return Stream(tuple(records), (harm,), reward, None, victim, tuple(anchors))


def _places(count: int) -> Iterator[int]:
    """Where malformed records go: spread evenly."""
    return (round(count * (number + 0.5) / 8) for number in range(8))


def _malformed(good: bytes) -> Sequence[tuple[str, bytes]]:
    """Records as careless producers send them, each made from a good one."""
    content: dict[str, Any] = json.loads(good)

    def changed(**fields: Any) -> bytes:
        return json.dumps(content | fields).encode()

    return (
        ("truncated", good[: len(good) // 2]),
        ("empty", b""),
        ("version", changed(schema="ares.interaction/99")),
        ("role", changed(messages=[{"role": "wizard", "content": "?"}])),
        ("before-1970", changed(occurred_at="1969-07-20T20:17:40Z")),
        ("nan", changed(attributes={"x": float("nan")})),
        ("utf-8", good[:-2] + b"\xff\xfe}"),
        ("no-response", json.dumps({k: v for k, v in content.items() if k != "response"}).encode()),
    )
