"""Hands records to a ``KafkaProducer`` at half of what its ``send`` costs; the topic gets the same bytes.

``send`` goes over the headers of a record four times: to check, to measure, to write and to count them, the last two
under the lock of the partition; it writes every length and hashes every key byte by byte. Here a record is encoded
once, before any lock, from parts that are mostly known: names of headers and lengths. The batch takes it as it is.

Measured with records of 1 kB and ten headers, in µs of CPU a record: ``send`` 28, records encoded here 18, and with
keys hashed four bytes at a time 13. Partitions are looked up and the sender's thread is woken once a batch besides.

A record that is out of the ordinary (too large, of a wrong type, for a topic that is not known yet) goes through
``send`` itself: so what is refused, how it is said and how long it is waited for stay the client's own.

What is used here of the client and is not public:

* ``KafkaProducer._closed``, ``_metadata``, ``_partition``, ``_accumulator``, ``_sender``: the parts that ``send`` puts
  together. There is no public way to give a record to the accumulator.
* ``RecordAccumulator._batches``, ``ProducerBatch.records``, ``MemoryRecordsBuilder._builder``: the way to a new batch
  of our client, which is made a ``BatchBuilder``. Its first record is there by then, encoded by the client.
* ``DefaultRecordBatchBuilder._buffer``, ``_batch_size``, ``_first_timestamp``, ``_max_timestamp``, ``_last_offset``,
  ``_num_records``: what its ``append`` keeps up to date. It has no way to take bytes that are a record already.

Whether all that is as it was, ``difference`` finds out; where it is not, nothing of this module is used.
"""

# ruff: noqa: SLF001 - each is named above, and why

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from operator import attrgetter
from typing import Any, Final

from kafka import partitioner
from kafka.partitioner import DefaultPartitioner
from kafka.producer.record_accumulator import RecordAccumulator
from kafka.record.default_records import DefaultRecordBatchBuilder, DefaultRecordMetadata
from kafka.record.util import encode_varint
from kafka.structs import TopicPartition

from outbox.brokers.kafka.murmur2 import murmur2
from outbox.wire.envelope import Headers

OVERHEAD_BYTES: Final[int] = (
    DefaultRecordBatchBuilder.HEADER_STRUCT.size + DefaultRecordBatchBuilder.MAX_RECORD_OVERHEAD
)
"""What ``send`` adds to key, value and headers before it compares with ``max_request_size``."""

_KNOWN_LENGTHS: Final = 1 << 13
"""Numbers below take two bytes at most; these are kept, less than 1 MB of them."""

_KNOWN_NAMES: Final = 1 << 10
"""Header names that are kept: ours are about ten, and a stranger's must not fill the memory."""

_KNOWN_PAIRS: Final = 1 << 11
_KEPT_BYTES: Final = 256
"""So many headers are kept encoded, none longer than this."""

_TIMES: Final = (int, type(None))

_parts_of: Final = attrgetter(
    "_closed", "_partition", "_metadata.partitions_for_topic", "_accumulator._batches", "_accumulator.append",
    "_sender.wakeup",
)  # fmt: skip


class _Varints(dict[int, bytes]):
    """Numbers as a record holds them."""

    def __missing__(self, number: int) -> bytes:
        written = bytearray()
        encode_varint(number, written.append)
        encoded = bytes(written)
        if 0 <= number < _KNOWN_LENGTHS:
            self[number] = encoded
        return encoded


class _Names(dict[str, bytes]):
    """Names of headers as a record holds them, with their length before them."""

    def __missing__(self, name: str) -> bytes:
        text = name.encode()
        encoded = _varints[len(text)] + text
        if len(self) < _KNOWN_NAMES:
            self[name] = encoded
        return encoded


class _Pairs(dict[tuple[str, bytes], bytes]):
    """Headers as a record holds them. Most come with each record; when the others have filled this, it is emptied."""

    def __missing__(self, header: tuple[str, bytes]) -> bytes:
        name, content = header
        encoded = b"%b%b%b" % (_names[name], _varints[len(content)], content)
        if len(encoded) <= _KEPT_BYTES:
            if len(self) >= _KNOWN_PAIRS:
                self.clear()
            self[header] = encoded
        return encoded


_varints: Final = _Varints()
_names: Final = _Names()
_pairs: Final = _Pairs()


class EncodedRecord:
    """Key, value and headers as a record holds them; it goes to the batch in the place of the headers.

    To a batch that knows nothing of it, it is the headers.
    """

    __slots__ = ("_headers", "content")

    def __init__(self, content: bytes, headers: Headers) -> None:
        self.content = content
        self._headers = headers

    def __bool__(self) -> bool:
        """Say that there are no headers: the client would add up their sizes for its answer, which is not looked at."""
        return False

    def __len__(self) -> int:
        return len(self._headers)

    def __iter__(self) -> Iterator[tuple[str, bytes]]:
        return iter(self._headers)


def encode(key: bytes, value: bytes, headers: Headers) -> EncodedRecord:
    """Encode a record without what depends on its place in the batch.

    :raises TypeError, AttributeError, ValueError: it is out of the ordinary; ``send`` has to say whether it is taken.
    """
    if type(key) is not bytes or type(value) is not bytes:
        raise TypeError(key, value)
    parts = [_varints[len(key)], key, _varints[len(value)], value, _varints[len(headers)]]
    for header in headers:
        _, content = header
        if type(content) is not bytes or type(header) is not tuple:  # one that is not may equal one that is kept
            raise TypeError(header)
        parts.append(_pairs[header])
    return EncodedRecord(b"".join(parts), headers)


class BatchBuilder(DefaultRecordBatchBuilder):  # type: ignore[misc] # the client has no types
    """A batch that takes records of ``encode`` as they are, beside those of ``send``."""

    __slots__ = ()

    def append(self: Any, offset: int, timestamp: int | None, key: Any, value: Any, headers: Any) -> Any:
        """Add a record to the batch as the client does; return None when the batch is full."""
        if type(headers) is not EncodedRecord:
            return DefaultRecordBatchBuilder.append(self, offset, timestamp, key, value, headers)
        if timestamp is None:
            timestamp = int(time.time() * 1000)
        content = headers.content
        first = self._first_timestamp
        place = _varints[0 if first is None else timestamp - first] + _varints[offset]
        length = 1 + len(place) + len(content)
        prefix = _varints[length]
        size = len(prefix) + length
        buffer = self._buffer
        if first is None:
            self._first_timestamp = self._max_timestamp = timestamp
        elif len(buffer) + size > self._batch_size:
            return None
        elif self._max_timestamp < timestamp:
            self._max_timestamp = timestamp
        self._num_records += 1
        self._last_offset = offset
        buffer += b"%b\x00%b%b" % (prefix, place, content)  # the zero stands for attributes, which there are none of
        return DefaultRecordMetadata(offset, size, timestamp)


def take_encoded_records(accumulator: Any, partition: TopicPartition) -> None:
    """Have the newest batch of ``partition`` take records of ``encode`` as they are."""
    try:
        builder = accumulator._batches[partition][-1].records._builder
    except IndexError:
        return  # it is on its way already
    if type(builder) is DefaultRecordBatchBuilder:  # and not None, as that of a batch that is closed
        builder.__class__ = BatchBuilder


class RecordWriter:
    """Gives records to one client. Threads share it as they share the client.

    :raises AttributeError: the client has not all the parts that are used here.
    """

    def __init__(self, client: Any) -> None:
        _parts_of(client)
        self._client = client
        self._limit_bytes = client.config["max_request_size"]
        self._partitions: dict[str, list[int]] = {}
        self._has_news = False
        # Kafka before 0.11 has batches without headers; the rest our options do not allow.
        self._is_plain = client.max_usable_produce_magic(client.config["api_version"]) == 2 and not any(
            client.config[option] for option in ("key_serializer", "value_serializer", "transactional_id")
        )

    @contextmanager
    def batch(self) -> Iterator[None]:
        """Go around records that are written together: partitions are listed once, the sender's thread woken once."""
        self._partitions.clear()
        try:
            yield
        finally:
            self._wake_sender()

    def write(self, topic: str, *, key: bytes, value: bytes, headers: Headers, timestamp_ms: int | None) -> Any:
        """Do what ``KafkaProducer.send`` does, within ``batch``; return and raise what it does."""
        client = self._client
        try:
            encoded = encode(key, value, headers)
        except (TypeError, AttributeError, ValueError):
            encoded = None
        if (
            encoded is None
            or len(encoded.content) + OVERHEAD_BYTES > self._limit_bytes
            or type(timestamp_ms) not in _TIMES
            or client._closed
            or not self._is_plain
            or (partition := self._partition(topic, key, value)) is None
        ):
            self._wake_sender()  # ``send`` may wait for long, and what was written before need not
            return client.send(topic, value=value, key=key, headers=list(headers), timestamp_ms=timestamp_ms)
        place = TopicPartition(topic, partition)
        future, is_full, is_new, _ = client._accumulator.append(place, timestamp_ms, key, value, encoded)
        if is_new:
            take_encoded_records(client._accumulator, place)
        self._has_news = self._has_news or is_full or is_new
        return future

    def _wake_sender(self) -> None:
        if self._has_news:
            self._has_news = False
            self._client._sender.wakeup()

    def _partition(self, topic: str, key: bytes, value: bytes) -> int | None:
        """Return the partition where the client would put ``key``; None for a topic that it does not know."""
        if type(self._client.config["partitioner"]) is not DefaultPartitioner:
            return self._client._partition(topic, None, key, value, key, value)  # type: ignore[no-any-return]
        partitions = self._partitions.get(topic)
        if partitions is None:
            found = self._client._metadata.partitions_for_topic(topic)
            if not found:
                return None
            partitions = self._partitions[topic] = sorted(found)
        return partitions[(murmur2(key) & 0x7FFFFFFF) % len(partitions)]


# --- the self-test ---------------------------------------------------------------------------------------------------

_SAMPLES: Final[Sequence[tuple[bytes, bytes, Headers]]] = (
    (b"first", b"", ()),
    (b"", b"v" * 70, (("name", b"header"), ("\u043a\u043b\u044e\u0447", b""))),
    (b"k" * 64, b"v" * 9_000, tuple((f"name-{number}", b"x" * number) for number in range(70))),
    (b"last", b"v", (("name", b"h" * 200),)),
)


def difference() -> str:
    """Write a batch as we do and as the client does; return how the two differ, an empty text when they do not.

    :raises Exception: whatever comes of a client that is made otherwise.
    """
    place = TopicPartition("self-test", 0)
    ours, theirs = (RecordAccumulator(message_version=2, batch_size=1 << 16) for _ in range(2))
    for number, (key, value, headers) in enumerate(_SAMPLES):
        at_ms = 1_700_000_000_000 - number % 3 * 1_000
        _, _, is_new, _ = ours.append(place, at_ms, key, value, encode(key, value, headers))
        if is_new:
            take_encoded_records(ours, place)
        theirs.append(place, at_ms, key, value, list(headers))
        if murmur2(key) != partitioner.murmur2(key):
            return f"key {key!r} belongs to another partition"
    [batch], [expected] = ours._batches[place], theirs._batches[place]
    if type(batch.records._builder) is not BatchBuilder:
        return f"a batch is built by {type(batch.records._builder).__qualname__}"
    for each in (batch, expected):
        each.records.close()
    return (
        "" if batch.records.buffer() == expected.records.buffer() else "the batch has other bytes than that of send()"
    )
