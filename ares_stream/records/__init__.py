"""What flows through Kafka: records, topics, schemas, headers, and reading them from bytes."""
