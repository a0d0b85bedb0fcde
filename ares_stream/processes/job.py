"""One step of a repair as a Kubernetes Job, in the place of a child process:

    python -m ares_stream.processes.job TEMPLATE -- COMMAND ... RUN_DIR

TEMPLATE is a batch/v1 Job in YAML whose first container gets COMMAND ... RUN_DIR. The Job's name
follows from command and folder, so that a repairer that restarts finds the Job that still runs
and waits for it; a failed one of that name is replaced. Its output becomes this process's output,
so that progress is told as if the step ran here. Its phase (label `ares-stream/phase`) and Events
stand on the Job.

Exits with 0 when the Job completed, 1 when it failed, 2 when it cannot be started. SIGTERM ends
this process and leaves the Job: its own activeDeadlineSeconds bounds it. Needs the extra `cluster`.
"""

from __future__ import annotations

import hashlib
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

import yaml

POLL_SECONDS: Final = 2.0
DELETE_SECONDS: Final = 60.0
"""A failed Job of this name goes with its pods; what takes longer waits for a person."""
UNREACHABLE_SECONDS: Final = 300.0
"""An API server that is upgraded is back within this."""
REQUEST_SECONDS: Final = 30.0
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


def _label(text: str) -> str:
    """What of a text may stand in a label's value."""
    kept = "".join(letter if letter.isalnum() or letter in "-." else "-" for letter in text)
    return kept[:63].strip("-.") or "none"


def phase_of(status: Any) -> Phase:
    """Where a Job is, by its V1JobStatus."""
    for condition in status.conditions or ():
        if condition.status == "True" and condition.type in ("Complete", "SuccessCriteriaMet"):
            return "complete"
        if condition.status == "True" and condition.type in ("Failed", "FailureTarget"):
            return "failed"
    return "running" if status.active else "pending"


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

    def run(self) -> Phase:
        """`complete` or `failed`. Raises JobError."""
        self._create()
        heard = time.monotonic()
        followed: str | None = None
        while True:
            try:
                status = self._batch.read_namespaced_job_status(
                    self._name, self._namespace, _request_timeout=REQUEST_SECONDS
                ).status
                self._tell(phase_of(status))
                heard = time.monotonic()
                pod = self._pod()
                if pod is not None and pod != followed:
                    followed = pod
                    self._pass_on(pod)
                elif self._phase in ("complete", "failed"):
                    return self._phase
            except self._refused as error:
                if error.status == 404:
                    raise JobError(f"Job {self._name} was deleted") from None
                self._wait_for_api(heard, error)
            except OSError as error:
                self._wait_for_api(heard, error)
            time.sleep(POLL_SECONDS)

    def _wait_for_api(self, heard: float, error: Exception) -> None:
        if time.monotonic() - heard > UNREACHABLE_SECONDS:
            raise JobError(
                f"the API server did not answer for {UNREACHABLE_SECONDS:.0f} s: {error}"
            ) from None

    def _create(self) -> None:
        try:
            found = self._batch.read_namespaced_job(self._name, self._namespace)
        except self._refused as error:
            if error.status != 404:
                raise JobError(f"Job {self._name}: {error.reason}") from None
        else:
            if phase_of(found.status) != "failed":
                self._say(f"Job {self._name} is there already: waiting for it")
                return
            self._delete()
        try:
            self._batch.create_namespaced_job(self._namespace, self._job)
        except self._refused as error:
            raise JobError(f"Job {self._name} cannot be created: {error.reason}") from None
        self._event("Created", f"step of {self._job['metadata']['labels'][f'{LABEL}/plan']}")

    def _delete(self) -> None:
        self._batch.delete_namespaced_job(
            self._name, self._namespace, propagation_policy="Foreground"
        )
        deadline = time.monotonic() + DELETE_SECONDS
        while time.monotonic() < deadline:
            try:
                self._batch.read_namespaced_job(self._name, self._namespace)
            except self._refused as error:
                if error.status == 404:
                    return
            time.sleep(POLL_SECONDS)
        raise JobError(f"the failed Job {self._name} was not gone after {DELETE_SECONDS:.0f} s")

    def _pod(self) -> str | None:
        """Name of the pod, once its container has run."""
        pods = self._core.list_namespaced_pod(
            self._namespace,
            label_selector=f"batch.kubernetes.io/job-name={self._name}",
            _request_timeout=REQUEST_SECONDS,
        ).items
        begun = [pod for pod in pods if pod.status.phase in ("Running", "Succeeded", "Failed")]
        newest = max(begun, key=lambda pod: pod.metadata.creation_timestamp, default=None)
        return None if newest is None else str(newest.metadata.name)

    def _pass_on(self, pod: str) -> None:
        """The pod's output to this process's, until the pod ends."""
        answer = self._core.read_namespaced_pod_log(
            pod, self._namespace, follow=True, _preload_content=False
        )
        for chunk in answer.stream(decode_content=False):
            sys.stdout.write(chunk.decode(errors="replace"))
            sys.stdout.flush()

    def _tell(self, phase: Phase) -> None:
        if phase == self._phase:
            return
        self._phase = phase
        self._batch.patch_namespaced_job(
            self._name, self._namespace, {"metadata": {"labels": {f"{LABEL}/phase": phase}}}
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
            self._core.create_namespaced_event(self._namespace, body)
        except self._refused as error:
            self._say(f"no Event: {error.reason}")


def main(arguments: Sequence[str]) -> int:
    """See the module. `repair: ` begins the line that the repairer shows of a failure."""
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
