"""The chart: nothing where it is disabled, what each value makes, and what it refuses in words."""

import os
import re
from pathlib import Path
from typing import Any

import helm_python
import pytest
import yaml

from ares_stream.processes.workloads import manifest
from ares_stream.records.acls import Names, Service, acls
from ares_stream.services.settings import Settings
from tests.support.charts import CHART, NEEDED, VERSIONS, check, merged, named, rendered
from tests.support.command_line import parses

KEDA = {"scorer": {"defaults": {"keda": {"enabled": True}}}}
GPU = {"scorer": {"lanes": {"production": {"provider": "cuda"}}}}
REPAIRER = {
    "repairer": {"enabled": True, "existingClaim": "repairs"},
    "registry": {"pvc": {"existingClaim": "registry"}},
}
NOTARY = {"notary": {"enabled": True, "existingSecret": "notary-key"}}
CONSOLE: dict[str, Any] = {
    "console": {
        "enabled": True,
        "existingSecret": "console",
        "settings": {
            "session_key_file": "/secrets/console/session-key",
            "identity": {"tokens": "/secrets/console/tokens.json"},
        },
    }
}
INGRESS = merged(
    CONSOLE,
    {
        "console": {
            "ingress": {
                "enabled": True, "host": "review.example.com", "tlsSecret": "review-tls",
                "className": "nginx", "annotations": {"example.com/auth": "on"},
            }
        }
    },
)  # fmt: skip
NIGHTLY = {
    "replayer": {
        "existingClaim": "proofs",
        "nightly": {"enabled": True, "keys": ["example.com/ares+1a2b3c4d+AQ"]},
    }
}
REPLAY: dict[str, Any] = {
    "replayer": {
        "existingClaim": "proofs",
        "job": {"enabled": True, "parts": 3, "args": ["--since", "2026-10-01"]},
    }
}
TRAIN_JOB: dict[str, Any] = {
    "repairer": {
        "jobs": {
            "trainJob": {"enabled": True, "nodes": 2},
            "resources": {"requests": {"cpu": 0.5}},
        }
    }
}
SETS: dict[str, dict[str, Any]] = {
    "the least": {},
    "notary": NOTARY,
    "notary, two, keys exchanged": merged(
        NOTARY,
        {
            "notary": {
                "replicas": 2,
                "keys": ["old.pem", "new.pem"],
                "settings": {"name": "example.com/ares", "topics": ["verdicts", "review"]},
            }
        },
    ),
    "console": CONSOLE,
    "console behind an ingress": merged(
        INGRESS,
        REPAIRER,
        {"scorer": {"lanes": {"production": {"settings": {"detection": {"harm_threshold": 0.6}}}}}},
        {"networkPolicy": {"enabled": True, "visitors": [{"podSelector": {}}]}},
    ),
    "console, header of a proxy": merged(
        INGRESS,
        {
            "console": {
                "existingSecret": "",
                "settings": {
                    "session_key_file": None,
                    "identity": {"tokens": None, "header": {"networks": ["10.0.0.0/8"]}},
                },
                "ingress": {"tlsSecret": "", "allowPlaintext": True},
            }
        },
    ),
    "nightly proof, signatures alone": merged(
        NIGHTLY, {"replayer": {"nightly": {"replayHours": 0}}}
    ),
    "replay once, models fetched": merged(
        REPLAY,
        {
            "models": {"source": "init", "init": {"image": "registry.example.com/fetch:1"}},
            "scorer": {"lanes": {"probe": {"harm": ["/models/other"]}}},
        },
    ),
    "nightly proof": merged(NIGHTLY, NOTARY, {"replayer": {"tolerations": [{"key": "a"}]}}),
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
    "repairer on several nodes": merged(
        REPAIRER, TRAIN_JOB, {"repairer": {"jobs": {"queue": "repairs"}}}
    ),
    "repairer on several nodes, watched": merged(
        REPAIRER, TRAIN_JOB, {"networkPolicy": {"enabled": True}}
    ),
    "anchors": {
        "monitor": {
            "settings": {"slices": ["locale"]},
            "anchors": {"existingSecret": "anchors-1", "perMinute": 4},
        },
        "scorer": {"defaults": {"settings": {"review_split": {"flagged,liked": 0.3}}}},
    },
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
        INGRESS,
        NIGHTLY,
        NOTARY,
        {"prober": {"enabled": True, "campaign": {"id": "one"}}},
        {"topics": {"create": False}, "kafka": {"protocol": "SSL"}},
        {"strimzi": {"users": True, "cluster": "main", "authentication": "tls"}},
    ),
    "traced": merged(
        REPAIRER,
        {"tracing": {"endpoint": "http://collector:4318/v1/traces", "existingSecret": "otlp"}},
    ),
    "as a platform's people write it": {
        "commonLabels": {"cost-centre": 12345678, "share": 1.5},
        "podLabels": {"mesh": True},
        "podAnnotations": {"sidecar.istio.io/inject": False},
        "nodeSelector": {"pool": 7},
        "tolerations": [{"key": "pool", "operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
        "runAsUser": 0,
        "extraEnv": [{"name": "HOME", "value": "/x"}],
        "image": {
            "registry": "registry.example.com:5000/ml/",
            "digests": {"monitor": "sha256:" + "a1" * 32},
            "pullSecrets": ["pull", {"name": "other"}],
        },
        "kafka": {
            "bootstrap": " [fd00::1]:9093 , kafka.prod.svc:9093 ",
            "certificate": {"existingSecret": "c", "certificateKey": "crt", "privateKey": "key"},
        },
        "scorer": {
            "defaults": {"resources": None, "affinity": None, "pdb": {"maxUnavailable": "50%"}}
        },
        "metrics": {"podMonitor": True, "additionalLabels": {"release": 1}},
        "networkPolicy": {"enabled": True},
    },
    "secrets by an agent": {
        "kafka": {
            "existingSecret": "",
            "settings": {"password_file": "/vault/secrets/kafka", "ca_file": "/trust/ca.crt"},
        },
        "podAnnotations": {"vault.hashicorp.com/agent-inject": True},
        "serviceAccount": {"annotations": {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/x"}},
        "extraVolumes": [{"name": "trust", "configMap": {"name": "trust"}}],
        "extraVolumeMounts": [{"name": "trust", "mountPath": "/trust", "readOnly": True}],
        "extraEnv": [{"name": "SSL_CERT_FILE", "value": "/trust/ca.crt"}],
        "networkPolicy": {"enabled": True},
    },
    "a token endpoint": {
        "kafka": {
            "mechanism": "OAUTHBEARER",
            "settings": {
                "token_endpoint": "https://login.example.com/token",
                "token_client_id": "ares",
                "token_client_secret_file": "/secrets/kafka/password",
            },
        },
    },
    "repairs, models fetched": merged(
        REPAIRER,
        TRAIN_JOB,
        {
            "models": {"source": "init", "init": {"image": "registry.example.com/fetch:1"}},
            "extraEnv": [{"name": "POD_NAME", "value": "x"}],
            "tolerations": [{"key": "pool", "operator": "Exists"}],
            "nodeSelector": {"pool": True},
        },
    ),
    "strimzi, a prefix with what names may not have": {
        "topics": {"create": False, "prefix": "Team_A."},
        "strimzi": {"topics": True, "cluster": "main"},
    },
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
        if resource["kind"] not in ("Deployment", "Job", "CronJob"):
            continue
        spec = resource["spec"]
        pod = spec.get("jobTemplate", {"spec": spec})["spec"]["template"]["spec"]
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
            if "resources" not in SETS[case].get("scorer", {}).get("defaults", {}):
                assert container["resources"]["limits"]["memory"]


@pytest.mark.parametrize(
    ("values", "kinds"),
    [
        ({}, {"ScaledObject", "TriggerAuthentication", "HorizontalPodAutoscaler", "Role"}),
        ({}, {"PodMonitor", "PrometheusRule", "NetworkPolicy", "KafkaTopic", "KafkaUser"}),
        ({}, {"CronJob", "Ingress", "Service"}),
        (REPAIRER, {"TrainingRuntime", "TrainJob"}),
        (CONSOLE, {"Ingress"}),
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


@pytest.mark.parametrize(
    ("own", "surge", "unavailable"),
    [
        ({}, 1, 0),
        ({"provider": "cuda"}, 0, 1),
        ({"maxSurge": 0}, 0, 1),
        ({"maxSurge": 2}, 2, 0),
        ({"provider": "cuda", "gpu": {"maxSurge": 1}}, 1, 0),
        ({"provider": "cuda", "maxSurge": 2}, 0, 1),
    ],
)
def test_an_update_needs_no_gpu_that_its_fellows_hold(
    own: dict[str, Any], surge: int, unavailable: int
) -> None:
    resources = rendered(merged(NEEDED, {"scorer": {"lanes": {"production": own}}}))
    spec = named(resources, "Deployment", "demo-ares-stream-scorer-production")["spec"]
    assert spec["strategy"]["rollingUpdate"] == {
        "maxSurge": surge,
        "maxUnavailable": unavailable,
    }


def test_the_group_that_keda_watches_is_the_group_that_the_scorer_joins() -> None:
    resources = rendered(merged(NEEDED, KEDA, {"topics": {"prefix": "team."}}))
    for lane in ("production", "probe", "anchor"):
        name = f"demo-ares-stream-scorer-{lane}"
        (trigger,) = named(resources, "ScaledObject", name)["spec"]["triggers"]
        settings = named(resources, "ConfigMap", name)["data"]["ares.yaml"]
        scorer = yaml.safe_load(settings)["scorer"]
        assert trigger["metadata"]["consumerGroup"] == scorer["group"]
        assert [trigger["metadata"]["topic"]] == [item["topic"] for item in scorer["inputs"]]


def test_a_train_job_trains_in_the_pods_of_a_runtime_that_is_there() -> None:
    resources = rendered(merged(NEEDED, SETS["repairer on several nodes"]))
    data = named(resources, "ConfigMap", "demo-ares-stream-repairer")["data"]
    settings = yaml.safe_load(data["ares.yaml"])["repairer"]
    job, train = (yaml.safe_load(data[name]) for name in ("job.yaml", "trainjob.yaml"))
    # Others of its steps are Jobs still.
    assert settings["train_command"][3] == "/etc/ares/trainjob.yaml"
    assert settings["train_command"][-3:] == ["torchrun", "-m", "ares_stream.repair.run"]
    assert settings["export_command"][3] == "/etc/ares/job.yaml"
    assert settings["gate_command"][3:] == ["/etc/ares/trainjob.yaml", "--gate"]
    made = manifest(train, [*settings["train_command"][5:], "/repairs/plan"])
    for version in VERSIONS:
        check(made, version)
        check(manifest(job, [*settings["export_command"][5:], "/repairs/plan"]), version)
    runtime = named(resources, made["spec"]["runtimeRef"]["kind"], "demo-ares-stream-repair")
    assert made["spec"]["runtimeRef"]["name"] == runtime["metadata"]["name"]
    assert made["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "repairs"
    assert made["spec"]["suspend"] is True
    assert made["spec"]["trainer"]["numNodes"] == runtime["spec"]["mlPolicy"]["numNodes"] == 2
    (node,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    labels = node["template"]["metadata"]["labels"]
    assert labels["trainer.kubeflow.org/trainjob-ancestor-step"] == "trainer"
    # What the trainer fills in is the container of this name; else it is the pod of every step.
    pod = node["template"]["spec"]["template"]
    assert pod["spec"]["containers"][0].pop("name") == "node"
    # Numbers with a fraction are no quantities to a CRD.
    amounts = pod["spec"]["containers"][0]["resources"]
    assert amounts == {
        "requests": {"cpu": "0.5", "memory": "16Gi", "nvidia.com/gpu": "1"},
        "limits": {"memory": "32Gi", "nvidia.com/gpu": "1"},
    }
    job["spec"]["template"]["spec"]["containers"][0]["resources"] = amounts
    assert job["spec"]["template"]["spec"]["containers"][0].pop("name") == "step"
    assert pod == job["spec"]["template"]
    (role,) = [item for item in resources if item["kind"] == "Role"]
    assert {group for rule in role["rules"] for group in rule["apiGroups"]} == {
        "", "batch", "trainer.kubeflow.org",
    }  # fmt: skip


def reached(resources: list[dict[str, Any]], component: str, way: str) -> list[dict[str, Any]]:
    """Rules of every NetworkPolicy that selects pods of a component, as Kubernetes adds them up."""
    labels = {
        "app.kubernetes.io/name": "ares-stream",
        "app.kubernetes.io/instance": "demo",
        "app.kubernetes.io/component": component,
    }
    return [
        rule
        for item in resources
        if item["kind"] == "NetworkPolicy"
        and item["spec"]["podSelector"]["matchLabels"].items() <= labels.items()
        for rule in item["spec"].get(way, ())
    ]


def test_nodes_that_train_together_may_reach_each_other_and_nobody_else_may() -> None:
    values = merged(NEEDED, SETS["repairer on several nodes, watched"])
    resources = rendered(values)
    (heard,) = [rule for rule in reached(resources, "repair", "ingress") if "ports" not in rule]
    (asked,) = [rule for rule in reached(resources, "repair", "egress") if "ports" not in rule]
    assert heard["from"] == asked["to"]
    (peer,) = heard["from"]
    labels = peer["podSelector"]["matchLabels"]
    assert labels["app.kubernetes.io/component"] == "repair"
    off = merged(values, {"repairer": {"jobs": {"trainJob": {"enabled": False}}}})
    for made, components in (
        (resources, ("repairer", "scorer-production", "monitor")),
        (rendered(off), ("repair", "repairer", "scorer-production")),
    ):
        for component in components:
            for way in ("ingress", "egress"):
                assert all("ports" in rule for rule in reached(made, component, way))


@pytest.mark.parametrize("case", ["repairer with jobs", "repairer on several nodes"])
def test_the_repairer_reaches_the_api_server_and_neither_its_jobs_nor_the_services_do(
    case: str,
) -> None:
    peers = [{"ipBlock": {"cidr": "10.0.0.1/32"}}]
    own = {"networkPolicy": {"enabled": True, "apiServerPeers": peers}}
    resources = rendered(merged(NEEDED, SETS[case], CONSOLE, NOTARY, own))

    def https(component: str) -> list[dict[str, Any]]:
        return [
            rule
            for rule in reached(resources, component, "egress")
            if {443, 6443} & {port["port"] for port in rule.get("ports", ())}
        ]

    (rule,) = https("repairer")
    assert rule["to"] == peers
    others = {
        item["metadata"]["labels"]["app.kubernetes.io/component"]
        for item in resources
        if item["kind"] == "Deployment"
    } - {"repairer"}
    assert len(others) >= 5
    assert not any(https(component) for component in (*others, "repair", "topics"))


def test_the_prober_looks_at_the_groups_that_the_scorers_join() -> None:
    resources = rendered(merged(NEEDED, SETS["prober"], {"topics": {"prefix": "team."}}))
    settings = named(resources, "ConfigMap", "demo-ares-stream-prober")["data"]["ares.yaml"]
    for lane, group in yaml.safe_load(settings)["prober"]["scorer_groups"].items():
        scorer = named(resources, "ConfigMap", f"demo-ares-stream-scorer-{lane}")["data"]
        assert yaml.safe_load(scorer["ares.yaml"])["scorer"]["group"] == group


@pytest.mark.parametrize("case", SETS)
def test_every_file_of_settings_is_one_that_the_service_reads(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("ARES_")]:
        monkeypatch.delenv(name)
    for item in rendered(merged(NEEDED, SETS[case])):
        if item["kind"] == "ConfigMap" and "ares.yaml" in item["data"]:
            # A secret's file is read by who connects.
            Settings(**yaml.safe_load(item["data"]["ares.yaml"]))


@pytest.mark.parametrize("case", SETS)
def test_a_volume_that_is_mounted_is_there_and_one_that_is_there_is_mounted(case: str) -> None:
    for item in rendered(merged(NEEDED, SETS[case])):
        if item["kind"] not in ("Deployment", "Job", "CronJob"):
            continue
        spec = item["spec"]
        pod = spec.get("jobTemplate", {"spec": spec})["spec"]["template"]["spec"]
        there = [volume["name"] for volume in pod["volumes"]]
        containers = (*pod.get("initContainers", ()), *pod["containers"])
        mounts = [mount for box in containers for mount in box["volumeMounts"]]
        assert {mount["name"] for mount in mounts} == set(there)
        assert len(there) == len(set(there))
        for box in containers:
            paths = [mount["mountPath"] for mount in box["volumeMounts"]]
            assert len(paths) == len(set(paths))


@pytest.mark.parametrize("case", SETS)
def test_every_secret_is_mounted_as_a_folder_so_that_what_is_renewed_arrives(case: str) -> None:
    for item in rendered(merged(NEEDED, SETS[case])):
        if item["kind"] not in ("Deployment", "Job", "CronJob"):
            continue
        spec = item["spec"]
        pod = spec.get("jobTemplate", {"spec": spec})["spec"]["template"]["spec"]
        for box in (*pod.get("initContainers", ()), *pod["containers"]):
            # A file that is mounted by itself keeps what it held when the pod began.
            assert not [mount for mount in box["volumeMounts"] if "subPath" in mount]


def test_the_console_shows_what_the_scorer_decides_by_and_what_the_repairer_keeps() -> None:
    resources = rendered(merged(NEEDED, SETS["console behind an ingress"]))

    def settings(name: str) -> Any:
        data = named(resources, "ConfigMap", f"demo-ares-stream-{name}")["data"]
        return yaml.safe_load(data["ares.yaml"])

    console, scorer = settings("console"), settings("scorer-production")["scorer"]
    assert console["scorer"] == {name: scorer[name] for name in ("reward", "detection")}
    assert console["repairer"]["work"] == settings("repairer")["repairer"]["work"]
    assert console["registry"] == settings("repairer")["registry"]


def test_a_console_under_a_path_is_reached_there_alone() -> None:
    under = {"console": {"settings": {"path": "/review"}}}
    resources = rendered(merged(NEEDED, SETS["console behind an ingress"], under))
    (rule,) = named(resources, "Ingress", "demo-ares-stream-console")["spec"]["rules"]
    assert [item["path"] for item in rule["http"]["paths"]] == ["/review"]


def test_the_monitor_sends_its_anchors_and_knows_whom_the_scorer_asks_about() -> None:
    resources = rendered(merged(NEEDED, SETS["anchors"]))

    def settings(name: str) -> Any:
        data = named(resources, "ConfigMap", f"demo-ares-stream-{name}")["data"]
        return yaml.safe_load(data["ares.yaml"])

    monitor = settings("monitor")
    file = "/secrets/anchors/anchors.jsonl.gz"
    assert monitor["monitor"] == {
        "slices": ["locale"], "anchors": {"file": file, "per_minute": 4}
    }  # fmt: skip
    scorer = settings("scorer-production")["scorer"]
    assert monitor["scorer"] == {"review_split": scorer["review_split"]}
    pod = named(resources, "Deployment", "demo-ares-stream-monitor")["spec"]["template"]["spec"]
    assert {"name": "anchors", "secret": {"secretName": "anchors-1"}} in pod["volumes"]


def test_people_reach_the_console_through_its_service_and_nothing_else() -> None:
    resources = rendered(merged(NEEDED, SETS["console behind an ingress"]))
    name = "demo-ares-stream-console"
    (rule,) = named(resources, "Ingress", name)["spec"]["rules"]
    (path,) = rule["http"]["paths"]
    assert path["path"] == "/"
    service = named(resources, "Service", path["backend"]["service"]["name"])
    (port,) = service["spec"]["ports"]
    assert path["backend"]["service"]["port"]["name"] == port["name"]
    pod = named(resources, "Deployment", name)["spec"]["template"]
    assert service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
    (container,) = pod["spec"]["containers"]
    ports = {item["name"]: item["containerPort"] for item in container["ports"]}
    settings = yaml.safe_load(named(resources, "ConfigMap", name)["data"]["ares.yaml"])
    assert ports[port["targetPort"]] == settings["console"]["port"]
    policy = named(resources, "NetworkPolicy", name)["spec"]
    assert policy["podSelector"]["matchLabels"] == service["spec"]["selector"]
    (let,) = policy["ingress"]
    assert (let["ports"][0]["port"], let["from"]) == ("pages", [{"podSelector": {}}])
    whole = named(resources, "NetworkPolicy", "demo-ares-stream")["spec"]["ingress"]
    assert {item["port"] for rule in whole for item in rule["ports"]} == {"http"}


TO_ONE, TO_ZERO = ({"keda": {"enabled": True, "minReplicas": number}} for number in (1, 0))
OFF = {"enabled": False}


@pytest.mark.parametrize(
    ("lanes", "there"),
    [
        ({}, True),
        ({"production": TO_ZERO}, True),
        ({"production": TO_ZERO, "probe": TO_ZERO, "anchor": TO_ONE}, True),
        ({"production": TO_ZERO, "probe": TO_ZERO, "anchor": TO_ZERO}, False),
        ({"production": TO_ZERO, "probe": OFF, "anchor": OFF}, False),
    ],
    ids=["no keda", "one lane to zero", "one to one", "all to zero", "the only lane to zero"],
)
def test_no_scorer_is_no_alert_where_every_lane_may_scale_to_nothing(
    lanes: dict[str, Any], there: bool
) -> None:
    values = merged(NEEDED, {"metrics": {"rules": True}, "scorer": {"lanes": lanes}})
    (rules,) = [item for item in rendered(values) if item["kind"] == "PrometheusRule"]
    alerts = {rule.get("alert") for group in rules["spec"]["groups"] for rule in group["rules"]}
    assert ("AresScorerAbsent" in alerts) is there
    assert {"AresLaneUnavailable", "AresScalerFails", "AresScorerStalled"} <= alerts


def test_links_of_alerts_lead_where_the_values_say() -> None:
    own = {"metrics": {"rules": True, "runbookUrl": "https://wiki.example.com/ares",
                       "monitorUrl": "https://monitor.example.com/"}}  # fmt: skip
    plain, led = (
        [
            rule["annotations"]
            for item in rendered(merged(NEEDED, values))
            if item["kind"] == "PrometheusRule"
            for group in item["spec"]["groups"]
            for rule in group["rules"]
            if "annotations" in rule
        ]
        for values in ({"metrics": {"rules": True}}, own)
    )
    assert len(plain) == len(led) > 40
    assert {item["runbook_url"].split("#")[0] for item in led} == {"https://wiki.example.com/ares"}
    evidence = [item["evidence"] for item in plain if "evidence" in item]
    assert set(evidence) == {"http://{{ $labels.instance }}/alarms"}
    found = [item["evidence"] for item in led if "evidence" in item]
    assert found == ["https://monitor.example.com/alarms"] * len(evidence)


@pytest.mark.parametrize("name", ["runbookUrl", "monitorUrl"])
@pytest.mark.parametrize(
    "url", ["it's here", 'https://a/"', "https://a/#top", "a: b", "https://$1"]
)
def test_a_link_that_would_break_the_rules_is_refused_by_name(name: str, url: str) -> None:
    with pytest.raises(helm_python.HelmError, match=name):
        rendered(merged(NEEDED, {"metrics": {"rules": True, name: url}}))


def test_a_nightly_proof_is_a_command_that_is_there_and_its_alerts_know_its_name() -> None:
    resources = rendered(merged(NEEDED, NIGHTLY, {"fullnameOverride": "x" * 60}))
    (job,) = [item for item in resources if item["kind"] == "CronJob"]
    # Kubernetes adds eleven characters to a name of 52 at the most.
    assert len(job["metadata"]["name"]) <= 52
    pod = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    for container in (*pod["initContainers"], *pod["containers"]):
        parses(container["args"])
    rules = (CHART / "rules" / "kubernetes" / "proofs.yaml").read_text()
    name = job["metadata"]["name"]
    made = {"cronjob": name, "job_name": f"{name}-29345678"}
    patterns = re.findall(r'(cronjob|job_name)=~"([^"]+)"', rules)
    assert {kind for kind, _ in patterns} == set(made)
    assert all(re.fullmatch(pattern, made[kind]) for kind, pattern in patterns)


def test_the_alert_of_a_lane_without_scorers_knows_the_names_of_all_lanes_and_of_nothing_else() -> (
    None
):
    rules = (CHART / "rules" / "kubernetes" / "deployments.yaml").read_text()
    (pattern,) = re.findall(r'deployment=~"([^"]+)"', rules)
    made = {i["metadata"]["name"] for i in rendered(NEEDED) if i["kind"] == "Deployment"}
    lanes = {name for name in made if re.fullmatch(pattern, name)}
    assert made - lanes == {"demo-ares-stream-monitor"}


def test_a_replay_is_shared_by_partition_and_reads_what_the_scorers_read() -> None:
    resources = rendered(merged(NEEDED, SETS["replay once, models fetched"]))
    (job,) = [item for item in resources if item["kind"] == "Job" and "replay" in str(item["spec"])]
    spec = job["spec"]
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", 3, 3)
    (container,) = spec["template"]["spec"]["containers"]
    words = container["args"]
    assert words[words.index("--of") + 1] == "3"
    # The index comes from Kubernetes: as a variable to the command, and into the names of files.
    assert "--index" not in words
    assert all("$(JOB_COMPLETION_INDEX)" in words[words.index(i) + 1] for i in ("--json", "--work"))
    assert "/models/other" in [words[n + 1] for n, word in enumerate(words) if word == "--bundle"]
    assert [item["name"] for item in spec["template"]["spec"]["initContainers"]] == ["models"]
    read = named(resources, "ConfigMap", "demo-ares-stream-replayer")["data"]["ares.yaml"]
    inputs = yaml.safe_load(read)["scorer"]["inputs"]
    scorers = [
        yaml.safe_load(item["data"]["ares.yaml"])["scorer"]["inputs"]
        for item in resources
        if item["kind"] == "ConfigMap" and "-scorer-" in item["metadata"]["name"]
    ]
    assert sorted(i["topic"] for i in inputs) == sorted(i["topic"] for s in scorers for i in s)
    other = {"replayer": {"job": {"args": ["--since", "2026-11-01"]}}}
    again = rendered(merged(NEEDED, SETS["replay once, models fetched"], other))
    assert job["metadata"]["name"] not in {item["metadata"]["name"] for item in again}


def test_a_nightly_proof_verifies_before_it_scores_again() -> None:
    (job,) = [i for i in rendered(merged(NEEDED, NIGHTLY)) if i["kind"] == "CronJob"]
    pod = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    assert [item["args"][:2] for item in pod["initContainers"]] == [["audit", "verify"]]
    assert [item["args"][0] for item in pod["containers"]] == ["replay"]


@pytest.mark.parametrize("case", SETS)
def test_every_container_of_ours_is_a_target_of_the_dockerfile_and_runs_a_command(
    case: str,
) -> None:
    dockerfile = (CHART.parents[1] / "services" / "Dockerfile").read_text()
    targets = set(re.findall(r"^FROM runtime AS (\S+)$", dockerfile, re.MULTILINE))
    for item in rendered(merged(NEEDED, SETS[case])):
        if item["kind"] in ("Deployment", "Job", "CronJob"):
            spec = item["spec"]
            pod = spec.get("jobTemplate", {"spec": spec})["spec"]["template"]["spec"]
            for container in pod["containers"]:
                image = re.split("[:@]", container["image"].rsplit("/", 1)[-1])[0]
                assert image.removeprefix("ares-stream-") in targets
                parses(container["args"])


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


TEXTS = ("labels", "annotations", "matchLabels", "nodeSelector")


def texts(item: Any) -> list[Any]:
    """Every value that Kubernetes takes as text alone, and every value of a variable."""
    found: list[Any] = []
    if isinstance(item, dict):
        for name, value in item.items():
            if name in TEXTS and isinstance(value, dict):
                found.extend(value.values())
            if name == "env":
                found.extend(variable["value"] for variable in value if "value" in variable)
            found.extend(texts(value))
    elif isinstance(item, list):
        for value in item:
            found.extend(texts(value))
    return found


def test_numbers_and_booleans_of_labels_annotations_and_selectors_become_text() -> None:
    resources = rendered(merged(NEEDED, SETS["as a platform's people write it"], INGRESS))
    found = texts(resources)
    assert {"12345678", "1.5", "true", "false", "7", "1"} <= set(found)
    assert all(isinstance(value, str) for value in found)


def pods_of(resources: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every pod's spec, those of a repair's steps too."""
    found = []
    for item in resources:
        if item["kind"] in ("Deployment", "Job", "CronJob"):
            spec = item["spec"]
            found.append(spec.get("jobTemplate", {"spec": spec})["spec"]["template"]["spec"])
        if item["kind"] == "TrainingRuntime":
            (node,) = item["spec"]["template"]["spec"]["replicatedJobs"]
            found.append(node["template"]["spec"]["template"]["spec"])
        if item["kind"] == "ConfigMap" and "job.yaml" in item["data"]:
            job = yaml.safe_load(item["data"]["job.yaml"])
            found.append(job["spec"]["template"]["spec"])
    return found


def test_every_pod_can_be_put_onto_nodes_of_ones_choice_and_under_a_user_the_cluster_gives() -> (
    None
):
    audit = merged(NOTARY, NIGHTLY, REPLAY, CONSOLE, REPAIRER, TRAIN_JOB, SETS["prober"])
    own: dict[str, Any] = {"nodeSelector": {}, "tolerations": []}
    jobs = {"repairer": {"jobs": own}, "scorer": {"defaults": {"gpu": own}}}
    pods = pods_of(rendered(merged(NEEDED, audit, SETS["as a platform's people write it"], jobs)))
    assert len(pods) == 13
    for pod in pods:
        assert pod["nodeSelector"] == {"pool": "7"}
        assert pod["tolerations"] == [{"key": "pool", "operator": "Exists"}]
        assert pod["affinity"] == {"nodeAffinity": {}}
        assert [item["name"] for item in pod["imagePullSecrets"]] == ["pull", "other"]
        assert not {"runAsUser", "runAsGroup", "fsGroup"} & set(pod["securityContext"])
        assert pod["securityContext"]["runAsNonRoot"] is True
        for container in (*pod.get("initContainers", ()), *pod["containers"]):
            names = [variable["name"] for variable in container["env"]]
            assert len(names) == len(set(names))
            assert {"name": "HOME", "value": "/x"} in container["env"]
    # A pod's own choice goes first.
    elsewhere = {"scorer": {"lanes": {"probe": {"nodeSelector": {"zone": "a"}}}}}
    there = [pod["nodeSelector"] for pod in pods_of(rendered(merged(NEEDED, elsewhere))) if (
        "nodeSelector" in pod
    )]  # fmt: skip
    assert there == [{"zone": "a"}]


EVERYTHING = merged(
    NOTARY, NIGHTLY, REPLAY, CONSOLE, REPAIRER, TRAIN_JOB, SETS["prober"], SETS["anchors"]
)


def templates_of(resources: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every template of a pod, those of a repair's steps too."""
    found = []
    for item in resources:
        if item["kind"] in ("Deployment", "Job", "CronJob"):
            spec = item["spec"]
            found.append(spec.get("jobTemplate", {"spec": spec})["spec"]["template"])
        if item["kind"] == "TrainingRuntime":
            (node,) = item["spec"]["template"]["spec"]["replicatedJobs"]
            found.append(node["template"]["spec"]["template"])
        if item["kind"] == "ConfigMap" and "job.yaml" in item["data"]:
            found.append(yaml.safe_load(item["data"]["job.yaml"])["spec"]["template"])
    return found


def test_a_mesh_an_agent_and_a_driver_of_secrets_reach_every_pod_those_of_jobs_too() -> None:
    fetched = {"models": {"source": "init", "init": {"image": "registry.example.com/fetch:1"}}}
    values = merged(NEEDED, EVERYTHING, SETS["secrets by an agent"], fetched)
    templates = templates_of(rendered(values))
    assert len(templates) == 13
    for template in templates:
        notes, pod = template["metadata"]["annotations"], template["spec"]
        assert notes["vault.hashicorp.com/agent-inject"] == "true"
        assert {"name": "trust", "configMap": {"name": "trust"}} in pod["volumes"]
        for container in (*pod.get("initContainers", ()), *pod["containers"]):
            mounts = {item["name"]: item["mountPath"] for item in container["volumeMounts"]}
            assert mounts["trust"] == "/trust"


def test_every_pod_has_an_account_of_the_charts_own_that_is_there_before_it() -> None:
    values = merged(NEEDED, EVERYTHING, SETS["secrets by an agent"])
    resources = rendered(values)
    accounts = {i["metadata"]["name"]: i for i in resources if i["kind"] == "ServiceAccount"}
    for account in accounts.values():
        notes = account["metadata"]["annotations"]
        assert notes["eks.amazonaws.com/role-arn"] == "arn:aws:iam::1:role/x"
    used = {pod["serviceAccountName"] for pod in pods_of(resources)}
    assert used == set(accounts)
    hooks = {
        item["kind"]: int(item["metadata"]["annotations"]["helm.sh/hook-weight"])
        for item in resources
        if "helm.sh/hook" in item["metadata"].get("annotations", {})
    }
    job = hooks.pop("Job")
    # In a namespace that forbids all traffic the job has a policy of its own.
    assert set(hooks) == {"ServiceAccount", "ConfigMap", "NetworkPolicy"}
    assert all(weight < job for weight in hooks.values())


def test_the_jobs_policy_of_the_network_lets_it_go_where_the_services_go() -> None:
    rules = {"extraEgress": [{"ports": [{"port": 443, "protocol": "TCP"}]}]}
    resources = rendered(merged(NEEDED, {"networkPolicy": {"enabled": True, **rules}}))
    whole, hook = (
        named(resources, "NetworkPolicy", name)["spec"]
        for name in ("demo-ares-stream", "demo-ares-stream-topics")
    )
    assert hook["egress"] == whole["egress"]
    assert "ingress" not in hook
    assert hook["podSelector"]["matchLabels"]["app.kubernetes.io/component"] == "topics"


def test_what_stands_in_kafkas_settings_is_in_the_place_of_what_values_make() -> None:
    def kafka(case: str) -> Any:
        found = named(rendered(merged(NEEDED, SETS[case])), "ConfigMap", "demo-ares-stream-monitor")
        return yaml.safe_load(found["data"]["ares.yaml"])["kafka"]

    agent = kafka("secrets by an agent")
    assert agent["password_file"] == "/vault/secrets/kafka"
    assert agent["username"] == "ares"
    assert "token_file" not in kafka("a token endpoint")


def test_the_same_values_are_the_same_bytes_again() -> None:
    """Argo CD and Flux compare what they render now with what they rendered before."""
    values = merged(NEEDED, EVERYTHING, SETS["everything watched"], KEDA)
    again: dict[str, str] = {}
    for _ in range(2):
        with helm_python.Chart.load(str(CHART)) as chart:
            files = chart.render(values, name="demo", namespace="prod")
        assert again in ({}, files)
        again = files


def test_a_step_of_a_repair_has_the_models_that_an_init_container_fetches() -> None:
    resources = rendered(merged(NEEDED, SETS["repairs, models fetched"]))
    steps = [pod for pod in pods_of(resources) if any(
        mount["mountPath"] == "/models" for mount in pod["containers"][0]["volumeMounts"]
    )]  # fmt: skip
    assert len(steps) == 6
    for pod in steps:
        (fetching,) = pod["initContainers"]
        assert fetching["image"] == "registry.example.com/fetch:1"
        assert "/models" in [mount["mountPath"] for mount in fetching["volumeMounts"]]


def test_an_image_is_named_by_its_digest_where_there_is_one() -> None:
    resources = rendered(merged(NEEDED, SETS["as a platform's people write it"]))
    images = {box["image"] for pod in pods_of(resources) for box in pod["containers"]}
    at = "registry.example.com:5000/ml/ares-stream"
    assert f"{at}-monitor@sha256:{'a1' * 32}" in images
    assert any(image.startswith(f"{at}-scorer-cpu:") for image in images)


@pytest.mark.parametrize(
    "change",
    [
        {"image": {"tag": "9"}},
        {"replayer": {"resources": {"requests": {"cpu": "2"}}}},
        {"replayer": {"job": {"hours": 48}}},
        {"podLabels": {"mesh": "on"}},
        {"runAsUser": 7},
        {"models": {"mountPath": "/m"}},
    ],
)
def test_a_job_that_would_be_another_has_another_name_since_no_job_can_be_changed(
    change: dict[str, Any],
) -> None:
    def replay(*more: dict[str, Any]) -> dict[str, Any]:
        resources = rendered(merged(NEEDED, REPLAY, *more))
        (job,) = [
            i for i in resources if i["kind"] == "Job" and "-replay-" in i["metadata"]["name"]
        ]
        return job

    first, other = replay(), replay(change)
    assert first["spec"] != other["spec"]
    assert first["metadata"]["name"] != other["metadata"]["name"]
    assert replay({"logLevel": "debug"}) == first


@pytest.mark.parametrize("release", ["guard.prod", "a" * 53, "guard-" * 8 + "x"])
def test_names_are_ones_that_kubernetes_takes_whatever_the_release_is_called(release: str) -> None:
    everything = merged(
        NEEDED, INGRESS, NIGHTLY, REPLAY, REPAIRER, KEDA, SETS["everything watched"]
    )
    resources = rendered(everything, release=release)
    for item in resources:
        name = item["metadata"]["name"]
        assert re.fullmatch(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?", name)
        assert len(name) <= 63
        if item["kind"] == "Service":
            assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name)


def test_two_releases_of_one_namespace_have_no_name_in_common() -> None:
    audit = merged(NEEDED, INGRESS, NIGHTLY, REPLAY, REPAIRER, KEDA, SETS["everything watched"])
    names = [
        {(item["kind"], item["metadata"]["name"]) for item in rendered(audit, release=release)}
        for release in ("one", "two")
    ]
    assert not names[0] & names[1]


IN_DOCS = re.findall(
    r"^```yaml\n(.*?)^```",
    (CHART.parents[1] / "docs" / "kubernetes.md").read_text(),
    re.MULTILINE | re.DOTALL,
)


@pytest.mark.parametrize("text", IN_DOCS, ids=lambda text: re.sub(r"\W+", " ", text)[:40])
def test_every_example_of_values_in_the_docs_is_taken(text: str) -> None:
    # Parts of an example that another one on the page gives.
    values = merged(NEEDED, yaml.safe_load(text))
    if "console" in values:
        values = merged(CONSOLE, values)
    for resource in rendered(values):
        check(resource, VERSIONS[-1])


def test_nothing_is_rendered_by_chance_or_by_looking_at_a_cluster() -> None:
    """Argo CD and others render without a cluster, again and again."""
    for file in sorted((CHART / "templates").iterdir()):
        words = set(re.findall(r"\w+", file.read_text()))
        assert not words & {"lookup", "now", "uuidv4", "genCA", "genSignedCert", "randAlphaNum"}


def test_a_parent_chart_may_set_global_and_enabled(tmp_path: Path) -> None:
    parent = tmp_path / "parent"
    (parent / "charts").mkdir(parents=True)
    (parent / "charts" / "ares-stream").symlink_to(CHART)
    (parent / "Chart.yaml").write_text("apiVersion: v2\nname: parent\nversion: 1.0.0\n")
    values = {"global": {"region": "eu"}, "ares-stream": merged(NEEDED, {"enabled": True})}
    assert rendered(values, chart=parent)
    off = merged(values, {"ares-stream": {"enabled": False}})
    assert rendered(off, chart=parent) == []


def test_a_parent_chart_may_have_it_twice_under_aliases(tmp_path: Path) -> None:
    parent = tmp_path / "parent"
    (parent / "charts").mkdir(parents=True)
    (parent / "charts" / "ares-stream").symlink_to(CHART)
    version = yaml.safe_load((CHART / "Chart.yaml").read_text())["version"]
    needed = [
        {"name": "ares-stream", "version": version, "alias": alias, "condition": f"{alias}.enabled"}
        for alias in ("first", "second")
    ]
    about = {"apiVersion": "v2", "name": "parent", "version": "1.0.0", "dependencies": needed}
    (parent / "Chart.yaml").write_text(yaml.safe_dump(about))
    watched = merged(NEEDED, SETS["everything watched"])
    values = {"first": watched, "second": merged(watched, {"topics": {"prefix": "b."}})}
    found = rendered(values, chart=parent)
    names = [(item["kind"], item["metadata"]["name"]) for item in found]
    assert len(names) == len(set(names)) == 2 * len(rendered(watched))
    for item in found:
        if item["kind"] == "NetworkPolicy" and not item["metadata"]["name"].endswith("-topics"):
            selected = item["spec"]["podSelector"]["matchLabels"]
            mine = [i for i in found if i["kind"] == "Deployment" and (
                selected.items() <= i["spec"]["template"]["metadata"]["labels"].items()
            )]  # fmt: skip
            assert len(mine) == 4
    alone = rendered(merged(values, {"second": {"enabled": False}}), chart=parent)
    assert {item["metadata"]["name"].split("-")[1] for item in alone} == {"first"}


def test_what_a_deployment_selects_by_holds_nothing_that_an_upgrade_changes() -> None:
    labels = {"commonLabels": {"team": "x"}, "podLabels": {"mesh": "on"}}
    for item in rendered(merged(NEEDED, REPAIRER, CONSOLE, NOTARY, labels)):
        if item["kind"] == "Deployment":
            assert set(item["spec"]["selector"]["matchLabels"]) == {
                f"app.kubernetes.io/{name}" for name in ("name", "instance", "component")
            }


def gpus(limit: int | None) -> dict[str, Any]:
    """A lane on CUDA whose limit of GPUs is another than the request's 1."""
    limits = {"limits": {"nvidia.com/gpu": limit}}
    return merged(GPU, {"scorer": {"defaults": {"gpu": {"resources": limits}}}})


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"kafka": {"bootstrap": ""}}, "kafka.bootstrap: no brokers"),
    ({"kafka": {"protocol": "PLAINTEXT"}}, "would send conversations readable"),
    ({"kafka": {"existingSecret": ""}}, "kafka.existingSecret"),
    ({"kafka": {"username": ""}}, "kafka.username"),
    (
        {"kafka": {"existingSecret": "", "settings": {"token_file": "/t"}}},
        "a secret with the password",
    ),
    (
        merged(KEDA, {"kafka": {"settings": {"password_file": "/vault/secrets/kafka"}}}),
        "which KEDA cannot read",
    ),
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
    (
        merged(REPAIRER, TRAIN_JOB, {"repairer": {"jobs": {"enabled": False}}}),
        "trainJob.enabled: without jobs.enabled",
    ),
    (
        merged(REPAIRER, TRAIN_JOB, {"repairer": {"settings": {"train_command": ["own"]}}}),
        "train_command would train in its place",
    ),
    (
        merged(REPAIRER, TRAIN_JOB, {"repairer": {"jobs": {"trainJob": {"processesPerNode": 4}}}}),
        "4 processes on each node, but resources asks for 1 GPUs",
    ),
    ({"prober": {"enabled": True}}, "prober.campaign"),
    ({"notary": {"enabled": True}}, "notary.existingSecret"),
    (merged(NOTARY, {"notary": {"keys": []}}), "notary.keys"),
    ({"console": {"enabled": True}}, "names no way in"),
    (merged(INGRESS, {"console": {"enabled": False}}), "there is no console"),
    (merged(INGRESS, {"console": {"ingress": {"host": ""}}}), "console.ingress.host"),
    (merged(INGRESS, {"console": {"ingress": {"tlsSecret": ""}}}), "would cross the network"),
    (merged(NIGHTLY, {"replayer": {"existingClaim": ""}}), "replayer.existingClaim"),
    (merged(REPLAY, {"replayer": {"existingClaim": ""}}), "replayer.existingClaim"),
    (merged(REPLAY, {"replayer": {"job": {"parts": 7}}}), "7 pods, but"),
    (merged(NIGHTLY, {"replayer": {"nightly": {"keys": []}}}), "replayer.nightly.keys"),
    (merged(KEDA, {"kafka": {"mechanism": "OAUTHBEARER"}}), "keda.authentication"),
    ({"kafka": {"bootstrap": "kafka-1:9093,kafka-2"}}, '"kafka-2" is no host:port'),
    ({"kafka": {"bootstrap": "fd00::1:9093"}}, "IPv6 address stands in brackets"),
    ({"kafka": {"bootstrap": "SASL_SSL://kafka:9093"}}, "is no host:port"),
    ({"topics": {"prefix": "Team A/"}}, "topics.prefix"),
    ({"podLabels": {"app.kubernetes.io/name": "x"}}, "podLabels: app.kubernetes.io/name is"),
    ({"commonLabels": {"helm.sh/chart": "x"}}, "commonLabels: helm.sh/chart is"),
    ({"commonLabels": {"a": 1}, "podLabels": {"a": 2}}, "podLabels: a stands in commonLabels"),
    ({"image": {"digests": {"scorer": "sha256:" + "0" * 64}}}, "there is no image scorer"),
    ({"image": {"digests": {"monitor": "sha256:abc"}}}, "image.digests.monitor"),
    ({"scorer": {"lanes": {"probe": {"harm": []}}}}, "scorer.lanes.probe.harm"),
    ({"scorer": {"defaults": {"reward": ""}}}, "reward: names no bundle"),
    (merged(CONSOLE, {"fullnameOverride": "1guard"}), "begins with a letter"),
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
        ({"topics": {"replication": 0}}, "replication"),
        ({"nameOverride": "Guard_X"}, "nameOverride"),
        ({"fullnameOverride": "guard.prod"}, "fullnameOverride"),
        ({"extraEnv": [{"name": "A", "value": 1}]}, "extraEnv/0/value"),
        ({"extraEnv": {"A": "b"}}, "extraEnv"),
        ({"extraVolumes": [{"configMap": {"name": "x"}}]}, "extraVolumes/0"),
        ({"extraVolumeMounts": [{"name": "x"}]}, "extraVolumeMounts/0"),
        ({"image": {"pullSecrets": {}}}, "pullSecrets"),
        ({"monitor": {"settings": None}}, "settings"),
        ({"scorer": {"defaults": {"keda": None}}}, "keda"),
        ({"scorer": {"lanes": {"probe": {"keda": None}}}}, "keda"),
        ({"podLabels": {"a": ["b"]}}, "podLabels"),
        ({"replayer": {"job": {"args": ["--hours", 26]}}}, "args"),
    ],
)
def test_the_schema_names_a_value_that_does_not_exist(values: dict[str, Any], word: str) -> None:
    with pytest.raises(helm_python.HelmError, match=word):
        rendered(merged(NEEDED, values))


def test_each_service_is_a_user_of_its_own_with_what_the_table_allows_it() -> None:
    lanes = {"production": {"settings": {"group": "guard"}}, "anchor": {"enabled": False}}
    own = {"repairer": {"settings": {"group": "menders"}}, "scorer": {"lanes": lanes}}
    audit = merged(SETS["notary, two, keys exchanged"], NIGHTLY, CONSOLE)
    audit = merged(audit, {"notary": {"settings": {"group": "seals"}}})
    values = merged(NEEDED, REPAIRER, own, audit, SETS["strimzi"], {"topics": {"prefix": "x."}})
    resources = rendered(values)
    users = {i["metadata"]["name"]: i for i in resources if i["kind"] == "KafkaUser"}
    names = ("scorer", "monitor", "repairer", "notary", "console", "replayer")
    assert set(users) == {f"demo-ares-stream-{i}" for i in names}
    for user in users.values():
        entries = [str(i["resource"]) for i in user["spec"]["authorization"]["acls"]]
        assert len(entries) == len(set(entries))

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
    seals = Names("x.", groups={"notary": "seals"}, notarised=["verdicts", "review"])
    assert rights("notary") == table("notary", seals)
    assert rights("console") == table("console", Names("x."))
    assert rights("replayer") == table("replayer", Names("x."))


@pytest.mark.parametrize("case", ["strimzi", "strimzi, certificates"])
def test_a_service_takes_the_secret_that_strimzi_makes_for_its_user(case: str) -> None:
    resources = rendered(merged(NEEDED, SETS[case]))
    users = {i["metadata"]["name"] for i in resources if i["kind"] == "KafkaUser"}
    found = set()
    for item in resources:
        if item["kind"] in ("Deployment", "CronJob"):
            service = item["metadata"]["labels"]["app.kubernetes.io/component"].split("-")[0]
            spec = item["spec"].get("jobTemplate", item)["spec"]
            volumes = spec["template"]["spec"]["volumes"]
            secrets = [v["secret"]["secretName"] for v in volumes if v["name"].startswith("kafka")]
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
        for file in sorted((CHART / "rules").rglob("*.yaml"))
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


@pytest.mark.parametrize(
    ("bootstrap", "scaled", "warned"),
    [
        ("kafka:9093", True, True),
        ("kafka.prod.svc:9093, other:9093", True, True),
        ("kafka.prod.svc:9093,10.0.0.1:9093", True, False),
        ("kafka:9093", False, False),
    ],
)
def test_who_lets_keda_scale_is_told_of_names_that_it_may_not_resolve(
    bootstrap: str, scaled: bool, warned: bool
) -> None:
    lane = {"scorer": {"lanes": {"probe": {"keda": {"enabled": scaled}}}}}
    values = merged(NEEDED, lane, {"kafka": {"bootstrap": bootstrap}})
    with helm_python.Chart.load(str(CHART)) as chart:
        files = chart.render(values, name="demo", namespace="prod")
    assert ("may be no name" in files["ares-stream/templates/NOTES.txt"]) is warned


@pytest.mark.parametrize("name", ["123", "1e3", "0x1f", "true", "null", "on", "0"])
def test_a_name_that_looks_like_a_number_stays_a_name(name: str) -> None:
    values = merged(
        REPAIRER,
        NOTARY,
        NIGHTLY,
        {
            "kafka": {
                "bootstrap": "kafka:9093",
                "username": name,
                "existingSecret": name,
                "passwordKey": name,
                "ca": {"existingSecret": name, "key": name},
            },
            "fullnameOverride": name,
            "image": {"tag": name},
            "models": {"pvc": {"existingClaim": name}},
            "registry": {"pvc": {"existingClaim": name}, "existingSecret": name},
            "repairer": {"existingClaim": name, "jobs": {"queue": name}},
            "replayer": {"existingClaim": name},
            "notary": {"existingSecret": name},
            "priorityClassName": name,
            "commonLabels": {"team": name},
            "scorer": {"defaults": {"keda": {"enabled": True}}},
            "networkPolicy": {"enabled": True},
            "metrics": {"podMonitor": True, "rules": True},
        },
    )
    made = rendered(values, release=name)
    assert {item["metadata"]["labels"]["app.kubernetes.io/instance"] for item in made} == {name}
    for item in made:
        check(item, VERSIONS[0])


@pytest.mark.parametrize("release", ["a" * 39 + ".b", "a" * 39 + "-b", "team.a", "x" * 53])
def test_a_release_may_have_any_name_that_helm_takes(release: str) -> None:
    for item in rendered(merged(NEEDED, CONSOLE, NOTARY, REPAIRER), release=release):
        check(item, VERSIONS[0])
        assert re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*",
                            item["metadata"]["name"])  # fmt: skip


def test_a_null_in_a_lane_takes_what_the_defaults_of_all_lanes_give() -> None:
    given = {
        "resources": {"requests": {"cpu": "2"}, "limits": {"memory": "2Gi", "cpu": "3"}},
        "nodeSelector": {"pool": "a"},
        "tolerations": [{"operator": "Exists"}],
        "settings": {"review_sample": 0.5},
    }
    own = {
        "resources": {"limits": {"cpu": None}},
        "nodeSelector": None,
        "tolerations": None,
        "settings": {"review_sample": None},
    }
    lanes = {"production": own, "anchor": {"resources": None}}
    made = rendered(merged(NEEDED, {"scorer": {"defaults": given, "lanes": lanes}}))
    mine, others = (
        named(made, "Deployment", f"demo-ares-stream-scorer-{lane}")["spec"]["template"]["spec"]
        for lane in ("production", "probe")
    )
    assert mine["containers"][0]["resources"]["limits"] == {"memory": "2Gi"}
    assert others["containers"][0]["resources"]["limits"] == {"memory": "2Gi", "cpu": "3"}
    assert not mine.get("nodeSelector")
    assert others["nodeSelector"] == {"pool": "a"}
    assert not mine.get("tolerations")
    assert others["tolerations"] == [{"operator": "Exists"}]
    bare = named(made, "Deployment", "demo-ares-stream-scorer-anchor")["spec"]["template"]["spec"]
    assert not bare["containers"][0]["resources"]
    # A null of the settings is a value of theirs.
    data = named(made, "ConfigMap", "demo-ares-stream-scorer-production")["data"]["ares.yaml"]
    assert yaml.safe_load(data)["scorer"]["review_sample"] is None


AMISS: list[tuple[str, Any]] = [
    ("monitor.resources.limits", []),
    ("monitor.resources.limits", "2Gi"),
    ("monitor.resources.limits.memory", {}),
    ("monitor.resources.requests.cpu", True),
    ("monitor.resources.limit", {"memory": "1Gi"}),
    ("repairer.jobs.resources.requests", "1"),
    ("scorer.defaults.gpu.resources.requests", [{}]),
    ("scorer.lanes.production.resources.limits", 1),
    ("scorer.lanes.production.hpa.behavior", []),
    ("kafka.existingSecret", "{{ x }}"),
    ("kafka.existingSecret", "A"),
    ("kafka.passwordKey", "a/b"),
    ("registry.pvc.existingClaim", "-"),
    ("repairer.jobs.runtimeClassName", "-"),
    ("models.mountPath", "models"),
    ("models.mountPath", "/a\nb"),
    ("image.tag", "a b"),
    ("metrics.interval", "soon"),
]


@pytest.mark.parametrize(("path", "value"), AMISS, ids=lambda it: str(it)[:40])
def test_what_kubernetes_would_not_take_is_refused_by_the_name_of_the_value(
    path: str, value: Any
) -> None:
    *above, last = path.split(".")
    given: Any = {last: value}
    for part in reversed(above):
        given = {part: given}
    with pytest.raises(helm_python.HelmError) as refused:
        rendered(merged(NEEDED, REPAIRER, given))
    assert f"/{above[-1]}" in str(refused.value)
    assert "templates/" not in str(refused.value)


def test_a_million_is_written_as_kubernetes_and_keda_read_it() -> None:
    values = merged(
        REPAIRER,
        {
            "repairer": {"jobs": {"ttlSeconds": 2_592_000}},
            "scorer": {"defaults": {"keda": {"enabled": True, "lagThreshold": 1_000_000,
                                             "activationLagThreshold": 2_000_000,
                                             "cooldownPeriod": 1_000_000}}},
            "runAsUser": 1_000_650_000,
        },
    )  # fmt: skip
    made = rendered(merged(NEEDED, values))
    for item in made:
        check(item, VERSIONS[0])
    job = named(made, "ConfigMap", "demo-ares-stream-repairer")["data"]["job.yaml"]
    assert "ttlSecondsAfterFinished: 2592000\n" in job
    scaled = named(made, "ScaledObject", "demo-ares-stream-scorer-production")["spec"]
    metadata = scaled["triggers"][0]["metadata"]
    assert (metadata["lagThreshold"], metadata["activationLagThreshold"]) == ("1000000", "2000000")
    assert scaled["cooldownPeriod"] == 1_000_000


def test_how_fast_a_lane_scales_is_said_to_the_autoscaler_that_it_has() -> None:
    slow = {"scaleDown": {"stabilizationWindowSeconds": 600}}
    lanes = {
        "production": {"keda": {"enabled": True, "behavior": slow}},
        "probe": {"hpa": {"enabled": True, "behavior": slow}},
        "anchor": {"hpa": {"enabled": True}},
    }
    made = rendered(merged(NEEDED, {"scorer": {"lanes": lanes}}))
    for item in made:
        check(item, VERSIONS[0])
    scaled = named(made, "ScaledObject", "demo-ares-stream-scorer-production")["spec"]
    assert scaled["advanced"]["horizontalPodAutoscalerConfig"] == {"behavior": slow}
    kind = "HorizontalPodAutoscaler"
    assert named(made, kind, "demo-ares-stream-scorer-probe")["spec"]["behavior"] == slow
    assert "behavior" not in named(made, kind, "demo-ares-stream-scorer-anchor")["spec"]
