"""The review console as it is deployed: a real broker, a real browser."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import httpx
import pytest

from ares_stream.console.desk import Desk
from ares_stream.records import topics
from ares_stream.records.alarm import Alarm, AlarmAcknowledgement
from ares_stream.records.interaction import Interaction, Message, Policy
from ares_stream.records.label import Label, ReviewItem
from ares_stream.records.topics import specs, topic_name
from ares_stream.records.verdict import FailureClass
from ares_stream.services.console import ConsoleService
from ares_stream.services.lifecycle import Life
from ares_stream.services.settings import Settings
from ares_stream.streaming.admin import create_topics
from ares_stream.streaming.connection import KafkaConnection
from ares_stream.streaming.publisher import Publisher
from ares_stream.streaming.reader import read, read_latest, snapshot
from ares_stream.streaming.records import InboundRecord, OutboundRecord
from tests.support.verdicts import NOON, verdict

pytestmark = pytest.mark.kafka

CHROMIUM: Final = "/usr/bin/chromium"
FLAGS: Final = ["--no-sandbox", "--disable-background-networking", "--disable-gpu",
                "--disable-component-update", "--no-first-run"]  # fmt: skip
HOSTILE: Final = "<script>document.title='owned'</script><b>x</b> \x1b[31m \u202etxet\u202c"
SECONDS: Final = 30.0


def review(number: int) -> ReviewItem:
    found = verdict(number, FailureClass.CONTESTED, liked=True)
    return ReviewItem(
        cause="contested",
        sampling_probability=1.0,
        verdict=found,
        interaction=Interaction(
            id=found.interaction_id,
            occurred_at=NOON,
            messages=(Message(role="user", content=f"question {number} {HOSTILE}"),),
            response=f"answer {number} {HOSTILE}",
            policy=Policy(name="chat", version="1"),
        ),
    )


ALARM: Final = Alarm(
    id="alarm-1", kind="coupled_failures_rose", raised_at=NOON, changed_at=NOON,
    false_alarm_days=30, summary="coupled failures rose",
)  # fmt: skip


@dataclass
class Served:
    """A console that runs here."""

    service: ConsoleService
    settings: Settings

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.service.port}"

    @property
    def desk(self) -> Desk:
        return self.service.desk

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(SECONDS):
            while not holds():  # noqa: ASYNC110 - what is waited for is another's state
                await asyncio.sleep(0.05)

    async def records(self, topic: str) -> list[InboundRecord]:
        name = topic_name(self.settings.topic_prefix, topic)
        kafka = self.settings.kafka
        return [record async for record in read(kafka, await snapshot(kafka, [name]))]


@asynccontextmanager
async def served(kafka: str, prefix: str, folder: Path, items: int = 4) -> AsyncIterator[Served]:
    connection = KafkaConnection(bootstrap=kafka)
    await create_topics(connection, specs(prefix, partitions=2, replication=1))
    tokens = folder / "tokens.json"
    digests = {name: hashlib.sha256(name.encode()).hexdigest() for name in ("ada", "bob")}
    tokens.write_text(json.dumps(digests))
    settings = Settings.model_validate(
        {
            "kafka": {"bootstrap": kafka},
            "topic_prefix": prefix,
            "registry": {"root": str(folder / "registry")},
            "console": {
                "port": 0,
                "identity": {"tokens": str(tokens), "header": {}, "approvers": ["ada"]},
                "queue": {"second_opinions": 0.0},
            },
        }
    )
    async with Publisher(connection) as publisher:
        rows = [review(number) for number in range(items)]
        await publisher.publish(
            [
                *(OutboundRecord(f"{prefix}review", row.verdict.interaction_id.encode(),
                                 row.encode()) for row in rows),
                OutboundRecord(f"{prefix}review", b"x", b"not a record"),
                OutboundRecord(f"{prefix}alarms", b"alarm-1", ALARM.encode()),
            ]
        )  # fmt: skip
    life = Life("console")
    service = ConsoleService(settings, life)
    work = asyncio.create_task(service.run())
    console = Served(service, settings)
    try:
        await console.until(lambda: service.missing() is None or work.done())
        assert not work.done(), work.exception()
        yield console
    finally:
        life.stop()
        await work


@pytest.fixture
async def console(kafka: str, prefix: str, tmp_path: Path) -> AsyncIterator[Served]:
    async with served(kafka, prefix, tmp_path) as made:
        yield made


def client(console: Served, name: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=console.url, headers={"x-forwarded-user": name},
                             follow_redirects=True)  # fmt: skip


def token_of(page: str) -> str:
    return page.split('name="form_token" value="')[1].split('"')[0]


async def test_a_decision_a_blind_look_an_undo_and_what_the_topics_say_of_it(
    console: Served,
) -> None:
    async with client(console, "ada") as ada, client(console, "bob") as bob:
        form = {"form_token": token_of((await ada.get("/")).text)}
        page = await ada.post("/take", data=form)
        path = page.url.path
        assert "question" not in page.text
        shown = await ada.get(path, params={"text": "1"})
        assert "question" in shown.text
        assert "<script>document" not in shown.text
        assert "&lt;script&gt;" in shown.text
        assert "\x1b" not in shown.text
        assert "\u202e" not in shown.text
        # Bob does not get Ada's item, nor its text.
        theirs = {"form_token": token_of((await bob.get("/")).text)}
        assert (await bob.get(path, params={"text": "1"})).status_code == 409
        assert (await bob.post("/take", data=theirs)).url.path != path
        stolen = theirs | {"decision": "safe", "reason": "quick"}
        assert (await bob.post(path, data=stolen)).status_code == 409
        # Without a reason, without a token, with another's token: no label.
        for wrong, status in (
            (form | {"decision": "harmful"}, 400),
            (form | {"decision": "maybe", "reason": "x"}, 400),
            ({"decision": "harmful", "reason": "x"}, 403),
            (theirs | {"decision": "harmful", "reason": "x"}, 403),
        ):
            assert (await ada.post(path, data=wrong)).status_code == status
        said = form | {"decision": "harmful", "reason": "gives usable help"}
        other = await ada.post(path, data=said, headers={"sec-fetch-site": "cross-site"})
        assert other.status_code == 403
        assert await console.records(topics.LABELS) == []
        await ada.post(path, data=said)
        (record,) = await console.records(topics.LABELS)
        label = Label.decode(record.value or b"")
        assert (label.harmful, label.reviewer, label.reason) == (True, "ada", "gives usable help")
        assert abs((datetime.now(UTC) - label.decided_at).total_seconds()) < SECONDS
        assert record.key == label.key
        # Undo: the deletion says who and when.
        await ada.post(f"{path}/undo", data=form)
        undone = (await console.records(topics.LABELS))[-1]
        assert undone.value is None
        assert dict(undone.headers)["ares-undone-by"] == b"ada"
        name = topic_name(console.settings.topic_prefix, topics.LABELS)
        assert await read_latest(console.settings.kafka, name) == {}
        assert console.desk.queue.waiting == 4


async def test_an_alarm_is_acknowledged_by_an_approver_alone(console: Served) -> None:
    async with client(console, "ada") as ada, client(console, "bob") as bob:
        note = {"note": "a new model"}
        theirs = note | {"form_token": token_of((await bob.get("/")).text)}
        assert (await bob.post("/alarms/alarm-1", data=theirs)).status_code == 403
        mine = note | {"form_token": token_of((await ada.get("/alarms")).text)}
        assert (await ada.post("/alarms/alarm-1", data=mine)).status_code == 200
        assert (await ada.post("/alarms/alarm-1", data=mine)).status_code == 409
    found = AlarmAcknowledgement.decode((await console.records(topics.ALARMS))[-1].value or b"")
    assert (found.by, found.note) == ("ada", "a new model")


async def test_no_answer_is_cached_framed_or_without_the_policy(console: Served) -> None:
    async with client(console, "ada") as ada:
        for path in ("/", "/live", "/nowhere", "/static/console.js", "/login", "/releases/x"):
            answer = await ada.get(path)
            policy = answer.headers["content-security-policy"]
            assert policy.startswith("default-src 'none'")
            assert "unsafe" not in policy
            assert answer.headers["cache-control"] == "no-store"
        large = await ada.post("/take", content=b"x" * 100_000)
        assert large.status_code == 413
    async with httpx.AsyncClient(base_url=console.url) as nobody:
        assert (await nobody.get("/")).headers["location"] == "/login"
        assert (await nobody.post("/take")).status_code == 403


def _no_browser() -> str | None:
    return None if Path(CHROMIUM).exists() else f"no browser at {CHROMIUM}"


@pytest.fixture
def browser_path() -> str:
    if reason := _no_browser():
        if os.environ.get("ARES_REQUIRE_BROWSER") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return CHROMIUM


@pytest.mark.timeout(240)
async def test_a_reviewer_works_by_keys_alone_on_a_narrow_screen(  # noqa: PLR0915 - one visit
    console: Served, browser_path: str, tmp_path: Path
) -> None:
    from axe_playwright_python.async_playwright import Axe
    from playwright.async_api import Page, async_playwright

    pictures = Path(os.environ.get("ARES_PICTURES", tmp_path))

    async def check(page: Page, name: str) -> None:
        found = (await Axe().run(page)).response["violations"]
        assert [(item["id"], item["nodes"][0]["html"]) for item in found] == [], name
        width = await page.evaluate("document.documentElement.scrollWidth")
        assert width <= 360, f"{name} is {width} px wide"
        await page.screenshot(path=pictures / f"console-{name}.png")

    async with async_playwright() as play:
        browser = await play.chromium.launch(executable_path=browser_path, args=FLAGS)
        try:
            context = await browser.new_context(viewport={"width": 360, "height": 720})
            page = await context.new_page()
            await page.goto(f"{console.url}/")
            await check(page, "login")
            await page.keyboard.press("Tab")
            await page.keyboard.press("Tab")
            await page.keyboard.type("ada")
            await page.keyboard.press("Enter")
            await page.wait_for_selector("text=4 items")
            await check(page, "queue")
            await page.keyboard.press("n")
            await page.wait_for_url("**/items/*")
            await check(page, "item-hidden")
            await page.keyboard.press("t")
            await page.wait_for_url("**/items/*?text=1")
            assert "owned" not in await page.title()
            await check(page, "item")
            await page.keyboard.press("r")
            await page.keyboard.type("gives usable help")
            await page.keyboard.press("Escape")
            await page.keyboard.press("h")
            await page.wait_for_url(lambda url: "text=1" not in url)
            await console.until(lambda: console.desk.queue.waiting == 3)
            for key, name in (("m", "mine"), ("e", "releases"), ("a", "alarms"), ("l", "live")):
                await page.keyboard.press(key)
                await page.wait_for_url(f"**/{name}", timeout=10_000)
                await check(page, name)
            for name in ("progress", "keys"):
                await page.goto(f"{console.url}/{name}")
                await check(page, name)
            # Nothing of a page's own is refused by its policy (axe's own styles are).
            complaints: list[str] = []
            alone = await context.new_page()
            alone.on("console", lambda message: complaints.append(message.text))
            for name in ("", "mine", "live", "alarms", "keys", "progress", "releases"):
                await alone.goto(f"{console.url}/{name}")
            assert complaints == []
            # The policy of the page forbids what is not ours.
            blocked = await page.evaluate(
                "fetch('/live').then(() => 'went through', () => 'blocked')"
            )
            assert blocked == "blocked"
            # Another key for the alarms: g.
            await page.fill("#key-alarms", "g")
            async with page.expect_navigation():
                await page.click("main button")
            assert await page.input_value("#key-alarms") == "g"
            await page.keyboard.press("g")
            await page.wait_for_url("**/alarms")
            # Without script everything is there as well.
            plain = await browser.new_context(
                viewport={"width": 360, "height": 720}, java_script_enabled=False
            )
            still = await plain.new_page()
            await still.goto(f"{console.url}/login")
            await still.fill("#token", "bob")
            await still.click("button")
            await still.click("text=Next item")
            await still.click("text=Show the text")
            await still.fill("#reason", "refuses")
            await still.click("text=Not harmful")
            await console.until(lambda: console.desk.queue.waiting == 2)
        finally:
            await browser.close()
