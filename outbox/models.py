"""The outbox table of a service (abstract), and what the workers need around it.

A concrete table is declared by the app of its service::

    class AgentOutboxMessage(OutboxMessage):
        service = "agent"

        class Meta(OutboxMessage.Meta):
            abstract = False
            db_table = outbox_table("agent")

Every column that is not part of the shared layout has a database default: a row that other software inserts with the
shared columns only is valid, and is relayed. Where that software calls the column of event types otherwise, the model
says so, and nothing else does::

        event_type = KeyField(max_length=64, db_column="biz_type")
"""

from __future__ import annotations

from typing import ClassVar, Final

from django.db import models

from outbox.conf import ServiceOptions, outbox_settings
from outbox.declarations.routes import TYPE_COLUMN, ServiceRoute
from outbox.exceptions import ConfigurationError
from outbox.fields import KeyField, MomentField, ShardOf, ShortTextField, UtcNow
from outbox.lifecycle import Status
from outbox.wire.envelope import EVENT_ID_MAX_LENGTH

__all__ = ["OutboxMessage", "ServiceRoute", "outbox_table", "service_route"]

WORKER_PARTITIONS_MAX_LENGTH: Final = 2000
INSTALLATION_MAX_LENGTH: Final = 64


def service_route(service: str, model: type[OutboxMessage] | None = None) -> ServiceRoute:
    """Return the route of ``service``: its names by rule, overridden by ``OUTBOX['SERVICES']``.

    Without the service's ``model``, what that alone says is as it is for most.

    :raises ConfigurationError: ``settings.OUTBOX`` is wrong, or a name that it gives or that follows is not allowed.
    """
    configured = outbox_settings()
    options = configured.services.get(service, ServiceOptions())
    return ServiceRoute.by_rule(
        service,
        namespace=configured.namespace,
        table=options.table,
        topic=options.topic,
        group=options.group,
        database=options.database,
        type_column=type_column_of(model) if model else TYPE_COLUMN,
        whole_payload_bytes=model.whole_payload_bytes if model else None,
    )


def type_column_of(model: type[OutboxMessage]) -> str:
    """Return the column of event types in the table of ``model``."""
    return str(model._meta.get_field("event_type").column)


def outbox_table(service: str) -> str:
    """Return the table of ``service``, for ``Meta.db_table`` and for migrations, which both follow configuration.

    With wrong settings it is the table by rule: models can be imported, and ``manage.py check`` says what is wrong.
    """
    try:
        return service_route(service).table
    except ConfigurationError:
        return ServiceRoute.by_rule(service, namespace="app").table


class OutboxMessage(models.Model):
    """One event on its way. An app may read rows like any model's; ``publish``, workers and the admin write them."""

    service: ClassVar[str]
    """The service that owns the table: lower-case words joined by ``-``, 64 characters at most."""
    whole_payload_bytes: ClassVar[int | None] = None
    """For a topic that other software reads: payloads travel inside their records whatever ``REFERENCE_BYTES`` says,
    and one whose column is longer than this is refused at publish. Keep it below what the topic takes."""

    id = models.BigAutoField(primary_key=True)
    event_type = KeyField(max_length=64)
    service_name = models.CharField(max_length=64, db_default="")
    topic = models.CharField(max_length=128, db_default="")
    message_key = KeyField(max_length=128)
    payload = models.TextField(help_text="JSON: {event_id, event_type, event_version, aggregate_id, payload}")
    status = models.CharField(max_length=32, db_default=Status.PENDING.value)
    retry_count = models.IntegerField(db_default=0, help_text="Failed attempts so far")
    max_retry = models.IntegerField(db_default=20, help_text="Failed attempts after which the event is dead")
    next_retry_at = MomentField(
        null=True,
        db_default=UtcNow(),
        help_text="When the row is due: to be sent (pending), to be sent again (published); when it died (dead)",
    )
    last_error = ShortTextField(null=True)
    published_at = MomentField(null=True)
    consumed_at = MomentField(null=True)
    created_at = MomentField(db_default=UtcNow())
    updated_at = MomentField(db_default=UtcNow())

    shard = models.GeneratedField(
        expression=ShardOf(models.F("message_key")), output_field=models.SmallIntegerField(), db_persist=True
    )
    traceparent = models.CharField(max_length=64, db_default="")
    error_class = models.CharField(max_length=200, db_default="")
    traceback = models.TextField(null=True)
    parks_key = models.BooleanField(db_default=False, help_text="Dead, and later events of its key wait for a person")
    dead_at = MomentField(null=True)
    resolved_at = MomentField(null=True, help_text="When a person gave it up")
    resolved_by = models.CharField(max_length=150, db_default="")
    resolution = models.CharField(max_length=500, db_default="")
    replay_count = models.IntegerField(db_default=0, help_text="How often a person sent it again after it died")
    interruptions = models.IntegerField(
        db_default=0,
        help_text="How often in a row a process or connection ended while this event was at work alone",
    )
    event_id = KeyField(
        max_length=EVENT_ID_MAX_LENGTH,
        db_default="",
        help_text="What records of this row state; empty where the payload says it, or the row's id stands for it",
    )
    put_back_count = models.IntegerField(
        db_default=0,
        help_text="How often it was made pending again; a relay marks only rows that were not since it fetched them",
    )

    class Meta:
        abstract = True
        indexes: ClassVar = [
            # Covers the relay's claim and the redelivery; which query uses which: docs/indexes.md.
            models.Index(fields=["status", "next_retry_at", "id", "shard", "event_type"], name="%(app_label)s_ob_due"),
            # Finds the unfinished predecessor of an event.
            models.Index(fields=["message_key", "status", "id"], name="%(app_label)s_ob_key"),
        ]

    def __str__(self) -> str:
        return f"{self.event_type} #{self.pk} ({self.status})"


class Installation(models.Model):
    """Which installation the outbox tables of this database are of: one row, made by the worker that needs it first."""

    id = models.SmallIntegerField(primary_key=True, default=1)
    installation_id = models.CharField(max_length=INSTALLATION_MAX_LENGTH, help_text="A random UUID")
    created_at = models.DateTimeField(db_default=UtcNow())

    class Meta:
        db_table = "outbox_installation"

    def __str__(self) -> str:
        return self.installation_id


class BlockedKey(models.Model):
    """A key whose events are held behind an unfinished one. Written by ``outbox.storage`` only."""

    service = models.CharField(max_length=64)
    message_key = KeyField(max_length=128)
    blocker_id = models.BigIntegerField(help_text="Id of the row that the others wait for, as it was last seen")
    held = models.IntegerField(help_text="Pending events of the key when it was last looked at, counted up to 20,000")
    blocked_at = models.DateTimeField(db_default=UtcNow())

    class Meta:
        db_table = "outbox_blocked_keys"
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["service", "message_key"], name="outbox_blocked_once"),
        ]

    def __str__(self) -> str:
        return f"{self.service}: {self.message_key}"


class ShardLease(models.Model):
    """Which worker of a role works on a shard of a service, until when by the database's clock."""

    service = models.CharField(max_length=64)
    role = models.CharField(max_length=16)
    shard = models.SmallIntegerField()
    owner = models.CharField(max_length=64, db_default="")
    expires_at = models.DateTimeField(db_default=UtcNow())

    class Meta:
        db_table = "outbox_shard_leases"
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["service", "role", "shard"], name="outbox_lease_once"),
        ]

    def __str__(self) -> str:
        return f"{self.service}/{self.role} shard {self.shard}"


class Worker(models.Model):
    """A running relay or consumer; a row not seen for a lease's time is a worker that died."""

    worker_id = models.CharField(max_length=64, primary_key=True)
    service = models.CharField(max_length=64)
    role = models.CharField(max_length=16)
    host = models.CharField(max_length=255)
    pid = models.IntegerField()
    started_at = models.DateTimeField(db_default=UtcNow())
    seen_at = models.DateTimeField(db_default=UtcNow())
    moved_at = models.DateTimeField(null=True, help_text="When its loop last moved, as it said when it was last seen")
    partitions = models.CharField(
        max_length=WORKER_PARTITIONS_MAX_LENGTH,
        db_default="",
        help_text="Partitions, or shards of the table broker, that a consumer holds or did when it died: 0-3,7",
    )

    class Meta:
        db_table = "outbox_workers"
        indexes: ClassVar = [models.Index(fields=["service", "role", "seen_at"], name="outbox_worker_seen")]

    def __str__(self) -> str:
        return f"{self.service} {self.role} {self.host}:{self.pid}"


class RejectedRecord(models.Model):
    """A broker record that could not be tied to an outbox row, kept with what a person needs to judge it."""

    service = models.CharField(max_length=64)
    topic = models.CharField(max_length=128)
    partition = models.IntegerField()
    offset = models.BigIntegerField()
    key = models.BinaryField(null=True)
    value = models.BinaryField(null=True, help_text="its beginning, where it is long")
    key_size = models.IntegerField(db_default=0, help_text="bytes that it came with; 0 in older rows")
    value_size = models.IntegerField(db_default=0, help_text="bytes that it came with; 0 in older rows")
    digest = models.CharField(
        max_length=64, help_text="SHA-256 of whole key and value: a topic made anew counts from 0 again"
    )
    headers = models.TextField(help_text="JSON: [[name, value], …], bytes that are no UTF-8 escaped; the first ones")
    reason = models.CharField(max_length=500)
    received_at = models.DateTimeField(db_default=UtcNow())
    resolved_at = models.DateTimeField(null=True, blank=True)
    resolved_by = models.CharField(max_length=150, db_default="", blank=True)
    installation = KeyField(
        max_length=INSTALLATION_MAX_LENGTH,
        null=True,
        help_text="The other installation that the records are of: they are one row, which holds the first of them",
    )
    records = models.BigIntegerField(db_default=1, help_text="How many came; of another installation's, all")
    last_partition = models.IntegerField(null=True, help_text="Where the last record of another installation came from")
    last_offset = models.BigIntegerField(null=True)
    last_received_at = models.DateTimeField(null=True)

    class Meta:
        db_table = "outbox_rejected_records"
        constraints: ClassVar = [
            # One key column may be wide on MySQL: (128 + 64) * 4 bytes + 12 stay below the 3,072 that InnoDB allows.
            models.UniqueConstraint(fields=["topic", "partition", "offset", "digest"], name="outbox_rejected_once"),
            # NULL equals nothing: it is for other installations alone.
            models.UniqueConstraint(fields=["service", "topic", "installation"], name="outbox_rejected_group"),
        ]
        indexes: ClassVar = [models.Index(fields=["service", "id"], name="outbox_rejected_service")]

    def __str__(self) -> str:
        return f"{self.topic}[{self.partition}]@{self.offset}"


class RehomedRow(models.Model):
    """A row that has arrived in this database from a table in another one, whose old row is not gone yet."""

    source_table = models.CharField(max_length=64)
    source_id = models.BigIntegerField()

    class Meta:
        db_table = "outbox_rehomed_rows"
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["source_table", "source_id"], name="outbox_rehomed_once"),
        ]

    def __str__(self) -> str:
        return f"{self.source_table} #{self.source_id}"


class ServiceSwitch(models.Model):
    """A person's word on a service: whether its relay and its consumer work. No row means that both do."""

    service = models.CharField(max_length=64, primary_key=True)
    relay_paused = models.BooleanField(db_default=False)
    consumer_paused = models.BooleanField(db_default=False)
    reason = models.CharField(max_length=500, db_default="", blank=True)
    changed_by = models.CharField(max_length=150, db_default="", blank=True)
    changed_at = models.DateTimeField(db_default=UtcNow())

    class Meta:
        db_table = "outbox_service_switches"
        permissions: ClassVar = [
            ("replay_outbox", "Can replay, edit and give up dead events"),
            ("view_outbox_payload", "Can see payloads of events and rejected records"),
        ]

    def __str__(self) -> str:
        return self.service
