"""The embedded broker: what it keeps, how it ends, what it says when it dies."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from confluent_kafka import Producer

from ares_stream.errors import BrokerError, SettingsError
from ares_stream.processes.broker import EmbeddedBroker
from ares_stream.processes.transactions import ENDING, has_transactions
from ares_stream.records.topics import TopicSpec
from ares_stream.streaming.admin import create_topics
from ares_stream.streaming.connection import KafkaConnection
from ares_stream.streaming.publisher import Publisher
from ares_stream.streaming.reader import read, snapshot
from ares_stream.streaming.records import OutboundRecord

pytestmark = [
    pytest.mark.kafka,
    pytest.mark.skipif(
        "ARES_TEST_BOOTSTRAP" in os.environ and os.environ.get("ARES_REQUIRE_KAFKA") != "1",
        reason="another broker is named; this suite starts its own",
    ),
]

END_SECONDS = 30.0
ARES = "from ares_stream.cli.main import app; app()"


async def values(bootstrap: str, topic: str) -> list[bytes | None]:
    connection = KafkaConnection(bootstrap=bootstrap)
    ranges = await snapshot(connection, [topic])
    return [record.value async for record in read(connection, ranges)]


async def publish(bootstrap: str, topic: str, *texts: bytes) -> None:
    async with Publisher(KafkaConnection(bootstrap=bootstrap)) as publisher:
        await publisher.publish([OutboundRecord(topic, b"k", text) for text in texts])


def children(parent: int) -> list[int]:
    """Ids of the processes whose parent is `parent`."""
    listed = Path(f"/proc/{parent}/task/{parent}/children").read_text()
    return [int(number) for number in listed.split()]


def ends(process: int) -> bool:
    """Whether a process that is no child of ours ends before the deadline."""
    deadline = time.monotonic() + END_SECONDS
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.1)
    return False


async def test_a_kept_directory_keeps_topics_and_ports_and_refuses_another_number_of_nodes(
    tmp_path: Path,
) -> None:
    with EmbeddedBroker(data_dir=tmp_path) as broker:
        first = broker.bootstrap
        await create_topics(KafkaConnection(bootstrap=first), [TopicSpec("t", 1, 1)])
        await publish(first, "t", b"kept")
    with EmbeddedBroker(data_dir=tmp_path) as broker:
        assert broker.bootstrap == first
        assert await values(first, "t") == [b"kept"]
    with (
        pytest.raises(SettingsError, match="holds 1 nodes, not 2"),
        EmbeddedBroker(data_dir=tmp_path, nodes=2),
    ):
        pass


async def test_a_killed_node_is_reported_and_comes_back_with_its_records() -> None:
    with EmbeddedBroker() as broker:
        await create_topics(KafkaConnection(bootstrap=broker.bootstrap), [TopicSpec("t", 1, 1)])
        await publish(broker.bootstrap, "t", b"one")
        broker.check()

        broker.kill()
        with pytest.raises(BrokerError, match=r"node 1 died \(exit code -9\); the end of its log"):
            broker.check()
        broker.restart()
        await publish(broker.bootstrap, "t", b"two")

        assert await values(broker.bootstrap, "t") == [b"one", b"two"]


async def test_a_broker_is_asked_which_transactions_it_coordinates() -> None:
    with EmbeddedBroker() as broker:
        await create_topics(KafkaConnection(bootstrap=broker.bootstrap), [TopicSpec("t", 1, 1)])
        port = int(broker.bootstrap.rpartition(":")[2])
        assert not has_transactions(port, ["Ongoing", *ENDING])
        producer = Producer({"bootstrap.servers": broker.bootstrap, "transactional.id": "id"})
        producer.init_transactions(END_SECONDS)
        producer.begin_transaction()
        producer.produce("t", b"one")
        producer.flush(END_SECONDS)
        assert has_transactions(port, ["Ongoing"])
        assert not has_transactions(port, ENDING)
        producer.commit_transaction(END_SECONDS)
        assert not has_transactions(port, ["Ongoing"])
        with pytest.raises(OSError, match="lists no transactions: error 0"):
            has_transactions(port, ["Unheard"])
    with pytest.raises(OSError, match="refused"):
        has_transactions(port, ENDING)


async def test_three_nodes_serve_while_one_is_dead() -> None:
    with EmbeddedBroker(nodes=3) as broker:
        await create_topics(
            KafkaConnection(bootstrap=broker.bootstrap),
            [TopicSpec("t", 3, 3, {"min.insync.replicas": "2"})],
        )
        await publish(broker.bootstrap, "t", b"before")
        broker.kill(3)
        await publish(broker.bootstrap, "t", b"after")

        assert await values(broker.bootstrap, "t") == [b"before", b"after"]


def test_a_port_in_use_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with (
            pytest.raises(BrokerError, match=f"port {port} is in use"),
            EmbeddedBroker(port=port),
        ):
            pass


@pytest.mark.parametrize("nodes", [0, 4])
def test_a_number_of_nodes_out_of_range_is_a_settings_error(nodes: int) -> None:
    with pytest.raises(SettingsError, match=f"nodes: {nodes} is not between 1 and 3"):
        EmbeddedBroker(nodes=nodes)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends children with their parent")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_command_prints_its_address_and_leaves_no_kafka_behind(number: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", ARES, "broker"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as command:
        assert command.stdout is not None
        address = command.stdout.readline().strip()
        (kafka,) = children(command.pid)
        command.send_signal(number)
        code = command.wait(END_SECONDS)

    assert address.startswith("127.0.0.1:")
    assert code == (0 if number is signal.SIGTERM else -signal.SIGKILL)
    assert ends(kafka)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_kafka_starts_ends_the_command(
    number: signal.Signals, tmp_path: Path
) -> None:
    command = subprocess.Popen(
        [
            "env", f"--default-signal={number.name[3:]}", sys.executable, "-m", "ares_stream",
            "broker", "--data-dir", str(tmp_path / "kafka"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    try:
        assert command.stderr is not None
        assert command.stderr.readline() == "starting Kafka\n"
        command.send_signal(number)
        out, said = command.communicate(timeout=150)
    finally:
        command.kill()
    assert (command.returncode, out) == (0, "")
    assert said.splitlines()[-1] == "stopped"


def test_ports_that_are_none_are_one_line(tmp_path: Path) -> None:
    for content in ("{", "[1, 2", '["a", 1]', "[" * 40_000):
        (tmp_path / "ports.json").write_text(content)
        with (
            pytest.raises(SettingsError, match=r"ports\.json: "),
            EmbeddedBroker(data_dir=tmp_path),
        ):
            pass
