"""A server of adapters over real HTTP, as vLLM documents its API: the list of models, loading and
unloading by name. It reads an adapter with the safetensors library and refuses what vLLM's loader
refuses, with vLLM's statuses.

    in_place=True   as since load_inplace: a refused adapter is 500, a missing one 404
    in_place=False  as before it: any refusal is 400, a name that is loaded too
"""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route


class PolicyServer:
    """`served` maps names to the paths that they were loaded from; `history` holds every state of
    it that a client could have met."""

    def __init__(
        self,
        *,
        in_place: bool = True,
        max_lora_rank: int = 16,
        broken: bool = False,
        lists_models: bool = True,
    ) -> None:
        self.served: dict[str, str] = {}
        self.history: list[dict[str, str]] = []
        self.requests: list[str] = []
        self.authorised = True
        self._in_place = in_place
        self._max_lora_rank = max_lora_rank
        self.broken = broken
        self.lists_models = lists_models
        self.app = Starlette(
            routes=[
                Route("/v1/models", self._models),
                Route("/v1/load_lora_adapter", self._load, methods=["POST"]),
                Route("/v1/unload_lora_adapter", self._unload, methods=["POST"]),
            ]
        )

    async def _models(self, request: Request) -> Response:
        self._note(request)
        if not self.lists_models:
            return PlainTextResponse("not here", status_code=404)
        base = {"id": "base", "object": "model", "root": "/models/base", "parent": None}
        cards = [base] + [
            {"id": name, "object": "model", "root": path, "parent": "base"}
            for name, path in self.served.items()
        ]
        return JSONResponse({"object": "list", "data": cards})

    async def _load(self, request: Request) -> Response:
        self._note(request)
        body = await request.json()
        if self.broken:
            return self._error("out of memory", 500)
        name, path = body.get("lora_name"), body.get("lora_path")
        if not name or not path:
            return self._error("Both 'lora_name' and 'lora_path' must be provided.", 400)
        if name in self.served and not (self._in_place and body.get("load_inplace")):
            return self._error(f"The lora adapter '{name}' has already been loaded.", 400)
        status, reason = self._refused(Path(path))
        if reason is not None:
            return self._error(reason, status)
        self.served = self.served | {name: path}
        self.history.append(self.served)
        return PlainTextResponse(f"Success: LoRA adapter '{name}' added successfully.")

    async def _unload(self, request: Request) -> Response:
        self._note(request)
        name = (await request.json())["lora_name"]
        if name not in self.served:
            return self._error(f"The lora adapter '{name}' cannot be found.", 404)
        self.served = {key: path for key, path in self.served.items() if key != name}
        self.history.append(self.served)
        return PlainTextResponse(f"Success: LoRA adapter '{name}' removed successfully.")

    def _note(self, request: Request) -> None:
        self.authorised &= request.headers.get("authorization") == "Bearer s3cret"
        self.requests.append(request.url.path.rsplit("/", 1)[-1])

    def _refused(self, folder: Path) -> tuple[int, str | None]:
        """The status and the message with which vLLM's loader of adapters would refuse it."""
        if not folder.is_dir():
            return 404, f"No adapter found for {folder}"
        return (500 if self._in_place else 400), self._reason(folder)

    def _reason(self, folder: Path) -> str | None:
        try:
            config = json.loads((folder / "adapter_config.json").read_text())
            missing = {"r", "lora_alpha", "target_modules"} - set(config)
            if missing:
                return f"Missing required configuration fields: {missing}"
            if config["r"] > self._max_lora_rank:
                return f"LoRA rank {config['r']} is greater than max_lora_rank"
            if config.get("modules_to_save"):
                return "vLLM only supports modules_to_save being None."
            if config.get("use_dora"):
                return "vLLM does not yet support DoRA."
            weights = folder / "adapter_model.safetensors"
            with safe_open(str(weights), framework="np") as tensors:
                for name in tensors.keys():  # noqa: SIM118 - not a mapping
                    if ".lora_A." not in name and ".lora_B." not in name:
                        return f"{name} is unsupported LoRA weight"
        except (OSError, ValueError, SafetensorError) as error:
            return str(error)
        return None

    def _error(self, message: str, status: int) -> Response:
        content: dict[str, Any] = {"message": message, "type": "BadRequestError", "code": status}
        return JSONResponse({"error": content} if self._in_place else content, status)
