"""One step of a repair as a Kubernetes Job, in the place of a child process:

    python -m ares_stream.processes.job TEMPLATE -- COMMAND ... RUN_DIR

TEMPLATE is a batch/v1 Job in YAML whose first container gets COMMAND ... RUN_DIR. The Job's name
follows from command and folder, so that a repairer that restarts finds the Job that still runs
and waits for it. One of that name that has ended is replaced: a folder may be asked anew, and a
step whose result is there does nothing. Its output becomes this process's output, so that progress
is told as if the step ran here. Its phase (label `ares-stream/phase`) and Events stand on the Job.

    python -m ares_stream.processes.job TEMPLATE --gate passed|rejected REASON RUN_DIR

writes the gate's verdict on the Jobs of a repair, as annotations `ares-stream/gate` and
`ares-stream/gate-reason`.

Exits with 0 when the Job completed, 1 when it failed, 2 when it cannot be started. SIGTERM ends
this process and leaves the Job: its own activeDeadlineSeconds bounds it. Needs the extra `cluster`.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import math
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

import yaml
from pydantic import ValidationError

POLL_SECONDS: Final = 2.0
DELETE_SECONDS: Final = 60.0
"""An ended Job of this name goes with its pods; what takes longer waits for a person."""
UNREACHABLE_SECONDS: Final = 300.0
"""An API server that is upgraded is back within this."""
REQUEST_SECONDS: Final = 30.0
SILENT_SECONDS: Final = 600.0
"""A log that says nothing for so long is asked for anew: its node may have died."""
REASON_CHARACTERS: Final = 500
"""Of the gate's first reason on a Job; the report has all of them."""
LABEL: Final = "ares-stream"

Phase = Literal["pending", "running", "complete", "failed"]


class JobError(Exception):
    """The Job cannot be made or followed; the message says why."""


def manifest(template: Mapping[str, Any], command: Sequence[str]) -> dict[str, Any]:
    """The Job of one step: the template with command, name and labels filled in. Pure.

    Raises JobError for a template that is no Job with a container.
    """
    try:
        job: dict[str, Any] = yaml.safe_load(yaml.safe_dump(dict(template)))
        container = job["spec"]["template"]["spec"]["containers"][0]
        metadata = job["metadata"]
    except (KeyError, IndexError, TypeError) as error:
        raise JobError(f"the template is no batch/v1 Job with a container: {error!r}") from None
    if job.get("kind") != "Job":
        raise JobError(f"the template is a {job.get('kind')!r}, expected a Job")
    _quote_quantities(job)
    container["command"] = list(command)
    container.pop("args", None)
    folder = Path(command[-1]).name
    module = next((part for part in command if part.startswith("ares_stream.")), command[0])
    step = module.rsplit(".", 1)[-1] + ("-" + command[-2] if command[-2] != module else "")
    named = hashlib.sha256("\0".join(command).encode()).hexdigest()[:10]
    metadata["name"] = f"ares-repair-{_label(step)[:24]}-{named}".rstrip("-").lower()
    labels = {f"{LABEL}/plan": _label(folder), f"{LABEL}/step": _label(step)}
    for place in (metadata, job["spec"]["template"].setdefault("metadata", {})):
        place.setdefault("labels", {}).update(labels)
    return job


def _quote_quantities(value: Any) -> None:
    """Numbers of limits, requests and sizes as text: Kubernetes takes either, its client one."""
    if isinstance(value, list):
        for item in value:
            _quote_quantities(item)
    elif isinstance(value, dict):
        for name, item in value.items():
            if name in ("limits", "requests") and isinstance(item, dict):
                value[name] = {key: str(amount) for key, amount in item.items()}
            elif name in ("sizeLimit", "storage") and isinstance(item, int | float):
                value[name] = str(item)
            else:
                _quote_quantities(item)


def _label(text: str) -> str:
    """What of a text may stand in a label's value."""
    kept = "".join(
        letter if (letter.isascii() and letter.isalnum()) or letter in "-." else "-"
        for letter in text
    )
    return kept[:63].strip("-.") or "none"


def phase_of(status: Any) -> Phase:
    """Where a Job is, by its V1JobStatus."""
    for condition in status.conditions or ():
        if condition.status == "True" and condition.type in ("Complete", "SuccessCriteriaMet"):
            return "complete"
        if condition.status == "True" and condition.type in ("Failed", "FailureTarget"):
            return "failed"
    return "running" if status.active else "pending"


def waits_for(status: Any) -> str:
    """Why a pod has not begun, by its V1PodStatus: no node, no image; empty while it starts."""
    for condition in status.conditions or ():
        if condition.type == "PodScheduled" and condition.status == "False":
            return f"{condition.reason}: {condition.message}"
    for container in (*(status.init_container_statuses or ()), *(status.container_statuses or ())):
        waiting = container.state.waiting
        if waiting is not None and waiting.message:
            return f"{waiting.reason}: {waiting.message}"
    return ""


def _reason(error: Any) -> str:
    """An ApiException in a line: the server's own message says which right is missing."""
    try:
        return str(json.loads(error.body)["message"])
    except (TypeError, ValueError, KeyError):
        return f"{error.status} {error.reason}"


class JobRun:
    """Creates or finds one Job and follows it to its end."""

    def __init__(self, job: dict[str, Any], say: Callable[[str], None]) -> None:
        from kubernetes import client, config

        try:
            config.load_config()  # type: ignore[no-untyped-call]
        except config.ConfigException as error:
            raise JobError(f"no cluster: {error}") from None
        self._batch: Any = client.BatchV1Api()
        self._core: Any = client.CoreV1Api()
        self._refused = client.ApiException
        self._job = job
        self._name: str = job["metadata"]["name"]
        self._namespace: str = job["metadata"].get("namespace", "default")
        self._say = say
        self._phase: Phase | None = None
        self._waiting = ""
        self._begun = False
        self._heard = time.monotonic()

    def run(self) -> Phase:
        """`complete` or `failed`. Raises JobError."""
        try:
            self._create()
            return self._follow()
        except self._refused as error:
            if error.status == 404:
                raise JobError(f"Job {self._name} was deleted") from None
            raise JobError(f"Job {self._name}: {_reason(error)}") from None

    def _follow(self) -> Phase:
        followed: str | None = None
        while True:
            job = self._ask(self._batch.read_namespaced_job, self._name, self._namespace)
            self._tell(phase_of(job.status))
            pod = self._pod()
            if pod is not None and pod != followed:
                followed = pod if self._pass_on(pod) else None
            elif self._phase in ("complete", "failed"):
                return self._phase
            time.sleep(POLL_SECONDS)

    def _ask(self, call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """What the API server answers, waited for while it is away. Its refusals are raised."""
        from urllib3.exceptions import HTTPError

        began = time.monotonic()
        while True:
            try:
                return call(*arguments, _request_timeout=REQUEST_SECONDS, **options)
            except self._refused as error:
                if error.status and error.status < 500 and error.status != 429:
                    raise
                problem = _reason(error)
            except (HTTPError, OSError) as error:
                problem = type(error).__name__
            if time.monotonic() - began > UNREACHABLE_SECONDS:
                raise JobError(
                    f"the API server did not answer for {UNREACHABLE_SECONDS:.0f} s: {problem}"
                )
            time.sleep(POLL_SECONDS)

    def _create(self) -> None:
        try:
            found = self._ask(self._batch.read_namespaced_job, self._name, self._namespace)
        except self._refused as error:
            if error.status != 404:
                raise
        else:
            if phase_of(found.status) in ("pending", "running"):
                self._say(f"Job {self._name} is there already: waiting for it")
                return
            self._delete()
        try:
            self._ask(self._batch.create_namespaced_job, self._namespace, self._job)
        except self._refused as error:
            # A first try may have come through though its answer did not.
            if error.status != 409:
                raise JobError(f"Job {self._name} cannot be created: {_reason(error)}") from None
        except ValidationError as error:
            wrong = error.errors()[0]
            field = ".".join(str(part) for part in wrong["loc"][1:])
            raise JobError(f"the template: {field}: {wrong['msg']}") from None
        self._event("Created", f"step of {self._job['metadata']['labels'][f'{LABEL}/plan']}")

    def _delete(self) -> None:
        self._ask(
            self._batch.delete_namespaced_job,
            self._name,
            self._namespace,
            propagation_policy="Foreground",
        )
        deadline = time.monotonic() + DELETE_SECONDS
        while time.monotonic() < deadline:
            try:
                self._ask(self._batch.read_namespaced_job, self._name, self._namespace)
            except self._refused as error:
                if error.status == 404:
                    return
                raise
            time.sleep(POLL_SECONDS)
        raise JobError(f"the ended Job {self._name} was not gone after {DELETE_SECONDS:.0f} s")

    def _pod(self) -> str | None:
        """Name of the newest pod, once its container has run; says what it waits for."""
        pods = self._ask(
            self._core.list_namespaced_pod,
            self._namespace,
            label_selector=f"batch.kubernetes.io/job-name={self._name}",
        ).items
        newest = max(pods, key=lambda pod: pod.metadata.creation_timestamp, default=None)
        if newest is None:
            return None
        if newest.status.phase in ("Running", "Succeeded", "Failed"):
            return str(newest.metadata.name)
        waiting = waits_for(newest.status)
        if waiting and waiting != self._waiting:
            self._waiting = waiting
            self._say(f"pod {newest.metadata.name} waits: {waiting}")
        return None

    def _pass_on(self, pod: str) -> bool:
        """The pod's output to this process's. Whether to its end: a cut one is asked for anew."""
        from urllib3.exceptions import HTTPError

        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        options: dict[str, Any] = {}
        if self._begun:
            options["since_seconds"] = max(1, math.ceil(time.monotonic() - self._heard))
        try:
            answer = self._core.read_namespaced_pod_log(
                pod,
                self._namespace,
                follow=True,
                _preload_content=False,
                _request_timeout=(REQUEST_SECONDS, SILENT_SECONDS),
                **options,
            )
            self._begun, self._heard = True, time.monotonic()
            for chunk in answer.stream(decode_content=False):
                self._heard = time.monotonic()
                sys.stdout.write(decoder.decode(chunk))
                sys.stdout.flush()
        except (HTTPError, OSError) as error:
            self._say(f"log of {pod}: {type(error).__name__}; asked for anew")
            return False
        return True

    def _tell(self, phase: Phase) -> None:
        if phase == self._phase:
            return
        self._phase = phase
        self._ask(
            self._batch.patch_namespaced_job,
            self._name,
            self._namespace,
            {"metadata": {"labels": {f"{LABEL}/phase": phase}}},
        )
        if phase in ("complete", "failed"):
            self._event(phase.capitalize(), f"the step is {phase}")

    def _event(self, reason: str, text: str) -> None:
        """Visible in `kubectl describe job`; an Event that is refused fails no repair."""
        now = datetime.now(UTC)
        body = {
            "metadata": {"generateName": f"{self._name}."},
            "involvedObject": {
                "apiVersion": "batch/v1",
                "kind": "Job",
                "name": self._name,
                "namespace": self._namespace,
            },
            "reason": reason,
            "message": text,
            "type": "Warning" if reason == "Failed" else "Normal",
            "firstTimestamp": now.isoformat(),
            "lastTimestamp": now.isoformat(),
            "count": 1,
            "source": {"component": "ares-repairer"},
        }
        try:
            self._ask(self._core.create_namespaced_event, self._namespace, body)
        except self._refused as error:
            self._say(f"no Event: {_reason(error)}")


def annotate(template: Mapping[str, Any], word: str, reason: str, folder: str) -> int:
    """Write the gate's verdict on each Job of the folder's repair; how many there are. Raises
    JobError."""
    from kubernetes import client, config
    from urllib3.exceptions import HTTPError

    try:
        config.load_config()  # type: ignore[no-untyped-call]
    except config.ConfigException as error:
        raise JobError(f"no cluster: {error}") from None
    batch: Any = client.BatchV1Api()
    namespace = template.get("metadata", {}).get("namespace", "default")
    notes = {f"{LABEL}/gate": word, f"{LABEL}/gate-reason": reason[:REASON_CHARACTERS]}
    try:
        jobs = batch.list_namespaced_job(
            namespace,
            label_selector=f"{LABEL}/plan={_label(Path(folder).name)}",
            _request_timeout=REQUEST_SECONDS,
        ).items
        for job in jobs:
            body = {"metadata": {"annotations": notes}}
            batch.patch_namespaced_job(
                job.metadata.name, namespace, body, _request_timeout=REQUEST_SECONDS
            )
    except client.ApiException as error:
        raise JobError(f"the gate's verdict is on no Job: {_reason(error)}") from None
    except (HTTPError, OSError) as error:
        raise JobError(f"the gate's verdict is on no Job: {type(error).__name__}") from None
    return len(jobs)


def main(arguments: Sequence[str]) -> int:
    """See the module. `repair: ` begins the line that the repairer shows of a failure."""
    if len(arguments) == 5 and arguments[1] == "--gate":
        try:
            annotate(yaml.safe_load(Path(arguments[0]).read_text()), *arguments[2:])
        except (JobError, OSError, yaml.YAMLError) as error:
            sys.stderr.write(f"repair: {error}\n")
            return 2
        return 0
    if len(arguments) < 4 or arguments[1] != "--":
        sys.stderr.write(
            "usage: python -m ares_stream.processes.job TEMPLATE -- COMMAND ... RUN_DIR\n"
        )
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        template = yaml.safe_load(Path(arguments[0]).read_text())
        job = manifest(template, arguments[2:])
        phase = JobRun(job, lambda text: print(text, file=sys.stderr)).run()
    except (JobError, OSError, yaml.YAMLError) as error:
        sys.stderr.write(f"repair: {error}\n")
        return 2
    if phase == "failed":
        sys.stderr.write(
            f"repair: Job {job['metadata']['name']} failed; see `kubectl describe job`, its log\n"
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
