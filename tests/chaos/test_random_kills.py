"""Copiers and their broker killed at random moments, over and over; then the count.

ARES_CHAOS_KILLS=300 ARES_CHAOS_SEED=7 pytest tests/chaos
"""

import asyncio
import itertools
import os
import random
import signal
from contextlib import ExitStack
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

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(3600)]

KILLS = int(os.environ.get("ARES_CHAOS_KILLS", "100"))
SEED = int(os.environ.get("ARES_CHAOS_SEED", "1"))
INSTANCES = ("a", "b")
RECORDS_PER_KILL = 60
BROKER_EVERY = 25
LONGEST_LIFE_SECONDS = 4.0
PREFIX = "chaos."


async def test_random_kills_of_copiers_and_broker(tmp_path: Path) -> None:
    random_ = random.Random(SEED)
    sent, lives = 0, itertools.count()
    with EmbeddedBroker() as broker, ExitStack() as stack:
        kafka = broker.bootstrap
        await create(kafka, PREFIX)

        def start(instance: str) -> Copier:
            return stack.enter_context(
                Copier(kafka, PREFIX, tmp_path / f"{instance}-{next(lives)}", instance=instance)
            )

        copiers = {instance: start(instance) for instance in INSTANCES}
        for number in range(1, KILLS + 1):
            await publish(kafka, mixed(PREFIX, RECORDS_PER_KILL, start=sent))
            sent += RECORDS_PER_KILL
            await asyncio.sleep(random_.uniform(0.1, LONGEST_LIFE_SECONDS))
            instance = random_.choice(INSTANCES)
            copier = copiers[instance]
            if random_.random() < 0.2:
                copier.send(signal.SIGSTOP)
                await asyncio.sleep(random_.uniform(0.1, 1.0))
            copier.send(signal.SIGKILL)
            # 1: it found no broker when it started; a supervisor starts it again, as here.
            assert await copier.ended() in (-signal.SIGKILL, 1)
            copiers[instance] = start(instance)
            if number % BROKER_EVERY == 0:
                broker.kill()
                broker.restart()
                print(f"{number} kills, {sent} records, one broker")
        for instance, copier in copiers.items():
            if not copier.is_running:
                copiers[instance] = start(instance)
        await until_committed(kafka, PREFIX, sent, seconds=180)
        for copier in copiers.values():
            await copier.assigned()
        for copier in copiers.values():
            await copier.drained()
        await audit(kafka, PREFIX)
    print(f"seed {SEED}: {KILLS} kills, {sent} records: none lost, none doubled")
