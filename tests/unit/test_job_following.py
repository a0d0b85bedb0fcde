"""A Job, or a TrainJob, followed through an API server's answers. Jobs run on a real one in
tests/cluster."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import yaml

from ares_stream.processes import job as following
from ares_stream.processes import workloads
from ares_stream.processes.job import main

TEMPLATES: dict[str, dict[str, Any]] = {
    "jobs": {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"namespace": "prod"},
        "spec": {"template": {"spec": {"containers": [{"name": "step"}]}}},
    },
    "trainjobs": {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainJob",
        "metadata": {"namespace": "prod"},
        "spec": {"runtimeRef": {"name": "repair"}, "trainer": {"numNodes": 2}},
    },
}
ACTIVE: dict[str, dict[str, Any]] = {
    "jobs": {"active": 1},
    "trainjobs": {"jobsStatus": [{"name": "node", "active": 1}]},
}


class Api:
    """Just what a step needs: its object exists or not, and is complete at the third look."""

    def __init__(self, plural: str) -> None:
        self.plural = plural
        self.begins_as = ACTIVE[plural]
        self.job: dict[str, Any] | None = None
        self.looks = 0
        self.asked: list[tuple[str, str]] = []
        self.away = 0
        self.refuse: dict[str, tuple[int, str]] = {}
        self.names: list[str] = []
        self.selectors: list[str] = []
        self.patched: dict[tuple[str, str], dict[str, str]] = {}
        self.formats: set[str] = set()
        self.pods: list[dict[str, Any]] = []
        self.logs: list[str] = []

    def answer(self, verb: str, path: str, body: Any) -> tuple[int, Any]:
        what = path.split("?")[0].rsplit("/", 1)[-1]
        self.asked.append((verb, what))
        if self.away > 0:
            self.away -= 1
            return 503, {"message": "etcd is away"}
        if verb in self.refuse:
            status, message = self.refuse[verb]
            return status, {"message": message}
        if what in ("pods", "log"):
            return self._of_pods(what, path)
        if what in TEMPLATES and verb == "GET":
            self.selectors.append(unquote(path))
            return 200, {"items": [{"metadata": {"name": f"{what}-{n}"}} for n in self.names]}
        if verb == "PATCH" and what.startswith(tuple(f"{kind}-" for kind in TEMPLATES)):
            kind = path.split("?")[0].rsplit("/", 2)[-2]
            self.patched[kind, what] = body["metadata"]["annotations"]
            return 200, {"metadata": {"name": what}}
        if what == "events":
            return 201, body
        if verb == "POST":
            assert "fieldValidation=Strict" in path
            self.job, self.looks = {**body, "status": self.begins_as}, 0
        elif verb == "DELETE":
            self.job = None
        elif self.job is None:
            return 404, {"message": "not found"}
        elif verb == "GET":
            self.looks += 1
            if self.looks == 3:
                self.job["status"] = {"conditions": [{"type": "Complete", "status": "True"}]}
        return 200, self.job or {}

    def _of_pods(self, what: str, path: str) -> tuple[int, Any]:
        if what == "log":
            self.logs.append(unquote(path))
            return 200, {"of": "the step"}
        return 200, {"items": self.pods}


@contextmanager
def served(api: Api, folder: Path) -> Iterator[str]:
    """The kubeconfig of an HTTP server that answers so."""

    class Handler(BaseHTTPRequestHandler):
        def handle_one(self) -> None:
            size = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(size) or b"null")
            if self.command == "PATCH":
                api.formats.add(str(self.headers["Content-Type"]))
            status, content = api.answer(self.command, self.path, body)
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps(content).encode())

        do_GET = do_POST = do_PATCH = do_DELETE = handle_one  # noqa: N815

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        config = {
            "current-context": "c",
            "clusters": [
                {"name": "c", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}
            ],
            "users": [{"name": "c", "user": {}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "c"}}],
        }
        (folder / "kubeconfig").write_text(json.dumps(config))
        yield str(folder / "kubeconfig")
        server.shutdown()


@pytest.fixture(params=TEMPLATES)
def api(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Api]:
    api = Api(request.param)
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(TEMPLATES[api.plural]))
    for module in (following, workloads):
        monkeypatch.setattr(module, "POLL_SECONDS", 0.01)
    with served(api, tmp_path) as config:
        monkeypatch.setenv("KUBECONFIG", config)
        monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", config)
        yield api


def run(tmp_path: Path) -> int:
    return main([str(tmp_path / "job.yaml"), "--", "python", "-m", "x", "/repairs/one"])


def test_a_job_is_made_followed_and_marked(api: Api, tmp_path: Path) -> None:
    assert run(tmp_path) == 0
    assert api.asked.count(("POST", api.plural)) == 1
    assert ("PATCH", api.asked[0][1]) in api.asked
    assert api.formats == {"application/merge-patch+json"}


@pytest.mark.parametrize("ended", ["Complete", "Failed"])
def test_an_ended_job_of_the_name_is_replaced(api: Api, tmp_path: Path, ended: str) -> None:
    api.job = {"status": {"conditions": [{"type": ended, "status": "True"}]}}
    assert run(tmp_path) == 0
    verbs = [verb for verb, what in api.asked if what == api.plural or verb == "DELETE"]
    assert verbs == ["DELETE", "POST"]


def test_a_job_that_runs_is_waited_for(api: Api, tmp_path: Path) -> None:
    api.job = {"status": ACTIVE[api.plural]}
    assert run(tmp_path) == 0
    assert ("POST", api.plural) not in api.asked


@pytest.mark.parametrize("queue", ["repairs", None])
def test_one_that_a_queue_holds_is_told_once_and_waited_for(
    api: Api, tmp_path: Path, capsys: pytest.CaptureFixture[str], queue: str | None
) -> None:
    template = {**TEMPLATES[api.plural]}
    if queue:
        labels = {"kueue.x-k8s.io/queue-name": queue}
        template["metadata"] = {**template["metadata"], "labels": labels}
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(template))
    held = {"conditions": [{"type": "Suspended", "status": "True", "reason": "JobSuspended"}]}
    api.begins_as = held
    assert run(tmp_path) == 0
    told = "is suspended" + (f": queue {queue} has not admitted it" if queue else "") + "\n"
    assert capsys.readouterr().err.count(told) == 1


def test_an_api_server_that_is_away_is_waited_for(api: Api, tmp_path: Path) -> None:
    api.away = 3
    assert run(tmp_path) == 0
    assert api.asked.count(("POST", api.plural)) == 1


def test_one_that_stays_away_ends_the_step(
    api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(workloads, "UNREACHABLE_SECONDS", 0.0)
    api.away = 1000
    assert run(tmp_path) == 2
    assert "did not answer for 0 s: etcd is away" in capsys.readouterr().err


def test_a_missing_right_is_named_as_the_server_names_it(
    api: Api, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    api.refuse["POST"] = (403, 'User "x" cannot create resource "jobs"')
    assert run(tmp_path) == 2
    assert 'cannot be created: User "x" cannot create resource "jobs"' in capsys.readouterr().err


def test_a_job_that_a_person_deletes_ends_the_step(
    api: Api, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    api.refuse["PATCH"] = (404, "not found")
    assert run(tmp_path) == 2
    assert "was deleted" in capsys.readouterr().err


def test_a_template_that_the_server_does_not_take_is_told_in_its_words(
    api: Api, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    api.refuse["POST"] = (400, 'strict decoding error: unknown field "spec.backoff"')
    assert run(tmp_path) == 2
    assert 'cannot be created: strict decoding error: unknown field "spec.backoff"' in (
        capsys.readouterr().err
    )


def test_a_cluster_without_the_trainer_is_told_as_such(
    api: Api, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    api.refuse["POST"] = (404, "the server could not find the requested resource")
    assert run(tmp_path) == 2
    asked = "is the operator of trainer.kubeflow.org installed?" in capsys.readouterr().err
    assert asked == (api.plural == "trainjobs")


def test_the_gates_verdict_stands_on_every_object_of_the_repair(api: Api, tmp_path: Path) -> None:
    api.names = ["run-1", "answer-2"]
    words = [str(tmp_path / "job.yaml"), "--gate", "rejected", "cfr: " + "x" * 900, "/r/plan_1"]
    assert main(words) == 0
    notes = {"ares-stream/gate": "rejected", "ares-stream/gate-reason": ("cfr: " + "x" * 900)[:500]}
    # What answers and exports is a Job, whatever trains.
    kinds = ("jobs", "trainjobs") if api.plural == "trainjobs" else ("jobs",)
    marked = [(kind, f"{kind}-{name}") for kind in kinds for name in api.names]
    assert api.patched == dict.fromkeys(marked, notes)
    assert all("ares-stream/plan=plan-1" in selector for selector in api.selectors)


def test_a_verdict_that_may_not_be_written_is_told_in_the_servers_words(
    api: Api, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    api.refuse["GET"] = (403, "jobs is forbidden: cannot list")
    assert main([str(tmp_path / "job.yaml"), "--gate", "passed", "all", "/r/plan"]) == 2
    assert "cannot list" in capsys.readouterr().err


def test_the_output_is_the_steps_own_where_a_mesh_put_a_container_beside_it(
    api: Api, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    api.pods = [
        {
            "metadata": {"name": "pod-1", "creationTimestamp": "2026-11-26T00:00:00Z"},
            "spec": {"containers": [{"name": "proxy"}, {"name": "step"}]},
            "status": {"phase": "Running"},
        }
    ]
    assert run(tmp_path) == 0
    (asked,) = api.logs
    assert f"container={'step' if api.plural == 'jobs' else 'node'}" in asked
    assert "the step" in capsys.readouterr().out
