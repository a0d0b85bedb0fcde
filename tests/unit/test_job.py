"""A repair's step as a Kubernetes Job: what the manifest says, before any cluster is asked."""

import copy
import re
from types import SimpleNamespace
from typing import Any

import pytest

from ares_stream.processes.job import JobError, main, manifest, phase_of

TEMPLATE: dict[str, Any] = {
    "apiVersion": "batch/v1",
    "kind": "Job",
    "metadata": {"namespace": "prod", "labels": {"app.kubernetes.io/name": "ares-stream"}},
    "spec": {"template": {"spec": {"containers": [{"name": "step", "args": ["x"]}]}}},
}
TRAIN = ["python", "-m", "ares_stream.repair.run", "/repairs/plan-1"]
ANSWER = ["python", "-m", "ares_stream.repair.artefacts", "answer", "/repairs/plan-1"]


def test_the_container_runs_the_steps_command_and_nothing_of_the_templates() -> None:
    job = manifest(TEMPLATE, TRAIN)
    container = job["spec"]["template"]["spec"]["containers"][0]
    assert container == {"name": "step", "command": TRAIN}
    assert "command" not in TEMPLATE["spec"]["template"]["spec"]["containers"][0]


def test_the_name_is_the_same_after_a_restart_and_another_for_another_step_or_repair() -> None:
    name = manifest(TEMPLATE, TRAIN)["metadata"]["name"]
    assert manifest(TEMPLATE, TRAIN)["metadata"]["name"] == name
    others = [ANSWER, [*ANSWER[:-2], "export", ANSWER[-1]], [*TRAIN[:-1], "/repairs/plan-2"]]
    names = {name, *(manifest(TEMPLATE, command)["metadata"]["name"] for command in others)}
    assert len(names) == 4
    assert all(len(item) <= 52 and item == item.lower() for item in names)


def test_labels_say_the_plan_and_the_step_on_job_and_pod() -> None:
    job = manifest(TEMPLATE, ANSWER)
    wanted = {"ares-stream/plan": "plan-1", "ares-stream/step": "artefacts-answer"}
    assert wanted.items() <= job["metadata"]["labels"].items()
    assert job["metadata"]["labels"]["app.kubernetes.io/name"] == "ares-stream"
    assert job["spec"]["template"]["metadata"]["labels"] == wanted


@pytest.mark.parametrize(
    "template",
    [{}, {"kind": "Job", "metadata": {}, "spec": {}}, {**TEMPLATE, "kind": "Pod"}],
)
def test_a_template_that_is_no_job_is_refused(template: dict[str, Any]) -> None:
    with pytest.raises(JobError, match="template"):
        manifest(template, TRAIN)


def test_numbers_of_resources_become_text_which_the_client_wants() -> None:
    template = copy.deepcopy(TEMPLATE)
    container = {"name": "step", "resources": {"limits": {"nvidia.com/gpu": 1, "memory": "2Gi"}}}
    template["spec"]["template"]["spec"] = {
        "containers": [container],
        "initContainers": [{"name": "a", "resources": {"requests": {"cpu": 0.5}}}],
        "volumes": [{"name": "t", "emptyDir": {"sizeLimit": 1000}}],
    }
    pod = manifest(template, TRAIN)["spec"]["template"]["spec"]
    assert pod["containers"][0]["resources"]["limits"] == {"nvidia.com/gpu": "1", "memory": "2Gi"}
    assert pod["initContainers"][0]["resources"]["requests"] == {"cpu": "0.5"}
    assert pod["volumes"][0]["emptyDir"] == {"sizeLimit": "1000"}


@pytest.mark.parametrize("folder", ["ä.b", "-x-", "über", "a" * 99, "?"])
def test_labels_and_names_are_ones_that_kubernetes_takes(folder: str) -> None:
    job = manifest(TEMPLATE, [*ANSWER[:-1], f"/repairs/{folder}"])
    for value in job["metadata"]["labels"].values():
        assert re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?", value), value
    assert re.fullmatch(r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?", job["metadata"]["name"])


def status(active: int | None = None, **condition: str) -> SimpleNamespace:
    conditions = [SimpleNamespace(**condition)] if condition else None
    return SimpleNamespace(active=active, conditions=conditions)


def test_phases_follow_the_jobs_conditions() -> None:
    assert phase_of(status()) == "pending"
    assert phase_of(status(active=1)) == "running"
    assert phase_of(status(type="Suspended", status="True")) == "pending"
    assert phase_of(status(type="Complete", status="True")) == "complete"
    assert phase_of(status(type="Failed", status="True")) == "failed"
    assert phase_of(status(active=1, type="Failed", status="False")) == "running"


def test_without_arguments_it_says_how_it_is_called(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "usage" in capsys.readouterr().err
