"""Pages of coupled failures: which there are, why the reward model liked one, what they share."""

from __future__ import annotations

from typing import Final

from starlette.responses import Response

from ares_stream.console.web import Call, WrongError

SHOWN: Final = 50
SOUGHT: Final = 40
"""Failures of a search for causes: each costs some hundred runs of the reward model."""
REFRESH_SECONDS: Final = 2


async def failures(call: Call) -> Response:
    """The newest failures, and what the latest search for causes found."""
    search = call.desk.outside.cause_search
    rows = call.desk.newest_failures(SHOWN)
    response = call.page("failures", rows=rows, search=search, sought=SOUGHT,
                         total=len(call.desk.failures))  # fmt: skip
    if search is not None and search.is_running:
        response.headers["refresh"] = str(REFRESH_SECONDS)
    return response


async def seek(call: Call) -> Response:
    """Begin a search among the newest failures. Its page shows words of their texts, so the log
    is told who asked."""
    rows = call.desk.newest_failures(SOUGHT)
    if not rows:
        raise WrongError(409, "there are no failures yet")
    call.desk.outside.seek_causes(rows)
    call.site.told("causes sought", {"failures": str(len(rows)), "by": call.person.name})
    return call.see("/failures")


async def failure(call: Call) -> Response:
    """One failure; its text only where it was asked for, which is told to the log."""
    found = call.desk.failures.get(call.request.path_params["id"])
    if found is None:
        raise WrongError(404, "no such failure among the latest")
    text = why = None
    if call.request.query_params.get("text") == "1":
        text, why = await call.opened(found)
    return call.page("failure", item=found, text=text, why=why)
