"""Who serves the policy. Settings read this; ares_stream.models.announcing tells it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class PolicyServer(BaseModel):
    """Who serves the policy, and how it is told of an adapter.

    vllm: POST {url}/v1/load_lora_adapter and /v1/unload_lora_adapter, which the server offers
    with VLLM_ALLOW_RUNTIME_LORA_UPDATING=True; clients ask for the model by the release's model
    name. webhook: POST {url} with the release as JSON.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["vllm", "webhook"]
    url: str = Field(pattern=r"^https?://[^\s]+$")
    token_file: Path | None = None
    """Sent as a bearer token."""
    seconds: float = Field(30.0, gt=0)
    """For one request: a server that loads an adapter for longer is taken for stuck."""
