"""`ares topics`: create the topics, say how what exists differs from what should, and who may do
what on them."""

from __future__ import annotations

import asyncio
import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ares_stream.cli.options import Bootstrap, SettingsFile

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ares_stream.records.acls import Names
    from ares_stream.records.topics import TopicSpec
    from ares_stream.services.settings import Settings
    from ares_stream.streaming.connection import KafkaConnection

app = typer.Typer(no_args_is_help=True, help="Create and check the topics; who may do what.")

Prefix = Annotated[str | None, typer.Option(help="Prefix of every name, ares. by default.")]
Partitions = Annotated[
    int, typer.Option(min=1, help="Partitions: how many scorers can share the work.")
]
Replication = Annotated[
    int | None,
    typer.Option(min=1, help="Copies of each partition. [3, or as many as there are brokers]"),
]
Topics = Annotated[
    list[str] | None,
    typer.Option(
        "--topic", metavar="NAME", help="Only this topic of your own; repeat for several."
    ),
]
Retention = Annotated[int, typer.Option(min=1, help="Days that audit records are kept.")]
Json = Annotated[bool, typer.Option("--json", help="JSON on stdout.")]


class AclFormat(StrEnum):
    """Who is to read the access control lists."""

    KAFKA_ACLS = "kafka-acls"
    STRIMZI = "strimzi"


class Authentication(StrEnum):
    """How Strimzi's users authenticate."""

    SCRAM = "scram-sha-512"
    TLS = "tls"


Services = Annotated[
    list[str] | None,
    typer.Argument(metavar="[SERVICE]...", help="Such as scorer; all of them without."),
]
User = Annotated[str, typer.Option(help="Name of a service's user; {} is replaced by the service.")]
Format = Annotated[AclFormat, typer.Option("--format", help="Lines of a shell, or KafkaUsers.")]
Cluster = Annotated[str, typer.Option(help="Strimzi's Kafka resource.")]
Authenticates = Annotated[Authentication, typer.Option(help="Of Strimzi's users.")]


def connect(file: Path | None, bootstrap: str | None) -> tuple[Settings, KafkaConnection]:
    """The settings, and how to reach the broker that they or the command line name."""
    from pydantic import ValidationError

    from ares_stream.errors import SettingsError
    from ares_stream.files import fault
    from ares_stream.services.settings import load_settings
    from ares_stream.streaming.connection import KafkaConnection

    settings = load_settings(file)
    if bootstrap is None:
        return settings, settings.kafka
    try:
        fields = settings.kafka.model_dump() | {"bootstrap": bootstrap}
        return settings, KafkaConnection.model_validate(fields)
    except ValidationError as error:
        raise SettingsError(f"--bootstrap: {fault(error, KafkaConnection).reason}") from None


def _specs(
    settings: Settings,
    connection: KafkaConnection,
    own: Sequence[str] | None,
    prefix: str | None,
    partitions: int,
    replication: int | None,
    audit_days: int,
) -> tuple[TopicSpec, ...]:
    """What the topics must be like: ours, or those that a user named."""
    from ares_stream.records.topics import REPLICATION, TopicSpec, durable, specs
    from ares_stream.streaming.admin import count_brokers

    if replication is None:
        replication = min(REPLICATION, asyncio.run(count_brokers(connection)))
    if own:
        return tuple(TopicSpec(name, partitions, replication, durable(replication)) for name in own)
    return specs(
        settings.topic_prefix if prefix is None else prefix,
        partitions=partitions,
        replication=replication,
        audit_days=audit_days,
    )


@app.command()
def create(
    settings: SettingsFile = None,
    bootstrap: Bootstrap = None,
    topics: Topics = None,
    prefix: Prefix = None,
    partitions: Partitions = 6,
    replication: Replication = None,
    audit_days: Retention = 400,
    as_json: Json = False,
) -> None:
    """Create what is missing; what exists is left alone. Exits 0, 2 (refused) or 3 (no broker)."""
    from ares_stream.streaming.admin import create_topics

    found, connection = connect(settings, bootstrap)
    wanted = _specs(found, connection, topics, prefix, partitions, replication, audit_days)
    created = asyncio.run(create_topics(connection, wanted))
    if as_json:
        kept = [spec.name for spec in wanted if spec.name not in created]
        typer.echo(json.dumps({"created": created, "existing": kept}, indent=2))
        return
    for spec in wanted:
        typer.echo(f"{'created' if spec.name in created else 'exists '} {spec.name}")


@app.command()
def check(
    settings: SettingsFile = None,
    bootstrap: Bootstrap = None,
    topics: Topics = None,
    prefix: Prefix = None,
    partitions: Partitions = 6,
    replication: Replication = None,
    audit_days: Retention = 400,
    as_json: Json = False,
) -> None:
    """Compare what exists. Exits 0 when all is as it should be, 1 with every difference."""
    from ares_stream.records.topics import compare
    from ares_stream.streaming.admin import describe_topics

    found, connection = connect(settings, bootstrap)
    wanted = _specs(found, connection, topics, prefix, partitions, replication, audit_days)
    actual = asyncio.run(describe_topics(connection, [spec.name for spec in wanted]))
    differences = compare(wanted, actual)
    if as_json:
        rows = [
            {"topic": item.topic, "what": item.what, "expected": item.expected, "is": item.actual}
            for item in differences
        ]
        typer.echo(json.dumps({"topics": len(wanted), "differences": rows}, indent=2))
    else:
        for item in differences:
            typer.echo(str(item))
        typer.echo(f"{len(wanted)} topics, {len(differences)} differences")
    if differences:
        raise typer.Exit(1)


@app.command()
def acls(
    services: Services = None,
    settings: SettingsFile = None,
    bootstrap: Bootstrap = None,
    prefix: Prefix = None,
    user: User = "ares-{}",
    form: Format = AclFormat.KAFKA_ACLS,
    cluster: Cluster = "kafka",
    authentication: Authenticates = Authentication.SCRAM,
) -> None:
    """What each service may do on the broker, and no more. Reaches no broker.

    Topics and groups are those of the settings.
    """
    import yaml

    from ares_stream.errors import SettingsError
    from ares_stream.records.acls import MEANING, SERVICES, kafka_acls, kafka_user
    from ares_stream.records.acls import acls as acls_of

    found, connection = connect(settings, bootstrap)
    if unknown := [name for name in services or () if name not in SERVICES]:
        raise SettingsError(f"{unknown[0]}: no such service; there are {', '.join(SERVICES)}")
    wanted = [service for service in SERVICES if not services or service in services]
    if len(wanted) > 1 and "{}" not in user:
        raise SettingsError("--user: several services would share it; name one service, or use {}")
    names = _names(found, prefix)
    blocks = []
    for service in wanted:
        name = user.replace("{}", service)
        entries = acls_of(service, names)
        if form is AclFormat.STRIMZI:
            text = yaml.safe_dump(
                kafka_user(entries, name, cluster, authentication.value), sort_keys=False
            )
        else:
            lines = kafka_acls(entries, f"User:{name}", connection.bootstrap)
            text = "".join(f"{line}\n" for line in lines)
        blocks.append(f"# {service}: {MEANING[service]}\n{text}")
    separator = "---\n" if form is AclFormat.STRIMZI else "\n"
    typer.echo(separator.join(blocks), nl=False)


def _names(settings: Settings, prefix: str | None) -> Names:
    from ares_stream.records.acls import Names

    return Names(
        prefix=settings.topic_prefix if prefix is None else prefix,
        inputs=[item.topic for item in settings.scorer.inputs],
        groups={
            "scorer": settings.scorer.group,
            "monitor": settings.monitor.group,
            "repairer": settings.repairer.group,
            "notary": settings.notary.group,
        },
        notarised=settings.notary.topics,
    )
