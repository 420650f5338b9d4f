"""``event_type -> service -> table/topic/group``: the only way from an event to a table."""

from __future__ import annotations

import pytest

from outbox.declarations.routes import RouteRegistry, ServiceCatalog, ServiceRoute
from outbox.exceptions import ConfigurationError, EventOwnerConflictError, UnknownEventTypeError, UnknownServiceError

# The table of the five services, word for word.
FIVE = [
    ("agent", "agent_outbox_messages", "smartflow.agent.outbox", "smartflow-agent-outbox-consumer"),
    ("task", "task_outbox_messages", "smartflow.task.outbox", "smartflow-task-outbox-consumer"),
    ("memory", "memory_outbox_messages", "smartflow.memory.outbox", "smartflow-memory-outbox-consumer"),
    (
        "active-scheduler",
        "active_scheduler_outbox_messages",
        "smartflow.active-scheduler.outbox",
        "smartflow-active-scheduler-outbox-consumer",
    ),
    (
        "notification",
        "notification_outbox_messages",
        "smartflow.notification.outbox",
        "smartflow-notification-outbox-consumer",
    ),
]


@pytest.fixture
def registry() -> RouteRegistry:
    services = ("agent", "memory", "task")
    return RouteRegistry(ServiceCatalog(ServiceRoute.by_rule(service, namespace="smartflow") for service in services))


@pytest.mark.parametrize(("service", "table", "topic", "group"), FIVE)
def test_names_of_the_five_services_follow_from_the_rule(service: str, table: str, topic: str, group: str) -> None:
    route = ServiceRoute.by_rule(service, namespace="smartflow")

    assert (route.table, route.topic, route.group, route.database) == (table, topic, group, "default")


@pytest.mark.parametrize(("service", "table", "topic", "group"), FIVE)
def test_the_project_has_the_five_services_under_their_names(service: str, table: str, topic: str, group: str) -> None:
    from outbox.registry.catalog import route_registry, service_models

    route = route_registry().catalog.route(service)

    assert (route.table, route.topic, route.group, route.database) == (table, topic, group, "default")
    assert service_models()[service]._meta.db_table == table


def test_the_project_has_no_other_service() -> None:
    from outbox.registry.catalog import route_registry

    assert sorted(route_registry().catalog.services) == sorted(service for service, *_ in FIVE)
    assert route_registry().catalog.shared_names() == []


def test_a_service_knows_the_event_types_of_the_others() -> None:
    from outbox.registry.catalog import repository_of

    repository = repository_of("agent")

    assert "memory.extract.requested" in repository.foreign_types
    assert "agent.state.snapshot.persist" not in repository.foreign_types
    with pytest.raises(UnknownServiceError):
        repository_of("nobody")


def test_new_service_that_states_nothing_gets_names_by_the_rule() -> None:
    route = ServiceRoute.by_rule("x-y", namespace="smartflow")

    assert (route.table, route.topic, route.group) == (
        "x_y_outbox_messages",
        "smartflow.x-y.outbox",
        "smartflow-x-y-outbox-consumer",
    )


def test_each_name_can_be_overridden() -> None:
    given = {"table": "my_table", "topic": "my.topic", "group": "my-group", "database": "other"}

    route = ServiceRoute.by_rule("x-y", namespace="smartflow", **given)

    assert {name: getattr(route, name) for name in given} == given


def test_each_name_can_be_overridden_by_configuration(settings: object) -> None:
    from outbox.registry.catalog import repository_of, route_registry

    settings.OUTBOX = {  # type: ignore[attr-defined]
        "NAMESPACE": "other",
        "SERVICES": {"agent": {"TABLE": "t", "TOPIC": "my.topic", "GROUP": "g", "DATABASE": "elsewhere"}},
    }

    agent, task = route_registry().catalog.route("agent"), route_registry().catalog.route("task")
    assert agent == ServiceRoute(service="agent", table="t", topic="my.topic", group="g", database="elsewhere")
    assert (task.table, task.topic, task.group) == (
        "task_outbox_messages",
        "other.task.outbox",
        "other-task-outbox-consumer",
    )
    assert repository_of("agent").route == agent


@pytest.mark.parametrize("service", ["", "Agent", "a_b", "-a", "a-", "a--b", "1a", "a b", "a.b", "x" * 65, "a\n"])
def test_service_name_that_does_not_fit_everywhere_is_refused(service: str) -> None:
    with pytest.raises(ConfigurationError, match="service name"):
        ServiceRoute.by_rule(service, namespace="smartflow", table="t", topic="t", group="g")


@pytest.mark.parametrize("table", ["a-b", "a b", 'a"; DROP TABLE b', "a.b", "1a", "x" * 65, "a\n"])
def test_table_name_that_is_not_a_plain_word_is_refused(table: str) -> None:
    with pytest.raises(ConfigurationError, match="table"):
        ServiceRoute.by_rule("agent", namespace="smartflow", table=table)


@pytest.mark.parametrize("topic", [".", "..", "a b", "a/b", "x" * 129, "ü", "a\n"])
def test_topic_name_that_kafka_refuses_is_refused(topic: str) -> None:
    with pytest.raises(ConfigurationError, match="topic"):
        ServiceRoute.by_rule("agent", namespace="smartflow", topic=topic)


def test_empty_group_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="group"):
        ServiceRoute(service="agent", table="t", topic="t", group="")


def test_event_type_leads_to_its_service(registry: RouteRegistry) -> None:
    registry.register("memory.extract.requested", "memory")

    assert registry.resolve("memory.extract.requested").table == "memory_outbox_messages"


def test_registering_again_for_the_same_service_is_harmless(registry: RouteRegistry) -> None:
    registry.register("a.b", "agent")
    registry.register("a.b", "agent")

    assert registry.event_types("agent") == ("a.b",)


def test_registering_for_a_second_service_is_an_error_and_changes_nothing(registry: RouteRegistry) -> None:
    registry.register("a.b", "agent")

    with pytest.raises(EventOwnerConflictError, match=r"'a\.b' belongs to service 'agent'.*'task'"):
        registry.register("a.b", "task")

    assert registry.resolve("a.b").service == "agent"


def test_unknown_event_type_has_no_table(registry: RouteRegistry) -> None:
    with pytest.raises(UnknownEventTypeError, match=r"'a\.b' is not registered"):
        registry.resolve("a.b")


def test_unknown_service_is_refused_and_the_known_are_named(registry: RouteRegistry) -> None:
    with pytest.raises(UnknownServiceError, match="'nobody' is unknown; known services: agent, memory, task"):
        registry.register("a.b", "nobody")
    with pytest.raises(UnknownServiceError):
        registry.catalog.route("nobody")


@pytest.mark.parametrize("event_type", ["", "x" * 65])
def test_event_type_that_its_column_cannot_hold_is_refused(registry: RouteRegistry, event_type: str) -> None:
    with pytest.raises(ConfigurationError, match="event type"):
        registry.register(event_type, "agent")
    registry.register("x" * 64, "agent")


def test_foreign_types_are_those_of_the_others(registry: RouteRegistry) -> None:
    registry.register("t.b", "task")
    registry.register("a.b", "agent")
    registry.register("m.b", "memory")

    assert registry.event_types("agent") == ("a.b",)
    assert registry.types_of_others("agent") == ("m.b", "t.b")
    assert registry.foreign_types("agent") == (), "no table was shared"
    registry.tables_were_shared = True
    assert registry.foreign_types("agent") == ("m.b", "t.b")


def test_service_with_two_routes_is_refused() -> None:
    one = ServiceRoute.by_rule("agent", namespace="a")

    assert len(ServiceCatalog([one, one])) == 1
    with pytest.raises(ConfigurationError, match="two routes"):
        ServiceCatalog([one, ServiceRoute.by_rule("agent", namespace="b")])


def test_shared_names_are_said(registry: RouteRegistry) -> None:
    catalog = ServiceCatalog(
        [
            ServiceRoute(service="a", table="t", topic="x", group="g"),
            ServiceRoute(service="b", table="t", topic="y", group="h"),
            ServiceRoute(service="c", table="t", topic="y", group="g", database="other"),
        ]
    )

    assert catalog.shared_names() == [
        "services 'a' and 'b' share the table 'default.t'",
        "services 'b' and 'c' share the topic 'y'",
        "services 'a' and 'c' share the consumer group 'g'",
    ]
    assert registry.catalog.shared_names() == []
    assert "a" in catalog
    assert "z" not in catalog
    assert catalog.services == ("a", "b", "c")
