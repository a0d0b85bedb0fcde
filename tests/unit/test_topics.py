from ares_stream.records.topics import ActualTopic, compare, specs


def as_specified(prefix: str = "ares.", **wanted: int) -> dict[str, ActualTopic]:
    return {
        spec.name: ActualTopic(spec.partitions, spec.replication, dict(spec.config))
        for spec in specs(prefix, **wanted)
    }


def test_topics_that_are_as_specified_show_no_difference() -> None:
    assert compare(specs("x."), as_specified("x.")) == []


def test_a_missing_topic_is_named() -> None:
    actual = as_specified()
    del actual["ares.verdicts"]

    assert [str(item) for item in compare(specs(), actual)] == [
        "ares.verdicts: the topic is missing, expected to exist"
    ]


def test_fewer_partitions_are_a_difference_and_more_are_not() -> None:
    differences = compare(specs(partitions=6), as_specified(partitions=3))
    assert {item.what for item in differences} == {"partitions"}
    assert compare(specs(partitions=3), as_specified(partitions=6)) == []


def test_a_topic_that_would_forget_its_audit_record_is_a_difference() -> None:
    actual = as_specified()
    topic = actual["ares.interactions.production"]
    actual["ares.interactions.production"] = ActualTopic(
        topic.partitions, topic.replication, dict(topic.config) | {"retention.ms": "3600000"}
    )

    (difference,) = compare(specs(), actual)

    assert (difference.what, difference.actual) == ("retention.ms", "3600000")


def test_one_copy_asks_for_one_in_sync_and_three_copies_for_two() -> None:
    assert {spec.config["min.insync.replicas"] for spec in specs(replication=1)} == {"1"}
    assert {spec.config["min.insync.replicas"] for spec in specs(replication=3)} == {"2"}


def test_what_people_and_models_decide_is_compacted_and_the_rest_is_kept_by_time() -> None:
    compacted = {spec.name for spec in specs("") if spec.config["cleanup.policy"] == "compact"}
    assert compacted == {"labels", "notary", "rates", "releases", "salts"}
