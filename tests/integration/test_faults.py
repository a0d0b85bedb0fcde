"""Exactly once, whatever dies: the count after each fault is taken from the topics."""

import signal
from pathlib import Path

import pytest

from ares_stream.processes.broker import EmbeddedBroker
from tests.support.exactly_once import (
    Copier,
    audit,
    create,
    mixed,
    publish,
    until_committed,
)

pytestmark = pytest.mark.kafka

RECORDS = 400


@pytest.mark.parametrize("number", [1, 4])
@pytest.mark.parametrize("step", ["begun", "added", "written", "committed"])
async def test_killed_after_a_step_of_its_transaction_and_restarted(
    kafka: str, prefix: str, tmp_path: Path, step: str, number: int
) -> None:
    await create(kafka, prefix)
    await publish(kafka, mixed(prefix, RECORDS))
    log = tmp_path / "log"

    # The same instance id, as a restarted pod has: Kafka gives its partitions back at once.
    with Copier(kafka, prefix, log, instance="a", sabotage=f"{step}:{number}:SIGKILL") as copier:
        assert await copier.ended() == -signal.SIGKILL
    with Copier(kafka, prefix, log, instance="a") as copier:
        await until_committed(kafka, prefix, RECORDS)
        await copier.drained()

    await audit(kafka, prefix)


async def test_two_copiers_share_and_hand_over_while_one_is_killed(
    kafka: str, prefix: str, tmp_path: Path
) -> None:
    await create(kafka, prefix)
    with (
        Copier(kafka, prefix, tmp_path / "a") as first,
        Copier(kafka, prefix, tmp_path / "b") as second,
    ):
        await first.assigned()
        await second.assigned()
        await publish(kafka, mixed(prefix, 1000))
        await until_committed(kafka, prefix, 200)
        first.send(signal.SIGKILL)
        await until_committed(kafka, prefix, 1000)
        with Copier(kafka, prefix, tmp_path / "c") as third:
            await publish(kafka, mixed(prefix, 500, start=1000))
            await third.assigned()
            await second.drained()
            await publish(kafka, mixed(prefix, 500, start=1500))
            await until_committed(kafka, prefix, 2000)
            await third.drained()

    await audit(kafka, prefix)


@pytest.mark.parametrize("step", ["added", "written"])
async def test_a_zombie_that_wakes_up_inside_its_transaction_commits_nothing(
    kafka: str, prefix: str, tmp_path: Path, step: str
) -> None:
    await create(kafka, prefix)
    await publish(kafka, mixed(prefix, RECORDS))
    with Copier(kafka, prefix, tmp_path / "a", sabotage=f"{step}:3:SIGSTOP") as zombie:
        await zombie.stopped()
        with Copier(kafka, prefix, tmp_path / "b") as heir:
            await until_committed(kafka, prefix, RECORDS)
            zombie.send(signal.SIGCONT)
            await publish(kafka, mixed(prefix, RECORDS, start=RECORDS))
            await until_committed(kafka, prefix, 2 * RECORDS)
            await heir.drained()
            await publish(kafka, mixed(prefix, 100, start=2 * RECORDS))
            await until_committed(kafka, prefix, 2 * RECORDS + 100)
            await zombie.drained()

    await audit(kafka, prefix)


async def test_a_broker_that_is_killed_and_comes_back(prefix: str, tmp_path: Path) -> None:
    with EmbeddedBroker() as broker:
        kafka = broker.bootstrap
        await create(kafka, prefix)
        await publish(kafka, mixed(prefix, RECORDS))
        with Copier(kafka, prefix, tmp_path / "log") as copier:
            await until_committed(kafka, prefix, 100)
            broker.kill()
            broker.restart()
            await publish(kafka, mixed(prefix, RECORDS, start=RECORDS))
            await until_committed(kafka, prefix, 2 * RECORDS)
            await copier.drained()
        await audit(kafka, prefix)
