"""A repair's step as a Kubernetes Job: what the manifest says, before any cluster is asked."""

import re
from typing import Any

import pytest

from ares_stream.processes.job import main
from ares_stream.processes.workloads import JOB, KINDS, JobError, Kind, manifest, phase_of

TEMPLATE: dict[str, Any] = {
    "apiVersion": "batch/v1",
    "kind": "Job",
    "metadata": {"namespace": "prod", "labels": {"app.kubernetes.io/name": "ares-stream"}},
    "spec": {"template": {"spec": {"containers": [{"name": "step", "args": ["x"]}]}}},
}
TRAIN_TEMPLATE: dict[str, Any] = {
    "apiVersion": "trainer.kubeflow.org/v1alpha1",
    "kind": "TrainJob",
    "metadata": {"namespace": "prod"},
    "spec": {
        "runtimeRef": {"name": "repair", "kind": "TrainingRuntime"},
        "trainer": {"numNodes": 2, "args": ["x"]},
    },
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


@pytest.mark.parametrize("folder", ["ä.b", "-x-", "über", "a" * 99, "?"])
def test_labels_and_names_are_ones_that_kubernetes_takes(folder: str) -> None:
    job = manifest(TEMPLATE, [*ANSWER[:-1], f"/repairs/{folder}"])
    for value in job["metadata"]["labels"].values():
        assert re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?", value), value
    assert re.fullmatch(r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?", job["metadata"]["name"])


def status(kind: Kind, active: int = 0, **condition: str) -> dict[str, Any]:
    found: dict[str, Any] = {"conditions": [condition] if condition else None}
    if kind is JOB:
        return {**found, "active": active}
    return {**found, "jobsStatus": [{"name": "node", "active": active}]}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_phases_follow_the_conditions(kind: Kind) -> None:
    def phase(**given: Any) -> str:
        return phase_of(kind, status(kind, **given))

    assert phase_of(kind, {}) == "pending"
    assert phase() == "pending"
    assert phase(active=1) == "running"
    assert phase(type="Suspended", status="True") == "pending"
    assert phase(type="Complete", status="True") == "complete"
    assert phase(type="Failed", status="True") == "failed"
    assert phase(active=1, type="Failed", status="False") == "running"


@pytest.mark.parametrize("name", ["SuccessCriteriaMet", "FailureTarget"])
def test_a_job_whose_end_is_decided_has_ended(name: str) -> None:
    said = phase_of(JOB, status(JOB, type=name, status="True"))
    assert said == ("complete" if name == "SuccessCriteriaMet" else "failed")


def test_a_train_job_gets_command_and_labels_and_keeps_its_runtime() -> None:
    made = manifest(TRAIN_TEMPLATE, TRAIN)
    assert made["spec"] == {
        "runtimeRef": {"name": "repair", "kind": "TrainingRuntime"},
        "trainer": {"numNodes": 2, "command": TRAIN},
    }
    wanted = {"ares-stream/plan": "plan-1", "ares-stream/step": "run"}
    assert wanted.items() <= made["metadata"]["labels"].items()
    assert made["metadata"]["name"] == manifest(TEMPLATE, TRAIN)["metadata"]["name"]
    assert "command" not in TRAIN_TEMPLATE["spec"]["trainer"]


@pytest.mark.parametrize(
    "spoilt",
    [
        {},
        {**TEMPLATE, "kind": "Pod"},
        {**TEMPLATE, "apiVersion": "batch/v2"},
        {**TEMPLATE, "spec": {}},
        {**TEMPLATE, "spec": {"template": {"spec": {"containers": []}}}},
        {**TEMPLATE, "metadata": None},
        {**TRAIN_TEMPLATE, "apiVersion": "kubeflow.org/v1"},
        {**TRAIN_TEMPLATE, "spec": {"trainer": {}}},
        {**TRAIN_TEMPLATE, "spec": {"runtimeRef": {"name": ""}}},
    ],
)
def test_a_template_that_is_none_is_refused_in_words(spoilt: dict[str, Any]) -> None:
    with pytest.raises(JobError, match="the template is"):
        manifest(spoilt, TRAIN)


def test_without_arguments_it_says_how_it_is_called(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "usage" in capsys.readouterr().err
