"""Pages of the reviewer: the queue, an item, one's own decisions, progress, keys."""

from __future__ import annotations

import json
from datetime import UTC, datetime

from starlette.responses import Response

from ares_stream.console.agreement import agreement
from ares_stream.console.queue import Item
from ares_stream.console.web import KEYS, KEYS_COOKIE, Call, WrongError, is_key, is_private
from ares_stream.records.label import Label

REASONS = (
    "gives usable help to do harm",
    "refuses",
    "harmless subject",
    "general knowledge, no help to do harm",
    "harmful words, harmless meaning",
)
"""Offered; any other can be written."""


async def queue(call: Call) -> Response:
    """What waits, and the way to the next item."""
    queue = call.desk.queue
    cells = sorted(queue.waiting_by_cell().items(), key=lambda item: -item[1])
    return call.page("queue", waiting=queue.waiting, cells=cells, dropped=queue.dropped)


async def take(call: Call) -> Response:
    """Give the person an item."""
    item = call.desk.queue.take(call.person.name, call.desk.clock())
    return call.see("/" if item is None else f"/items/{item.id}")


async def item(call: Call) -> Response:
    """An item; its text only where it was asked for, which is told to the log."""
    found = _found(call)
    queue = call.desk.queue
    mine = [label for label in queue.labels(found.interaction) if _is_mine(call, label)]
    free = queue.is_free(found, call.person.name, call.desk.clock())
    text = why = None
    if call.request.query_params.get("text") == "1":
        if not free and not mine:
            raise WrongError(409, "somebody else has this item, or it has all its opinions")
        text, why = await call.opened(found)
    # An opinion is blind: what the judge and others say is told to who has given theirs and asks,
    # and that one stands or is taken back, but no other takes its place.
    said = bool(mine) and call.request.query_params.get("said") == "1"
    if said and mine[0].others_shown_at is None:
        # Written before it is shown: another console, and this one after a restart, know it too.
        seen = mine[0].model_copy(update={"others_shown_at": datetime.now(UTC)})
        await call.desk.outside.label(seen)
        queue.add_label(seen.key, seen)
        call.site.told("others shown", {"verdict": found.id, "by": call.person.name})
    return call.page("item", item=found, text=text, why=why, free=free, mine=mine, said=said,
                     others=queue.labels(found.interaction) if said else mine,
                     reasons=REASONS)  # fmt: skip


async def decide(call: Call) -> Response:
    """A decision, or none: then the item goes back."""
    found = _found(call)
    queue, name = call.desk.queue, call.person.name
    decision = call.field("decision")
    if decision == "skip":
        queue.skip(found, name)
        return call.see("/")
    if decision not in ("harmful", "safe"):
        raise WrongError(400, "decision: expected harmful, safe or skip")
    reason = call.field("reason")
    if not reason:
        raise WrongError(400, "reason: is missing; say in a few words why")
    if not queue.begin(found, name, call.desk.clock()):
        raise WrongError(409, "somebody else has this item, or it has all its opinions")
    label = Label(
        interaction_id=found.interaction,
        verdict_id=found.id,
        harmful=decision == "harmful",
        reviewer=name,
        decided_at=datetime.now(UTC),
        reason=reason,
    )
    try:
        await call.desk.outside.label(label)
        queue.add_label(label.key, label)
    finally:
        queue.end(found, name)
    call.site.told("labelled", {"verdict": found.id, "by": name})
    return await take(call)


async def mine(call: Call) -> Response:
    """The person's own decisions, each to undo."""
    rows = [
        (label, call.desk.queue.item_of(label.interaction_id))
        for label in call.desk.queue.of(call.person.name)
    ]
    return call.page("mine", rows=rows)


async def undo(call: Call) -> Response:
    """Take one of one's own decisions back; the item is in the queue again."""
    found = _found(call)
    for label in call.desk.queue.labels(found.interaction):
        if _is_mine(call, label):
            await call.desk.outside.undo(label, call.person.name, datetime.now(UTC))
            call.desk.queue.remove_label(label.key)
            call.site.told("undone", {"verdict": found.id, "by": call.person.name})
            return call.see("/mine")
    raise WrongError(409, "you have no decision on this item")


async def progress(call: Call) -> Response:
    """Who has done what, how far people agree, and what their labels say of the judge."""
    queue = call.desk.queue
    return call.page(
        "progress",
        rows=queue.progress(),
        agreement=agreement(queue.opinions()),
        rates=[item for item in call.desk.rates.values() if item.figures.correction.labels],
    )


async def keys(call: Call) -> Response:
    """Which key does what; chosen anew, or none."""
    if call.request.method == "GET":
        return call.page("keys")
    chosen = {action: call.field(action, 1).lower() for action in KEYS}
    used = [key for key in chosen.values() if key]
    if not all(is_key(key) for key in used):
        raise WrongError(400, "a key is one letter or digit, or empty for none")
    if len(set(used)) != len(used):
        raise WrongError(400, "one key is given to two actions")
    response = call.see("/keys")
    response.set_cookie(
        KEYS_COOKIE, json.dumps(chosen).encode().hex(), max_age=365 * 86400, httponly=True,
        samesite="strict", secure=is_private(call.request), path=call.site.cookie_path,
    )  # fmt: skip
    return response


def _found(call: Call) -> Item:
    found = call.desk.queue.find(call.request.path_params["id"])
    if found is None:
        raise WrongError(404, "no such item; a later verdict may have taken its place")
    return found


def _is_mine(call: Call, label: Label) -> bool:
    return label.reviewer == call.person.name
