"""Kafka: the one room that imports aiokafka. It knows nothing of models."""
