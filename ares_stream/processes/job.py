"""One step of a repair as an object of a cluster, in the place of a child process:

    python -m ares_stream.processes.job TEMPLATE -- COMMAND ... RUN_DIR

TEMPLATE is a Job of batch/v1 or a TrainJob of Kubeflow's trainer, in YAML, that gets
COMMAND ... RUN_DIR (workloads.py). Its name follows from command and folder, so that a repairer
that restarts finds the Job that still runs and waits for it. One of that name that has ended is
replaced: a folder may be asked anew, and a step whose result is there does nothing. Its output
becomes this process's output, so that progress is told as if the step ran here; of a TrainJob on
several nodes it is the first node's. Its phase (label `ares-stream/phase`) and Events stand on it.

    python -m ares_stream.processes.job TEMPLATE --gate passed|rejected REASON RUN_DIR

writes the gate's verdict on the Jobs, and where TEMPLATE is a TrainJob on the TrainJobs, of a
repair, as annotations `ares-stream/gate` and `ares-stream/gate-reason`.

Exits with 0 when it completed, 1 when it failed, 2 when it cannot be started. SIGTERM ends
this process and leaves the Job: its own activeDeadlineSeconds bounds it. Needs the extra `cluster`.
"""

from __future__ import annotations

import codecs
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import yaml

from ares_stream.processes.signals import end_in_order
from ares_stream.processes.workloads import (
    JOB,
    LABEL,
    POLL_SECONDS,
    REQUEST_SECONDS,
    Cluster,
    JobError,
    Manifest,
    Phase,
    kind_of,
    label_of,
    manifest,
    phase_of,
    reason_of,
)

QUEUE: Final = "kueue.x-k8s.io/queue-name"
DELETE_SECONDS: Final = 60.0
"""An ended Job of this name goes with its pods; what takes longer waits for a person."""
SILENT_SECONDS: Final = 600.0
"""A log that says nothing for so long is asked for anew: its node may have died."""
REASON_CHARACTERS: Final = 500
"""Of the gate's first reason on a Job; the report has all of them."""


def is_held(status: Mapping[str, Any]) -> bool:
    """Whether a Job's or TrainJob's status says that it is suspended, as queues have them begin."""
    return any(
        item.get("type") == "Suspended" and item.get("status") == "True"
        for item in status.get("conditions") or ()
    )


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


class JobRun:
    """Creates or finds one Job or TrainJob and follows it to its end."""

    def __init__(self, made: Manifest, say: Callable[[str], None]) -> None:
        metadata = made["metadata"]
        self._cluster = Cluster(metadata.get("namespace", "default"))
        self._kind = kind_of(made)
        self._made = made
        self._name: str = metadata["name"]
        self._title = f"{self._kind.name} {self._name}"
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
        except self._cluster.Refused as error:
            if error.status == 404:
                raise self._deleted() from None
            raise JobError(f"{self._title}: {reason_of(error)}") from None

    def _deleted(self) -> JobError:
        return JobError(f"{self._title} was deleted")

    def _follow(self) -> Phase:
        followed: str | None = None
        while True:
            status = self._cluster.status(self._kind, self._name)
            if status is None:
                raise self._deleted()
            self._tell(phase_of(self._kind, status))
            if is_held(status):
                queue = self._made["metadata"]["labels"].get(QUEUE)
                by = f": queue {queue} has not admitted it" if queue else ""
                self._wait(f"{self._title} is suspended{by}")
            pod = self._pod()
            if pod is not None and pod != followed:
                followed = pod if self._pass_on(pod) else None
            elif self._phase in ("complete", "failed"):
                return self._phase
            time.sleep(POLL_SECONDS)

    def _create(self) -> None:
        status = self._cluster.status(self._kind, self._name)
        if status is not None:
            if phase_of(self._kind, status) in ("pending", "running"):
                self._say(f"{self._title} is there already: waiting for it")
                return
            self._delete()
        try:
            self._cluster.create(self._kind, self._made)
        except self._cluster.Refused as error:
            missing = ""
            if error.status == 404 and self._kind is not JOB:
                missing = f" (is the operator of {self._kind.group} installed?)"
            raise JobError(
                f"{self._title} cannot be created: {reason_of(error)}{missing}"
            ) from None
        self._event("Created", f"step of {self._made['metadata']['labels'][f'{LABEL}/plan']}")

    def _delete(self) -> None:
        self._cluster.delete(self._kind, self._name)
        deadline = time.monotonic() + DELETE_SECONDS
        while time.monotonic() < deadline:
            if self._cluster.status(self._kind, self._name) is None:
                return
            time.sleep(POLL_SECONDS)
        raise JobError(f"the ended {self._title} was not gone after {DELETE_SECONDS:.0f} s")

    def _pod(self) -> str | None:
        """Name of the newest pod, once its container has run; tells what it waits for."""
        cluster = self._cluster
        pods = cluster.ask(
            cluster.core.list_namespaced_pod,
            cluster.namespace,
            label_selector=self._kind.pods.format(self._name),
        ).items
        newest = max(pods, key=lambda pod: pod.metadata.creation_timestamp, default=None)
        if newest is None:
            return None
        if newest.status.phase in ("Running", "Succeeded", "Failed"):
            return str(newest.metadata.name)
        waiting = waits_for(newest.status)
        if waiting:
            self._wait(f"pod {newest.metadata.name} waits: {waiting}")
        return None

    def _wait(self, text: str) -> None:
        if text != self._waiting:
            self._waiting = text
            self._say(text)

    def _pass_on(self, pod: str) -> bool:
        """The pod's output to this process's. Whether to its end: a cut one is asked for anew."""
        from urllib3.exceptions import HTTPError

        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        options: dict[str, Any] = {}
        if self._begun:
            options["since_seconds"] = max(1, math.ceil(time.monotonic() - self._heard))
        try:
            answer = self._cluster.core.read_namespaced_pod_log(
                pod,
                self._cluster.namespace,
                container=self._kind.container(self._made),
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
        self._cluster.mark(self._kind, self._name, {"labels": {f"{LABEL}/phase": phase}})
        if phase in ("complete", "failed"):
            self._event(phase.capitalize(), f"the step is {phase}")

    def _event(self, reason: str, text: str) -> None:
        """Visible in `kubectl describe job`; an Event that is refused fails no repair."""
        now = datetime.now(UTC)
        body = {
            "metadata": {"generateName": f"{self._name}."},
            "involvedObject": {
                "apiVersion": self._kind.api_version,
                "kind": self._kind.name,
                "name": self._name,
                "namespace": self._cluster.namespace,
            },
            "reason": reason,
            "message": text,
            "type": "Warning" if reason == "Failed" else "Normal",
            "firstTimestamp": now.isoformat(),
            "lastTimestamp": now.isoformat(),
            "count": 1,
            "source": {"component": "ares-repairer"},
        }
        cluster = self._cluster
        try:
            cluster.ask(cluster.core.create_namespaced_event, cluster.namespace, body)
        except cluster.Refused as error:
            self._say(f"no Event: {reason_of(error)}")


def annotate(template: Mapping[str, Any], word: str, reason: str, folder: str) -> int:
    """Write the gate's verdict on each object of the folder's repair; how many there are. Raises
    JobError."""
    # What answers and exports is a Job, whatever trains.
    kinds = {kind.name: kind for kind in (JOB, kind_of(template))}
    cluster = Cluster(template.get("metadata", {}).get("namespace", "default"))
    notes = {f"{LABEL}/gate": word, f"{LABEL}/gate-reason": reason[:REASON_CHARACTERS]}
    selector, found = f"{LABEL}/plan={label_of(Path(folder).name)}", 0
    for kind in kinds.values():
        try:
            for name in cluster.names(kind, selector):
                cluster.mark(kind, name, {"annotations": notes})
                found += 1
        except cluster.Refused as error:
            raise JobError(f"the gate's verdict is on no {kind.name}: {reason_of(error)}") from None
    return found


def main(arguments: Sequence[str]) -> int:
    """See the module. `repair: ` begins the line that the repairer shows of a failure."""
    if len(arguments) == 5 and arguments[1] == "--gate":
        try:
            annotate(yaml.safe_load(Path(arguments[0]).read_text(encoding="utf-8")), *arguments[2:])
        except (JobError, OSError, yaml.YAMLError) as error:
            sys.stderr.write(f"repair: {error}\n")
            return 2
        return 0
    if len(arguments) < 4 or arguments[1] != "--":
        sys.stderr.write(
            "usage: python -m ares_stream.processes.job TEMPLATE -- COMMAND ... RUN_DIR\n"
        )
        return 2
    try:
        template = yaml.safe_load(Path(arguments[0]).read_text(encoding="utf-8"))
        made = manifest(template, arguments[2:])
        phase = JobRun(made, lambda text: print(text, file=sys.stderr)).run()
    except (JobError, OSError, yaml.YAMLError) as error:
        sys.stderr.write(f"repair: {error}\n")
        return 2
    if phase == "failed":
        sys.stderr.write(
            f"repair: {made['kind']} {made['metadata']['name']} failed; see its log and "
            f"`kubectl describe {made['kind'].lower()}`\n"
        )
        return 1
    return 0


if __name__ == "__main__":
    end_in_order()
    sys.exit(main(sys.argv[1:]))
