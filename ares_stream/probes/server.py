"""A tiny OpenAI-compatible server in front of any target: for tests, the demo, and to try a
local model with tools that speak to an endpoint."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import uvicorn
from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ares_stream.errors import BrokerError, TargetError
from ares_stream.probes.targets import Query, Target
from ares_stream.records.interaction import Message

MAX_BODY_BYTES = 1024 * 1024
START_SECONDS = 10.0


def create_app(target: Target) -> Starlette:
    """Routes: POST /v1/chat/completions, GET /v1/models, GET /health."""

    async def completions(request: Request) -> Response:
        body = await request.body()
        if len(body) > MAX_BODY_BYTES:
            return _error(413, "the request is larger than 1 MiB")
        try:
            document = json.loads(body)
            query = Query(
                tuple(Message(**turn) for turn in document["messages"]),
                int(document.get("seed") or 0),
            )
        except (ValueError, KeyError, TypeError, ValidationError):
            return _error(400, "messages: expected a list of role and content")
        if document.get("stream"):
            return _error(400, "stream: not supported")
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
