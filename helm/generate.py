"""Makes what the chart says of itself from values.yaml and from the code: values.schema.json,
README.md, files/topics.yaml and files/acls.yaml. `make chart` runs it; `make check` compares.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import yaml

from ares_stream.records.acls import STRIMZI, Names, Service, acls
from ares_stream.records.topics import AUDIT_DAYS, specs

CHART = Path(__file__).parent / "ares-stream"

FREE = {
    "global", "commonLabels", "podLabels", "podAnnotations", "settings", "campaign", "resources",
    "nodeSelector", "affinity", "additionalLabels", "dashboardLabels", "annotations", "digests",
    "behavior",
}  # fmt: skip
"""Mappings whose keys are not ours."""
CHOICES: dict[str, list[str]] = {
    "kafka.protocol": ["SASL_SSL", "SSL", "PLAINTEXT"],
    "kafka.mechanism": ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"],
    "strimzi.authentication": ["scram-sha-512", "tls"],
    "models.source": ["pvc", "image", "init"],
    "provider": ["cpu", "cuda"],
    "topologySpread.whenUnsatisfiable": ["ScheduleAnyway", "DoNotSchedule"],
    "pullPolicy": ["Always", "IfNotPresent", "Never"],
    "logLevel": ["debug", "info", "warning", "error"],
}
TEXTS = {
    "commonLabels", "podLabels", "podAnnotations", "nodeSelector", "additionalLabels",
    "dashboardLabels", "annotations",
}  # fmt: skip
"""Of FREE: values that Kubernetes takes as text; the templates write numbers and booleans so."""
MAPPINGS: dict[str, Any] = {
    "properties": {"name": {"type": "string"}, "value": {"type": "string"}},
    "required": ["name"],
    "type": "object",
}
ITEMS: dict[str, Any] = {
    "tolerations": {"type": "object"},
    "kafkaPeers": {"type": "object"},
    "extraEgress": {"type": "object"},
    "apiServerPeers": {"type": "object"},
    "scrapers": {"type": "object"},
    "visitors": {"type": "object"},
    "env": MAPPINGS,
    "extraEnv": MAPPINGS,
    "extraVolumes": {"type": "object", "required": ["name"]},
    "extraVolumeMounts": {"type": "object", "required": ["name", "mountPath"]},
    "kafkaPorts": {"type": "integer", "minimum": 1},
    "pullSecrets": {"anyOf": [{"type": "string"}, MAPPINGS]},
}
"""Of lists; of others text."""
QUANTITIES: dict[str, Any] = {
    "type": ["object", "null"],
    "additionalProperties": {
        "anyOf": [
            {"type": ["number", "null"], "minimum": 0},
            {"type": "string", "pattern": "^[0-9.]+[A-Za-z0-9]*$"},
        ]
    },
}
RESOURCES: dict[str, Any] = {
    "additionalProperties": False,
    "properties": {
        "requests": QUANTITIES,
        "limits": QUANTITIES,
        "claims": {"type": "array", "items": {"type": "object", "required": ["name"]}},
    },
}
"""Of a container, as Kubernetes has them; a null takes a default away."""
AT_LEAST_ONE = {
    "partitions", "replication", "maxReplicas", "lagThreshold", "nodes", "processesPerNode",
    "parts", "hours", "auditDays", "startupSeconds",
}  # fmt: skip
NAMES = {"nameOverride", "fullnameOverride"}
URLS = {"runbookUrl", "monitorUrl"}
URL = r"^(https?://[A-Za-z0-9._~:/?@!&()*+,;=%\[\]-]+)?$"
"""Stands in rules between quotes; without a fragment, since an anchor follows."""
NAME = r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?)?$"
PATTERNS = {
    **dict.fromkeys(NAMES, NAME),
    **dict.fromkeys(URLS, URL),
    **dict.fromkeys(
        ("existingSecret", "existingClaim", "tlsSecret", "runtimeClassName", "priorityClassName",
         "className", "resourceClaimTemplate", "queue", "cluster", "authentication"),
        r"^([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?)?$",
    ),
    **dict.fromkeys(
        ("key", "passwordKey", "certificateKey", "privateKey", "tokenKey"), r"^[-._a-zA-Z0-9]+$"
    ),
    "tag": r"^([a-zA-Z0-9_][a-zA-Z0-9_.-]{0,127})?$",
    "mountPath": r"^/[^:\s]*$",
    "sizeLimit": r"^[0-9.]+[A-Za-z0-9]*$",
    "interval": r"^([0-9]+(ms|[smhdwy]))+$",
}  # fmt: skip
"""Of texts: names of resources and of a secret's keys, images' tags, paths, amounts, durations."""
NULLABLE = FREE - {"settings", "campaign", "digests"} | {"tolerations"}
"""A null in their place means none, as many write it."""
_KEY = re.compile(r"^( *)([A-Za-z][\w-]*):(.*)$")


def comments(text: str) -> dict[str, str]:
    """Dotted name of a value to the text of the `# --` comment above it."""
    found: dict[str, str] = {}
    path: list[tuple[int, str]] = []
    told: list[str] = []
    for line in text.splitlines():
        stripped = line.strip()
        if stripped.startswith("# --"):
            told = [stripped.removeprefix("# --").strip()]
        elif stripped.startswith("#") and told:
            told.append(stripped.removeprefix("#").strip())
        elif match := _KEY.match(line):
            indent = len(match[1])
            path = [item for item in path if item[0] < indent] + [(indent, match[2])]
            if told:
                found[".".join(name for _, name in path)] = " ".join(told)
            told = []
        else:
            told = []
    return found


def schema(value: Any, name: str, said: dict[str, str]) -> dict[str, Any]:
    """JSON Schema of one value and all below it."""
    key = name.rsplit(".", 1)[-1]
    made: dict[str, Any] = {}
    if text := said.get(name):
        made["description"] = text
    if key == "resources":
        return made | {"type": ["object", "null"], **RESOURCES}
    if key in FREE:
        texts = {"additionalProperties": {"type": ["string", "number", "boolean"]}}
        return made | {"type": "object", **(texts if key in TEXTS else {})}
    if key == "maxUnavailable":
        share = {"type": "string", "pattern": "^[0-9]+%$"}
        return made | {"anyOf": [{"type": "integer", "minimum": 0}, share]}
    if choices := CHOICES.get(name, CHOICES.get(key)):
        return made | {"enum": choices}
    if isinstance(value, int):
        count = {"type": "integer", "minimum": int(key in AT_LEAST_ONE)}
        return made | ({"type": "boolean"} if isinstance(value, bool) else count)
    if isinstance(value, str):
        pattern = PATTERNS.get(key)
        return made | {"type": "string", **({"pattern": pattern} if pattern else {})}
    if isinstance(value, list):
        return made | {"type": "array", "items": ITEMS.get(key, {"type": "string"})}
    properties = {
        part: schema(inner, f"{name}.{part}" if name else part, said)
        for part, inner in value.items()
    }
    # A null takes a default away: what the templates need must not be missed.
    needed = [] if name == "scorer.lanes" else sorted(properties.keys() - NULLABLE)
    return made | {
        "type": "object",
        "additionalProperties": False,
        "properties": properties,
        **({"required": needed} if needed else {}),
    }


def values_schema(values: dict[str, Any], said: dict[str, str]) -> dict[str, Any]:
    """The whole schema. A lane takes whatever scorer.defaults has."""
    whole = schema(values, "", said)
    scorer = whole["properties"]["scorer"]["properties"]
    lane = json.loads(json.dumps(scorer["defaults"]))
    lane["properties"] = {"enabled": {"type": "boolean"}} | lane["properties"]
    _all_optional(lane)
    for key in NULLABLE & lane["properties"].keys():
        if isinstance(kind := lane["properties"][key]["type"], str):
            lane["properties"][key]["type"] = [kind, "null"]
    scorer["lanes"]["properties"] = dict.fromkeys(values["scorer"]["lanes"], lane)
    return {"$schema": "http://json-schema.org/draft-07/schema#", **whole}


def _all_optional(part: dict[str, Any]) -> None:
    """A lane names what it has otherwise than the defaults."""
    part.pop("required", None)
    for below in part.get("properties", {}).values():
        _all_optional(below)


def leaves(value: Any, name: str, said: dict[str, str]) -> list[tuple[str, Any]]:
    """Every value that has a meaning of its own, with its default."""
    if name in said and (
        not isinstance(value, dict) or name.rsplit(".", 1)[-1] in FREE or not value
    ):
        return [(name, value)]
    if not isinstance(value, dict):
        return [(name, value)]
    return [
        leaf
        for part, below in value.items()
        for leaf in leaves(below, f"{name}.{part}".lstrip("."), said)
    ]


def readme(values: dict[str, Any], said: dict[str, str]) -> str:
    """README.md of the chart."""
    rows = [
        f"| `{name}` | `{json.dumps(default)}` | {said.get(name, '')} |"
        for name, default in leaves(values, "", said)
        if not name.startswith("scorer.lanes.")
    ]
    return "\n".join(
        [
            "# The chart",
            "",
            "Made from `values.yaml` by `make chart`. docs/kubernetes.md says how to install,",
            "scale, upgrade, roll back and remove it.",
            "",
            "| value | default | meaning |",
            "|---|---|---|",
            *rows,
            '| `scorer.lanes.<lane>` | `{"enabled": true}` | production, probe, anchor: each may'
            " replace any of `scorer.defaults` |",
            "",
        ]
    )


def topics() -> str:
    """files/topics.yaml: what the code says each topic must be like, without what values decide."""
    rows = []
    for spec in specs("", partitions=0, replication=3):
        config = {k: v for k, v in spec.config.items() if k != "min.insync.replicas"}
        audit = config.get("retention.ms") == str(AUDIT_DAYS * 86_400_000)
        if audit:
            del config["retention.ms"]
        row: dict[str, Any] = {"name": spec.name, "config": config, "audit": audit}
        if spec.partitions:
            row["partitions"] = spec.partitions
        rows.append(row)
    text = yaml.safe_dump({"topics": rows}, sort_keys=False)
    return f"# From ares_stream/records/topics.py, by `make chart`.\n{text}"


DEPLOYED: tuple[Service, ...] = (
    "scorer", "monitor", "prober", "repairer", "notary", "console", "replayer",
)  # fmt: skip
"""Services that the chart runs."""
GROUP = "@group"
"""In the place of a name that values decide: the group, the scorer's topics, the notary's."""
INPUT = "@input"
NOTARISED = "@notarised"


def users() -> str:
    """files/acls.yaml: what each service may do, with names without the prefix."""
    rows = {}
    for service in DEPLOYED:
        groups = dict.fromkeys(DEPLOYED, GROUP)
        rows[service] = [
            {
                "type": STRIMZI[item.resource],
                "name": item.name,
                "patternType": "prefix" if item.prefixed else "literal",
                "operations": list(item.operations),
            }
            for item in acls(service, Names("", [INPUT], groups, [NOTARISED]))
        ]
    content = {"notarised": list(Names().notarised), "services": rows}
    text = yaml.safe_dump(content, sort_keys=False)
    return f"# From ares_stream/records/acls.py, by `make chart`.\n{text}"


def made() -> dict[Path, str]:
    """File to content."""
    text = (CHART / "values.yaml").read_text(encoding="utf-8")
    values, said = yaml.safe_load(text), comments(text)
    return {
        CHART / "values.schema.json": json.dumps(values_schema(values, said), indent=1) + "\n",
        CHART / "README.md": readme(values, said),
        CHART / "files" / "topics.yaml": topics(),
        CHART / "files" / "acls.yaml": users(),
    }


def main() -> int:
    """Write; with --check compare only, and exit with 1 at a difference."""
    stale = [
        path
        for path, text in made().items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    ]
    if "--check" in sys.argv:
        for path in stale:
            print(f"{path}: not what `make chart` makes")
        return 1 if stale else 0
    for path, text in made().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
