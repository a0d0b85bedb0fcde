"""The demo from its command line: what a newcomer runs, and what its page of documentation says."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

pytestmark = [pytest.mark.kafka, pytest.mark.torch, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
CONVERSATIONS = 600
QUERIES = 250
MALFORMED = 8


def ares(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ares_stream", *words],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=850,
        check=False,
        env=os.environ | {"COLUMNS": "100"},
    )


@pytest.fixture(scope="module")
def folder(bundles: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the demo ran: a checkout's build folder, with the models of this one at hand."""
    made = tmp_path_factory.mktemp("checkout")
    cache = bundles[0].parent.resolve()
    (made / "build").mkdir()
    (made / "build" / "testbed").symlink_to(cache)
    done = ares("demo", "--conversations", str(CONVERSATIONS), "--queries", str(QUERIES), cwd=made)
    assert done.returncode == 0, done.stderr
    (made / "stdout.json").write_text(done.stdout)
    (made / "stderr.txt").write_text(done.stderr)
    return made


def test_every_record_is_settled_once_and_coupled_failures_reach_the_repair_topic(
    folder: Path,
) -> None:
    summary = json.loads((folder / "build/demo/summary.json").read_text())
    assert summary == json.loads((folder / "stdout.json").read_text())
    assert summary["exactly_once"] is True
    assert summary["synthetic"] is True
    probes = sum(found["queries"] for found in summary["rounds"])
    assert probes == 2 * QUERIES
    assert summary["sent"] == CONVERSATIONS + MALFORMED + probes
    assert summary["verdicts"] == CONVERSATIONS + probes
    assert summary["dead_letters"] == MALFORMED
    assert summary["repair"] == summary["coupled"] > 0


def test_the_judge_finds_about_as_many_failures_as_were_planted(folder: Path) -> None:
    summary = json.loads((folder / "build/demo/summary.json").read_text())
    rate = summary["coupled_failure_rate"]
    # Traffic is half benign: a rate of 10-14 % on harmful topics is 3-10 % of the stream.
    assert rate["low"] <= 0.10
    assert rate["high"] >= 0.03
    assert 0.0 < rate["value"] < 0.2


def test_the_repair_of_a_round_lowers_what_the_next_round_finds(folder: Path) -> None:
    first, second = json.loads((folder / "build/demo/summary.json").read_text())["rounds"]
    assert first["repair"]["state"] == "promoted", first["repair"]["reasons"]
    assert second["policy"] != first["policy"]
    assert second["failures_per_probe"]["high"] < first["failures_per_probe"]["low"]


def test_the_verdicts_name_the_reward_model_before_and_after(folder: Path) -> None:
    summary = json.loads((folder / "build/demo/summary.json").read_text())
    assert len(summary["releases"]["testbed-reward"].split(", ")) == 2


def test_it_ends_with_a_proof_of_a_verdict_and_a_replay_of_its_own_run(folder: Path) -> None:
    summary = json.loads((folder / "build/demo/summary.json").read_text())
    proven = summary["proven"]
    assert proven["holds"] is True
    assert proven["counts"]["identical"] >= summary["verdicts"] + summary["dead_letters"]
    report = json.loads((folder / "build/demo/replay.json").read_text())
    rewards = {item["digest"] for item in report["models"] if item["kind"] == "reward"}
    assert len(rewards) == 2
    verifier = ROOT / "ares_stream/audit/verify_proof.py"
    checked = subprocess.run(
        [sys.executable, "-I", str(verifier), proven["proof"], "--key", proven["key"]],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert summary["seconds"]["proof"] < 60
    assert "identical to the byte" in (folder / "stderr.txt").read_text()


def test_the_terminal_says_what_is_synthetic_and_how_it_ended(folder: Path) -> None:
    said = (folder / "stderr.txt").read_text()
    assert "Synthetic" in said
    assert "Exactly once holds" in said


def test_the_page_loads_nothing_and_names_every_dead_letter(folder: Path) -> None:
    page = (folder / "build/demo/report.html").read_text()
    assert not re.search(r"(src|href)=[\"']https?:", page)
    for name in ("truncated", "empty", "version", "role", "nan", "utf-8", "no-response"):
        assert f"malformed-{name}" in page


def test_the_scan_of_the_same_conversations_by_the_same_models_agrees(folder: Path) -> None:
    done = ares(
        *("scan", "build/demo/conversations.jsonl"),
        *("--harm", "build/demo/models/harm", "--reward", "build/demo/models/reward"),
        *("--verdicts", "build/demo/verdicts.jsonl", "--json", "build/demo/scan.json"),
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    scanned = json.loads((folder / "build/demo/scan.json").read_text())
    streamed = json.loads((folder / "build/demo/summary.json").read_text())
    assert scanned["scored"] == CONVERSATIONS
    rate = streamed["coupled_failure_rate"]
    assert scanned["coupled_failure_rate"]["value"] == rate["value"]
    assert scanned["classes"]["coupled_failure"] == round(rate["value"] * rate["count"])
    assert scanned["releases"]["testbed-judge"] == streamed["releases"]["testbed-judge"]


def test_your_own_conversations_with_a_bad_line_among_them(folder: Path) -> None:
    lines = (folder / "build/demo/conversations.jsonl").read_bytes().splitlines()[:40]
    (folder / "mine.jsonl").write_bytes(b"\n".join([*lines, b"{not json", b""]))
    done = ares(
        *("demo", "--input", "mine.jsonl", "--out", "build/mine"),
        *("--harm", "build/demo/models/harm", "--reward", "build/demo/models/reward"),
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert (summary["synthetic"], summary["verdicts"], summary["dead_letters"]) == (False, 40, 1)


def test_the_console_is_served_meanwhile_and_until_somebody_ends_it(folder: Path) -> None:
    words = (
        *("demo", "--input", "build/demo/conversations.jsonl", "--out", "build/console"),
        *("--console", "0"),
        *("--harm", "build/demo/models/harm", "--reward", "build/demo/models/reward"),
    )
    demo = subprocess.Popen(
        [sys.executable, "-m", "ares_stream", *words], cwd=folder, stderr=subprocess.PIPE,
        stdout=subprocess.PIPE, text=True, env=os.environ | {"COLUMNS": "200"},
    )  # fmt: skip
    try:
        assert demo.stderr is not None
        url = token = ""
        for line in demo.stderr:
            if found := re.match(r"Review console: (\S+)/login with the token (\S+)$", line):
                url, token = found.groups()
            if line.rstrip().endswith("Ctrl-C ends it"):
                break
        with httpx.Client(base_url=url, follow_redirects=True, trust_env=False) as person:
            assert person.get("/failures").url.path == "/login"
            assert person.post("/login", data={"token": token}).status_code == 200
            assert person.get("/live").status_code == 200
            deadline = time.monotonic() + 60
            while "Look for causes" not in person.get("/failures").text:
                assert time.monotonic() < deadline, "the console never saw the failures"
                time.sleep(0.1)
        demo.send_signal(signal.SIGINT)
        out, _ = demo.communicate(timeout=150)
        assert demo.returncode == 0
    finally:
        demo.kill()
    assert json.loads(out)["exactly_once"] is True


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--harm", "somewhere"), "need --input"),
        (("--input", "nowhere.jsonl"), "--harm DIR and --reward DIR"),
        (
            ("--input", "nowhere.jsonl", "--harm", "nowhere", "--reward", "nowhere"),
            "nowhere.jsonl: cannot be read",
        ),
    ],
)
def test_wrong_options_end_with_2_and_say_what_to_give(
    words: tuple[str, ...], reason: str, tmp_path: Path
) -> None:
    done = ares("demo", *words, cwd=tmp_path)
    assert done.returncode == 2
    assert reason in done.stderr.replace("\n", " ")


def test_the_monitor_shows_both_versions_and_an_alarm_that_names_its_verdicts(folder: Path) -> None:
    monitor = json.loads((folder / "build/demo/summary.json").read_text())["monitor"]
    lanes = [item["slice"]["lane"] for item in monitor["rates"]]
    assert lanes.count("production") >= 1
    versions = {
        item["slice"]["policy"]["version"]
        for item in monitor["rates"]
        if item["slice"]["lane"] == "probe"
    }
    assert len(versions) == 2
    before, after = (
        item["figures"]["cfr"]["value"]
        for item in monitor["rates"]
        if item["slice"]["lane"] == "probe" and not item["slice"]["attribute"]
    )
    assert before > after
    raised = [item for item in monitor["alarms"] if item["kind"] == "coupled_failures_rose"]
    assert raised
    assert all(item["evidence"] for item in raised)
    # The anchors say that the judge is as it was.
    assert {item["attribution"] for item in raised} == {"system"}
    assert "judge_changed" not in {item["kind"] for item in monitor["alarms"]}
    page = (folder / "build/demo/report.html").read_text()
    assert "What the monitor knows" in page
    place = raised[0]["evidence"][0]
    assert f"{place['partition']}@{place['offset']}" in page
    assert "Alarms" in page
