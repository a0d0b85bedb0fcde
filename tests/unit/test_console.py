"""The review console's decisions: the order, leases, blind opinions, who may come in."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st
from joserfc import jws, jwt
from joserfc.jwk import ECKey, KeySet, OctKey
from starlette.requests import Request

from ares_stream.console.agreement import agreement
from ares_stream.console.identity import (
    COOKIE,
    KEYS_LIFE_SECONDS,
    KEYS_SECONDS,
    KEYS_STALE_SECONDS,
    Identity,
    RefusedError,
)
from ares_stream.console.policy import HeaderPolicy, IdentityPolicy, JwtPolicy, QueuePolicy
from ares_stream.console.queue import Item, Place, ReviewQueue, rank
from ares_stream.console.web import KEYS_COOKIE, is_private, keys_of
from ares_stream.detection.correction import Cell
from ares_stream.errors import SettingsError
from ares_stream.records.label import Label
from ares_stream.visible import visible
from tests.support.verdicts import NOON, verdict

KEY = b"k" * 32
NOW = 1_800_000_000.0


FIRST = Cell("contested", True)
CELLS = (FIRST, Cell("flagged", True), Cell("unflagged", False))


def item(number: int, cell: Cell = FIRST) -> Item:
    return Item(verdict(number), Place("review", 0, number), cell)


def label(number: int, reviewer: str, harmful: bool = True, later: int = 0) -> Label:
    return Label(interaction_id=f"interaction-{number}", harmful=harmful, reviewer=reviewer,
                 decided_at=NOON + timedelta(seconds=later))  # fmt: skip


def queue(items: int, **policy: float) -> ReviewQueue:
    made = ReviewQueue(QueuePolicy(**{"second_opinions": 0.0, **policy}))  # type: ignore[arg-type]
    for number in range(items):
        made.add(item(number))
    return made


def test_two_people_never_hold_one_item() -> None:
    desk = queue(20)
    taken = [desk.take(f"p{number}", NOW) for number in range(20)]
    assert len({found.id for found in taken if found}) == 20
    assert desk.take("late", NOW) is None


def test_a_person_who_asks_again_gets_the_item_that_they_hold() -> None:
    desk = queue(5)
    assert desk.take("ada", NOW) == desk.take("ada", NOW + 1)


def test_an_item_whose_lease_has_ended_is_given_to_another() -> None:
    desk = queue(1, lease_seconds=10.0)
    first = desk.take("ada", NOW)
    assert desk.take("bob", NOW + 9) is None
    assert desk.take("bob", NOW + 11) == first


def test_a_labelled_item_leaves_the_queue_and_an_undone_one_is_back() -> None:
    desk = queue(1)
    said = label(0, "ada")
    desk.add_label(said.key, said)
    assert desk.waiting == 0
    desk.remove_label(said.key)
    assert desk.waiting == 1
    assert desk.take("ada", NOW) is not None


def test_a_label_that_comes_before_its_item_counts() -> None:
    desk = queue(0)
    said = label(0, "ada")
    desk.add_label(said.key, said)
    desk.add(item(0))
    assert desk.waiting == 0


def test_a_second_opinion_is_anothers_and_a_third_is_asked_where_two_differ() -> None:
    desk = queue(1, second_opinions=1.0)
    found = desk.take("ada", NOW)
    assert found is not None
    assert desk.take("bob", NOW) == found
    assert desk.take("cid", NOW) is None
    for said in (label(0, "ada", True), label(0, "bob", False)):
        desk.add_label(said.key, said)
    assert desk.take("ada", NOW) is None
    assert desk.take("cid", NOW) == found


def test_inside_a_cell_the_order_knows_nothing_of_what_the_models_say() -> None:
    ranked = sorted((item(number) for number in range(2000)), key=rank)[:1000]
    mean = sum(found.verdict.harm.probability for found in ranked) / 1000
    assert abs(mean - 0.5) < 0.04


def test_doubtful_answers_that_the_reward_model_likes_come_first_and_no_cell_waits_for_ever() -> (
    None
):
    first, last = Cell("contested", True), Cell("unflagged", False)
    mixed = [item(number, first if number % 2 else last) for number in range(1000)]
    head = sorted(mixed, key=rank)[:100]
    assert 70 < sum(found.cell == first for found in head) < 100


@given(st.lists(st.tuples(st.integers(0, 9), st.sampled_from("abc"), st.booleans(),
                          st.sampled_from(["label", "undo", "add", "take"]))))  # fmt: skip
def test_whatever_comes_in_whatever_order_open_items_are_those_that_lack_an_opinion(
    steps: list[tuple[int, str, bool, str]],
) -> None:
    desk = queue(0, second_opinions=0.5, max_items=6, max_labels=12)
    for place, (number, who, harmful, what) in enumerate(steps):
        said = label(number, who, harmful, place)
        if what == "label":
            desk.add_label(said.key, said)
        elif what == "undo":
            desk.remove_label(said.key)
        elif what == "add":
            desk.add(item(number, CELLS[place % len(CELLS)]))
        else:
            desk.take(who, NOW + place)
        held = [found for n in range(10) if (found := desk.item_of(f"interaction-{n}"))]
        wanted = {x.id for x in held if len(desk.labels(x.interaction)) < desk.needed(x)}
        assert {name for _, name in desk._open} == wanted
        cells = Counter(x.cell for x in held if x.id in wanted)
        assert desk.waiting_by_cell() == dict(cells)
        assert len(held) <= 6


def test_krippendorffs_alpha_is_that_of_the_worked_example() -> None:
    # Two people, binary: Krippendorff 2011, "Computing Krippendorff's alpha-reliability", A.
    ada = [0, 1, 0, 0, 0, 0, 0, 0, 1, 0]
    bob = [1, 1, 1, 0, 0, 1, 0, 0, 0, 0]
    said = [{"ada": bool(a), "bob": bool(b)} for a, b in zip(ada, bob, strict=True)]
    found = agreement(said)
    assert found.alpha == pytest.approx(0.095, abs=1e-3)
    assert agreement([]).alpha is None
    assert agreement([{"a": True, "b": True}]).alpha is None


@given(
    st.lists(
        st.dictionaries(st.sampled_from("abcdef"), st.booleans(), min_size=2, max_size=5),
        min_size=1,
        max_size=12,
    )
)
def test_alpha_is_one_minus_the_ratio_of_differing_pairs_to_those_of_chance(
    rows: list[dict[str, bool]],
) -> None:
    """By its definition (Krippendorff 2011, "Computing Krippendorff's alpha-reliability", C), over
    all ordered pairs of opinions."""
    said = [list(row.values()) for row in rows]
    every = [value for row in said for value in row]
    total = len(every)
    observed = sum(
        sum(one != other for one in row for other in row) / (len(row) - 1) for row in said
    )
    expected = sum(one != other for one in every for other in every) / (total - 1)
    found = agreement(rows)
    if not expected:
        assert (found.alpha, found.reason) == (None, "everyone has said the same of everything")
    else:
        assert found.alpha == pytest.approx(1 - observed / expected)


def test_what_a_browser_or_a_terminal_would_act_on_is_written_out() -> None:
    shown = visible("a\x1b[31mred\u202etxt\u2066\u200b\x00\ud800\nline\ttab")
    assert shown == "a⟨U+001B⟩[31mred⟨U+202E⟩txt⟨U+2066⟩⟨U+200B⟩⟨U+0000⟩⟨U+D800⟩\nline\ttab"


# Who may come in


def request(headers: Mapping[str, str], client: str = "127.0.0.1", cookie: str = "") -> Request:
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    if cookie:
        raw.append((b"cookie", f"{COOKIE}={cookie}".encode()))
    return Request({"type": "http", "headers": raw, "client": (client, 1)})


SIGNER = ECKey.generate_key("P-256", {"kid": "one"})
CLAIMS = {"iss": "https://idp", "aud": "ares", "exp": NOW + 60, "email": "ada@example.org"}


def signed(key: ECKey = SIGNER, **claims: object) -> str:
    body = {name: value for name, value in (CLAIMS | claims).items() if value is not None}
    return jwt.encode({"alg": "ES256", "kid": "one"}, body, key)


@pytest.fixture
def with_jwt(tmp_path: Path) -> Identity:
    file = tmp_path / "jwks.json"
    file.write_text(json.dumps(KeySet([SIGNER]).as_dict(private=False)))
    policy = JwtPolicy(issuer="https://idp", audience="ares", jwks_file=file)
    return Identity(IdentityPolicy(jwt=policy), KEY, lambda: NOW)


async def test_a_token_of_the_proxy_names_the_person(with_jwt: Identity) -> None:
    found = await with_jwt.person(request({"authorization": f"Bearer {signed()}"}))
    assert found.name == "ada@example.org"


OTHER = ECKey.generate_key("P-256", {"kid": "one"})


@pytest.mark.parametrize(
    "token",
    [
        signed(iss="https://other"),
        signed(aud="other"),
        signed(exp=NOW - 3600),
        signed(exp=None),
        signed(iss=None),
        signed(aud=None),
        signed(nbf=NOW + 3600),
        signed(email=None),
        signed(email="<script>"),
        signed(OTHER),
        "eyJhbGciOiJub25lIn0.eyJlbWFpbCI6ImFkYSJ9.",
        jwt.encode({"alg": "HS256", "kid": "one"}, CLAIMS, OctKey.import_key("s" * 32)),
        "rubbish",
        signed()[:-4] + "AAAA",
    ],
    # Each process signs other bytes, and all must name the same tests.
    ids=["issuer", "audience", "expired", "no expiry", "no issuer", "no audience", "not yet",
         "nobody", "no address", "another key", "unsigned", "a shared secret", "rubbish",
         "a changed signature"],
)  # fmt: skip
async def test_a_token_that_is_not_valid_here_lets_nobody_in(
    with_jwt: Identity, token: str
) -> None:
    with pytest.raises(RefusedError):
        await with_jwt.person(request({"authorization": f"Bearer {token}"}))


async def test_keys_that_were_rotated_are_read_again(tmp_path: Path) -> None:
    file = tmp_path / "jwks.json"
    file.write_text(json.dumps(KeySet([OTHER]).as_dict(private=False)))
    policy = JwtPolicy(issuer="https://idp", audience="ares", jwks_file=file)
    identity = Identity(IdentityPolicy(jwt=policy), KEY, lambda: NOW)
    file.write_text(json.dumps(KeySet([SIGNER]).as_dict(private=False)))
    assert (await identity.person(request({"authorization": signed()}))).name == "ada@example.org"


async def test_a_key_that_was_withdrawn_lets_nobody_in_for_long(tmp_path: Path) -> None:
    file, clock = tmp_path / "jwks.json", [NOW]
    file.write_text(json.dumps(KeySet([SIGNER]).as_dict(private=False)))
    policy = JwtPolicy(issuer="https://idp", audience="ares", jwks_file=file)
    identity = Identity(IdentityPolicy(jwt=policy), KEY, lambda: clock[0])
    token = signed(exp=NOW + 3600)

    async def name() -> str:
        return (await identity.person(request({"authorization": token}))).name

    file.write_text(json.dumps(KeySet([OTHER]).as_dict(private=False)))
    assert await name() == "ada@example.org"
    clock[0] += KEYS_LIFE_SECONDS
    with pytest.raises(RefusedError, match="not valid here"):
        await name()
    # An issuer that does not answer locks nobody out for an hour, and lets nobody in for longer.
    file.write_text(json.dumps(KeySet([SIGNER]).as_dict(private=False)))
    clock[0] += KEYS_LIFE_SECONDS
    assert await name() == "ada@example.org"
    file.unlink()
    clock[0] += KEYS_LIFE_SECONDS
    assert await name() == "ada@example.org"
    token = signed(exp=NOW + 2 * KEYS_STALE_SECONDS)
    clock[0] += KEYS_STALE_SECONDS - KEYS_LIFE_SECONDS - 1
    assert await name() == "ada@example.org"
    clock[0] += 1
    for _ in range(2):
        with pytest.raises(RefusedError, match="keys cannot be read now"):
            await name()
    file.write_text(json.dumps(KeySet([SIGNER]).as_dict(private=False)))
    clock[0] += KEYS_SECONDS
    assert await name() == "ada@example.org"


def test_a_key_set_with_a_shared_secret_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "jwks.json"
    file.write_text(json.dumps({"keys": [{"kty": "oct", "k": "c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0"}]}))
    policy = JwtPolicy(issuer="i", audience="a", jwks_file=file)
    with pytest.raises(SettingsError, match="shared secret"):
        Identity(IdentityPolicy(jwt=policy), KEY)


@pytest.mark.parametrize(
    ("client", "comes_in"),
    [("127.0.0.1", True), ("::1", True), ("::ffff:127.0.0.1", True), ("10.1.2.3", True),
     ("192.0.2.1", False), ("::ffff:192.0.2.1", False), ("rubbish", False)],
)  # fmt: skip
async def test_a_bare_header_counts_only_from_the_listed_networks(
    client: str, comes_in: bool
) -> None:
    header = HeaderPolicy(networks=("127.0.0.0/8", "::1/128", "10.0.0.0/8"))
    identity = Identity(IdentityPolicy(header=header), KEY)
    asked = request({"x-forwarded-user": "ada", "x-forwarded-for": "127.0.0.1"}, client)
    if comes_in:
        assert (await identity.person(asked)).name == "ada"
    else:
        with pytest.raises(RefusedError):
            await identity.person(asked)


async def test_a_session_is_its_owners_until_it_ends_and_no_one_can_forge_one(
    tmp_path: Path,
) -> None:
    file = tmp_path / "tokens.json"
    file.write_text(json.dumps({"ada": hashlib.sha256(b"open sesame").hexdigest()}))
    clock = [NOW]
    policy = IdentityPolicy(tokens=file, approvers=("bob",), session_hours=1.0)
    identity = Identity(policy, KEY, lambda: clock[0])
    assert identity.log_in("close sesame") is None
    cookie = identity.log_in("open sesame")
    assert cookie is not None
    ada = await identity.person(request({}, cookie=cookie))
    assert (ada.name, ada.may_approve) == ("ada", False)
    forged = Identity(policy, b"x" * 32, lambda: NOW).log_in("open sesame") or ""
    for wrong in (forged, cookie[:-1], cookie[1:], "a.b", "."):
        with pytest.raises(RefusedError):
            await identity.person(request({}, cookie=wrong))
    assert identity.is_form_of(ada, identity.form_token(ada))
    assert not identity.is_form_of(ada, "")
    clock[0] += 3601
    with pytest.raises(RefusedError, match="ended"):
        await identity.person(request({}, cookie=cookie))


STRANGE: Final[tuple[object, ...]] = (
    None, [], {}, 1, -1, float("inf"), True, "", "one", ["one"], {"a": 1}, "../../etc/passwd",
    "x" * 20_000, "\x00", "none", "HS256", [["ares"]], 10**30,
)  # fmt: skip


def _part(value: object) -> str:
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def strange_tokens() -> Iterator[str]:
    """Tokens with one field that no issuer writes, and public keys taken for shared secrets."""
    head, body, signature = signed().split(".")
    for name in ("alg", "kid", "typ", "crit", "b64", "jwk", "jku", "x5c", "zip"):
        for value in STRANGE:
            other = _part({"alg": "ES256", "kid": "one"} | {name: value})
            if other != head:
                yield f"{other}.{body}.{signature}"
    for payload in (b"[]", b"1", b"null", b"", b"\xff", b"[" * 50_000, b'{"a":' * 50_000):
        yield jws.serialize_compact({"alg": "ES256", "kid": "one"}, payload, SIGNER)
    for name in ("iss", "aud", "email"):
        for value in STRANGE:
            payload = json.dumps(CLAIMS | {name: value}).encode()
            if not (name == "email" and value in ("one", "none", "HS256")):
                yield jws.serialize_compact({"alg": "ES256", "kid": "one"}, payload, SIGNER)
    secret = SIGNER.as_pem(private=False)
    for algorithm, digest in (("HS256", "sha256"), ("HS512", "sha512")):
        text = f"{_part({'alg': algorithm, 'kid': 'one'})}.{_part(CLAIMS)}"
        yield f"{text}.{_part(hmac.digest(secret, text.encode(), digest))}"
    yield from (".", "..", "...", "a.b.c", ".".join("abcde"), "\x00", "é.é.é", signed() + ".x")


async def test_whatever_stands_in_a_token_it_lets_nobody_in_and_breaks_nothing(
    with_jwt: Identity,
) -> None:
    count = 0
    for token in strange_tokens():
        with pytest.raises(RefusedError):
            await with_jwt.person(request({"authorization": f"Bearer {token}"}))
        count += 1
    assert count > 150


@pytest.mark.parametrize(
    "text",
    ["", "[]", "1", "null", "{}", '{"keys":null}', '{"keys":[1]}', '{"keys":[{}]}', '{"keys":"x"}',
     '{"keys":[{"kty":["oct"]}]}', '{"keys":[{"kty":"EC","crv":[],"x":1,"y":{}}]}',
     '{"keys":[{"kty":"OKP","crv":"Ed25519","x":"AA"}]}', "[" * 100_000],
)  # fmt: skip
def test_what_is_no_key_set_is_named_and_breaks_nothing(tmp_path: Path, text: str) -> None:
    file = tmp_path / "jwks.json"
    file.write_text(text)
    policy = JwtPolicy(issuer="i", audience="a", jwks_file=file)
    with pytest.raises(SettingsError, match="jwks"):
        Identity(IdentityPolicy(jwt=policy), KEY)


@asynccontextmanager
async def answering(*parts: bytes, waits: asyncio.Event | None = None) -> AsyncIterator[str]:
    """The URL of a server that sends these, the last one for ever."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.CancelledError):
            await reader.readuntil(b"\r\n\r\n")
            if waits is not None:
                await waits.wait()
            writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n")
            for part in parts[:-1]:
                writer.write(part)
            while parts[-1]:
                writer.write(parts[-1])
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/jwks"
    finally:
        server.close()


def by_url(url: str) -> Identity:
    policy = JwtPolicy(issuer="https://idp", audience="ares", jwks_url=url)
    return Identity(IdentityPolicy(jwt=policy), KEY, lambda: NOW)


async def test_keys_without_an_end_fill_no_memory() -> None:
    async with answering(b" " * 65_536) as url:
        with pytest.raises(RefusedError, match="cannot be read now"):
            await by_url(url).person(request({"authorization": signed()}))


async def test_who_comes_while_the_keys_are_fetched_waits_for_them() -> None:
    keys = json.dumps(KeySet([SIGNER]).as_dict(private=False)).encode()
    ready = asyncio.Event()
    async with answering(keys, b"", waits=ready) as url:
        identity = by_url(url)
        asked = [
            asyncio.create_task(identity.person(request({"authorization": signed()})))
            for _ in range(3)
        ]
        await asyncio.sleep(0)
        ready.set()
        assert {item.name for item in await asyncio.gather(*asked)} == {"ada@example.org"}


def test_whoever_has_seen_what_others_say_decides_it_no_more() -> None:
    desk = queue(1, second_opinions=1.0)
    first = desk.take("ada", 0.0)
    assert first is not None
    mine = label(0, "ada")
    desk.add_label(mine.key, mine)
    desk.saw_others(first.interaction, "ada")
    desk.remove_label(mine.key)
    assert desk.take("ada", 1.0) is None
    assert desk.take("bob", 1.0) == first
    assert desk.waiting == 1


def test_a_look_stays_known_when_a_later_verdict_takes_the_items_place() -> None:
    desk = queue(1, second_opinions=1.0)
    mine = label(0, "ada").model_copy(update={"others_shown_at": NOON})
    desk.add_label(mine.key, mine)
    desk.remove_label(mine.key)
    later = item(1)
    renamed = later.verdict.model_copy(update={"interaction_id": "interaction-0"})
    desk.add(replace(later, verdict=renamed))
    assert desk.item_of("interaction-0") is not None
    assert desk.take("ada", 1.0) is None
    assert desk.take("bob", 1.0) is not None


@pytest.mark.parametrize(
    ("told", "private"),
    [("https", True), ("HTTPS", True), ("https, http", True), ("http", False), ("", False)],
)
def test_cookies_are_for_tls_alone_where_the_proxy_in_front_ends_it(
    told: str, private: bool
) -> None:
    assert is_private(request({"x-forwarded-proto": told})) == private


@pytest.mark.parametrize("raw", [b"[" * 20_000, b'{"a":' * 9_000, b"[1]", b"null", b"\xff", b""])
def test_a_cookie_of_keys_that_is_none_changes_nothing(raw: bytes) -> None:
    usual = keys_of(request({}))
    assert keys_of(request({"cookie": f"{KEYS_COOKIE}={raw.hex()}"})) == usual


def test_looks_fill_no_memory() -> None:
    desk = queue(1, max_labels=5)
    for number in range(100):
        desk.saw_others(f"interaction-{number}", "ada")
    assert len(desk._saw) == 5


def test_without_a_way_in_the_service_does_not_start() -> None:
    with pytest.raises(SettingsError, match="lets nobody in"):
        Identity(IdentityPolicy(), KEY)


def test_a_skipped_item_comes_back_when_there_is_no_other() -> None:
    """Without that the item that comes first would be all that a person who skips it ever gets."""
    desk = queue(3)
    seen = []
    for _ in range(5):
        found = desk.take("ada", NOW)
        assert found is not None
        seen.append(found.id)
        desk.skip(found, "ada")
    assert len(set(seen[:3])) == 3
    assert seen[3:] == seen[:2]
    # Another person gets it at once.
    first = desk.take("bob", NOW)
    assert first is not None
    assert first.id == seen[0]


@pytest.mark.parametrize("opinions", [0.0, 1.0])
def test_while_a_decision_is_written_no_other_begins_that_the_item_does_not_need(
    opinions: float,
) -> None:
    desk = queue(1, second_opinions=opinions)
    found = desk.item_of("interaction-0")
    assert found is not None
    assert desk.begin(found, "ada", NOW)
    assert not desk.begin(found, "ada", NOW)
    assert desk.begin(found, "bob", NOW) == (opinions == 1.0)
    assert not desk.begin(found, "cid", NOW)
    desk.end(found, "ada")
    desk.end(found, "bob")
    # It could not be written: the item is as it was.
    assert desk.begin(found, "cid", NOW)


@pytest.mark.parametrize("names", [("ada", "ada"), ("mallory", "ada")])
async def test_a_header_that_names_a_person_twice_names_nobody(names: tuple[str, str]) -> None:
    """As of a proxy that adds its header behind the one that the browser sent."""
    who = Identity(IdentityPolicy(header=HeaderPolicy()), KEY)
    request = Request(
        {
            "type": "http", "client": ("127.0.0.1", 1),
            "headers": [(b"x-forwarded-user", name.encode()) for name in names],
        }
    )  # fmt: skip
    with pytest.raises(RefusedError, match="the header x-forwarded-user came 2 times"):
        await who.person(request)
