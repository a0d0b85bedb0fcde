"""Whatever a server answers, a request ends in an answer or in one line, in bounded time and
memory, and what it was sent goes to nobody else."""

from __future__ import annotations

import gzip
import json
import resource
import ssl
import zlib
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from ares_stream.endpoints.client import ChatClient, EndpointPolicy, http_client
from ares_stream.errors import AresError, SettingsError, TargetError
from tests.support.raw_http import Answers, answering
from tests.support.secured import certificates

PROMPT = "a prompt that nobody else may see"
ASK = [{"role": "user", "content": PROMPT}]
POLICY = EndpointPolicy(
    "http://x/v1", "m", api_key="secret-key", timeout_seconds=1.0, attempts=1, backoff_seconds=0.0
)


def completion(text: str = "yes") -> bytes:
    return json.dumps({"choices": [{"message": {"content": text}}]}).encode()


def http(body: bytes, *headers: str, status: str = "200 OK", length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    lines = [f"HTTP/1.1 {status}", "content-type: application/json", f"content-length: {size}"]
    return "\r\n".join([*lines, *headers, "", ""]).encode() + body


def error(code: Any, message: str = "no room") -> bytes:
    return http(json.dumps({"error": {"message": message, "code": code}}).encode())


async def asked(url: str, **changes: Any) -> str:
    client = ChatClient(replace(POLICY, url=url, **changes))
    try:
        return (await client.complete(ASK)).text
    finally:
        await client.aclose()


PAGE = http(b"<html></html>").replace(b"application/json", b"text/html; charset=utf-8")
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
BODY = completion()
FINE: dict[str, list[bytes]] = {
    "HTTP/1.0 without a length": [b"HTTP/1.0 200 OK\r\n\r\n" + BODY],
    "in parts of one byte": [bytes([byte]) for byte in http(BODY)],
    "in chunks": [CHUNKED, b"%x\r\n" % len(BODY) + BODY + b"\r\n0\r\nx-end: 1\r\n\r\n"],
    "after early hints": [b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n", http(BODY)],
    "packed by gzip": [http(gzip.compress(BODY), "content-encoding: gzip")],
    "packed by deflate": [http(zlib.compress(BODY), "content-encoding: deflate")],
    "packed by bare deflate": [http(zlib.compress(BODY)[2:-4], "content-encoding: deflate")],
    "with a byte more than it said": [http(BODY) + b"x"],
}


@pytest.mark.parametrize("name", FINE)
async def test_an_answer_is_read_however_it_is_written(name: str) -> None:
    async with answering(FINE[name]) as server:
        assert await asked(server.url) == "yes"


async def test_a_nul_in_an_answer_is_text_and_in_its_json_is_none() -> None:
    async with answering(http(completion("a\0b"))) as server:
        assert await asked(server.url) == "a\0b"
    async with answering(http(BODY.replace(b"yes", b"\0"))) as server:
        with pytest.raises(TargetError, match="expected a chat completion"):
            await asked(server.url)


async def test_a_connection_that_closes_after_each_answer_costs_no_retry() -> None:
    async with answering(http(BODY, "connection: keep-alive")) as server:
        client = ChatClient(replace(POLICY, url=server.url))
        said = [(await client.complete(ASK)).text for _ in range(3)]
        await client.aclose()
    assert said == ["yes"] * 3
    assert client.usage.retries == 0


BOMB = gzip.compress(bytes(64 << 20))
BAD: dict[str, tuple[Iterable[bytes], str]] = {
    "cut in the middle": ([http(BODY, length=999)], "RemoteProtocolError"),
    "a length that is none": ([http(BODY).replace(b"-length: ", b"-length: -")], "ProtocolError"),
    "two lengths": ([http(BODY, "content-length: 3")], "RemoteProtocolError"),
    "chunks cut": ([CHUNKED, b"ff\r\nab"], "RemoteProtocolError"),
    "chunks of no size": ([CHUNKED, b"zz\r\nab\r\n"], "RemoteProtocolError"),
    "no HTTP": ([b"SSH-2.0-OpenSSH_9.2\r\n"], "RemoteProtocolError"),
    "nothing": ([b""], "RemoteProtocolError"),
    "a megabyte of headers": ([http(BODY, "x: " + "y" * (1 << 20))], "RemoteProtocolError"),
    "an empty body": ([http(b"")], "answered with application/json, expected a chat completion"),
    "a page": ([PAGE], "answered with text/html, expected a chat completion; check target.url"),
    "a type that quotes": (
        [http(b"x").replace(b"application/json", PROMPT.encode())], "answered with something else"),
    "more than the limit": ([http(b" " * (5 << 20))], "answers with more than 4,194,304 bytes"),
    "a bomb": ([http(BOMB, "content-encoding: gzip")], "answers with more than 4,194,304 bytes"),
    "gzip that is damaged": ([http(b"x" * 40, "content-encoding: gzip")], "with damaged gzip"),
    "gzip that is cut": ([http(gzip.compress(BODY)[:-9], "content-encoding: gzip")], "cut short"),
    "an encoding of its own": ([http(BODY, "content-encoding: zstd")], "encoding zstd, which was"),
    "encodings in a row": ([http(BODY, "content-encoding: gzip, gzip")], "gzip, gzip, which was"),
    "an error with 200": ([error("overloaded")], "answered with an error: no room"),
    "an error in plain words": ([http(b'{"error": "no room"}')], "answered with an error: no room"),
    "an error that quotes": ([error(None, f"I was told: {PROMPT}")], "quotes the prompt"),
    "an error that shows the key": ([error(None, "secret-key is wrong")], "holds the key"),
    "too many requests with 200": ([error(429)], "answered 429"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
async def test_what_is_no_answer_is_one_line_that_says_what_came(name: str) -> None:
    reply, reason = BAD[name]
    async with answering(reply) as server:
        with pytest.raises(TargetError) as caught:
            await asked(server.url)
    assert reason in str(caught.value)
    assert PROMPT not in str(caught.value)
    assert "secret-key" not in str(caught.value)
    assert "\n" not in str(caught.value)


async def test_a_bomb_costs_no_more_memory_than_the_limit() -> None:
    packer = zlib.compressobj(1, wbits=zlib.MAX_WBITS | 16)
    layers = b"".join(packer.compress(bytes(1 << 20)) for _ in range(256)) + packer.flush()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    async with answering(http(layers, "content-encoding: gzip")) as server:
        with pytest.raises(TargetError, match="more than"):
            await asked(server.url)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10


@pytest.mark.parametrize(
    "reply",
    [[b""], [b"HTTP/1.1 200 OK\r\n"], [CHUNKED, b"1\r\n{\r\n"], [http(BODY, length=10**18)]],
    ids=["no head", "half a head", "chunks without an end", "a length without an end"],
)  # fmt: skip
async def test_a_server_that_never_ends_costs_the_timeout_and_no_more(reply: list[bytes]) -> None:
    async with answering(reply, hold=True) as server:
        with pytest.raises(TargetError, match=r"gave no answer in 0\.3 s"):
            await asked(server.url, timeout_seconds=0.3)


@pytest.mark.parametrize("code", [401, 402, 404])
async def test_an_error_with_200_that_no_request_can_survive_stops(code: int) -> None:
    async with answering(error(code)) as server:
        with pytest.raises(SettingsError, match=f"answered {code}"):
            await asked(server.url)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_takes_neither_key_nor_prompt_elsewhere(status: int) -> None:
    async with answering(http(BODY)) as other:
        moved = http(b"", f"location: {other.url}", status=f"{status} Moved")
        async with answering(moved) as server:
            with pytest.raises(SettingsError, match=f"answered {status}"):
                await asked(server.url)
        assert other.heads == []


@pytest.mark.parametrize(
    ("header", "pause"),
    [
        ("7", 7.0), ("0.5", 0.5), ("1e9", 30.0), ("inf", 30.0), ("-3", 0.0),
        ("Wed, 21 Oct 2099 07:28:00 GMT", 30.0), ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0),
        ("nan", 1.0), ("soon", 1.0), ("", 1.0), ("Wed, 99 Foo 99999 07:28:00 GMT", 1.0),
    ],
)  # fmt: skip
async def test_retry_after_is_a_number_or_a_date_and_bounded(header: str, pause: float) -> None:
    naps: list[float] = []

    async def sleep(seconds: float) -> None:
        naps.append(seconds)

    replies = iter([httpx.Response(429, headers={"retry-after": header})])
    client = ChatClient(
        replace(POLICY, attempts=2, backoff_seconds=1.0),
        transport=Answers(lambda _: next(replies, httpx.Response(200, content=completion()))),
        clock=lambda: 0.0,
        sleep=sleep,
    )
    assert (await client.complete(ASK)).text == "yes"
    assert max(naps, default=0.0) == pytest.approx(pause)
    await client.aclose()


@pytest.mark.parametrize(
    ("url", "asked_at"),
    [
        ("http://h/v1", "/v1/chat/completions"),
        ("http://h/v1/", "/v1/chat/completions"),
        ("http://h", "/chat/completions"),
        ("http://h/v1/chat/completions", "/v1/chat/completions"),
        ("http://h/v1/chat/completions/?v=1", "/v1/chat/completions?v=1"),
        ("http://[::1]:8000/v1", "/v1/chat/completions"),
        ("http://h/x/a%20b/?version=2", "/x/a%20b/chat/completions?version=2"),
    ],
)  # fmt: skip
def test_the_url_may_name_the_base_or_the_place_itself(url: str, asked_at: str) -> None:
    assert replace(POLICY, url=url).completions.raw_path.decode() == asked_at


async def test_a_base_without_its_version_is_told_what_most_servers_want() -> None:
    async with answering(http(b"", status="404 Not Found")) as server:
        with pytest.raises(SettingsError, match="most servers want /v1 at the end"):
            await asked(server.url.removesuffix("/v1"))


def context(folder: Path, name: str) -> ssl.SSLContext:
    found = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    found.load_cert_chain(folder / f"{name}.pem", folder / f"{name}.key")
    return found


@pytest.fixture
def authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of certificates, whose authority the environment names."""
    certificates(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    return tmp_path


async def test_an_authority_that_the_environment_names_is_trusted(authority: Path) -> None:
    async with answering(http(BODY), tls=context(authority, "server")) as server:
        assert await asked(f"https://127.0.0.1:{server.port}/v1") == "yes"


@pytest.mark.parametrize("name", ["stranger", "expired", "elsewhere"])
async def test_a_certificate_that_does_not_hold_is_told_with_its_reason(
    name: str, authority: Path
) -> None:
    async with answering(http(BODY), tls=context(authority, name)) as server:
        with pytest.raises(TargetError, match="TLS failed: CERTIFICATE_VERIFY_FAILED"):
            await asked(f"https://127.0.0.1:{server.port}/v1")
        assert server.heads == []


async def test_another_protocol_than_the_port_speaks_is_told(authority: Path) -> None:
    async with answering(http(BODY), greets=True) as server:
        with pytest.raises(TargetError, match="TLS failed"):
            await asked(f"https://127.0.0.1:{server.port}/v1")
    async with answering(http(BODY), tls=context(authority, "server")) as server:
        with pytest.raises(TargetError, match=r"RemoteProtocolError|ReadError"):
            await asked(f"http://127.0.0.1:{server.port}/v1")


@pytest.mark.parametrize("content", [None, "not a certificate"])
def test_authorities_that_cannot_be_read_are_one_line_that_names_the_variable(
    content: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "ca.pem"
    if content is not None:
        file.write_text(content)
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    with pytest.raises(AresError, match=r"^target: SSL_CERT_FILE: cannot be read as cert"):
        http_client("target")
