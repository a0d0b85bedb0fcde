"""A secret that this process has read is in no error, log line or answer about readiness."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from ares_stream import errors
from ares_stream.errors import (
    TargetError,
    masked,
    remember_secret,
    remember_secrets_of,
)
from ares_stream.files import read_secret
from ares_stream.services import logs
from ares_stream.services.health import health_app


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(errors, "_SECRETS", set())


def test_an_error_that_quotes_a_secret_does_not_show_it(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("open sesame\n")
    assert read_secret("x.token_file", file).get_secret_value() == "open sesame"
    error = TargetError("it said: Bearer open sesame")
    assert str(error) == "it said: Bearer ***"
    assert f"{error}" == "it said: Bearer ***"


@given(
    secret=st.text(st.characters(exclude_characters="*"), min_size=errors.LEAST_MASKED, max_size=20)
)
def test_whatever_a_secret_holds_it_is_masked_plain_and_as_json(secret: str) -> None:
    errors._SECRETS.clear()
    remember_secret(secret)
    assert masked(secret) == "***"
    assert masked(json.dumps(secret)) == '"***"'


def test_of_two_secrets_the_longer_one_leaves_no_rest() -> None:
    remember_secret("abcdef", "abcdef-and-more")
    assert masked("x abcdef-and-more y") == "x *** y"


def test_what_is_too_short_to_be_a_secret_takes_nothing_out_of_messages() -> None:
    remember_secret("a", "", "the")
    assert masked("the answer") == "the answer"


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("https://user:hunter22@host/v1", "hunter22"),
        ("https://hunter22@host/v1", "hunter22"),
        ("https://user:hunter%2522@host/v1", "hunter%22"),
        ("https://host/v1?key=hunter22&x=1", "hunter22"),
        ("s3://id:hunter22@bucket/registry", "hunter22"),
    ],
)
def test_a_url_is_no_place_for_a_secret_and_is_masked_all_the_same(url: str, said: str) -> None:
    remember_secrets_of(str({"url": url, "more": 1}))
    assert said not in masked(f"{url} {said}")


async def test_readiness_and_logs_hold_none(capsys: pytest.CaptureFixture[str]) -> None:
    remember_secret('open "sesame"')
    app = health_app(
        CollectorRegistry(), lambda: 'refused open "sesame"', lambda: ['note open "sesame"']
    )
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
        text = (await client.get("/readyz")).text
    assert text == "not ready: refused ***\nnote: note ***\n"
    logs.configure(level="info")
    logs.get("scorer").info("said", error='open "sesame"')
    line = capsys.readouterr().err
    assert "sesame" not in line
    assert json.loads(line)["error"] == "***"
