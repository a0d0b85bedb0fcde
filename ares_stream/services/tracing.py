"""Spans by OTLP over HTTP, where `tracing.endpoint` names a collector. Needs the extra `otel`.

    the caller's span ─► score ─► repaired          in the caller's trace
                                     ┆ links both ways
                         repair ─► release ─► swap  in the repair's own trace

A span is made of what is known when its work is settled, and handed to a thread that sends batches:
the event loop never waits for a collector, and one that is away costs spans, not records. Only
records whose producer samples their trace have one. No span holds text.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from ares_stream.detection.assess import ScoredVerdict
from ares_stream.errors import SettingsError
from ares_stream.files import Renewed, renewed_secret
from ares_stream.records.release import Release
from ares_stream.records.repair import RepairReport
from ares_stream.records.traces import TraceParent, span_id, trace_id
from ares_stream.services.settings import TracingSettings

if TYPE_CHECKING:
    from opentelemetry.trace import SpanContext
    from requests import PreparedRequest

MOST_LINKS: Final = 128
"""Of a repair to the interactions that led to it: what collectors keep of a span by default."""
CLOSING_SECONDS: Final = 5.0
"""A collector that is away delays the end of a service by no more, and each try takes no longer."""
Attributes = Mapping[str, str | int | bool | float]


class Tracing:
    """Where a service's spans go. Close it at the service's end."""

    def __init__(
        self, settings: TracingSettings, service: str, closing_seconds: float = CLOSING_SECONDS
    ) -> None:
        try:
            import requests
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError:
            raise SettingsError(
                "tracing.endpoint: needs the extra otel: pip install 'ares-stream[otel]'"
            ) from None
        from ares_stream import __version__

        session = requests.Session()
        if settings.token_file is not None:
            session.auth = _Bearer(renewed_secret("tracing.token_file", settings.token_file))
        # It warns of every single span that a full queue drops.
        logging.getLogger("opentelemetry.sdk").setLevel(logging.ERROR)
        self._closing_seconds = closing_seconds
        self._exporter = OTLPSpanExporter(
            endpoint=settings.endpoint,
            certificate_file=None if settings.ca_file is None else str(settings.ca_file),
            timeout=closing_seconds,
            session=session,
        )
        self._resource = Resource(
            {"service.namespace": "ares-stream", "service.name": f"ares-{service}",
             "service.version": __version__}
        )  # fmt: skip
        self._spans = BatchSpanProcessor(
            self._exporter, schedule_delay_millis=settings.batch_seconds * 1000
        )

    async def aclose(self) -> None:
        """Send what is left, for as long as a service may take to end."""
        sending = threading.Thread(target=self._spans.shutdown, daemon=True)
        sending.start()
        await asyncio.to_thread(sending.join, self._closing_seconds)
        # Ends the tries that go on.
        self._exporter.shutdown()  # type: ignore[no-untyped-call]

    def scored(self, notes: Iterable[object]) -> None:
        """Verdicts were committed."""
        now = time.time()
        for note in notes:
            if isinstance(note, ScoredVerdict) and note.parent is not None:
                verdict = note.verdict
                self._end(
                    "score", _context(note.parent.trace_id, span_id("score", verdict.id)),
                    _remote(note.parent), note.began_at, now,
                    {
                        "messaging.system": "kafka",
                        "messaging.operation.type": "process",
                        "messaging.destination.name": verdict.source.topic,
                        "messaging.destination.partition.id": str(verdict.source.partition),
                        "messaging.kafka.offset": verdict.source.offset,
                        "ares.lane": verdict.lane,
                        "ares.verdict.id": verdict.id,
                        "ares.failure_class": verdict.failure_class.value,
                    },
                )  # fmt: skip

    def repaired(self, report: RepairReport, failures: Sequence[tuple[TraceParent, str]]) -> None:
        """A repair ended, or was decided on. `failures`: where each traced interaction of its
        batch came from, and its verdict's id."""
        began, ended = report.started_at.timestamp(), report.finished_at.timestamp()
        attributes = {"ares.plan.id": report.plan_id, "ares.repair.state": report.state}
        repair = _repair(report.plan_id)
        scores = [
            _context(parent.trace_id, span_id("score", verdict)) for parent, verdict in failures
        ][:MOST_LINKS]
        self._end("repair", repair, None, began, ended, attributes, scores)
        for score in scores:
            mine = _context(score.trace_id, span_id(f"repaired by {report.plan_id}",
                                                    f"{score.span_id:016x}"))  # fmt: skip
            self._end("repaired", mine, score, began, ended, attributes, [repair])

    def released(self, plan: str, releases: Sequence[Release]) -> None:
        """A repair's releases became active."""
        for release in releases:
            at = release.changed_at.timestamp()
            own = _release(plan, release)
            self._end("release", own, _repair(plan), at, at, _of_release(release))

    def swapped(self, release: Release, began: float) -> None:
        """This scorer uses a release from now on; of one that no repair made there is no trace."""
        if release.plan_id is not None:
            parent = _release(release.plan_id, release)
            own = _context(parent.trace_id, secrets.randbits(64) or 1)
            self._end("swap", own, parent, began, time.time(), _of_release(release))

    def _end(
        self,
        name: str,
        context: SpanContext,
        parent: SpanContext | None,
        began: float,
        ended: float,
        attributes: Attributes,
        links: Sequence[SpanContext] = (),
    ) -> None:
        from opentelemetry.sdk.trace import ReadableSpan
        from opentelemetry.trace import Link, SpanKind

        span = ReadableSpan(
            name,
            context,
            parent,
            self._resource,
            attributes,
            links=[Link(item) for item in links],
            kind=SpanKind.CONSUMER if name == "score" else SpanKind.INTERNAL,
            start_time=int(began * 1e9),
            end_time=int(ended * 1e9),
        )
        self._spans.on_end(span)


class _Bearer:
    """Gives each request the token that the file holds then. (The authority's file is read by
    requests, for each connection.)"""

    def __init__(self, token: Renewed[str]) -> None:
        self._token = token

    def __call__(self, request: PreparedRequest) -> PreparedRequest:
        request.headers["authorization"] = f"Bearer {self._token.value()}"
        return request


def _context(trace: int, span: int, *, remote: bool = False) -> SpanContext:
    from opentelemetry.trace import SpanContext, TraceFlags

    return SpanContext(trace, span, remote, TraceFlags(TraceFlags.SAMPLED))


def _remote(parent: TraceParent) -> SpanContext:
    return _context(parent.trace_id, parent.span_id, remote=True)


def _repair(plan: str) -> SpanContext:
    return _context(trace_id("repair", plan), span_id("repair", plan))


def _release(plan: str, release: Release) -> SpanContext:
    return _context(trace_id("repair", plan), span_id("release", release.digest))


def _of_release(release: Release) -> dict[str, Any]:
    return {"ares.model": release.model, "ares.release.digest": release.digest}


def open_tracing(settings: TracingSettings, service: str) -> Tracing | None:
    """None where no collector is named. Raises SettingsError."""
    return None if settings.endpoint is None else Tracing(settings, service)
