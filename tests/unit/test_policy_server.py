"""Telling the policy server over real HTTP: whatever it refuses, what it serves stays served."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from ares_stream.errors import TargetError
from ares_stream.models.policy_server import PolicyServer as Settings
from ares_stream.models.policy_server import announce_policies
from ares_stream.models.releases import Author
from ares_stream.models.store import Artefact, ReleaseStore
from ares_stream.services.health import serve_health
from tests.support.adapters import write_adapter
from tests.support.failures import DAY
from tests.support.policy_server import PolicyServer

ANNA = Author("anna", DAY)
both_kinds = pytest.mark.parametrize("in_place", [True, False])


@asynccontextmanager
async def told(server: PolicyServer, folder: Path) -> AsyncIterator[Settings]:
    token = folder / "token"
    token.write_text("s3cret\n")
    async with serve_health(server.app, "127.0.0.1", 0) as port:
        yield Settings(kind="vllm", url=f"http://127.0.0.1:{port}/v1", token_file=token, seconds=5)
    assert server.authorised


@pytest.fixture
def store(tmp_path: Path) -> ReleaseStore:
    return ReleaseStore(str(tmp_path / "registry"), max_rank=64)


def release(store: ReleaseStore, name: str, rank: int = 16, model: str = "chat") -> Path:
    """Make an adapter active; returns where it lies."""
    source = write_adapter(Path(store.root).parent / name, name.encode(), rank=rank)
    store.propose([Artefact(model, "policy", source)], ANNA, plan_id=name)
    active = store.approve(name, ANNA)[-1]
    return Path(active.uri.removeprefix("file://"))


@both_kinds
async def test_each_release_is_served_and_the_last_roll_back_leaves_the_base_model(
    store: ReleaseStore, tmp_path: Path, in_place: bool
) -> None:
    server = PolicyServer(in_place=in_place)
    async with told(server, tmp_path) as settings:
        for name in ("one", "two", "three"):
            path = release(store, name)
            await announce_policies(settings, store.log())
            assert server.served == {"chat": str(path)}
        for _ in range(2):
            store.rollback("chat", ANNA)
            await announce_policies(settings, store.log())
            assert len(server.served) == 1
        store.rollback("chat", ANNA)
        assert "unloaded" in (await announce_policies(settings, store.log()))[0]
    assert server.served == {}


@both_kinds
async def test_a_second_repair_of_a_rank_that_the_server_refuses_leaves_the_first_one_served(
    store: ReleaseStore, tmp_path: Path, in_place: bool
) -> None:
    server = PolicyServer(in_place=in_place, max_lora_rank=16)
    async with told(server, tmp_path) as settings:
        first = release(store, "one", rank=16)
        await announce_policies(settings, store.log())
        release(store, "two", rank=32)
        with pytest.raises(TargetError, match=r"refused chat .* \(LoRA rank 32 is greater") as no:
            await announce_policies(settings, store.log())
        assert "\n" not in str(no.value)
    assert server.served == {"chat": str(first)}
    assert all("chat" in state for state in server.history), "never without an adapter"


@both_kinds
async def test_an_adapter_whose_files_are_gone_leaves_the_served_one_served(
    store: ReleaseStore, tmp_path: Path, in_place: bool
) -> None:
    server = PolicyServer(in_place=in_place)
    async with told(server, tmp_path) as settings:
        first = release(store, "one")
        await announce_policies(settings, store.log())
        second = release(store, "two")
        second.rename(tmp_path / "elsewhere")
        with pytest.raises(TargetError, match="HTTP 404"):
            await announce_policies(settings, store.log())
        assert server.served == {"chat": str(first)}
        (tmp_path / "elsewhere").rename(second)
        await announce_policies(settings, store.log())
    assert server.served == {"chat": str(second)}


async def test_what_is_served_already_is_left_alone(store: ReleaseStore, tmp_path: Path) -> None:
    server = PolicyServer()
    async with told(server, tmp_path) as settings:
        release(store, "one")
        await announce_policies(settings, store.log())
        server.requests.clear()
        await announce_policies(settings, store.log())
    assert server.requests == ["models"]


async def test_a_server_that_does_not_say_what_it_serves_is_told_nothing(
    store: ReleaseStore, tmp_path: Path
) -> None:
    server = PolicyServer(lists_models=False)
    async with told(server, tmp_path) as settings:
        release(store, "one")
        with pytest.raises(TargetError, match="expected its list of models"):
            await announce_policies(settings, store.log())
    assert server.requests == ["models"]


async def test_one_refused_model_does_not_keep_another_from_being_served(
    store: ReleaseStore, tmp_path: Path
) -> None:
    server = PolicyServer(max_lora_rank=16)
    async with told(server, tmp_path) as settings:
        release(store, "large", rank=32, model="a-model")
        path = release(store, "small", rank=8, model="b-model")
        with pytest.raises(TargetError, match="refused a-model"):
            await announce_policies(settings, store.log())
    assert server.served == {"b-model": str(path)}


async def test_a_server_that_fails_is_named_and_told_again_later(
    store: ReleaseStore, tmp_path: Path
) -> None:
    server = PolicyServer(broken=True)
    async with told(server, tmp_path) as settings:
        path = release(store, "one")
        with pytest.raises(TargetError, match=r"HTTP 500 \(out of memory\)"):
            await announce_policies(settings, store.log())
        server.broken = False
        await announce_policies(settings, store.log())
    assert server.served == {"chat": str(path)}
    with pytest.raises(TargetError, match="ConnectError"):
        await announce_policies(settings, store.log())
