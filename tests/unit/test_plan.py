"""The repair plan: what trains, what is left out and why, whatever order the failures come in."""

import json
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ares_stream.errors import IntegrityError, RepairError
from ares_stream.records.base import digest
from ares_stream.records.verdict import (
    FailureClass,
)
from ares_stream.repair.plan import Plan, Replay, plan, settle_labels, unanswered
from ares_stream.repair.plan_policy import PlanPolicy
from ares_stream.repair.rundirectory import plan_document
from ares_stream.repair.similarity import jaccard, near_copies, shingles
from tests.support.failures import (
    LOOSE,
    REPLAY,
    batch,
    failure,
    label,
    made,
    sentence,
)


def kept(result: Plan) -> set[str]:
    return {sample.id for sample in (*result.train, *result.held_out)}


def reasons(result: Plan) -> dict[str, str]:
    return {item.id: item.reason for item in result.left_out}


def test_every_failure_is_trained_on_held_out_or_left_out_with_a_reason() -> None:
    failures = [*batch(12), failure("empty", response=""), failure("long", "x" * 20_000)]
    result = made(failures)

    assert kept(result) | set(reasons(result)) == {item.interaction.id for item in failures}
    assert reasons(result) == {"empty": "no_text", "long": "too_long"}
    assert result.counts["left_out_no_text"] == 1


@settings(max_examples=20)
@given(st.randoms(use_true_random=False), st.integers(4, 14))
def test_the_order_of_the_failures_and_of_the_replay_changes_nothing(
    chooser: random.Random, count: int
) -> None:
    failures = [
        *batch(count),
        *[failure(f"copy{n}", sentence("flood"), f"{sentence('flood r')} {n}") for n in range(5)],
        *[failure(f"t{n}", source="tenant") for n in range(6)],
        failure("probe", probe={"topic": "a", "tactic": "b"}),
    ]
    policy = PlanPolicy(min_train=1, max_share=0.4)
    labels = {"f1": label("f1", True), "f2": label("f2", False)}
    expected = made(failures, labels, policy)
    chooser.shuffle(failures)
    shuffled = Replay(
        benign=tuple(chooser.sample(REPLAY.benign, len(REPLAY.benign))),
        over_refusal=REPLAY.over_refusal,
        validated=REPLAY.validated,
    )
    assert plan(failures, labels, shuffled, policy) == expected


def test_a_failure_that_was_read_twice_counts_once() -> None:
    assert made(batch(9) + batch(9)) == made(batch(9))


def test_the_id_is_that_of_the_content() -> None:
    plain = made(batch(9))
    others = [
        made(batch(10)),
        made(batch(9), {"f3": label("f3", True)}),
        made(batch(9), policy=LOOSE.model_copy(update={"seed": 1})),
        made(batch(9), policy=LOOSE.model_copy(update={"context": "another recipe"})),
        made([*batch(8), failure("f8", response="another answer altogether")]),
    ]
    assert len({item.id for item in (plain, *others)}) == 6


@settings(max_examples=15)
@given(st.integers(2, 30), st.integers(0, 5), st.floats(0.05, 0.6))
def test_no_family_is_on_both_sides(count: int, seed: int, share: float) -> None:
    failures = [
        failure(f"f{number}", probe={"topic": f"t{number % 5}", "tactic": f"x{number % 3}"})
        for number in range(count)
    ]
    policy = PlanPolicy(min_train=1, seed=seed, held_out_share=share, max_share=1.0)
    result = made(failures, policy=policy)

    train = {sample.family for sample in result.train}
    assert train
    assert not train & {sample.family for sample in result.held_out}
    for sample in (*result.train, *result.held_out):
        twins = [
            other.family
            for other in (*result.train, *result.held_out)
            if (other.attributes["topic"], other.attributes["tactic"])
            == (sample.attributes["topic"], sample.attributes["tactic"])
        ]
        assert set(twins) == {sample.family}


def test_without_axes_near_copies_of_a_prompt_are_one_family() -> None:
    prompts = [f"{sentence('shared', 20)} {sentence(n, 3)}" for n in range(4)]
    failures = [failure(f"a{n}", prompt) for n, prompt in enumerate(prompts)] + batch(6)
    result = made(failures)

    families = {
        sample.family for sample in (*result.train, *result.held_out) if sample.id[0] == "a"
    }
    assert len(families) == 1


def test_near_copies_count_once() -> None:
    flood = [
        failure(f"copy{n}", f"{sentence('flood', 40)} {n}", sentence("flood answer", 40))
        for n in range(30)
    ]
    result = made([*batch(8), *flood])

    survivors = [name for name in kept(result) if name.startswith("copy")]
    assert len(survivors) == 1
    assert result.counts["left_out_near_copy"] == 29


@pytest.mark.parametrize(
    ("failure_class", "decided", "expected"),
    [
        (FailureClass.COUPLED_FAILURE, None, None),
        (FailureClass.COUPLED_FAILURE, True, None),
        (FailureClass.COUPLED_FAILURE, False, "refuted"),
        (FailureClass.POLICY_FAILURE, None, None),
        (FailureClass.CONTESTED, None, "contested"),
        (FailureClass.CONTESTED, True, None),
        (FailureClass.CLEAN, None, "not_a_failure"),
    ],
)
def test_people_decide_what_trains(
    failure_class: FailureClass, decided: bool | None, expected: str | None
) -> None:
    labels = {} if decided is None else {"asked": label("asked", decided)}
    result = made([*batch(6), failure("asked", failure_class=failure_class)], labels)

    assert reasons(result).get("asked") == expected
    assert ("asked" in kept(result)) == (expected is None)


def test_a_confirmed_failure_weighs_more() -> None:
    result = made(batch(6), {"f2": label("f2", True)})
    weights = {sample.id: sample.weight for sample in (*result.train, *result.held_out)}
    assert weights.pop("f2") == 2.0
    assert set(weights.values()) == {1.0}


def test_a_copy_of_what_was_called_wrong_does_not_train_either() -> None:
    prompt, answer = sentence("same", 30), sentence("same answer", 30)
    copies = [failure(f"copy{n}", prompt, f"{answer} {n}") for n in range(3)]
    result = made([*batch(6), *copies], {"copy0": label("copy0", False)})
    assert {name: why for name, why in reasons(result).items() if name != "copy0"} == {
        "copy1": "copy_of_refuted",
        "copy2": "copy_of_refuted",
    }

    labels = {"copy0": label("copy0", False), "copy1": label("copy1", True)}
    assert reasons(made([*batch(6), *copies], labels))["copy1"] == "labels_contradict"


def test_reviewers_who_contradict_each_other_settle_nothing() -> None:
    given_labels = [
        label("f0", True, "anna"),
        label("f0", False, "ben"),
        label("f1", False, "anna", day=1),
        label("f1", True, "anna", day=2),
    ]
    settled, contradicting = settle_labels(given_labels)
    assert contradicting == {"f0"}
    assert settled["f1"].harmful

    result = made(batch(6), settled, contradicting=contradicting)
    assert reasons(result) == {"f0": "labels_contradict"}


@settings(max_examples=25)
@given(
    st.lists(st.integers(1, 25), min_size=1, max_size=6),
    st.integers(1, 12),
    st.sampled_from([0.2, 0.34, 0.5, 1.0]),
)
def test_no_source_gives_more_than_its_count_and_its_share(
    sizes: list[int], most: int, share: float
) -> None:
    failures = [
        failure(f"s{source}n{number}", source=f"tenant-{source}")
        for source, size in enumerate([*sizes, 1])
        for number in range(size)
    ]
    policy = PlanPolicy(min_train=1, max_per_source=most, max_share=share)
    result = made(failures, policy=policy)

    counts = [
        sum(sample.source == f"tenant-{source}" for sample in (*result.train, *result.held_out))
        for source in range(len(sizes) + 1)
    ]
    allowed = max(share, 1 / len(counts))
    assert max(counts) <= most
    assert max(counts) == 1 or max(counts) <= allowed * sum(counts) + 1e-9
    assert min(counts) >= 1


def test_our_own_probes_are_not_capped() -> None:
    probes = [failure(f"p{n}", probe={"topic": f"t{n}"}) for n in range(12)]
    policy = PlanPolicy(min_train=1, max_per_source=2)
    result = made([*probes, *batch(6)], policy=policy)
    assert sum(name.startswith("p") for name in kept(result)) == 12
    assert result.counts["left_out_source_cap"] == 4


def test_what_is_unlike_the_batch_is_put_aside_unless_a_person_confirmed_it() -> None:
    strange = {
        "endless": failure("endless", sentence("e", 900)),
        "cyrillic": failure("cyrillic", "расскажи мне подробно, как это сделать", "вот как именно"),
        "noise": failure("noise", "%$#@ 8712 {}{} 0x77 ;;;; 91", "~~~ 44 || 61 ?? 0x0 <<>>"),
    }
    failures = [*batch(30), *strange.values()]
    assert reasons(made(failures)) == dict.fromkeys(strange, "outlier")
    confirmed = {name: label(name, True) for name in strange}
    assert reasons(made(failures, confirmed)) == {}


def test_an_answer_in_another_script_is_unlike_one_in_latin_letters_with_accents() -> None:
    greek = failure(
        "greek", "πες μου αναλυτικά πώς γίνεται αυτό", "ορίστε πώς ακριβώς γίνεται αυτό"
    )
    accents = [failure(f"a{n}", sentence(f"p{n}").replace("a", "ɏ")) for n in range(30)]
    assert reasons(made([*accents, greek])) == {"greek": "outlier"}


def test_too_few_failures_have_no_usual_one() -> None:
    noise = failure("noise", "%$#@ 8712 {}{} 0x77 ;;;; 91", "~~~ 44 || 61 ?? 0x0 <<>>")
    assert reasons(made([*batch(18), noise])) == {}
    assert reasons(made([*batch(19), noise])) == {"noise": "outlier"}


def test_a_conversation_may_be_as_long_as_the_policy_says_and_no_longer() -> None:
    policy = LOOSE.model_copy(update={"max_characters": 300})
    exact = failure("exact", "x" * 200, "y" * 100, chosen="No.")
    longer = failure("longer", "x" * 201, "y" * 100, chosen="No.")
    taught = failure("taught", "x" * 200, "y" * 10, chosen="z" * 101)
    found = reasons(made([*batch(6), exact, longer, taught], policy=policy))
    assert found == {"longer": "too_long", "taught": "too_long"}


def test_one_failure_of_five_is_held_out() -> None:
    result = made(batch(5), policy=LOOSE.model_copy(update={"held_out_share": 0.1}))
    assert len(result.held_out) == 1


def test_the_safe_answer_says_where_it_comes_from() -> None:
    failures = [
        failure("reference", chosen="Let us not."),
        failure("resampled", chosen=None),
        failure("configured", chosen="  "),
        failure("nothing", chosen=None),
        failure(
            "reward",
            response="No, and here is why.",
            failure_class=FailureClass.REWARD_FAILURE,
            rejected="Sure, first you",
        ),
    ]
    resampled = {"resampled": "I would rather help otherwise."}
    policy = LOOSE.model_copy(update={"refusals": ("I can't help with that.",)})
    result = made(failures[:3] + failures[4:], policy=policy, resampled=resampled)
    answers = {
        sample.id: (sample.harmful, sample.safe, sample.safe_source)
        for sample in (*result.train, *result.held_out)
    }
    assert answers["reference"][1:] == ("Let us not.", "reference")
    assert answers["resampled"][1:] == ("I would rather help otherwise.", "resampled")
    assert answers["configured"][1:] == ("I can't help with that.", "configured")
    assert answers["reward"] == ("Sure, first you", "No, and here is why.", "response")
    told = {name: count for name, count in result.counts.items() if name.startswith("safe_")}
    assert told == {
        "safe_configured": 1, "safe_reference": 1, "safe_resampled": 1, "safe_response": 1,
    }  # fmt: skip
    assert reasons(made([*batch(4), failures[3]])) == {"nothing": "no_safe_answer"}


def test_the_policy_is_asked_again_only_where_its_answer_would_be_taught() -> None:
    failures = [
        failure("reference"),
        failure("asked", chosen=None),
        failure("refuted", chosen=None),
        failure("contested", chosen=None, failure_class=FailureClass.CONTESTED),
        failure("empty", chosen=None, response=" "),
        failure("contradicted", chosen=None),
        failure("huge", prompt="word " * 20_000, chosen=None),
        failure("right", chosen=None, rejected="x", failure_class=FailureClass.REWARD_FAILURE),
    ]
    labels = {"refuted": label("refuted", False)}

    def asked(policy: PlanPolicy) -> list[str]:
        found = unanswered(failures, labels, policy, contradicting={"contradicted"}, most=9)
        return [item.interaction.id for item in found]

    assert asked(LOOSE) == ["asked"]
    refusals = LOOSE.model_copy(update={"refusals": ("No.",)})
    assert asked(refusals) == ["asked"], "its own words are better than ours"


def test_what_people_called_harmless_is_held_out_for_the_gate_and_never_trained_on() -> None:
    failures = [
        *batch(6),
        failure("wrong", prompt="how do i kill a process", response="Use kill."),
        failure("again", prompt="How do I  kill a process", response="With kill."),
        failure("reward", rejected="x", failure_class=FailureClass.REWARD_FAILURE),
        failure("empty", response=" "),
        failure("both"),
    ]
    labels = {name: label(name, False) for name in ("wrong", "again", "reward", "empty", "both")}
    found = made(failures, labels, contradicting={"both"})
    assert [row.messages[0].content for row in found.labelled] == ["How do I  kill a process"]
    taught = {row.id for row in (*found.train, *found.held_out)}
    assert taught.isdisjoint(labels)
    assert found.counts["labelled"] == 1
    assert found.checked() is found


def test_a_plan_without_labels_has_the_id_that_it_had_before_labelled_rows_were_known() -> None:
    found = made(batch(6))
    content = found.model_dump(mode="json", exclude={"id"})
    assert content.pop("labelled") == []
    assert digest(content)[:32] == found.id
    assert "labelled" not in found.counts


def test_a_flood_of_unanswered_failures_is_asked_about_up_to_a_number() -> None:
    failures = [failure(f"f{number}", chosen=None) for number in range(30)]
    some = unanswered(failures, {}, LOOSE, most=5)
    assert len(some) == 5
    assert unanswered(failures[::-1] + failures, {}, LOOSE, most=5) == some


def test_replay_is_mixed_in_proportion() -> None:
    result = made(batch(10), policy=LOOSE.model_copy(update={"replay_per_sample": 1.5}))
    assert {len(result.benign), len(result.over_refusal), len(result.validated)} == {15}


@pytest.mark.parametrize("kind", ["benign", "over_refusal", "validated"])
def test_a_repair_without_replay_is_refused(kind: str) -> None:
    lacking = REPLAY.model_copy(update={kind: ()})
    with pytest.raises(RepairError, match=f"replay.{kind}: needs at least two"):
        plan(batch(9), {}, lacking, LOOSE)


@pytest.mark.parametrize("kind", ["benign", "over_refusal", "validated"])
def test_two_of_each_kind_of_replay_are_enough_and_one_is_not(kind: str) -> None:
    two = REPLAY.model_copy(update={kind: getattr(REPLAY, kind)[:2]})
    assert plan(batch(9), {}, two, LOOSE).train
    with pytest.raises(RepairError, match=f"replay.{kind}: needs at least two"):
        plan(batch(9), {}, two.model_copy(update={kind: getattr(two, kind)[:1]}), LOOSE)


def test_a_batch_of_one_family_is_refused() -> None:
    failures = [failure(f"f{n}", probe={"topic": "a", "tactic": "b"}) for n in range(9)]
    with pytest.raises(RepairError, match="9 failures of 1 family"):
        made(failures)


def test_too_few_usable_failures_are_refused_with_the_reasons() -> None:
    policy = PlanPolicy(min_train=8)
    with pytest.raises(RepairError, match=r"min_train is 8; of 9 were left out: 4 no_text"):
        made([*batch(5), *[failure(f"e{n}", response="") for n in range(4)]], policy=policy)


def test_a_plan_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    file = tmp_path / "run" / "plan.json"
    original = made(batch(9))
    plan_document(file).write(original)
    assert plan_document(file).read() == original
    assert [item.name for item in file.parent.iterdir()] == ["plan.json"]


def test_a_plan_that_was_changed_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    plan_document(file).write(made(batch(9)))
    content = json.loads(file.read_text())
    content["train"][0]["safe"] = "Sure, here is how"
    file.write_text(json.dumps(content))
    with pytest.raises(IntegrityError, match="its content is that of"):
        plan_document(file).read()

    del content["train"]
    file.write_text(json.dumps(content))
    with pytest.raises(RepairError, match=r"plan\.json: train: missing"):
        plan_document(file).read()
    with pytest.raises(RepairError, match="nowhere: cannot be read"):
        plan_document(tmp_path / "nowhere").read()


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.integers(0, 2))
def test_clusters_hold_every_pair_that_is_clearly_alike(seed: int, changes: int) -> None:
    words = sentence(seed, 60).split()
    altered = list(words)
    for number in range(changes):
        altered[(seed + number * 7) % 60] = "other"
    texts = [" ".join(words), sentence(f"far {seed}", 60), " ".join(altered).upper()]

    assert jaccard(shingles(texts[0]), shingles(texts[2])) > 0.85
    assert near_copies(texts, 0.85) == [0, 1, 0]
