"""The chart's life on a real cluster, under load, with a count by a reader of its own:

    python -m tests.cluster.trial VICTIM [--hostpath DIR]

VICTIM is what `ares bench victim --out VICTIM` wrote. Needs kubectl and helm in the PATH, a cluster
that the kubeconfig leads to, and there the images of services/Dockerfile (docs/kubernetes.md).
`--hostpath` is for a cluster that makes no volumes: a directory of its one node.

Installs into the namespace ares-trial, which enforces the restricted pod security standard: Kafka,
the chart, traffic; then, while the traffic runs: upgrade, scale up, a pod killed, scale down,
roll-back; then the count, the lag, the console, the nightly proof, a replay by an indexed Job, and
the uninstall. Each step's slowest verdicts are printed. Deletes the namespace at the end. Exits 1
where a record is lost or doubled, or a proof fails.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from itertools import cycle
from pathlib import Path

from confluent_kafka import (
    Consumer,
    ConsumerGroupTopicPartitions,
    KafkaException,
    Producer,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient

from ares_stream.audit.notes import NoteSigner
from tests.cluster.count import Place, answers, count, places

HERE = Path(__file__).parent
CHART = HERE.parents[1] / "helm" / "ares-stream"
NAMESPACE = "ares-trial"
RELEASE = "guard"
SCORER = f"deployment/{RELEASE}-ares-stream-scorer-production"
SELECTOR = f"app.kubernetes.io/instance={RELEASE}"
GROUP, SOURCE = "ares.scorer-production", "ares.interactions.production"
BOOTSTRAP = "127.0.0.1:9094"
WAIT = "300s"
PER_SECOND = 40
SETTLE_SECONDS = 10.0
DRAIN_SECONDS = 120.0
JOB_SECONDS = 300.0
TOKEN = "for the trial alone"
CLAIMS = ("models", "proofs", "registry", "repairs")
VOLUME = """
apiVersion: v1
kind: PersistentVolume
metadata: {{name: {namespace}-{claim}}}
spec:
  capacity: {{storage: 1Gi}}
  accessModes: [ReadWriteOnce]
  persistentVolumeReclaimPolicy: Delete
  storageClassName: ""
  claimRef: {{namespace: {namespace}, name: {claim}}}
  hostPath: {{path: {path}, type: DirectoryOrCreate}}
"""


def call(*command: str, given: str | None = None) -> str:
    """Standard output of a command that must succeed."""
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command[:6])}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout.strip()


def kubectl(*arguments: str, given: str | None = None) -> str:
    return call("kubectl", "-n", NAMESPACE, *arguments, given=given)


def helm(verb: str, *arguments: str) -> str:
    return call("helm", verb, RELEASE, *arguments, "-n", NAMESPACE, "--wait", "--timeout", WAIT)


class Traffic:
    """Sends conversations at a rate, until told to stop; every one acknowledged."""

    def __init__(self, lines: list[bytes], per_second: float = PER_SECOND) -> None:
        self._lines = lines
        self.per_second = per_second
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.acknowledged = 0
        self.refused: list[str] = []

    def __enter__(self) -> Traffic:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        producer = Producer(
            {"bootstrap.servers": BOOTSTRAP, "enable.idempotence": True, "linger.ms": 20}
        )

        def told(error: object, _: object) -> None:
            if error is None:
                self.acknowledged += 1
            else:
                self.refused.append(str(error))

        for number, line in enumerate(cycle(self._lines)):
            if self._ended.wait(1 / self.per_second):
                break
            producer.produce(SOURCE, key=b"line-%d" % number, value=line, on_delivery=told)
            producer.poll(0)
        producer.flush(60)


@contextlib.contextmanager
def forwarded(target: str = "deployment/kafka", ports: str = "9094:9094") -> Iterator[None]:
    """A port of 127.0.0.1 that leads into the cluster; at first Kafka's listener HOST."""
    # Without --address a port that is taken leads to ::1 here, and to another's Kafka at 127.0.0.1.
    where = ["--address", "127.0.0.1", target, ports]
    command = ["kubectl", "-n", NAMESPACE, "port-forward", *where]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        assert process.stdout is not None
        if b"Forwarding" not in process.stdout.readline():
            raise SystemExit(f"kubectl port-forward {ports}: no answer; is the port taken?")
        yield
    finally:
        process.terminate()
        process.wait()


def lag() -> int:
    """What a stock client says is left of the group's topic."""
    admin = AdminClient({"bootstrap.servers": BOOTSTRAP})
    (asked,) = admin.list_consumer_group_offsets([ConsumerGroupTopicPartitions(GROUP)]).values()
    consumer = Consumer({"bootstrap.servers": BOOTSTRAP, "group.id": "ares-lag"})
    try:
        return sum(
            consumer.get_watermark_offsets(TopicPartition(SOURCE, item.partition), timeout=20)[1]
            - max(0, item.offset)
            for item in asked.result(20).topic_partitions
            if item.topic == SOURCE
        )
    except KafkaException as error:
        raise SystemExit(f"lag: {error}") from None
    finally:
        consumer.close()


class Log:
    """Says each step with its time; remembers when each began, to tell latencies apart."""

    def __init__(self) -> None:
        self._begin = time.monotonic()
        self.steps: list[tuple[str, float]] = []

    def step(self, name: str) -> None:
        """`name` begins now."""
        self.steps.append((name, time.time() * 1000))
        self.say(name)

    def say(self, text: str) -> None:
        """A line of the log."""
        print(f"{time.monotonic() - self._begin:6.1f} s  {text}", flush=True)


def prepare(victim: Path, hostpath: Path | None, log: Log) -> None:
    """Namespace, Kafka, models."""
    call("kubectl", "create", "namespace", NAMESPACE)
    enforced = "pod-security.kubernetes.io/enforce=restricted"
    call("kubectl", "label", "namespace", NAMESPACE, enforced)
    kubectl("apply", "-f", str(HERE / "kafka.yaml"))
    claim = (HERE / "models.yaml").read_text()
    if hostpath is not None:
        for name in CLAIMS:
            folder = hostpath / name
            folder.mkdir(parents=True, exist_ok=True)
            folder.chmod(0o777)
            volume = VOLUME.format(namespace=NAMESPACE, claim=name, path=folder)
            call("kubectl", "apply", "-f", "-", given=volume)
        claim = claim.replace(
            "spec:\n  accessModes", 'spec:\n  storageClassName: ""\n  accessModes'
        )
    kubectl("apply", "-f", "-", given=claim)
    kubectl("wait", "--for=condition=Ready", "pod/models", f"--timeout={WAIT}")
    for name in ("harm", "reward"):
        kubectl("cp", str(victim / name), f"models:/models/{name}")
    kubectl("delete", "pod", "models", "--wait")
    kubectl("rollout", "status", "deployment/kafka", f"--timeout={WAIT}")
    log.say("Kafka runs, models are in their claim")


def pods() -> list[str]:
    """Names of the scorer's pods that are not ending."""
    found = json.loads(
        kubectl("get", "pods", "-l", "app.kubernetes.io/component=scorer-production", "-o", "json")
    )
    return [
        item["metadata"]["name"]
        for item in found["items"]
        if "deletionTimestamp" not in item["metadata"]
    ]


def secrets(folder: Path) -> list[str]:
    """Secrets of notary and console, and the options of helm with all values of the trial."""
    signer = NoteSigner.generate("example.com/trial")
    (folder / "notary.pem").write_bytes(signer.pem())
    tokens = {"ada": hashlib.sha256(TOKEN.encode()).hexdigest()}
    (folder / "tokens.json").write_text(json.dumps(tokens))
    for name, file in (("notary", "notary.pem"), ("console", "tokens.json")):
        kubectl("create", "secret", "generic", name, f"--from-file={folder / file}")
    own = {"replayer": {"nightly": {"keys": [str(signer.key)]}}}
    (folder / "values.json").write_text(json.dumps(own))
    return ["-f", str(HERE / "values.yaml"), "-f", str(folder / "values.json")]


def live(log: Log, values: list[str]) -> None:
    """Everything that happens to a release while its traffic runs."""
    more = ["--set", "scorer.lanes.production.replicas=3"]
    debug = ["--set", "logLevel=debug"]

    def done(text: str) -> None:
        log.say(f"  {text}; {len(pods())} pods, lag {lag()}")
        time.sleep(SETTLE_SECONDS)

    log.step("steady")
    time.sleep(2 * SETTLE_SECONDS)
    log.step("upgrade")
    helm("upgrade", str(CHART), *values, *debug)
    done("every pod replaced and ready")
    log.step("scale up")
    helm("upgrade", str(CHART), *values, *debug, *more)
    done("1 to 3")
    log.step("rolling upgrade of 3")
    helm("upgrade", str(CHART), *values, *more)
    done("every pod replaced and ready")
    log.step("pod killed")
    kubectl("delete", "pod", pods()[0], "--force", "--grace-period=0")
    kubectl("rollout", "status", SCORER, f"--timeout={WAIT}")
    done("without a drain; replaced and ready")
    log.step("scale down")
    helm("upgrade", str(CHART), *values)
    done("3 to 1")
    log.step("roll-back")
    helm("rollback", "2")
    done("to the settings of the first upgrade; every pod replaced and ready")


def ended(job: str, log: Log) -> bool:
    """Wait for a Job, tell its last lines; whether it is complete."""
    deadline = time.monotonic() + JOB_SECONDS
    while time.monotonic() < deadline:
        status = json.loads(kubectl("get", "job", job, "-o", "json"))["status"]
        kinds = {item["type"] for item in status.get("conditions", ()) if item["status"] == "True"}
        if kinds & {"Complete", "Failed"}:
            break
        time.sleep(1)
    lines = kubectl("logs", f"job/{job}", "--all-containers", "--all-pods", "--tail=3")
    for line in lines.splitlines():
        log.say(f"    {line}")
    log.say(f"  job/{job}: {', '.join(sorted(kinds)) or 'not ended'}")
    return "Complete" in kinds


def audited(log: Log, values: list[str]) -> bool:
    """Console, nightly proof and a replay by an indexed Job; whether all of them hold."""
    log.say("console")
    with forwarded(f"deployment/{RELEASE}-ares-stream-console", "9470:9464"):
        ready = call("curl", "-s", "http://127.0.0.1:9470/readyz")
    with forwarded(f"service/{RELEASE}-ares-stream-console", "9471:80"):
        page = call(
            "curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "http://127.0.0.1:9471/login"
        )
    log.say(f"  /readyz: {ready}; /login: {page}")
    log.say("nightly proof, now")
    cron = f"cronjob/{RELEASE}-ares-stream-audit-proof"
    kubectl("create", "job", "proof-now", f"--from={cron}")
    proven = ended("proof-now", log)
    log.say("replay of everything, by two pods")
    job = {"enabled": True, "parts": 2, "args": ["--since", "2020-01-01"]}
    helm("upgrade", str(CHART), *values, "--set-json", f"replayer.job={json.dumps(job)}")
    mine = f"job.batch/{RELEASE}-ares-stream-replay-"
    (name,) = [item for item in kubectl("get", "jobs", "-o", "name").split() if mine in item]
    replayed = ended(name.removeprefix("job.batch/"), log)
    return ready.startswith("ready") and page == "200" and proven and replayed


def drained(log: Log, traffic: Traffic) -> tuple[bool, dict[Place, int], list[tuple[Place, int]]]:
    """Wait until all is committed, and count by another client. Whether each record that was
    acknowledged has one answer; the records with their times, and the verdicts with theirs."""
    deadline = time.monotonic() + DRAIN_SECONDS
    while (left := lag()) and time.monotonic() < deadline:
        time.sleep(1)
    log.say(f"traffic ended: {traffic.acknowledged} acknowledged, lag {left}")
    sent = places(BOOTSTRAP, SOURCE)
    verdicts, dead = answers(BOOTSTRAP, "ares.", SOURCE)
    found = count(sent, verdicts, dead)
    log.say(f"counted: {json.dumps(asdict(found))}")
    matches = found.holds and len(sent) == traffic.acknowledged and not traffic.refused
    return matches and not left, sent, verdicts


def table(log: Log, sent: dict[Place, int], told: list[tuple[Place, int]]) -> None:
    """Of the records that came during each step: from the record's time to its verdict's."""
    print(f"\n{'step':24}{'records':>8}{'median ms':>11}{'p99 ms':>9}{'slowest ms':>12}")
    ends = [at for _, at in log.steps[1:]] + [float("inf")]
    for (name, begin), end in zip(log.steps, ends, strict=True):
        waited = sorted(
            at - sent[place] for place, at in told if place in sent and begin <= sent[place] < end
        )
        if len(waited) > 1:
            p99 = statistics.quantiles(waited, n=100)[98]
            middle = statistics.median(waited)
            print(f"{name:24}{len(waited):8}{middle:11.0f}{p99:9.0f}{waited[-1]:12}")


def main() -> int:
    """See the module."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("victim", type=Path)
    arguments.add_argument("--hostpath", type=Path)
    given = arguments.parse_args()
    lines = (given.victim / "conversations.jsonl").read_bytes().splitlines()
    log = Log()
    with contextlib.ExitStack() as stack:
        stack.callback(forget, given.hostpath)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        prepare(given.victim, given.hostpath, log)
        values = secrets(folder)
        log.say("install")
        helm("install", str(CHART), *values)
        log.say(f"  topics made by the hook, {len(pods())} pod ready")
        with forwarded():
            with Traffic(lines) as traffic:
                live(log, values)
            whole, sent, verdicts = drained(log, traffic)
        holds = audited(log, values)
        restarts = kubectl(
            "get", "pods", "-o", "jsonpath={.items[*].status.containerStatuses[*].restartCount}"
        )
        log.say(f"restarts of the containers: {restarts}")
        print(call("helm", "history", RELEASE, "-n", NAMESPACE))
        helm("uninstall")
        # Pods drain after the release is gone.
        kubectl("wait", "--for=delete", "pod", "-l", SELECTOR, f"--timeout={WAIT}")
        left_over = kubectl(
            "get",
            "all,configmap,secret,pdb,serviceaccount",
            "-o",
            "name",
            "-l",
            SELECTOR,
        )
        log.say(f"uninstalled; left of it: {left_over or 'nothing'}")
        table(log, sent, verdicts)
        return 0 if whole and holds else 1


def forget(hostpath: Path | None) -> None:
    """Delete all that the trial made."""
    call("kubectl", "delete", "namespace", NAMESPACE, "--wait", "--timeout=120s")
    if hostpath is not None:
        volumes = [f"{NAMESPACE}-{name}" for name in CLAIMS]
        call("kubectl", "delete", "pv", *volumes, "--ignore-not-found")


if __name__ == "__main__":
    sys.exit(main())
