"""Apache Kafka through kafka-python: the only modules that import it."""

from outbox.brokers.kafka.broker import KafkaBroker

__all__ = ["KafkaBroker"]
