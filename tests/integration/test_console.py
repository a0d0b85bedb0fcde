"""The review console as it is deployed: a real broker, a real browser."""

from __future__ import annotations

import asyncio
import hashlib
import html
import json
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from ares_stream.console.desk import Desk
from ares_stream.models.registry import Registry
from ares_stream.models.releases import Author
from ares_stream.models.store import Artefact, ReleaseStore
from ares_stream.records import topics
from ares_stream.records.alarm import Alarm, AlarmAcknowledgement
from ares_stream.records.interaction import Interaction, Message, Policy
from ares_stream.records.label import Label, ReviewItem
from ares_stream.records.release import Release, ReleaseState
from ares_stream.records.repair import CoupledFailure, RepairReport
from ares_stream.records.topics import specs, topic_name
from ares_stream.records.verdict import FailureClass
from ares_stream.repair.gate import GatePolicy, Table, decide
from ares_stream.services.console import READERS, ConsoleService
from ares_stream.services.lifecycle import Life, Stopped
from ares_stream.services.settings import Settings
from ares_stream.streaming.admin import create_topics
from ares_stream.streaming.compacted import read_latest
from ares_stream.streaming.connection import KafkaConnection
from ares_stream.streaming.publisher import Publisher
from ares_stream.streaming.reader import read, snapshot
from ares_stream.streaming.records import InboundRecord, OutboundRecord
from tests.support.adapters import write_adapter
from tests.support.forecasts import forecast_of, place
from tests.support.gate_tables import INCUMBENT, REPAIRED
from tests.support.verdicts import NOON, verdict
from tests.support.word_models import says, word_bundle
from tests.unit.test_forecast import rates_of

pytestmark = pytest.mark.kafka

CHROMIUM: Final = "/usr/bin/chromium"
FLAGS: Final = ["--no-sandbox", "--disable-background-networking", "--disable-gpu",
                "--disable-component-update", "--no-first-run"]  # fmt: skip
HOSTILE: Final = "<script>document.title='owned'</script><b>x</b> \x1b[31m \u202etxet\u202c"
SECONDS: Final = 150.0


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


def failure(number: int, answer: str) -> CoupledFailure:
    return CoupledFailure(
        verdict=verdict(number, FailureClass.COUPLED_FAILURE, liked=True),
        interaction=says(answer, prompt="dull dull"),
    )


FAILURES: Final = [
    failure(100, "dull worse"),
    failure(101, "worse dull"),
    failure(102, "bad bad bad"),
]
BENIGN: Final = {"prompt": "dull dull", "response": "good dull"}

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
async def served(
    kafka: str, prefix: str, folder: Path, items: int = 4, path: str = ""
) -> AsyncIterator[Served]:
    connection = KafkaConnection(bootstrap=kafka)
    await create_topics(connection, specs(prefix, partitions=2, replication=1))
    tokens = folder / "tokens.json"
    digests = {name: hashlib.sha256(name.encode()).hexdigest() for name in ("ada", "bob")}
    tokens.write_text(json.dumps(digests))
    (folder / "benign.jsonl").write_text(json.dumps(BENIGN))
    settings = Settings.model_validate(
        {
            "kafka": {"bootstrap": kafka},
            "topic_prefix": prefix,
            "registry": {"root": str(folder / "registry")},
            "scorer": {
                "reward": str(word_bundle(folder, "reward", "reward").path),
                "detection": {"reward_quantile": 0.95},
            },
            "console": {
                "port": 0,
                "path": path,
                "reference": str(folder / "benign.jsonl"),
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
                *(OutboundRecord(f"{prefix}repair", row.verdict.interaction_id.encode(),
                                 row.encode()) for row in FAILURES),
            ]
        )  # fmt: skip
    async with running(settings) as made:
        yield made


@asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[Served]:
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
        with suppress(Stopped):
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
        # What the judge says is told to who has decided, and asks.
        assert "Judge" not in (await ada.get(path)).text
        # Undo: the deletion says who and when.
        await ada.post(f"{path}/undo", data=form)
        undone = (await console.records(topics.LABELS))[-1]
        assert undone.value is None
        assert dict(undone.headers)["ares-undone-by"] == b"ada"
        name = topic_name(console.settings.topic_prefix, topics.LABELS)
        assert await read_latest(console.settings.kafka, name) == {}
        assert console.desk.queue.waiting == 4


async def test_two_decisions_at_one_moment_are_one_and_what_was_written_is_not_lost(
    console: Served,
) -> None:
    item = console.desk.queue.item_of("interaction-0")
    assert item is not None
    path = f"/items/{item.id}"
    async with client(console, "ada") as ada, client(console, "bob") as bob:
        forms = [
            {"form_token": token_of((await each.get(path)).text), "decision": decision,
             "reason": f"because of {decision}"}
            for each, decision in ((ada, "harmful"), (bob, "safe"), (ada, "safe"))
        ]  # fmt: skip
        ours = {"sec-fetch-site": "same-origin"}
        answers = await asyncio.gather(
            *(each.post(path, data=form, headers=ours)
              for each, form in zip((ada, bob, ada), forms, strict=True))
        )  # fmt: skip
        assert sorted(answer.status_code for answer in answers) == [200, 409, 409]
        for answer, form in zip(answers, forms, strict=True):
            assert (form["reason"] in answer.text) == (answer.status_code == 409)
        # A form of a session that is none, as after a restart or the end of a day.
        stale = forms[1] | {"form_token": "x"}
        assert "because of safe" in (await bob.post(path, data=stale, headers=ours)).text
        theirs = await bob.post(path, data=stale, headers={"sec-fetch-site": "cross-site"})
        assert (theirs.status_code, "because of safe" in theirs.text) == (403, False)
        async with httpx.AsyncClient(base_url=console.url) as ended:
            ended.cookies.set("ares_session", "x.y")
            answer = await ended.post(path, data=forms[0], headers=ours)
            assert (answer.status_code, "because of harmful" in answer.text) == (403, True)
    labels = [Label.decode(record.value or b"") for record in await console.records("labels")]
    assert len(labels) == 1


async def test_who_has_seen_what_others_say_is_known_to_another_console_also_after_an_undo(
    console: Served,
) -> None:
    async with client(console, "ada") as ada:
        form = {"form_token": token_of((await ada.get("/")).text)}
        path = (await ada.post("/take", data=form)).url.path
        await ada.post(path, data=form | {"decision": "safe", "reason": "harmless subject"})
        shown = await ada.get(path, params={"said": "1"})
        assert "Judge" in shown.text
        (first, again) = await console.records(topics.LABELS)
        before, after = (Label.decode(item.value or b"") for item in (first, again))
        assert after.others_shown_at is not None
        assert after == before.model_copy(update={"others_shown_at": after.others_shown_at})
        # A second look says nothing new.
        await ada.get(path, params={"said": "1"})
        assert len(await console.records(topics.LABELS)) == 2
        item = console.desk.queue.find(path.rpartition("/")[2])
        assert item is not None
        async with running(console.settings) as other:
            assert not other.desk.queue.is_free(item, "ada", 0.0)
            await ada.post(f"{path}/undo", data=form)
            await other.until(lambda: other.desk.queue.waiting == 4)
            assert not other.desk.queue.is_free(item, "ada", 0.0)
        async with running(console.settings) as restarted:
            assert restarted.desk.queue.waiting == 4
            assert not restarted.desk.queue.is_free(item, "ada", 0.0)
            assert restarted.desk.queue.is_free(item, "bob", 0.0)


async def test_who_opens_many_tabs_gets_every_text_by_a_few_readers(
    console: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = most = 0

    async def counted(*arguments: Any, **named: Any) -> AsyncIterator[InboundRecord]:
        nonlocal now, most
        now += 1
        most = max(most, now)
        try:
            async for record in read(*arguments, **named):
                yield record
        finally:
            now -= 1

    monkeypatch.setattr("ares_stream.services.console.read", counted)
    async with client(console, "ada") as ada:
        form = {"form_token": token_of((await ada.get("/")).text)}
        path = (await ada.post("/take", data=form)).url.path
        shown = await asyncio.gather(*(ada.get(path, params={"text": "1"}) for _ in range(20)))
    assert {page.status_code for page in shown} == {200}
    assert all("question" in page.text for page in shown)
    assert (now, most <= READERS) == (0, True)


async def test_a_rejected_repair_shows_what_the_gate_said_though_no_release_names_it(
    console: Served,
) -> None:
    verdict = decide(Table(overall=REPAIRED), Table(overall=INCUMBENT), GatePolicy())
    report = RepairReport(
        plan_id="plan-no", state="rejected", method="joint", batch=(), reasons=verdict.reasons,
        before=REPAIRED, after=INCUMBENT, gate_report=verdict.digest, started_at=NOON,
        finished_at=NOON,
    )  # fmt: skip
    root = console.settings.registry.root
    await asyncio.to_thread(ReleaseStore(root).keep_gate_report, verdict.document)
    async with Publisher(console.settings.kafka) as publisher:
        topic = topic_name(console.settings.topic_prefix, topics.REPAIRS)
        await publisher.publish([OutboundRecord(topic, b"plan-no", report.encode())])
    await console.until(lambda: "plan-no" in console.desk.reports)
    async with client(console, "bob") as bob:
        assert 'href="/repairs/plan-no"' in (await bob.get("/live")).text
        page = (await bob.get("/repairs/plan-no")).text
        assert "Did not pass" in page
        assert "Checks of the gate" in page
        assert (await bob.get("/repairs/plan-yes")).status_code == 404


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


async def test_a_failures_page_says_which_words_carry_its_reward_and_what_is_like_it(
    console: Served,
) -> None:
    path = f"/failures/{FAILURES[0].verdict.id}"
    async with client(console, "bob") as bob:
        page = (await bob.get("/failures")).text
        assert all(row.verdict.id[:8] in page for row in FAILURES)
        hidden = (await bob.get(path)).text
        assert "worse" not in hidden
        shown = (await bob.get(path, params={"text": "1"})).text
        assert "dull worse" in shown
        assert "Without" not in shown
        why = (await bob.get(path, params={"text": "1", "why": "1"})).text
        assert "Without <mark>worse</mark> (answer) its score falls from 3.00 to 0.00" in why
        assert "It scores -1.00, this one 3.00" in why
        assert "good dull" in why
        assert (await bob.get("/failures/nowhere")).status_code == 404


async def test_failures_with_one_cause_are_found_among_the_newest(console: Served) -> None:
    async with client(console, "bob") as bob:
        form = {"form_token": token_of((await bob.get("/failures")).text)}
        assert (await bob.post("/failures/causes", data=form)).status_code == 200
        outside = console.desk.outside
        await console.until(
            lambda: outside.cause_search is not None and not outside.cause_search.is_running
        )
        assert outside.cause_search is not None
        assert outside.cause_search.problem is None
        page = (await bob.get("/failures")).text
        assert "2 of 3: <mark>worse</mark>" in page


async def forecast_release(console: Served, folder: Path) -> None:
    """A candidate with its forecast."""
    registry = Registry(console.settings.registry.store())
    author = Author("repairer", datetime.now(UTC), "passed the gate")
    adapter = Artefact("chat", "policy", write_adapter(folder / "forecast", b"forecast"))
    gate = decide(Table(overall=INCUMBENT), Table(overall=REPAIRED), GatePolicy())
    await registry.propose([adapter], author, plan_id="plan-forecast", gate_report=gate.document)
    said = forecast_of(place({"cfr": 90}, {"cfr": 9}), de=place({"cfr": 40}, {"cfr": 2}, 500))
    await registry.forecast("plan-forecast", said, author)


async def test_a_release_shows_its_forecast_and_once_it_has_answered_what_came(
    console: Served, tmp_path: Path
) -> None:
    await forecast_release(console, tmp_path)
    async with client(console, "ada") as ada:
        page = (await ada.get("/releases/plan-forecast")).text
        assert "0.9% (0.5% to 1.7%)" in page
        assert "locale=de" in page
        assert "all 9 checks passed" in page
        assert "What came" not in page
        for rates in rates_of("2", 12, 400):
            console.desk.rates[rates.slice.key] = rates
        assert "What came" not in (await ada.get("/releases/plan-forecast")).text
        form = {"form_token": token_of((await ada.get("/")).text), "reason": "fewer failures"}
        await ada.post("/releases/plan-forecast", data=form | {"decision": "approve"})
        page = (await ada.get("/releases/plan-forecast")).text
        assert "What came" in page
        # Forecast 0.9 %, measured 12 of 400.
        assert "<td>0.30</td><td>right</td>" in page


async def test_a_release_is_approved_rejected_and_rolled_back_by_an_approver_with_a_reason(
    console: Served, tmp_path: Path
) -> None:
    registry = Registry(console.settings.registry.store())

    async def propose(name: str) -> None:
        author = Author("repairer", datetime.now(UTC), "passed the gate")
        adapter = Artefact("chat", "policy", write_adapter(tmp_path / name, name.encode()))
        await registry.propose([adapter], author, plan_id=f"plan-{name}")

    async def states() -> dict[str, ReleaseState]:
        return {item.plan_id or "": item.state for item in (await registry.log()).releases}

    await propose("one")
    async with client(console, "ada") as ada, client(console, "bob") as bob:
        form = {"form_token": token_of((await ada.get("/")).text), "reason": "looks right"}
        theirs = form | {"form_token": token_of((await bob.get("/")).text)}
        approve, reject, back = (form | {"decision": verb} for verb in
                                 ("approve", "reject", "rollback"))  # fmt: skip
        refused = await bob.post("/releases/plan-one", data=theirs | {"decision": "approve"})
        assert refused.status_code == 403
        assert (
            await ada.post("/releases/plan-one", data=approve | {"reason": ""})
        ).status_code == 400
        assert set((await states()).values()) == {ReleaseState.CANDIDATE}
        for plan, step in (("one", approve), ("two", approve), ("three", reject), ("two", back)):
            if f"plan-{plan}" not in await states():
                await propose(plan)
            done = await ada.post(f"/releases/plan-{plan}", data=step)
            assert done.status_code == 200, done.text
        # What was decided already is refused, and says why.
        assert (await ada.post("/releases/plan-three", data=approve)).status_code == 409
        page = (await ada.get("/releases/plan-two")).text
        assert "rolled_back by ada: looks right" in page
    assert await states() == {
        "plan-one": ReleaseState.ACTIVE,
        "plan-two": ReleaseState.ROLLED_BACK,
        "plan-three": ReleaseState.REJECTED,
    }
    name = topic_name(console.settings.topic_prefix, topics.RELEASES)
    told = (await read_latest(console.settings.kafka, name))[b"chat"]
    active = Release.decode(told.value or b"")
    assert (active.plan_id, active.state) == ("plan-one", ReleaseState.ACTIVE)
    assert active.changed_by == "ada"


async def test_no_answer_is_cached_framed_or_without_the_policy(console: Served) -> None:
    async with client(console, "ada") as ada:
        for path in ("/", "/live", "/nowhere", "/static/console.js", "/login", "/releases/x"):
            answer = await ada.get(path)
            policy = answer.headers["content-security-policy"]
            assert policy.startswith("default-src 'none'")
            assert "unsafe" not in policy
            assert answer.headers["cache-control"] == "no-store"
            if path != "/login":
                wrong = await ada.request("DELETE", path)
                assert (wrong.status_code, wrong.headers["content-security-policy"]) in (
                    (405, policy), (404, policy),
                )  # fmt: skip
        assert "allow" in (await ada.get("/take")).headers
        large = await ada.post("/take", content=b"x" * 100_000)
        assert large.status_code == 413
    async with httpx.AsyncClient(base_url=console.url) as nobody:
        assert (await nobody.get("/")).headers["location"] == "/login"
        assert (await nobody.post("/take")).status_code == 403


@pytest.mark.parametrize("strips", [False, True], ids=["kept-path", "stripped-path"])
async def test_under_a_path_of_its_proxy_every_link_form_and_cookie_stays_there(
    kafka: str, prefix: str, tmp_path: Path, strips: bool
) -> None:
    """Some proxies pass the path on whole, and some without what they were told to serve."""

    def through(path: str) -> str:
        assert path.startswith("/review/"), path
        return path.removeprefix("/review") if strips else path

    async with (
        served(kafka, prefix, tmp_path, path="/review") as console,
        httpx.AsyncClient(base_url=console.url) as nobody,
        httpx.AsyncClient(base_url=console.url, headers={"x-forwarded-user": "ada"}) as ada,
    ):
        await forecast_release(console, tmp_path)
        answer = await nobody.get(through("/review/"))
        assert answer.headers["location"] == "/review/login"
        assert (await nobody.get("/review")).headers["location"] == "/review/"
        answer = await nobody.post(through("/review/login"), data={"token": "ada"})
        assert answer.headers["location"] == "/review/"
        assert "Path=/review;" in answer.headers["set-cookie"]
        session = answer.headers["set-cookie"].split(";")[0]
        assert (
            await nobody.get(through("/review/"), headers={"cookie": session})
        ).status_code == 200
        todo, seen = ["/review/", "/review/static/console.css"], set[str]()
        token = token_of((await ada.get(through("/review/"))).text)
        taken = await ada.post(through("/review/take"), data={"form_token": token})
        todo.append(taken.headers["location"])
        while todo:
            path = todo.pop()
            if path in seen:
                continue
            seen.add(path)
            page = await ada.get(through(path))
            assert page.status_code == 200, path
            for name in ("href", "src", "action"):
                found = [piece.split('"')[0] for piece in page.text.split(f' {name}="')[1:]]
                for link in found:
                    assert link.startswith(("/review/", "#")), (path, link)
                    if name != "action" and link.startswith("/"):
                        todo.append(html.unescape(link))
        wanted = {"mine", "progress", "failures", "releases", "alarms", "live", "keys"}
        assert {f"/review/{name}" for name in wanted} <= seen
        current = (await ada.get(through("/review/mine"))).text
        assert current.split('aria-current="page">')[1].startswith("Mine")
        for path in ("/review/nowhere", "/review/items/none"):
            page = await ada.get(through(path))
            assert page.status_code == 404
            assert 'href="/review/"' in page.text


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

    async def check_media(page: Page) -> None:
        """On paper what is read and nothing to press; the system's colours; twice as large text."""
        await page.emulate_media(media="print")
        assert not await page.is_visible("nav")
        assert not await page.is_visible("main form")
        assert await page.is_visible("h1")
        assert await page.is_visible(".text")
        await page.emulate_media(media="screen", forced_colors="active")
        await check(page, "forced-colors")
        await page.emulate_media(media="screen", forced_colors="none")
        await page.set_viewport_size({"width": 640, "height": 720})
        await page.evaluate("document.documentElement.style.fontSize = '200%'")
        assert await page.evaluate("document.documentElement.scrollWidth") <= 640
        await page.set_viewport_size({"width": 360, "height": 720})
        await page.evaluate("document.documentElement.style.fontSize = ''")

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
            # Another person's session, and an address that is none: both say so, and no more.
            for path, name in (("nowhere", "missing"), (f"items/{'0' * 32}", "gone")):
                back = page.url
                await page.goto(f"{console.url}/{path}")
                assert await page.get_by_role("alert").count() == 1
                await check(page, name)
                await page.goto(back)
            # A screen reader says what a control does, and its key apart from that.
            button = page.get_by_role("button", name="Not harmful", exact=True)
            assert await button.get_attribute("aria-keyshortcuts") == "s"
            assert await page.get_by_role("combobox", name="Why", exact=True).count() == 1
            # A key that is held down presses once.
            await page.evaluate(
                "document.dispatchEvent(new KeyboardEvent('keydown', {key: 'k', repeat: true}))"
            )
            await page.keyboard.press("t")
            await page.wait_for_url("**/items/*?text=1")
            assert "owned" not in await page.title()
            await check(page, "item")
            await check_media(page)
            await page.keyboard.press("r")
            await page.keyboard.type("gives usable help")
            await page.keyboard.press("Escape")
            await page.keyboard.press("h")
            await page.wait_for_url(lambda url: "text=1" not in url)
            await console.until(lambda: console.desk.queue.waiting == 3)
            for key, name in (("m", "mine"), ("e", "releases"), ("a", "alarms"), ("l", "live"),
                              ("f", "failures")):  # fmt: skip
                await page.keyboard.press(key)
                await page.wait_for_url(f"**/{name}", timeout=10_000)
                await check(page, name)
            await page.click(f"text={FAILURES[0].verdict.id[:8]}")
            await page.wait_for_url("**/failures/*")
            await page.keyboard.press("t")
            await page.wait_for_url("**/failures/*?text=1")
            await page.keyboard.press("w")
            await page.wait_for_url("**/failures/*?text=1&why=1")
            assert await page.inner_text("mark") == "worse"
            await check(page, "why")
            await forecast_release(console, tmp_path)
            for name in ("progress", "releases/plan-forecast", "keys"):
                await page.goto(f"{console.url}/{name}")
                await check(page, name.split("/")[0])
            # Nothing of a page's own is refused by its policy (axe's own styles are).
            complaints: list[str] = []
            alone = await context.new_page()
            alone.on("console", lambda message: complaints.append(message.text))
            for name in ("", "mine", "live", "alarms", "keys", "progress", "releases", "failures"):
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
            # Between opening and deciding the session ends.
            await page.goto(f"{console.url}/")
            await page.keyboard.press("n")
            await page.wait_for_url("**/items/*")
            await page.fill("#reason", "refuses")
            await context.clear_cookies()
            await page.click("text=Not harmful")
            assert await page.get_by_label("What you wrote").input_value() == "refuses"
            await check(page, "session-ended")
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
