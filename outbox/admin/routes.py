"""The routes page: one line a service, what is wrong first, and the switches that pause and resume its workers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from django.contrib import admin, messages
from django.db.utils import DatabaseError, InterfaceError
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import URLPattern, path
from django.utils import timezone

from outbox.admin import operations
from outbox.admin.access import demand, may_operate, visible_services
from outbox.admin.health import Problem, Severity, problems_of, worst
from outbox.admin.pages import DeadEvent, Route, StandalonePage, model_url
from outbox.admin.rendering import moment, visible
from outbox.conf import outbox_settings
from outbox.declarations.routes import ServiceRoute
from outbox.lifecycle import Status
from outbox.models import RejectedRecord, ServiceSwitch
from outbox.operations.durations import humanise
from outbox.operations.statistics import ServiceStatus, WorkerStatus, service_status
from outbox.registry.catalog import route_registry, service_models
from outbox.storage.pause_flags import switch_row
from outbox.workers.lag import LagReport, lag_report

_PARTS: Final = {operations.RELAY_PART: "relay", operations.CONSUMER_PART: "consumer"}


@dataclass(frozen=True, slots=True)
class Number:
    """A count with a link to what it counts."""

    label: str
    colour: str
    text: str
    url: str
    is_zero: bool


@dataclass(frozen=True, slots=True)
class Part:
    """The relays or the consumers of a service."""

    name: str
    workers: list[str]
    is_paused: bool
    switch_url: str


@dataclass(frozen=True, slots=True)
class RouteLine:
    """One service."""

    service: str
    route: ServiceRoute
    colour: str
    problems: list[Problem]
    event_types: Sequence[tuple[str, str]] = ()
    numbers: Sequence[Number] = ()
    oldest: str = ""
    lag: str = ""
    parts: Sequence[Part] = ()


@admin.register(Route)
class RouteAdmin(StandalonePage):
    """The page of routes."""

    def get_urls(self) -> list[URLPattern]:
        switch = self.admin_site.admin_view(self.switch_view)
        return [
            path("<str:service>/<str:part>/switch/", switch, name="outbox_route_switch"),
            *super().get_urls(),
        ]

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        """Show how every service is doing."""
        services = visible_services(request)
        demand(services)
        routes = [route_registry().catalog.route(service) for service in services]
        lag = lag_report(list(route_registry().catalog))
        lines = [self._line(request, route, lag) for route in routes]
        ailing = sum(1 for line in lines if line.problems)
        return self.page(
            request,
            "routes.html",
            title="Routes",
            lines=lines,
            ailing=ailing,
            summary=f"{ailing} of {len(lines)} services need a look." if ailing else "All services are well.",
            now=moment(timezone.now(), timezone.now()),
            lag_age=humanise(lag.age) if lag.age is not None and lag.age > timedelta(seconds=10) else "",
            is_enabled=outbox_settings().enabled,
            **(extra_context or {}),
        )

    def switch_view(self, request: HttpRequest, service: str, part: str) -> HttpResponse:
        """Ask why, and pause or resume the relay or the consumer of a service."""
        demand(may_operate(request) and service in visible_services(request))
        if part not in _PARTS:
            raise Http404
        route = route_registry().catalog.route(service)
        switch = switch_row(service, route.database)
        is_paused = bool(switch and getattr(switch, operations.PARTS[part]))
        problem = ""
        if request.method == "POST":
            paused = request.POST.get("do") == "pause"
            reason = request.POST.get("reason", "").strip()
            if paused and not reason:
                problem = "Say why: whoever comes next sees it on the routes page."
            else:
                self._switch(request, route, part, paused=paused, reason=reason)
                return HttpResponseRedirect(self.url("changelist"))
        return self.page(
            request,
            "switch.html",
            title=f"{'Resume' if is_paused else 'Pause'} the {_PARTS[part]} of {service}?",
            service=service,
            part=_PARTS[part],
            is_paused=is_paused,
            is_relay=part == operations.RELAY_PART,
            word=_word(switch) if is_paused and switch else "",
            problem=problem,
        )

    def _switch(self, request: HttpRequest, route: ServiceRoute, part: str, *, paused: bool, reason: str) -> None:
        try:
            done = operations.set_switch(request, route, part=part, paused=paused, reason=reason)
        except operations.NotDoneError as error:
            self.message_user(request, str(error), messages.ERROR)
            return
        state = "paused" if paused else "resumed"
        if done:
            self.message_user(request, f"The {part} of {route.service} is {state}.", messages.SUCCESS)
        else:
            self.message_user(request, f"The {part} of {route.service} was {state} already.", messages.WARNING)

    # --- one line ------------------------------------------------------------------------------------------------

    def _line(self, request: HttpRequest, route: ServiceRoute, lag: LagReport) -> RouteLine:
        ttl = timedelta(seconds=outbox_settings().leases.ttl_seconds)
        try:
            status = service_status(route, route_registry(), ttl=ttl)
            switch = switch_row(route.service, route.database)
        except (DatabaseError, InterfaceError) as error:
            problem = Problem(Severity.BAD, f"The database {route.database!r} cannot be read: {error}")
            return RouteLine(route.service, route, problem.severity.value, [problem])
        problems = problems_of(status, lag_problem=lag.problem, word=_word(switch) if switch else "")
        behind = lag.lags.get(route.service)
        return RouteLine(
            service=route.service,
            route=route,
            colour=worst(problems).value,
            problems=problems,
            event_types=status.event_types,
            numbers=self._numbers(request, status),
            oldest="" if status.oldest_due_age is None else humanise(status.oldest_due_age),
            lag="" if behind is None else f"{behind:,}",
            parts=[
                self._part(operations.RELAY_PART, route, status.relays, is_paused=status.relay_paused),
                self._part(operations.CONSUMER_PART, route, status.consumers, is_paused=status.consumer_paused),
            ],
        )

    def _numbers(self, request: HttpRequest, status: ServiceStatus) -> list[Number]:
        service = status.route.service
        messages_url = model_url(self.admin_site, service_models()[service], "changelist")
        dead_url = f"{model_url(self.admin_site, DeadEvent, 'changelist')}?service={service}"
        counts = []
        for name, count in status.counts.items():
            url = dead_url if name is Status.DEAD else messages_url and f"{messages_url}?status={name}"
            counts.append(Number(name.value, name.value, str(count), url, count.value == 0))
        if status.open_rejected.value and request.user.has_perm("outbox.view_rejectedrecord"):
            url = f"{model_url(self.admin_site, RejectedRecord, 'changelist')}?service={service}"
            counts.append(Number("rejected", "rejected", str(status.open_rejected), url, is_zero=False))
        return counts

    def _part(self, name: str, route: ServiceRoute, workers: Sequence[WorkerStatus], *, is_paused: bool) -> Part:
        now = timezone.now()
        return Part(
            name=name,
            workers=[_worker(worker, humanise(now - worker.started_at)) for worker in workers],
            is_paused=is_paused,
            switch_url=self.url("switch", route.service, name),
        )


def _worker(worker: WorkerStatus, age: str) -> str:
    shards = f", {worker.shards} shard{'' if worker.shards == 1 else 's'}" if worker.shards else ""
    return f"{visible(worker.host)}:{worker.pid}{shards}, up {age}"


def _word(switch: ServiceSwitch) -> str:
    """Return who switched last, when and why."""
    at = moment(switch.changed_at, timezone.now())
    who = visible(switch.changed_by) or "somebody"
    return f"{who}, {at.distance if at else ''}{f': {visible(switch.reason)}' if switch.reason else ''}"
