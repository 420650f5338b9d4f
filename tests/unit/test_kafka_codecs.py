"""Codecs of records: what a producer may be told, and what is said where a library is missing."""

from __future__ import annotations

from typing import Any

import pytest
from kafka import codec

from outbox.brokers.kafka import KafkaBroker, codecs
from outbox.checks.broker import check_broker
from outbox.exceptions import ConfigurationError
from tests.conftest import Configure

LIBRARIES = ["snappy", "lz4", "zstd"]


def broker(**options: Any) -> None:
    KafkaBroker(bootstrap_servers="127.0.0.1:9092", **options).close()


@pytest.mark.parametrize("name", [None, "gzip", *LIBRARIES])
@pytest.mark.parametrize("section", ["common", "producer"])
def test_codecs_of_kafka_are_taken(section: str, name: str | None) -> None:
    broker(**{section: {"compression_type": name}})


@pytest.mark.parametrize("name", ["brotli", "GZIP", "", 3, ["gzip"]])
def test_other_codecs_are_refused_when_the_broker_is_built(name: object) -> None:
    with pytest.raises(ConfigurationError, match="'producer': 'compression_type' must be one of gzip, snappy, lz4"):
        broker(producer={"compression_type": name})


@pytest.mark.parametrize("name", LIBRARIES)
def test_codec_without_its_library_is_refused_when_the_broker_is_built(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(codec, name, None)
    assert codecs.missing() == [name]
    with pytest.raises(ConfigurationError, match=rf"'compression_type' is '{name}'.*pip install 'kafka-python\[{name}"):
        broker(producer={"compression_type": name})
    broker(producer={"compression_type": "gzip"})


def test_missing_libraries_are_a_warning_with_kafka_alone(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    def found() -> dict[str | None, str]:
        return {message.id: f"{message.msg} {message.hint}" for message in check_broker()}

    configure(BROKER={"BACKEND": "kafka", "OPTIONS": {"bootstrap_servers": "127.0.0.1:9092"}})
    assert "outbox.W022" not in found()
    monkeypatch.setattr(codec, "lz4", None)
    monkeypatch.setattr(codec, "zstd", None)
    said = found()["outbox.W022"]
    assert "no library for lz4, zstd" in said
    assert "pip install 'kafka-python[lz4,zstd]'" in said
    configure(BROKER={"BACKEND": "table"})
    assert "outbox.W022" not in found()
