"""Questions about topics that make none. Imported with the first client."""

from __future__ import annotations

import aiokafka.admin.client
import aiokafka.client
from aiokafka.protocol.metadata import MetadataRequest


class ExistingTopics(MetadataRequest):  # type: ignore[misc]
    """A metadata request without creation. aiokafka asks with Kafka's default, by which a broker
    with auto.create.topics.enable makes every topic that is asked about."""

    def __init__(self, topics: list[str] | None = None) -> None:
        super().__init__(topics, allow_auto_topic_creation=False)


def never_create_topics() -> None:
    """Have every client of aiokafka in this process ask so: none takes it as an argument."""
    aiokafka.client.MetadataRequest = ExistingTopics
    aiokafka.admin.client.MetadataRequest = ExistingTopics
