"""Least-privilege access control lists: one table, printed for kafka-acls and for Strimzi."""

import shlex

import pytest
import yaml
from typer.testing import CliRunner

from ares_stream.cli.main import app
from ares_stream.records.acls import MEANING, SERVICES, Acl, Names, acls, kafka_acls, kafka_user
from ares_stream.records.topics import specs
from tests.support.charts import CRDS, check

NAMES = Names(inputs=["chat-logs"], groups={"scorer": "guard"})


def allowed(service: str, operation: str, names: Names = NAMES) -> set[str]:
    wanted = next(item for item in SERVICES if item == service)
    return {item.name for item in acls(wanted, names) if operation in item.operations}


def test_every_topic_has_who_writes_it_and_who_reads_it() -> None:
    services = [item for item in SERVICES if item not in ("topics", "replayer")]
    names = Names()
    for spec in specs():
        assert any(spec.name in allowed(item, "Write", names) for item in services), spec.name
        assert any(spec.name in allowed(item, "Read", names) for item in services), spec.name


@pytest.mark.parametrize("service", SERVICES)
def test_nobody_may_do_more_than_the_table_says_of_named_resources(service: str) -> None:
    wanted = next(item for item in SERVICES if item == service)
    for item in acls(wanted, NAMES):
        assert item.name not in ("", "*")
        assert not item.prefixed or (item.resource == "transactional-id" and item.name[-1] == ".")
    places = [(item.resource, item.name) for item in acls(wanted, NAMES)]
    assert len(places) == len(set(places))
    assert MEANING[wanted]


def test_the_names_of_the_settings_are_those_of_the_lists() -> None:
    assert "chat-logs" in allowed("scorer", "Read")
    assert "ares.interactions.production" not in allowed("scorer", "Read")
    assert "guard" in allowed("scorer", "Read")
    assert "guard" in allowed("prober", "Describe")
    assert allowed("producer", "Write") == {"chat-logs"}


def test_only_who_makes_topics_may_create_them_and_nobody_may_delete_or_alter() -> None:
    for service in SERVICES:
        assert bool(allowed(service, "Create")) == (service == "topics")
        for forbidden in ("Delete", "Alter", "AlterConfigs", "ClusterAction", "All"):
            assert not allowed(service, forbidden)


def test_a_line_of_kafka_acls_is_one_that_a_shell_reads_back() -> None:
    (line,) = kafka_acls([Acl("transactional-id", "a b.", ("Write",), True)], "User:CN=x", "k:1")
    assert shlex.split(line) == [
        *("kafka-acls.sh", "--bootstrap-server", "k:1", "--add", "--allow-principal", "User:CN=x"),
        *("--operation", "Write", "--transactional-id", "a b."),
        *("--resource-pattern-type", "prefixed"),
    ]


@pytest.mark.parametrize("service", SERVICES)
def test_a_kafka_user_is_what_strimzis_operator_takes(service: str) -> None:
    assert (CRDS / "kafkauser.json").exists()
    wanted = next(item for item in SERVICES if item == service)
    check(kafka_user(acls(wanted, NAMES), "ares-x", "main", "tls"), "1.36.0")


def test_the_command_prints_all_services_or_those_asked_for() -> None:
    done = CliRunner().invoke(app, ["topics", "acls", "--format", "strimzi"])
    users = list(yaml.safe_load_all(done.stdout))
    assert [user["metadata"]["name"] for user in users] == [f"ares-{item}" for item in SERVICES]

    done = CliRunner().invoke(app, ["topics", "acls", "scorer", "--user", "CN=scorer"])
    lines = [line for line in done.stdout.splitlines() if not line.startswith("#")]
    assert all("--allow-principal User:CN=scorer --operation" in line for line in lines)


@pytest.mark.parametrize(
    ("words", "told"), [(["nobody"], "nobody: no such service"), (["--user", "x"], "--user")]
)
def test_what_the_command_cannot_do_is_told(words: list[str], told: str) -> None:
    done = CliRunner().invoke(app, ["topics", "acls", *words])
    assert (done.exit_code, told in done.stderr) == (2, True)
