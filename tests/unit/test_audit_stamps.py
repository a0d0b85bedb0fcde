"""Time stamps by a real authority (OpenSSL): asked for, checked, and what does not hold."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from ares_stream.audit.stamps import AT_ONCE, MAX_TOKEN_BYTES, StampAuthority, Stamps
from ares_stream.errors import IntegrityError, SettingsError, StampError
from tests.support.stamp_authority import StampServer

NOTE = "notary.example/ares\n5\nroot\n\n\u2014 notary.example/ares AAAA\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> StampServer:
    return StampServer(tmp_path_factory.mktemp("stamps") / "authority")


async def test_a_stamp_says_when_the_note_stood_and_is_of_that_note_alone(
    server: StampServer,
) -> None:
    async with server.served() as url:
        token = await StampAuthority(url, server.roots, 20.0).stamp(NOTE)
    stamps = Stamps.of(server.roots)
    made = stamps.checked(NOTE, token)
    assert abs(made - datetime.now(UTC)) < timedelta(minutes=1)
    for note, raw in (
        (NOTE + "x", token),
        (NOTE, token[:-1]),
        (NOTE, b""),
        (NOTE, b"\x30\x03\x02\x01\x00"),
        (NOTE, bytes([*token[:-20], token[-20] ^ 1, *token[-19:]])),
    ):
        with pytest.raises(IntegrityError, match="does not hold"):
            stamps.checked(note, raw)


async def test_another_authority_or_another_answer_does_not_hold(
    server: StampServer, tmp_path: Path
) -> None:
    other = StampServer(tmp_path / "other")
    question, nonce = Stamps.of(server.roots).request(NOTE)
    token = server.reply(question)
    assert Stamps.of(server.roots).checked(NOTE, token, nonce)
    with pytest.raises(IntegrityError):
        Stamps.of(server.roots).checked(NOTE, token, nonce + 1)
    with pytest.raises(IntegrityError):
        Stamps.of(other.roots).checked(NOTE, token)


async def test_an_authority_that_does_not_answer_is_told_from_one_that_answers_wrongly(
    server: StampServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with server.served() as url:
        authority = StampAuthority(url, server.roots, 20.0)
        monkeypatch.setattr(server, "fails", True)
        with pytest.raises(StampError, match="answered 503"):
            await authority.stamp(NOTE)
        monkeypatch.setattr(server, "fails", False)
        monkeypatch.setattr(server, "reply", lambda question: b"x" * (MAX_TOKEN_BYTES + 1))
        with pytest.raises(StampError, match="more than"):
            await authority.stamp(NOTE)
        monkeypatch.setattr(server, "reply", lambda question: b"rubbish")
        with pytest.raises(IntegrityError):
            await authority.stamp(NOTE)
    with pytest.raises(StampError, match="cannot be reached"):
        await authority.stamp(NOTE)


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


def heads(count: int) -> list[str]:
    return [f"{number}\n" for number in range(count)]


async def test_an_authority_that_does_not_answer_holds_all_heads_up_for_one_time_out(
    tmp_path: Path,
) -> None:
    stalled = StampServer(tmp_path / "stalled")
    stalled.gate = asyncio.Event()
    async with stalled.served() as url:
        found = await StampAuthority(url, stalled.roots, 0.3).stamp_all(heads(3 * AT_ONCE))
        stalled.gate.set()
    assert {str(item) for item in found} == {"no answer within 0 s"}
    assert stalled.asked <= AT_ONCE


async def test_many_heads_are_stamped_a_few_at_a_time(
    server: StampServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes, gate = heads(3 * AT_ONCE), asyncio.Event()
    monkeypatch.setattr(server, "gate", gate)
    monkeypatch.setattr(server, "most", 0)
    stamps = Stamps.of(server.roots)
    async with server.served() as url:
        asking = asyncio.create_task(StampAuthority(url, server.roots, 60.0).stamp_all(notes))
        await until(lambda: server.inside == AT_ONCE)
        gate.set()
        for note, token in zip(notes, await asking, strict=True):
            assert isinstance(token, bytes)
            assert stamps.checked(note, token)
    assert server.most == AT_ONCE


async def test_after_a_refusal_no_further_stamp_is_asked_for(
    server: StampServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "fails", True)
    monkeypatch.setattr(server, "asked", 0)
    async with server.served() as url:
        authority = StampAuthority(url, server.roots, 60.0)
        refused = await authority.stamp_all(heads(3 * AT_ONCE))
        assert await authority.stamp_all([]) == []
    assert all(isinstance(item, StampError) for item in refused)
    assert 0 < server.asked <= AT_ONCE
    assert "not asked for: the authority answered 503" in str(refused[-1])


def test_a_file_without_certificates_is_named(tmp_path: Path) -> None:
    (tmp_path / "roots.pem").write_text("nothing")
    with pytest.raises(SettingsError, match=r"roots\.pem: holds no certificate"):
        Stamps.of(tmp_path / "roots.pem")
