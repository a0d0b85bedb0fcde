"""What a step of a repair may run as in a cluster, and how one asks the API server for it.

| kind | its template | its command | whose output counts |
|---|---|---|---|
| Job of batch/v1 | a whole pod | of the first container | its pod's |
| TrainJob of Kubeflow's trainer | names a runtime with a pod | of the trainer | the first node's |

A TrainJob's runtime is the chart's TrainingRuntime: a pod on each of several nodes, in which
`torchrun` finds the others by the variables PET_* that the trainer sets (kubeflow/trainer v2.0,
pkg/runtime/framework/plugins/torch).
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import yaml

LABEL: Final = "ares-stream"
POLL_SECONDS: Final = 2.0
UNREACHABLE_SECONDS: Final = 300.0
"""An API server that is upgraded is back within this."""
REQUEST_SECONDS: Final = 30.0

Phase = Literal["pending", "running", "complete", "failed"]
Manifest = dict[str, Any]


class JobError(Exception):
    """The Job cannot be made or followed; the message says why."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of object that runs a step."""

    name: str
    group: str
    version: str
    plural: str
    pods: str
    """Label selector of the pods whose output counts; `{}` stands for the object's name."""
    conditions: Mapping[str, Phase]
    """Phase by the condition that is true."""
    fill: Callable[[Manifest, list[str], Mapping[str, str]], None]
    """Puts command and labels of the pods into a manifest. Raises KeyError, IndexError, TypeError
    for one that is no such object."""
    is_active: Callable[[Mapping[str, Any]], bool]
    """By its status."""
    container: Callable[[Manifest], str]
    """Whose output counts, of a pod into which a mesh or an agent may have put its own."""

    @property
    def api_version(self) -> str:
        """As manifests have it."""
        return f"{self.group}/{self.version}"


def _fill_job(job: Manifest, command: list[str], labels: Mapping[str, str]) -> None:
    pod = job["spec"]["template"]
    container = pod["spec"]["containers"][0]
    container["command"] = command
    container.pop("args", None)
    pod.setdefault("metadata", {}).setdefault("labels", {}).update(labels)


def _fill_train_job(job: Manifest, command: list[str], _: Mapping[str, str]) -> None:
    if not job["spec"]["runtimeRef"]["name"]:
        raise KeyError("runtimeRef")
    trainer = job["spec"].setdefault("trainer", {})
    trainer["command"] = command
    trainer.pop("args", None)


JOB: Final = Kind(
    "Job",
    "batch",
    "v1",
    "jobs",
    "batch.kubernetes.io/job-name={}",
    {
        "Complete": "complete",
        "SuccessCriteriaMet": "complete",
        "Failed": "failed",
        "FailureTarget": "failed",
    },
    _fill_job,
    lambda status: bool(status.get("active")),
    lambda job: str(job["spec"]["template"]["spec"]["containers"][0]["name"]),
)
TRAIN_JOB: Final = Kind(
    "TrainJob",
    "trainer.kubeflow.org",
    "v1alpha1",
    "trainjobs",
    "jobset.sigs.k8s.io/jobset-name={},batch.kubernetes.io/job-completion-index=0",
    {"Complete": "complete", "Failed": "failed"},
    _fill_train_job,
    lambda status: any(item.get("active") for item in status.get("jobsStatus") or ()),
    # The trainer fills in the container of this name.
    lambda _: "node",
)
KINDS: Final = {kind.name: kind for kind in (JOB, TRAIN_JOB)}


def kind_of(template: Mapping[str, Any]) -> Kind:
    """Of a manifest. Raises JobError."""
    kind = KINDS.get(str(template.get("kind")))
    if kind is None or template.get("apiVersion") != kind.api_version:
        known = " or ".join(f"{item.name} of {item.api_version}" for item in KINDS.values())
        raise JobError(
            f"the template is a {template.get('kind')!r} of {template.get('apiVersion')!r}, "
            f"expected a {known}"
        )
    return kind


def manifest(template: Mapping[str, Any], command: Sequence[str]) -> Manifest:
    """The object of one step: the template with command, name and labels filled in. Pure.

    Raises JobError for a template that is none.
    """
    kind = kind_of(template)
    folder = Path(command[-1]).name
    module = next((part for part in command if part.startswith("ares_stream.")), command[0])
    step = module.rsplit(".", 1)[-1] + ("-" + command[-2] if command[-2] != module else "")
    named = hashlib.sha256("\0".join(command).encode()).hexdigest()[:10]
    labels = {f"{LABEL}/plan": label_of(folder), f"{LABEL}/step": label_of(step)}
    try:
        made: Manifest = yaml.safe_load(yaml.safe_dump(dict(template)))
        kind.fill(made, list(command), labels)
        metadata = made["metadata"]
        metadata.setdefault("labels", {}).update(labels)
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise JobError(f"the template is no {kind.name} that can be filled in: {error!r}") from None
    metadata["name"] = f"ares-repair-{label_of(step)[:24]}-{named}".rstrip("-").lower()
    return made


def label_of(text: str) -> str:
    """What of a text may stand in a label's value."""
    kept = "".join(
        letter if (letter.isascii() and letter.isalnum()) or letter in "-." else "-"
        for letter in text
    )
    return kept[:63].strip("-.") or "none"


def phase_of(kind: Kind, status: Mapping[str, Any]) -> Phase:
    """Where an object is, by its status."""
    for condition in status.get("conditions") or ():
        phase = kind.conditions.get(condition.get("type"))
        if condition.get("status") == "True" and phase is not None:
            return phase
    return "running" if kind.is_active(status) else "pending"


class Cluster:
    """The API server of a namespace, waited for while it is away. Its refusals (`Refused`) are
    raised."""

    def __init__(self, namespace: str) -> None:
        """Raises JobError where no cluster is configured."""
        from kubernetes import client, config

        try:
            config.load_config()  # type: ignore[no-untyped-call]
        except config.ConfigException as error:
            raise JobError(f"no cluster: {error}") from None
        self.namespace = namespace
        self.core: Any = client.CoreV1Api()
        self.Refused: Any = client.ApiException
        self._objects: Any = client.CustomObjectsApi()

    def ask(self, call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """What a call of the client answers. Raises JobError once it has failed for too long."""
        from urllib3.exceptions import HTTPError

        began = time.monotonic()
        while True:
            try:
                return call(*arguments, _request_timeout=REQUEST_SECONDS, **options)
            except self.Refused as error:
                if error.status and error.status < 500 and error.status != 429:
                    raise
                problem = reason_of(error)
            except (HTTPError, OSError) as error:
                problem = type(error).__name__
            if time.monotonic() - began > UNREACHABLE_SECONDS:
                raise JobError(
                    f"the API server did not answer for {UNREACHABLE_SECONDS:.0f} s: {problem}"
                )
            time.sleep(POLL_SECONDS)

    def status(self, kind: Kind, name: str) -> Mapping[str, Any] | None:
        """Of an object; None where there is none of that name."""
        try:
            found = self.ask(self._objects.get_namespaced_custom_object, *self._at(kind), name)
        except self.Refused as error:
            if error.status == 404:
                return None
            raise
        return found.get("status") or {}

    def create(self, kind: Kind, made: Manifest) -> None:
        """Make an object. One that is there already (a first try may have come through though its
        answer did not) is taken for it."""
        create = self._objects.create_namespaced_custom_object
        try:
            # A field that nobody knows would be dropped in silence.
            self.ask(create, *self._at(kind), made, field_validation="Strict")
        except self.Refused as error:
            if error.status != 409:
                raise

    def delete(self, kind: Kind, name: str) -> None:
        """Delete an object once its pods are gone."""
        delete = self._objects.delete_namespaced_custom_object
        self.ask(delete, *self._at(kind), name, propagation_policy="Foreground")

    def mark(self, kind: Kind, name: str, metadata: Mapping[str, Any]) -> None:
        """Write labels or annotations."""
        patch = self._objects.patch_namespaced_custom_object
        body = {"metadata": metadata}
        self.ask(
            patch, *self._at(kind), name, body, _content_type="application/merge-patch+json"
        )  # fmt: skip

    def names(self, kind: Kind, selector: str) -> list[str]:
        """Of the objects with these labels."""
        found = self._objects.list_namespaced_custom_object
        answer = self.ask(found, *self._at(kind), label_selector=selector)
        return [str(item["metadata"]["name"]) for item in answer["items"]]

    def _at(self, kind: Kind) -> tuple[str, str, str, str]:
        return kind.group, kind.version, self.namespace, kind.plural


def reason_of(error: Any) -> str:
    """A refusal in a line: the server's own message says which right is missing."""
    try:
        return str(json.loads(error.body)["message"])
    except (TypeError, ValueError, KeyError, RecursionError):
        return f"{error.status} {error.reason}"
