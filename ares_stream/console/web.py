"""What every page goes through: who asks, forms, security headers, one way to say what is wrong.

A request is answered in this order: identity, then (POST) the size of the form, where it comes
from and its token, then the page. Every answer carries the same strict headers; none is cached.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import cache
from types import MappingProxyType
from typing import Any, Final
from urllib.parse import parse_qsl

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from ares_stream import __version__
from ares_stream.console.desk import Desk, Why
from ares_stream.console.identity import Identity, Person, RefusedError
from ares_stream.console.queue import Item
from ares_stream.errors import AresError, DecodeError
from ares_stream.files.rows import parse_json
from ares_stream.records.interaction import Interaction
from ares_stream.visible import visible, visible_value

MAX_FORM_BYTES: Final = 64 << 10
MAX_CHARACTERS: Final = 100_000
"""Shown of one text: a browser stands still at megabytes."""
HEADERS: Final[Mapping[str, str]] = {
    "content-security-policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "cache-control": "no-store",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "same-origin",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
KEYS: Final[Mapping[str, tuple[str, str]]] = {
    "show": ("t", "show the text"),
    "why": ("w", "why the reward model likes it"),
    "harmful": ("h", "harmful"),
    "safe": ("s", "not harmful"),
    "skip": ("k", "skip"),
    "reason": ("r", "write the reason"),
    "next": ("n", "next item"),
    "said": ("o", "what the judge and others say"),
    "mine": ("m", "my decisions, to undo one"),
    "failures": ("f", "coupled failures and their causes"),
    "releases": ("e", "releases"),
    "alarms": ("a", "alarms"),
    "live": ("l", "live"),
}
"""Actions: the key that is meant unless the person chose another, and what it does."""
KEYS_COOKIE: Final = "ares_keys"


class WrongError(Exception):
    """A request that cannot be done: a status and one sentence for the person."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


def _shown(text: str) -> str:
    cut = text[:MAX_CHARACTERS]
    left = len(text) - len(cut)
    return visible(cut) + (f"\n⟨{left:,} more characters are not shown⟩" if left else "")


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("ares_stream.console", "templates"),
        autoescape=True,
        finalize=visible_value,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["visible"] = _shown
    environment.filters["percent"] = lambda value: f"{value:.1%}"
    environment.filters["range"] = lambda item: (
        "–" if item is None or item.count == 0
        else f"{item.value:.1%} ({item.low:.1%} to {item.high:.1%})"
    )  # fmt: skip
    return environment


class Call:
    """One request of a known person."""

    def __init__(
        self, site: Site, request: Request, person: Person, form: Mapping[str, str]
    ) -> None:
        self.site = site
        self.desk = site.desk
        self.request = request
        self.person = person
        self.form = form

    def field(self, name: str, most: int = 2000) -> str:
        """A field of the form, trimmed. Raises WrongError where it is too long."""
        value = self.form.get(name, "").strip()
        if len(value) > most:
            raise WrongError(400, f"{name}: longer than {most} characters")
        return value

    def page(self, name: str, status: int = 200, **values: Any) -> Response:
        """A page of the templates."""
        return self.site.render(name, self.request, self.person, status, values)

    async def opened(self, item: Item) -> tuple[Interaction, Why | None]:
        """The item's text, which is told to the log, and why the model likes it where the query
        asks for that."""
        text = await self.desk.outside.interaction(item)
        self.site.told("text shown", {"verdict": item.id, "by": self.person.name})
        asks_why = self.request.query_params.get("why") == "1"
        return text, await self.desk.outside.why(text) if asks_why else None

    def see(self, path: str) -> Response:
        """After a form: go and look there."""
        return self.site.see(path)

    def require_approver(self) -> None:
        """Raises WrongError for who may not decide on releases and alarms."""
        if not self.person.may_approve:
            raise WrongError(403, "you may label; releases and alarms are decided by the approvers")


Handler = Callable[[Call], Awaitable[Response]]


class Site:
    """The console as a set of pages over a desk."""

    def __init__(
        self,
        desk: Desk,
        identity: Identity,
        told: Callable[[str, Mapping[str, str]], None],
        root: str = "",
    ) -> None:
        """`root` is the path under which a proxy serves it, such as "/review"; "" where it has a
        host of its own."""
        self.desk = desk
        self.identity = identity
        self.told = told
        self.root = root

    def see(self, path: str) -> Response:
        """Another page instead, by GET."""
        return RedirectResponse(f"{self.root}{path}", 303)

    @property
    def cookie_path(self) -> str:
        """A cookie goes to no other application of the host."""
        return self.root or "/"

    def page(self, handler: Handler) -> Callable[[Request], Awaitable[Response]]:
        """A route's end point: what all requests have in common around `handler`."""

        async def answer(request: Request) -> Response:
            person: Person | None = None
            form: Mapping[str, str] = {}
            try:
                person = await self.identity.person(request)
                if request.method == "POST":
                    form = await read_form(request)
                    self._check_form(person, form)
                response = await handler(Call(self, request, person, form))
            except RefusedError as error:
                if error.may_log_in and request.method == "GET":
                    response = self.see("/login")
                else:
                    form = await _readable_form(request)
                    response = self.problem(request, person, 403, str(error), form)
            except WrongError as error:
                response = self.problem(request, person, error.status, str(error), form)
            except AresError as error:
                status = 503 if error.retryable else 409
                response = self.problem(request, person, status, str(error), form)
            except ClientDisconnect:
                response = Response(status_code=400)  # Nobody reads it.
            return with_headers(response)

        return answer

    def render(
        self,
        name: str,
        request: Request,
        person: Person | None,
        status: int,
        values: Mapping[str, Any],
    ) -> Response:
        """A template as a page. `values` are escaped where they stand."""
        text = (
            _environment()
            .get_template(f"{name}.html.j2")
            .render(
                person=person,
                form_token="" if person is None else self.identity.form_token(person),
                keys=keys_of(request),
                actions=KEYS,
                version=__version__,
                path=request.url.path.removeprefix(self.root),
                root=self.root,
                **values,
            )
        )
        return HTMLResponse(text, status)

    def problem(
        self,
        request: Request,
        person: Person | None,
        status: int,
        reason: str,
        form: Mapping[str, str] = MappingProxyType({}),
    ) -> Response:
        """What could not be done, with what the person had written, to copy it."""
        # Of our own pages alone: another site's words have no place here.
        ours = request.headers.get("sec-fetch-site") == "same-origin"
        written = (form.get("reason") or form.get("note") or "") if ours else ""
        return self.render(
            "problem", request, person, status, {"reason": reason, "written": written}
        )

    def _check_form(self, person: Person, form: Mapping[str, str]) -> None:
        if not self.identity.is_form_of(person, form.get("form_token", "")):
            raise WrongError(403, "this form is not of your session; load the page again")


async def _readable_form(request: Request) -> Mapping[str, str]:
    """A form of whoever is not known, to give it back; nothing where it cannot be read."""
    if request.method != "POST":
        return {}
    try:
        return await read_form(request)
    except WrongError:
        return {}


async def read_form(request: Request) -> dict[str, str]:
    """A form's fields, at most 64 KiB. Raises WrongError for one of another site."""
    if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        raise WrongError(403, "this form was sent by another site")
    raw = b""
    async for chunk in request.stream():
        raw += chunk
        if len(raw) > MAX_FORM_BYTES:
            raise WrongError(413, f"the form is larger than {MAX_FORM_BYTES >> 10} KiB")
    try:
        return dict(
            parse_qsl(raw.decode(), keep_blank_values=True, max_num_fields=50, errors="strict")
        )
    except ValueError:
        raise WrongError(400, "the form is not readable") from None


def with_headers(response: Response) -> Response:
    """The response under the console's policy."""
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)
    return response


def keys_of(request: Request) -> dict[str, str]:
    """The person's keys by action; "" is no key. A cookie that is not ours changes nothing."""
    keys = {action: key for action, (key, _) in KEYS.items()}
    try:
        chosen = parse_json(bytes.fromhex(request.cookies.get(KEYS_COOKIE, "")))
    except (ValueError, DecodeError):
        return keys
    if isinstance(chosen, dict):
        keys |= {
            action: key
            for action, key in chosen.items()
            if action in KEYS and isinstance(key, str) and (key == "" or is_key(key))
        }
    return keys


def is_private(request: Request) -> bool:
    """Whether the person's browser speaks TLS, here or with the proxy in front: then a cookie goes
    over nothing else. Who writes the header without a proxy binds their own cookie alone."""
    told = request.headers.get("x-forwarded-proto", "").split(",")[0].strip().lower()
    return "https" in (request.scope.get("scheme"), told)


def is_key(key: str) -> bool:
    """Whether it can be a key: one letter or digit."""
    return len(key) == 1 and key.isascii() and key.isalnum()
