"""The console's routes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from importlib.resources import files

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Mount, Route

from ares_stream.console import failure_pages, release_pages, review_pages
from ares_stream.console.desk import Desk
from ares_stream.console.identity import COOKIE, Identity
from ares_stream.console.web import (
    Handler,
    Site,
    WrongError,
    is_private,
    read_form,
    with_headers,
)

_STATIC: Mapping[str, str] = {"console.css": "text/css", "console.js": "text/javascript"}


def _problem(
    site: Site, status: int, reason: str
) -> Callable[[Request, Exception], Awaitable[Response]]:
    """A page for what no handler answers."""

    async def answer(request: Request, error: Exception) -> Response:
        response = site.problem(request, None, status, reason)
        response.headers.update(getattr(error, "headers", None) or {})
        return with_headers(response)

    return answer


def console_app(
    desk: Desk,
    identity: Identity,
    told: Callable[[str, Mapping[str, str]], None],
    root: str = "",
) -> Starlette:
    """The application. `told` gets each decision and each text that was shown: what, and who. With
    a `root` it answers under that path and without it, since some proxies take it away."""
    site = Site(desk, identity, told, root)

    def get(path: str, handler: Handler) -> Route:
        return Route(path, site.page(handler), methods=["GET"])

    def post(path: str, handler: Handler) -> Route:
        return Route(path, site.page(handler), methods=["POST"])

    async def log_in(request: Request) -> Response:
        if not identity.has_tokens:
            return with_headers(site.see("/"))
        reason = ""
        if request.method == "POST":
            try:
                form = await read_form(request)
            except WrongError as error:
                return with_headers(site.render("login", request, None, error.status,
                                                {"reason": str(error)}))  # fmt: skip
            cookie = identity.log_in(form.get("token", ""))
            if cookie is not None:
                response = site.see("/")
                response.set_cookie(
                    COOKIE, cookie, httponly=True, samesite="strict",
                    secure=is_private(request), path=site.cookie_path,
                )  # fmt: skip
                return with_headers(response)
            told("log-in refused", {})
            reason = "this token is nobody's"
        status = 403 if reason else 200
        return with_headers(site.render("login", request, None, status, {"reason": reason}))

    async def log_out(call: object) -> Response:
        response = site.see("/login")
        response.delete_cookie(COOKIE, path=site.cookie_path)
        return response

    async def to_queue(_: Request) -> Response:
        return with_headers(site.see("/"))

    async def static(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in _STATIC:
            return with_headers(Response(status_code=404))
        raw = (files("ares_stream.console") / "static" / name).read_bytes()
        return with_headers(Response(raw, media_type=_STATIC[name]))

    routes: list[BaseRoute] = [
        Route("/login", log_in, methods=["GET", "POST"]),
        Route("/static/{name}", static, methods=["GET"]),
        post("/logout", log_out),
        get("/", review_pages.queue),
        post("/take", review_pages.take),
        get("/items/{id}", review_pages.item),
        post("/items/{id}", review_pages.decide),
        post("/items/{id}/undo", review_pages.undo),
        get("/mine", review_pages.mine),
        get("/progress", review_pages.progress),
        Route("/keys", site.page(review_pages.keys), methods=["GET", "POST"]),
        get("/failures", failure_pages.failures),
        post("/failures/causes", failure_pages.seek),
        get("/failures/{id}", failure_pages.failure),
        get("/releases", release_pages.releases),
        get("/releases/{id}", release_pages.release),
        post("/releases/{id}", release_pages.decide),
        get("/repairs/{id}", release_pages.repair),
        get("/alarms", release_pages.alarms),
        post("/alarms/{id}", release_pages.acknowledge),
        get("/live", release_pages.live),
    ]
    if root:
        routes += [Route(root, to_queue), Mount(root, routes=list(routes))]
    problems = {
        404: _problem(site, 404, "there is no such page"),
        405: _problem(site, 405, "this page does not do that; go back and load it again"),
        500: _problem(site, 500, "a fault of the console; what was not foreseen is in its log"),
    }
    return Starlette(routes=routes, exception_handlers=problems)
