"""Each request that leaves by HTTP uses the proxy and the authorities that the machine names: in
many places nothing else leads out."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from joserfc import jwt
from joserfc.jwk import ECKey, KeySet
from starlette.requests import Request

from ares_stream.console.identity import Identity, RefusedError
from ares_stream.console.policy import IdentityPolicy, JwtPolicy
from ares_stream.files import Renewed
from ares_stream.streaming.tokens import ClientCredentials, TokenRefused
from tests.support.secured import certificates

NOW = 1_800_000_000
SIGNER = ECKey.generate_key("P-256", {"kid": "one"})
CLAIMS = {"iss": "https://idp", "aud": "ares", "exp": NOW + 60, "email": "ada@example.org"}
PROXIES = ("ALL_PROXY", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
ANSWERS = {
    "/token": {"access_token": "t1", "expires_in": 600},
    "/keys": KeySet([SIGNER]).as_dict(private=False),
}


@contextmanager
def answering(folder: Path | None = None) -> Iterator[tuple[str, list[str]]]:
    """Address of a server for keys and tokens, which is as well a proxy that answers itself, and
    what it was asked for; with TLS where there is a folder of certificates."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(ANSWERS["/" + self.path.rsplit("/", 1)[-1]]).encode())

        do_POST = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        if folder is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(folder / "server.pem", folder / "server.key")
            server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        scheme = "http" if folder is None else "https"
        yield f"{scheme}://127.0.0.1:{server.server_port}", asked
        server.shutdown()


@pytest.fixture(autouse=True)
def no_proxy_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*PROXIES, *map(str.lower, PROXIES), "SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)


async def who(url: str) -> str:
    """Whom a signed token names, by the keys at an address."""
    policy = JwtPolicy(issuer="https://idp", audience="ares", jwks_url=url)
    identity = Identity(IdentityPolicy(jwt=policy), b"k" * 32, lambda: NOW)
    token = jwt.encode({"alg": "ES256", "kid": "one"}, dict(CLAIMS), SIGNER)
    headers = [(b"authorization", f"Bearer {token}".encode())]
    request = Request({"type": "http", "headers": headers, "client": ("127.0.0.1", 1)})
    return (await identity.person(request)).name


def credentials(url: str, ca_file: Path | None = None) -> ClientCredentials:
    secret = Renewed("kafka.token_client_secret_file", [], lambda: "hidden")
    return ClientCredentials(url, "ares", secret, ca_file=ca_file)


async def test_a_token_endpoint_is_asked_through_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    with answering() as (proxy, asked):
        monkeypatch.setenv("HTTP_PROXY", proxy)
        assert await credentials("http://login.invalid/token").token() == "t1"
    assert asked == ["http://login.invalid/token"]


async def test_the_keys_of_who_signs_are_fetched_through_the_proxy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with answering() as (proxy, asked):
        monkeypatch.setenv("HTTP_PROXY", proxy)
        assert await who("http://login.invalid/keys") == "ada@example.org"
    assert asked == ["http://login.invalid/keys"]


async def test_what_no_proxy_names_is_asked_without_one(monkeypatch: pytest.MonkeyPatch) -> None:
    with answering() as (address, asked):
        monkeypatch.setenv("HTTP_PROXY", "http://proxy.invalid:3128")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        assert await credentials(f"{address}/token").token() == "t1"
        assert await who(f"{address}/keys") == "ada@example.org"
    assert asked == ["/token", "/keys"]


@pytest.mark.parametrize("value", ["socks5://user:hidden@proxy:1080", "http://user:hidden@host:p"])
async def test_a_proxy_that_cannot_be_used_is_told_and_not_shown(
    monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("ALL_PROXY", value)
    with pytest.raises(TokenRefused, match=r"kafka.token_endpoint: the proxy that") as caught:
        await credentials("http://login.invalid/token").token()
    assert "hidden" not in str(caught.value)


async def test_an_authority_of_ones_own_is_trusted_where_the_machine_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificates(tmp_path)
    with answering(tmp_path) as (address, _):
        with pytest.raises(RefusedError, match="keys cannot be read"):
            await who(f"{address}/keys")
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        assert await who(f"{address}/keys") == "ada@example.org"
        assert await credentials(f"{address}/token").token() == "t1"
