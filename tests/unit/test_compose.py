"""docker-compose.yml and the images' files, as far as they can be read without an engine."""

import re
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml

from ares_stream.probes.plan import load_campaign
from ares_stream.services.settings import load_settings
from tests.support.command_line import parses
from tests.support.promql import known_metrics, metric_names

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
DOCKERFILE = (ROOT / "services" / "Dockerfile").read_text()
OURS = sorted(name for name, service in SERVICES.items() if "build" in service)
PACKED = ("./helm/ares-stream/rules", "./helm/ares-stream/dashboards")


@pytest.mark.parametrize("name", OURS)
def test_every_service_of_ours_is_built_from_a_target_and_restricted(name: str) -> None:
    service = SERVICES[name]
    target = service["build"]["target"]
    assert f" AS {target}\n" in DOCKERFILE
    assert service["image"].startswith(f"ares-stream-{target}:")
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]


@pytest.mark.parametrize("name", [name for name in OURS if "command" in SERVICES[name]])
def test_every_command_of_a_container_is_one_of_ares(name: str) -> None:
    parses(list(SERVICES[name]["command"]))


@pytest.mark.parametrize("words", re.findall(r"^CMD (\[.*\])$", DOCKERFILE, re.MULTILINE))
def test_every_command_of_an_image_is_one_of_ares(words: str) -> None:
    command = yaml.safe_load(words)
    if command != ["--help"]:
        parses(command)


@pytest.mark.parametrize("file", sorted((ROOT / "services").glob("*/ares.yaml")), ids=str)
def test_the_settings_of_every_image_are_settings(file: Path) -> None:
    assert load_settings(file).http.port == 9464


def test_the_campaign_is_a_campaign() -> None:
    assert load_campaign(ROOT / "services" / "prober" / "campaign.yaml").name == "compose"


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_what_is_mounted_exists_and_what_is_named_is_declared(name: str) -> None:
    for volume in SERVICES[name].get("volumes", ()):
        if isinstance(volume, dict):
            # ${NAME:-PATH} is a file that a person makes; an engine would make a directory.
            assert volume["bind"] == {"create_host_path": False}
            assert re.fullmatch(r"\$\{ARES_\w+:-\./build/[\w.-]+\}", volume["source"]), volume
            continue
        source = volume.split(":")[0]
        if source.startswith("./"):
            assert source in PACKED or (ROOT / source).exists(), source
        else:
            assert source in COMPOSE["volumes"], source


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_every_port_is_on_loopback(name: str) -> None:
    for port in SERVICES[name].get("ports", ()):
        assert port.startswith("127.0.0.1:")


def told(text: str, **environment: str) -> str:
    """As Compose fills it in."""
    return re.sub(r"\$\{(\w+):-([^}]*)\}", lambda it: environment.get(it[1]) or it[2], text)


def test_every_port_may_be_another_and_ports_are_the_ones_of_the_page_unless_said() -> None:
    page = (ROOT / "docs" / "compose.md").read_text()
    ports = [port for service in SERVICES.values() for port in service.get("ports", ())]
    assert len(ports) == 5
    for port in ports:
        (name,) = re.findall(r"\$\{(ARES_\w+_PORT):-", port)
        assert f"`{name}`" in page
        assert told(port, **{name: "7"}).split(":")[1] == "7"
        assert f"127.0.0.1:{told(port).split(':')[1]}" in page


def test_kafka_tells_its_clients_on_this_machine_the_port_at_which_they_reached_it() -> None:
    kafka = SERVICES["kafka"]
    told_by_kafka = kafka["environment"]["KAFKA_ADVERTISED_LISTENERS"]
    for environment in ({}, {"ARES_KAFKA_PORT": "19094"}):
        address, _, inside = told(kafka["ports"][0], **environment).rpartition(":")
        assert f"HOST://{address}" in told(told_by_kafka, **environment)
        assert f"HOST://:{inside}" in kafka["environment"]["KAFKA_LISTENERS"]


def test_images_of_others_are_pinned_by_digest_with_the_tag_beside_it() -> None:
    others = [service["image"] for name, service in SERVICES.items() if name not in OURS]
    bases = re.findall(r"^ARG \w+_IMAGE=(.*)$", DOCKERFILE, re.MULTILINE)
    assert len(bases) == 1
    for image in others + bases:
        assert re.fullmatch(r"[\w./-]+:[\w.-]+@sha256:[0-9a-f]{64}", image), image


def mounted_targets(file: str, **environment: str) -> dict[str, Any]:
    """The one group of targets that Compose writes to a file of Prometheus' container."""
    (source,) = [
        item["source"] for item in SERVICES["prometheus"]["configs"] if item["target"] == file
    ]
    (group,) = yaml.safe_load(told(COMPOSE["configs"][source]["content"], **environment))
    return dict(group)


@pytest.mark.parametrize("environment", [{}, {"ARES_MONITOR_PORT": "19464"}], ids=str)
def test_the_link_of_an_alert_leads_to_a_port_that_this_machine_opens(
    environment: dict[str, str],
) -> None:
    group = mounted_targets("/etc/prometheus/targets/monitor.yaml", **environment)
    (published,) = SERVICES["monitor"]["ports"]
    address, _, inside = told(published, **environment).rpartition(":")
    assert group["labels"]["instance"] == address
    assert group["targets"] == [f"monitor:{inside}"]
    rules = (ROOT / "helm/ares-stream/rules/findings.yaml").read_text()
    links = set(re.findall(r"evidence: '(.*)'", rules))
    assert links == {"http://{{ $labels.instance }}/alarms"}


def test_prometheus_scrapes_every_service_that_runs_and_misses_none_of_a_profile() -> None:
    settings = yaml.safe_load((ROOT / "services" / "prometheus" / "prometheus.yml").read_text())
    always = [
        target
        for job in settings["scrape_configs"]
        for group in job.get("static_configs", ())
        for target in group["targets"]
    ]
    always += [
        target
        for job in settings["scrape_configs"]
        for group in job.get("file_sd_configs", ())
        for file in group["files"]
        for target in mounted_targets(file)["targets"]
    ]
    resolved = [
        f"{name}:{group['port']}"
        for job in settings["scrape_configs"]
        for group in job.get("dns_sd_configs", ())
        for name in group["names"]
    ]
    served = {name for name in OURS if "command" not in SERVICES[name]}
    optional = {name for name in served if "profiles" in SERVICES[name]}
    assert sorted(resolved) == sorted(f"{name}:9464" for name in optional)
    assert sorted(always) == sorted(f"{name}:9464" for name in served - optional)


def test_prometheus_has_the_rules_whose_metrics_compose_has() -> None:
    settings = yaml.safe_load((ROOT / "services" / "prometheus" / "prometheus.yml").read_text())
    (pattern,) = settings["rule_files"]
    folder = ROOT / "helm" / "ares-stream" / "rules"
    mounted = "./helm/ares-stream/rules:/etc/prometheus/rules:ro"
    assert mounted in SERVICES["prometheus"]["volumes"]
    files = sorted(folder.glob(pattern.removeprefix("/etc/prometheus/rules/")))
    assert set(folder.rglob("*.yaml")) - set(files) == set(folder.glob("kubernetes/*.yaml"))
    for file in files:
        for group in yaml.safe_load(file.read_text())["groups"]:
            for rule in group["rules"]:
                asked = metric_names(promql_parser.parse(rule["expr"]))
                recorded = {name for name in asked if ":" in name}
                assert asked - recorded <= known_metrics(), rule


def provisioned(kind: str) -> list[dict[str, Any]]:
    """What the one file of Grafana's provisioning of a kind lists."""
    folder = ROOT / "services" / "grafana" / "provisioning" / kind
    (file,) = folder.iterdir()
    content = yaml.safe_load(file.read_text())
    assert content.pop("apiVersion") == 1
    ((_, listed),) = content.items()
    return list(listed)


def test_grafana_finds_the_dashboards_where_they_are_mounted() -> None:
    mounts = dict(item.split(":")[:2] for item in SERVICES["grafana"]["volumes"])
    assert mounts["./services/grafana/provisioning"] == "/etc/grafana/provisioning"
    (provider,) = provisioned("dashboards")
    assert provider["type"] == "file"
    assert provider["options"]["path"] == mounts["./helm/ares-stream/dashboards"]


def test_grafana_asks_the_prometheus_of_this_file_where_a_dashboard_names_none() -> None:
    (source,) = provisioned("datasources")
    assert (source["type"], source["access"], source["isDefault"]) == ("prometheus", "proxy", True)
    host, port = source["url"].removeprefix("http://").split(":")
    assert SERVICES[host]["image"].startswith("prom/prometheus:")
    assert [item.split(":")[-1] for item in SERVICES[host]["ports"]] == [port]
    assert host in SERVICES["grafana"]["depends_on"]
    assert SERVICES[host]["networks"] == SERVICES["grafana"]["networks"]


def test_the_demo_is_no_false_alarm_and_has_a_true_one() -> None:
    # Conversations of the first of January would all count as late verdicts.
    assert "--now" in SERVICES["demo-traffic"]["command"]
    assert 0 < float(SERVICES["monitor"]["environment"]["ARES_MONITOR__ALARMS__COUPLED"]) < 0.03


def test_what_a_service_waits_for_is_there_and_is_of_its_profile() -> None:
    for name, service in SERVICES.items():
        for other in service.get("depends_on", ()):
            needed = set(SERVICES[other].get("profiles", ()))
            assert needed <= set(service.get("profiles", ())), f"{name} waits for {other}"


def test_only_the_services_that_need_torch_have_it() -> None:
    stages = dict(re.findall(r"^FROM \S+ AS (\S+)\n(.*?)(?=^FROM |\Z)", DOCKERFILE, re.M | re.S))
    installed = {name: re.findall(r'"\.\[(.*)\]"', text) for name, text in stages.items()}
    with_torch = [name for name, extras in installed.items() if extras and "repair" in extras[0]]
    assert with_torch == ["build-repairer"]
