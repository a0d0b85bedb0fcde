"""A tiny OpenAI-compatible server in front of any target."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ares_stream.errors import BrokerError, DecodeError, InputError, TargetError
from ares_stream.files import parse_json
from ares_stream.probes.targets import Query, Target
from ares_stream.records.interaction import Message
from ares_stream.records.presets.chat import turns

MAX_BODY_BYTES = 1024 * 1024
START_SECONDS = 10.0


def create_app(target: Target) -> Starlette:
    """Routes: POST /v1/chat/completions, GET /v1/models, GET /health."""

    async def completions(request: Request) -> Response:
        body = await request.body()
        if len(body) > MAX_BODY_BYTES:
            return _error(413, "the request is larger than 1 MiB")
        try:
            query = _query(parse_json(body))
        except InputError as error:
            return _error(400, str(error))
        [result] = await target.ask([query])
        if isinstance(result, TargetError):
            return _error(503, "the target gave no answer")
        return JSONResponse(
            {
                "id": "chatcmpl-local",
                "object": "chat.completion",
                "created": int(time.time()),
                "model": target.policy.name,
                "choices": [
                    {
                        "index": 0,
                        "message": {"role": "assistant", "content": result.text},
                        "finish_reason": result.finish,
                    }
                ],
                "usage": {
                    "prompt_tokens": result.prompt_tokens,
                    "completion_tokens": result.completion_tokens,
                    "total_tokens": result.prompt_tokens + result.completion_tokens,
                },
            }
        )

    async def models(request: Request) -> Response:
        return JSONResponse(
            {"object": "list", "data": [{"id": target.policy.name, "object": "model"}]}
        )

    async def health(request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    return Starlette(
        routes=[
            Route("/v1/chat/completions", completions, methods=["POST"]),
            Route("/v1/models", models),
            Route("/health", health),
        ]
    )


def _query(document: Any) -> Query:
    """What a request asks. Raises InputError naming the field; what is not supported is refused,
    for to answer without it would be another answer than was asked for."""
    if not isinstance(document, dict):
        raise DecodeError("expected an object")
    if document.get("stream"):
        raise DecodeError("not supported", field="stream")
    if document.get("n", 1) not in (1, None):
        raise DecodeError("one answer at a time", field="n")
    seed = 0 if document.get("seed") is None else document["seed"]
    if not isinstance(seed, int):
        raise DecodeError("expected a whole number", field="seed")
    if not isinstance(document.get("messages"), list):
        raise DecodeError("expected a list of role and content", field="messages")
    said = turns(document["messages"], "messages")
    if any(turn.left_out for turn in said):
        raise DecodeError("hold what is not text", field="messages")
    return Query(
        tuple(Message.model_validate({"role": turn.role, "content": turn.text}) for turn in said),
        seed,
    )


@asynccontextmanager
async def serving(app: Starlette, port: int = 0, host: str = "127.0.0.1") -> AsyncIterator[str]:
    """Serve while the block runs; gives the base URL that OpenAI clients want."""
    config = uvicorn.Config(app, host=host, port=port, log_level="error", lifespan="off")
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve())
    try:
        async with asyncio.timeout(START_SECONDS):
            while not server.started:
                if task.done():
                    raise BrokerError(f"the server cannot listen on {host}:{port}")
                await asyncio.sleep(0.01)
        chosen = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://{host}:{chosen}/v1"
    finally:
        server.should_exit = True
        server.force_exit = True
        with suppress(asyncio.CancelledError, SystemExit):
            await task


def _error(status: int, message: str) -> Response:
    return JSONResponse({"error": {"message": message, "type": "invalid_request"}}, status)
