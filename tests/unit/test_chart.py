"""The chart: nothing where it is disabled, what each value makes, and what it refuses in words."""

from pathlib import Path
from typing import Any

import helm_python
import pytest
import yaml

from ares_stream.records.acls import Names, Service, acls
from tests.support.charts import CHART, NEEDED, VERSIONS, check, merged, named, rendered

KEDA = {"scorer": {"defaults": {"keda": {"enabled": True}}}}
GPU = {"scorer": {"lanes": {"production": {"provider": "cuda"}}}}
REPAIRER = {
    "repairer": {"enabled": True, "existingClaim": "repairs"},
    "registry": {"pvc": {"existingClaim": "registry"}},
}
SETS: dict[str, dict[str, Any]] = {
    "the least": {},
    "keda": KEDA,
    "keda to zero, mTLS": merged(
        {"scorer": {"lanes": {"probe": {"keda": {"enabled": True, "minReplicas": 0}}}}},
        {"kafka": {"protocol": "SSL", "certificate": {"existingSecret": "client"}}},
        {"kafka": {"ca": {"existingSecret": "ca"}}},
    ),
    "keda, oauth": merged(
        KEDA,
        {"kafka": {"mechanism": "OAUTHBEARER", "passwordKey": "token"}},
        {"scorer": {"defaults": {"keda": {"authentication": "kafka-oauth"}}}},
    ),
    "hpa": {"scorer": {"lanes": {"production": {"hpa": {"enabled": True}}}}},
    "gpu": GPU,
    "gpu by resource claim": merged(
        GPU,
        {
            "scorer": {
                "defaults": {
                    "gpu": {
                        "resourceClaimTemplate": "one-gpu",
                        "resources": {"requests": {"cpu": "2"}, "limits": {"memory": "8Gi"}},
                        "runtimeClassName": "nvidia",
                    }
                }
            }
        },
    ),
    "models from an image": {
        "models": {"source": "image", "image": {"reference": "registry.example.com/models:3"}}
    },
    "models from an init container": {
        "models": {
            "source": "init",
            "init": {
                "image": "registry.example.com/fetch:1",
                "command": ["fetch", "s3://models", "/models"],
                "env": [{"name": "REGION", "value": "eu-1"}],
            },
        }
    },
    "repairer with jobs": REPAIRER,
    "repairer without jobs": merged(REPAIRER, {"repairer": {"jobs": {"enabled": False}}}),
    "repairer on cpu, queued": merged(
        REPAIRER,
        {
            "repairer": {
                "jobs": {
                    "gpu": False,
                    "queue": "repairs",
                    "tolerations": [],
                    "resources": {"requests": {"cpu": "4"}, "limits": {"memory": "16Gi"}},
                }
            }
        },
    ),
    "prober": {"prober": {"enabled": True, "campaign": {"id": "one"}, "existingSecret": "keys"}},
    "everything watched": {
        "metrics": {
            "podMonitor": True,
            "rules": True,
            "dashboards": True,
            "additionalLabels": {"release": "prometheus"},
        },
        "networkPolicy": {
            "enabled": True,
            "scrapers": [{"namespaceSelector": {"matchLabels": {"name": "monitoring"}}}],
            "kafkaPeers": [{"ipBlock": {"cidr": "10.0.0.0/8"}}],
        },
    },
    "strimzi": {
        "topics": {"create": False},
        "strimzi": {"topics": True, "users": True, "cluster": "main"},
    },
    "strimzi, certificates": merged(
        KEDA,
        {"prober": {"enabled": True, "campaign": {"id": "one"}}},
        {"topics": {"create": False}, "kafka": {"protocol": "SSL"}},
        {"strimzi": {"users": True, "cluster": "main", "authentication": "tls"}},
    ),
    "names and labels": {
        "fullnameOverride": "guard",
        "commonLabels": {"team": "safety"},
        "podLabels": {"mesh": "on"},
        "podAnnotations": {"note": "x"},
        "priorityClassName": "high",
        "extraEnv": [{"name": "A", "value": "b"}],
        "image": {"registry": "registry.example.com/ml/", "tag": "9", "pullSecrets": ["pull"]},
    },
}


@pytest.mark.parametrize("values", [{"enabled": False}, merged(NEEDED, {"enabled": False})])
def test_renders_nothing_when_disabled(values: dict[str, Any]) -> None:
    assert rendered(values) == []


@pytest.mark.parametrize("case", SETS)
def test_what_is_rendered_is_what_kubernetes_and_the_operators_take(case: str) -> None:
    resources = rendered(merged(NEEDED, SETS[case]))
    assert resources
    for version in VERSIONS:
        for resource in resources:
            check(resource, version)


@pytest.mark.parametrize("case", SETS)
def test_every_pod_is_restricted_and_has_no_token_it_does_not_use(case: str) -> None:
    for resource in rendered(merged(NEEDED, SETS[case])):
        if resource["kind"] not in ("Deployment", "Job"):
            continue
        pod = resource["spec"]["template"]["spec"]
        jobs = resource["metadata"]["name"].endswith("repairer") and "without" not in case
        assert pod["automountServiceAccountToken"] is jobs
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in (*pod.get("initContainers", ()), *pod["containers"]):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert container["resources"]["limits"]["memory"]


@pytest.mark.parametrize(
    ("values", "kinds"),
    [
        ({}, {"ScaledObject", "TriggerAuthentication", "HorizontalPodAutoscaler", "Role"}),
        ({}, {"PodMonitor", "PrometheusRule", "NetworkPolicy", "KafkaTopic", "KafkaUser"}),
        ({"topics": {"create": False}}, {"Job"}),
        ({"monitor": {"enabled": False}}, set()),
    ],
)
def test_renders_nothing_of_what_is_not_asked_for(values: dict[str, Any], kinds: set[str]) -> None:
    resources = rendered(merged(NEEDED, values))
    assert not kinds & {item["kind"] for item in resources}
    if values.get("monitor"):
        assert not [item for item in resources if item["metadata"]["name"].endswith("monitor")]


def test_a_disabled_lane_leaves_nothing_behind() -> None:
    resources = rendered(merged(NEEDED, {"scorer": {"lanes": {"probe": {"enabled": False}}}}))
    assert not [item for item in resources if "scorer-probe" in item["metadata"]["name"]]


def test_one_value_switches_a_lane_to_the_gpu() -> None:
    resources = rendered(merged(NEEDED, GPU))
    for lane, target in (("production", "scorer-gpu"), ("probe", "scorer-cpu")):
        pod = named(resources, "Deployment", f"demo-ares-stream-scorer-{lane}")["spec"]["template"]
        (container,) = pod["spec"]["containers"]
        assert container["image"].startswith(f"ares-stream-{target}:")
        assert ("nvidia.com/gpu" in container["resources"]["limits"]) is (lane == "production")
        settings = named(resources, "ConfigMap", f"demo-ares-stream-scorer-{lane}")
        provider = yaml.safe_load(settings["data"]["ares.yaml"])["scorer"]["provider"]
        assert provider == ("cuda" if lane == "production" else "cpu")


def test_the_group_that_keda_watches_is_the_group_that_the_scorer_joins() -> None:
    resources = rendered(merged(NEEDED, KEDA, {"topics": {"prefix": "team."}}))
    for lane in ("production", "probe", "anchor"):
        name = f"demo-ares-stream-scorer-{lane}"
        (trigger,) = named(resources, "ScaledObject", name)["spec"]["triggers"]
        settings = named(resources, "ConfigMap", name)["data"]["ares.yaml"]
        scorer = yaml.safe_load(settings)["scorer"]
        assert trigger["metadata"]["consumerGroup"] == scorer["group"]
        assert [trigger["metadata"]["topic"]] == [item["topic"] for item in scorer["inputs"]]


def test_the_prober_looks_at_the_groups_that_the_scorers_join() -> None:
    resources = rendered(merged(NEEDED, SETS["prober"], {"topics": {"prefix": "team."}}))
    settings = named(resources, "ConfigMap", "demo-ares-stream-prober")["data"]["ares.yaml"]
    for lane, group in yaml.safe_load(settings)["prober"]["scorer_groups"].items():
        scorer = named(resources, "ConfigMap", f"demo-ares-stream-scorer-{lane}")["data"]
        assert yaml.safe_load(scorer["ares.yaml"])["scorer"]["group"] == group


def test_new_settings_restart_the_pods_and_equal_ones_do_not() -> None:
    def checksum(values: dict[str, Any]) -> Any:
        deployment = named(
            rendered(merged(NEEDED, values)), "Deployment", "demo-ares-stream-scorer-production"
        )
        return deployment["spec"]["template"]["metadata"]["annotations"]["ares-stream/settings"]

    assert checksum({}) == checksum({"monitor": {"enabled": False}})
    assert checksum({}) != checksum({"logLevel": "debug"})


@pytest.mark.parametrize("case", SETS)
def test_hooks_leave_nothing_behind_once_they_succeeded(case: str) -> None:
    for resource in rendered(merged(NEEDED, SETS[case])):
        notes = resource["metadata"].get("annotations", {})
        if "helm.sh/hook" in notes:
            assert "hook-succeeded" in notes["helm.sh/hook-delete-policy"], resource["kind"]


def test_a_parent_chart_may_set_global_and_enabled(tmp_path: Path) -> None:
    parent = tmp_path / "parent"
    (parent / "charts").mkdir(parents=True)
    (parent / "charts" / "ares-stream").symlink_to(CHART)
    (parent / "Chart.yaml").write_text("apiVersion: v2\nname: parent\nversion: 1.0.0\n")
    values = {"global": {"region": "eu"}, "ares-stream": merged(NEEDED, {"enabled": True})}
    assert rendered(values, chart=parent)
    off = merged(values, {"ares-stream": {"enabled": False}})
    assert rendered(off, chart=parent) == []


def gpus(limit: int | None) -> dict[str, Any]:
    """A lane on CUDA whose limit of GPUs is another than the request's 1."""
    limits = {"limits": {"nvidia.com/gpu": limit}}
    return merged(GPU, {"scorer": {"defaults": {"gpu": {"resources": limits}}}})


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"kafka": {"bootstrap": ""}}, "kafka.bootstrap: no brokers"),
    ({"kafka": {"protocol": "PLAINTEXT"}}, "would send conversations readable"),
    ({"kafka": {"existingSecret": ""}}, "kafka.existingSecret"),
    ({"kafka": {"username": ""}}, "kafka.username"),
    ({"strimzi": {"topics": True, "cluster": "x"}}, "both would make the topics"),
    ({"strimzi": {"users": True, "cluster": ""}, "topics": {"create": False}}, "strimzi.cluster"),
    ({"strimzi": {"users": True, "cluster": "x"}}, "the job would run before its user exists"),
    (
        {
            "strimzi": {"users": True, "cluster": "x", "authentication": "tls"},
            "topics": {"create": False},
        },
        "tls needs kafka.protocol SSL",
    ),
    ({"models": {"pvc": {"existingClaim": ""}}}, "models.pvc.existingClaim"),
    ({"models": {"source": "image"}}, "models.image.reference"),
    ({"models": {"source": "init"}}, "models.init.image"),
    (merged(KEDA, {"scorer": {"defaults": {"hpa": {"enabled": True}}}}), "switch one off"),
    (merged(KEDA, {"scorer": {"defaults": {"keda": {"maxReplicas": 7}}}}), "7 replicas, but"),
    (merged(KEDA, {"scorer": {"defaults": {"keda": {"minReplicas": 9}}}}), "above maxReplicas"),
    (
        {"scorer": {"defaults": {"hpa": {"enabled": True, "minReplicas": 0}}}},
        "cannot scale to 0",
    ),
    ({"scorer": {"lanes": {"probe": {"replicas": 12}}}}, "12 replicas, but"),
    (gpus(None), "provider cuda without a GPU"),
    (gpus(2), "differ"),
    (
        {"scorer": {"defaults": {"resources": {"limits": {"nvidia.com/gpu": 1}}}}},
        "provider is cpu",
    ),
    (
        {"scorer": {"defaults": {"terminationGracePeriodSeconds": 30}}},
        "below the 55 seconds",
    ),
    ({"repairer": {"enabled": True}}, "repairer.existingClaim"),
    ({"repairer": {"enabled": True, "existingClaim": "x"}}, "registry.pvc.existingClaim"),
    (
        merged(
            REPAIRER, {"repairer": {"jobs": {"resources": {"limits": {"nvidia.com/gpu": None}}}}}
        ),
        "jobs.gpu without",
    ),
    ({"prober": {"enabled": True}}, "prober.campaign"),
    (merged(KEDA, {"kafka": {"mechanism": "OAUTHBEARER"}}), "keda.authentication"),
]


@pytest.mark.parametrize(("values", "word"), REFUSED, ids=[word for _, word in REFUSED])
def test_what_cannot_work_is_refused_in_words(values: dict[str, Any], word: str) -> None:
    with pytest.raises(helm_python.HelmError, match=word):
        rendered(merged(NEEDED, values))


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"kafka": {"bootstrp": "x"}}, "bootstrp"),
        ({"scorer": {"lanes": {"staging": {}}}}, "staging"),
        ({"scorer": {"lanes": {"probe": {"replica": 2}}}}, "replica"),
        ({"kafka": {"mechanism": "GSSAPI"}}, "mechanism"),
        ({"topics": {"partitions": "six"}}, "partitions"),
    ],
)
def test_the_schema_names_a_value_that_does_not_exist(values: dict[str, Any], word: str) -> None:
    with pytest.raises(helm_python.HelmError, match=word):
        rendered(merged(NEEDED, values))


def test_each_service_is_a_user_of_its_own_with_what_the_table_allows_it() -> None:
    lanes = {"production": {"settings": {"group": "guard"}}, "anchor": {"enabled": False}}
    own = {"repairer": {"settings": {"group": "menders"}}, "scorer": {"lanes": lanes}}
    values = merged(NEEDED, REPAIRER, own, SETS["strimzi"], {"topics": {"prefix": "x."}})
    resources = rendered(values)
    users = {i["metadata"]["name"]: i for i in resources if i["kind"] == "KafkaUser"}
    assert set(users) == {f"demo-ares-stream-{i}" for i in ("scorer", "monitor", "repairer")}

    def rights(service: str) -> set[tuple[str, str, str]]:
        acls = users[f"demo-ares-stream-{service}"]["spec"]["authorization"]["acls"]
        named = {"transactionalId": "transactional-id"}
        return {
            (named.get(i["resource"]["type"], i["resource"]["type"]), i["resource"]["name"], o)
            for i in acls
            for o in i["operations"]
        }

    def table(service: Service, *names: Names) -> set[tuple[str, str, str]]:
        return {
            (i.resource, i.name, o) for n in names for i in acls(service, n) for o in i.operations
        }

    production, probe = (f"x.interactions.{lane}" for lane in ("production", "probe"))
    assert rights("scorer") == table(
        "scorer",
        Names("x.", [production], {"scorer": "guard"}),
        Names("x.", [probe], {"scorer": "x.scorer-probe"}),
    )
    assert rights("monitor") == table("monitor", Names("x."))
    assert rights("repairer") == table("repairer", Names("x.", groups={"repairer": "menders"}))


@pytest.mark.parametrize("case", ["strimzi", "strimzi, certificates"])
def test_a_service_takes_the_secret_that_strimzi_makes_for_its_user(case: str) -> None:
    resources = rendered(merged(NEEDED, SETS[case]))
    users = {i["metadata"]["name"] for i in resources if i["kind"] == "KafkaUser"}
    found = set()
    for item in resources:
        if item["kind"] == "Deployment":
            service = item["metadata"]["labels"]["app.kubernetes.io/component"].split("-")[0]
            volumes = item["spec"]["template"]["spec"]["volumes"]
            secrets = [v["secret"]["secretName"] for v in volumes if "secret" in v]
            assert secrets == [f"demo-ares-stream-{service}"]
            found.update(secrets)
            config = next(v["configMap"]["name"] for v in volumes if "configMap" in v)
            settings = yaml.safe_load(named(resources, "ConfigMap", config)["data"]["ares.yaml"])
            if "certificates" not in case:
                assert settings["kafka"]["username"] == f"demo-ares-stream-{service}"
    assert found == users


def test_every_file_of_rules_and_dashboards_is_packed() -> None:
    resources = rendered(merged(NEEDED, SETS["everything watched"]))
    groups = named(resources, "PrometheusRule", "demo-ares-stream")["spec"]["groups"] or []
    wanted = [
        group["name"]
        for file in sorted((CHART / "rules").glob("*.yaml"))
        for group in yaml.safe_load(file.read_text())["groups"]
    ]
    assert [group["name"] for group in groups] == wanted
    packed = {
        name
        for item in resources
        if item["kind"] == "ConfigMap" and "-dashboard-" in item["metadata"]["name"]
        for name in item["data"]
    }
    assert packed == {file.name for file in (CHART / "dashboards").glob("*.json")}


def test_lint_has_nothing_to_say_but_of_the_icon() -> None:
    found = helm_python.lint(str(CHART))
    assert [item["error"] for item in found["messages"]] == ["icon is recommended"]
