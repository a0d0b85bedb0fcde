"""Rendering the chart in process, with the real Helm engine, and checking what comes out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import helm_python
import jsonschema
import kubernetes_validate
import yaml

CHART = Path(__file__).parents[2] / "helm" / "ares-stream"
CRDS = Path(__file__).with_name("crds")
VERSIONS = ("1.34.0", "1.35.0", "1.36.0")
"""Of Kubernetes, whose schemas every resource must match."""

NEEDED: dict[str, Any] = {
    "kafka": {"bootstrap": "kafka:9093", "username": "ares", "existingSecret": "ares-kafka"},
    "models": {"pvc": {"existingClaim": "models"}},
}
"""What a person must say at the least."""


def merged(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Mappings over each other, key by key."""
    whole: dict[str, Any] = {}
    for layer in layers:
        for name, value in layer.items():
            below = whole.get(name)
            if isinstance(value, Mapping) and isinstance(below, Mapping):
                whole[name] = merged(below, value)
            else:
                whole[name] = value
    return whole


def rendered(
    values: Mapping[str, Any], *, chart: Path = CHART, release: str = "demo"
) -> list[dict[str, Any]]:
    """Every resource. Raises helm's error where the chart refuses the values."""
    return json.loads(_rendered(json.dumps(values), chart, release))  # type: ignore[no-any-return]


@cache
def _rendered(values: str, chart: Path, release: str) -> str:
    with helm_python.Chart.load(str(chart)) as loaded:
        loaded.validate_schema(json.loads(values))
        files = loaded.render(json.loads(values), name=release, namespace="prod")
    documents = [
        document
        for name, text in files.items()
        if name.endswith(".yaml")
        for document in yaml.safe_load_all(text)
        if document
    ]
    return json.dumps(documents)


def named(resources: list[dict[str, Any]], kind: str, name: str) -> dict[str, Any]:
    """The one resource of that kind and name."""
    (found,) = [
        item for item in resources if item["kind"] == kind and item["metadata"]["name"] == name
    ]
    return found


def check(resource: dict[str, Any], version: str) -> None:
    """Raise where a resource is not what Kubernetes of that version, or its CRD, takes."""
    schema = CRDS / f"{resource['kind'].lower()}.json"
    if schema.exists():
        _validator(schema).validate(resource)
        for job in resource["spec"].get("template", {}).get("spec", {}).get("replicatedJobs", ()):
            inside = {"apiVersion": "batch/v1", "kind": "Job", **job["template"]}
            _taken(json.dumps(inside), version)
        return
    _taken(json.dumps(resource), version)


@cache
def _taken(resource: str, version: str) -> None:
    kubernetes_validate.validate(json.loads(resource), version, strict=True)


@cache
def _validator(schema: Path) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(json.loads(schema.read_text()))
