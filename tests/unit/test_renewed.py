"""Files that are renewed while a process works: what is taken, what is refused, who is told."""

from __future__ import annotations

import hashlib
import json
import os
import ssl
import weakref
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.x509 import load_pem_x509_certificate
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from ares_stream.console.identity import Identity
from ares_stream.console.policy import IdentityPolicy
from ares_stream.endpoints.client import ChatClient, EndpointPolicy
from ares_stream.errors import SettingsError, TargetError, masked
from ares_stream.files import Renewed, read_text, renewed_api_key, renewed_secret, renewed_values
from ares_stream.files import renewed as renewed_module
from ares_stream.services.renewals import RenewalMetrics, look, refusals
from ares_stream.streaming import client
from ares_stream.streaming.certificates import Certificates
from ares_stream.streaming.connection import KafkaConnection
from ares_stream.streaming.tokens import ClientCredentials, FileToken, TokenRefused
from tests.support.raw_http import Answers
from tests.support.secured import certificates


@pytest.fixture(autouse=True)
def of_this_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """What other tests of this process left is not looked at."""
    monkeypatch.setattr(renewed_module, "_living", weakref.WeakSet())


def upper(file: Path) -> Renewed[str]:
    """Of a file that is refused unless it is in capitals."""

    def make() -> str:
        text = read_text(file)
        if not text.isupper():
            raise SettingsError(f"{file}: not in capitals")
        return text

    return Renewed("x.file", [file], make)


@given(st.lists(st.text("Ab", max_size=2), min_size=1, max_size=6))
def test_in_use_is_the_last_that_was_of_use_whatever_the_files_went_through(
    tmp_path_factory: pytest.TempPathFactory, contents: list[str]
) -> None:
    file = tmp_path_factory.mktemp("renewed") / "file"
    file.write_text("FIRST")
    renewed, good, before = upper(file), "FIRST", "FIRST"
    assert renewed.value() == "FIRST"
    taken = refused = 0
    for content in contents:
        file.write_text(content)
        if content.isupper():
            taken, good = taken + (content != good), content
        elif content != before:
            refused += 1
        before = content
        assert renewed.value() == renewed.value() == renewed.current == good
        assert (renewed.refusal is None) == content.isupper()
        assert (renewed.taken, renewed.refused) == (taken, refused)


def test_where_there_was_nothing_before_a_file_of_no_use_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("small")
    renewed = upper(tmp_path / "file")
    for ask in (renewed.value, lambda: renewed.current):
        with pytest.raises(SettingsError, match="not in capitals"):
            ask()
    (tmp_path / "file").write_text("LARGE")
    assert renewed.current == "LARGE"
    assert renewed.taken == 0


def test_a_link_that_is_turned_as_kubernetes_does_is_seen(tmp_path: Path) -> None:
    for version in "AB":
        (tmp_path / version).mkdir()
        (tmp_path / version / "password").write_text(version * 8)
    (tmp_path / "..data").symlink_to("A")
    (tmp_path / "password").symlink_to("..data/password")
    renewed = renewed_secret("x.password_file", tmp_path / "password")
    (tmp_path / "..new").symlink_to("B")
    (tmp_path / "..new").rename(tmp_path / "..data")
    assert renewed.value() == "BBBBBBBB"
    assert masked("it was AAAAAAAA, it is BBBBBBBB") == "it was ***, it is ***"


def test_a_pipe_is_read_once(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.write(writer, b"from a pipe\n")
    os.close(writer)
    try:
        renewed = renewed_secret("x.password_file", Path(f"/dev/fd/{reader}"))
        assert renewed.value() == renewed.value() == "from a pipe"
    finally:
        os.close(reader)
    assert renewed.refusal is None


def write_pair(folder: Path, source: Path, *names: str) -> None:
    for name in names:
        (folder / name).write_bytes((source / name).read_bytes())


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """A folder in use, and one with what comes next."""
    used, coming = tmp_path / "used", tmp_path / "coming"
    for folder in (used, coming):
        folder.mkdir()
        certificates(folder)
    return used, coming


def of_client(folder: Path, **more: Path) -> Certificates:
    return Certificates(folder / "ca.pem", folder / "client.pem", folder / "client.key", **more)


def test_half_a_pair_leaves_the_old_one_in_use_until_it_is_whole(pair: tuple[Path, Path]) -> None:
    used, coming = pair
    found = of_client(used)
    before, valid = found.value(), found.validity
    assert valid is not None
    write_pair(used, coming, "client.pem")
    assert found.value() is before
    refusal = found.refusal or ""
    assert "kafka.certificate_file, kafka.key_file: certificates cannot" in refusal
    assert "key values mismatch" in refusal
    assert found.validity == valid
    write_pair(used, coming, "client.key")
    assert found.value() is not before
    assert found.refusal is None
    assert (found.taken, found.refused) == (1, 1)


def test_an_authority_that_is_exchanged_is_trusted_no_longer(pair: tuple[Path, Path]) -> None:
    used, coming = pair
    found = of_client(used)
    before = found.value().get_ca_certs()
    write_pair(used, coming, "ca.pem")
    after = found.value().get_ca_certs()
    assert len(before) == len(after) == 1
    assert before != after


def cut(folder: Path, name: str) -> None:
    raw = (folder / name).read_bytes()
    (folder / name).write_bytes(raw[: len(raw) // 2])


def remove(folder: Path, name: str) -> None:
    (folder / name).unlink()


def empty(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"")


@pytest.mark.parametrize("spoil", [cut, remove, empty])
@pytest.mark.parametrize("name", ["ca.pem", "client.pem", "client.key"])
def test_each_file_may_be_spoilt_for_a_while(
    pair: tuple[Path, Path], name: str, spoil: Callable[[Path, str], None]
) -> None:
    used, _ = pair
    whole = (used / name).read_bytes()
    found = of_client(used)
    before = found.value()
    spoil(used, name)
    assert found.value() is before
    field = {"ca.pem": "ca_file", "client.pem": "certificate_file", "client.key": "key_file"}[name]
    assert f"kafka.{field}" in (found.refusal or "")
    assert str(used / name) in (found.refusal or "")
    (used / name).write_bytes(whole)
    assert found.value() is before
    assert found.refusal is None


def test_a_key_with_a_password_asks_nobody_at_the_terminal(pair: tuple[Path, Path]) -> None:
    used, _ = pair
    key = serialization.load_pem_private_key((used / "client.key").read_bytes(), None)
    (used / "client.key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"opensesame"),
        )
    )
    with pytest.raises(SettingsError, match=r"kafka\.key_file: certificates cannot be loaded"):
        of_client(used).value()
    (used / "secret").write_text("opensesame\n")
    assert of_client(used, key_password_file=used / "secret").value()


async def test_every_connection_is_made_with_what_the_files_hold_then(
    pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    used, coming = pair
    (used / "password").write_text("before\n")
    connection = KafkaConnection(
        bootstrap="kafka:9093",
        protocol="SASL_SSL",
        username="ares",
        password_file=used / "password",
        ca_file=used / "ca.pem",
    )
    made: list[client.Connection] = []

    async def no_network(self: client.Connection) -> None:
        made.append(self)

    monkeypatch.setattr(client.Connection, "connect", no_network)
    arguments = connection.client_arguments()
    for name in ("bootstrap_servers", "request_timeout_ms"):
        arguments.pop(name)
    for content in ("before\n", "after\n", ""):
        (used / "password").write_text(content)
        await client.create_connection("kafka", 9093, **arguments)
        write_pair(used, coming, "ca.pem")
    assert [item._sasl_plain_password for item in made] == ["before", "after", "after"]
    assert all(isinstance(item._ssl_context, ssl.SSLContext) for item in made)
    assert made[0]._ssl_context is not made[1]._ssl_context is made[2]._ssl_context
    assert connection.client_arguments()["ssl_context"] is arguments["ssl_context"]
    assert "after" not in repr(arguments) + repr(connection) + connection.model_dump_json()


def test_a_copy_of_a_connection_with_other_files_reads_those(tmp_path: Path) -> None:
    (tmp_path / "one").write_text("first\n")
    (tmp_path / "two").write_text("second\n")
    one = KafkaConnection(
        bootstrap="kafka:9093", protocol="SASL_SSL", username="a", password_file=tmp_path / "one"
    )
    one.client_arguments()
    two = one.model_copy(update={"password_file": tmp_path / "two"})
    assert two.client_arguments()["sasl_plain_password"].value() == "second"
    assert one.client_arguments()["sasl_plain_password"].value() == "first"


async def test_a_token_file_that_is_half_written_leaves_the_token_before(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("")
    tokens = FileToken(tmp_path / "token")
    with pytest.raises(TokenRefused, match=r"kafka\.token_file: .*token: is empty"):
        await tokens.token()
    for content, token in (("one.two.", "one.two."), ("", "one.two."), ("three\n", "three")):
        (tmp_path / "token").write_text(content)
        assert await tokens.token() == token


async def test_client_credentials_are_given_with_the_secret_of_that_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificates(tmp_path)
    (tmp_path / "secret").write_text("before")
    given: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        given.append(request.headers["authorization"])
        return httpx.Response(200, json={"access_token": "token", "expires_in": 0})

    whole = httpx.AsyncClient

    def mocked(**arguments: object) -> httpx.AsyncClient:
        assert isinstance(arguments.pop("verify"), ssl.SSLContext)
        return whole(transport=Answers(answer), **arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(httpx, "AsyncClient", mocked)
    tokens = ClientCredentials(
        "https://login.example.org/token",
        "client",
        renewed_secret("kafka.token_client_secret_file", tmp_path / "secret"),
        None,
        tmp_path / "ca.pem",
    )
    for secret, authority in (("before", True), ("after", False), ("", False)):
        (tmp_path / "secret").write_text(secret)
        if not authority:
            (tmp_path / "ca.pem").write_text("-----BEGIN")
        assert await tokens.token() == "token"
    assert given[0] != given[1] == given[2]


def mocked_client(
    answer: Callable[[httpx.Request], httpx.Response], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever makes a client gets one that these answers come from."""
    whole = httpx.AsyncClient
    monkeypatch.setattr(
        httpx,
        "AsyncClient",
        lambda **arguments: whole(transport=Answers(answer), timeout=arguments.get("timeout")),
    )


@pytest.mark.parametrize(
    ("life", "kept"),
    [
        ("3600", True), (60, True), (0.001, False), (0, False), (-5, False), (None, True),
        ("soon", True), ([], True), (10**400, True), ("nan", True), ("inf", True),
    ],
)  # fmt: skip
async def test_a_token_lives_as_long_as_its_endpoint_says_or_a_while(
    life: object, kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "secret").write_text("secret-of-it")
    asked: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return httpx.Response(
            200, content=json.dumps({"access_token": f"token-{len(asked)}", "expires_in": life})
        )

    mocked_client(answer, monkeypatch)
    now = iter(range(100))
    tokens = ClientCredentials(
        "https://login.example.org/token",
        "client",
        renewed_secret("kafka.token_client_secret_file", tmp_path / "secret"),
        clock=lambda: float(next(now)),
    )
    assert await tokens.token() == "token-1"
    assert await tokens.token() == ("token-1" if kept else "token-2")


@pytest.mark.parametrize(
    "body",
    [
        b"", b"[]", b"{}", b'{"access_token": 3}', b'{"access_token": ""}', b"[" * 50_000,
        b'{"access_token": "a\\u0001b"}', b'{"access_token": "\\u2013"}', b"\xff",
    ],
)  # fmt: skip
async def test_an_answer_without_a_token_is_refused_in_one_line(
    body: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "secret").write_text("secret-of-it")
    mocked_client(lambda _: httpx.Response(200, content=body), monkeypatch)
    tokens = ClientCredentials(
        "https://login.example.org/token",
        "client",
        renewed_secret("kafka.token_client_secret_file", tmp_path / "secret"),
    )
    with pytest.raises(TokenRefused, match=r"kafka\.token_endpoint: ") as caught:
        await tokens.token()
    assert "\n" not in str(caught.value)


async def test_an_endpoint_is_asked_with_the_key_of_that_time(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("key-one")
    valid, heard = {"key-one"}, list[str]()

    def answer(request: httpx.Request) -> httpx.Response:
        key = request.headers["authorization"].removeprefix("Bearer ")
        heard.append(key)
        if key not in valid:
            return httpx.Response(401)
        message = {"choices": [{"message": {"content": "yes"}, "finish_reason": "stop"}]}
        return httpx.Response(200, json=message)

    async def exchanged(_: float) -> None:
        file.write_text("key-two")

    asked = EndpointPolicy(
        "http://policy.test/v1",
        "m",
        api_key=renewed_api_key("target.api_key_file", file),
        backoff_seconds=0.0,
    )
    chat = ChatClient(asked, transport=Answers(answer), sleep=exchanged)
    question = [{"role": "user", "content": "hello"}]
    assert (await chat.complete(question)).text == "yes"
    valid.clear()
    valid.add("key-two")
    assert (await chat.complete(question)).text == "yes"
    assert heard == ["key-one", "key-one", "key-two"]
    valid.clear()
    with pytest.raises(TargetError, match="answered 401"):
        await chat.complete(question)
    assert "key-two" not in repr(asked)
    await chat.aclose()
    first = ChatClient(asked, transport=Answers(answer), sleep=exchanged)
    with pytest.raises(SettingsError, match="give a valid key"):
        await first.complete(question)
    await first.aclose()


def test_who_is_taken_out_of_the_consoles_file_is_out(tmp_path: Path) -> None:
    file = tmp_path / "tokens.json"

    def write(*names: str) -> None:
        people = {name: hashlib.sha256(name.encode()).hexdigest() for name in names}
        file.write_text(json.dumps(people))
        look()

    write("ann", "bob")
    identity = Identity(IdentityPolicy(tokens=file), b"k" * 32)
    assert identity.log_in("ann")
    assert identity.log_in("bob")
    write("bob", "eve")
    assert identity.log_in("ann") is None
    assert identity.log_in("eve") is not None
    file.write_text("{")
    look()
    assert identity.log_in("eve") is not None
    assert any("tokens.json" in line for line in refusals())


def test_metrics_and_readiness_tell_of_each_setting(pair: tuple[Path, Path]) -> None:
    used, coming = pair
    found = of_client(used)
    found.value()
    registry = CollectorRegistry()
    registry.register(RenewalMetrics())

    def value(name: str, **labels: str) -> float:
        found = registry.get_sample_value(name, {"setting": "kafka.certificate_file", **labels})
        assert found is not None
        return found

    before = value("ares_file_renewals_total", outcome="refused")
    assert value("ares_file_refused") == 0
    shown = load_pem_x509_certificate((used / "client.pem").read_bytes())
    ends, begins = shown.not_valid_after_utc.timestamp(), shown.not_valid_before_utc.timestamp()
    assert value("ares_certificate_not_after_timestamp_seconds") == ends
    assert value("ares_certificate_not_before_timestamp_seconds") == begins
    write_pair(used, coming, "client.key")
    look()
    assert value("ares_file_refused") == 1
    assert value("ares_file_renewals_total", outcome="refused") == before + 1
    (told,) = [line for line in refusals() if str(used) in line]
    assert told.endswith("; what was read before stays in use")
    assert found in renewed_values()
