"""The dead events of all services on one page, the last that died first: replay them or give them up.

Each service is read along its own index and database; ``outbox.admin.paging`` merges them. What an action takes of all
that match keeps the order of each key (``outbox.admin.key_order``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from django.contrib import admin, messages
from django.db.models.functions import Substr
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.utils import timezone

from outbox.admin import operations
from outbox.admin.access import demand, may_operate, may_see_payload, visible_services
from outbox.admin.filters import ALL, GIVEN_UP, OPEN, DeadFilter, known_event_types
from outbox.admin.key_order import KeyOrder
from outbox.admin.lines import MessageLine, load, message_line
from outbox.admin.pages import DeadEvent, Pager, StandalonePage
from outbox.admin.paging import read_page
from outbox.admin.rendering import PREVIEW_CHARACTERS, Shown, shown_json
from outbox.admin.selection import Selection, count, outcome, read_selection, write_selection
from outbox.registry.catalog import route_registry, service_models
from outbox.storage.querysets import rows_of

PAGE_SIZE: Final = 25
AT_ONCE: Final = 1_000
"""So many events one action takes at the most."""

_ACTIONS: Final = {"replay": "Replay", "give-up": "Give up"}


@dataclass(frozen=True, slots=True)
class DeadLine:
    """A dead event in the list."""

    line: MessageLine
    payload: Shown | None


@admin.register(DeadEvent)
class DeadEventAdmin(StandalonePage):
    """The page of dead events."""

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        """Show a page of dead events, or do what its form asks for."""
        services = visible_services(request)
        demand(services)
        asked = DeadFilter.of(request)
        chosen = [asked.service] if asked.service in services else services
        if request.method == "POST":
            return self._act(request, asked, chosen, services)
        pager = Pager(request, {service: asked.scan(_route(service)) for service in chosen}, size=PAGE_SIZE)
        lines = self._lines(pager.rows, with_payload=may_see_payload(request))
        return self.page(
            request,
            "dead.html",
            title="Dead events",
            asked=asked,
            services=services,
            states=[(OPEN, "open"), (GIVEN_UP, "given up"), (ALL, "all")],
            event_types=sorted({name for service in chosen for name in known_event_types(service, set())}),
            error_classes=sorted({one.line.error_class for one in lines if one.line.error_class}),
            lines=lines,
            pager=pager,
            at_once=AT_ONCE,
            **(extra_context or {}),
        )

    def _lines(self, found: Iterable[tuple[str, int]], *, with_payload: bool) -> list[DeadLine]:
        ids: dict[str, list[int]] = {}
        order = list(found)
        for service, row_id in order:
            ids.setdefault(service, []).append(row_id)
        now = timezone.now()
        lines: dict[tuple[str, int], DeadLine] = {}
        for service, wanted in ids.items():
            model, using = service_models()[service], _route(service).database
            foreign_types = set(route_registry().foreign_types(service))
            heads: Mapping[int, str] = {}
            if with_payload:
                head = Substr("payload", 1, PREVIEW_CHARACTERS)
                heads = dict(rows_of(model, using).filter(pk__in=wanted).values_list("pk", head))
            for row_id, row in load(model, using, wanted).items():
                line = message_line(self.admin_site, service, row, foreign_types, now, with_reason=with_payload)
                lines[service, row_id] = DeadLine(line, _preview(heads.get(row_id)))
        return [lines[key] for key in order if key in lines]

    # --- actions -------------------------------------------------------------------------------------------------

    def _act(self, request: HttpRequest, asked: DeadFilter, chosen: list[str], services: list[str]) -> HttpResponse:
        demand(may_operate(request))
        action = request.POST.get("action", "")
        back = HttpResponseRedirect(request.get_full_path())
        if action not in _ACTIONS:
            self.message_user(request, "Choose what to do with the events.", messages.ERROR)
            return back
        takes_all = "all" in request.POST
        selection = self._all_matching(asked, chosen) if takes_all else read_selection(request.POST.getlist("selected"))
        selection = {service: ids for service, ids in selection.items() if service in services}
        if not selection:
            self.message_user(request, "No event was selected.", messages.WARNING)
            return back
        if count(selection) > AT_ONCE:
            self.message_user(request, f"At most {AT_ONCE:,} events can be taken at once.", messages.ERROR)
            return back
        is_confirmed = "confirmed" in request.POST
        reason = request.POST.get("reason", "").strip()
        is_complete = is_confirmed and (action == "replay" or reason)
        overtaken = _overtaken(selection) if action == "replay" and not is_confirmed else 0
        if is_complete or (action == "replay" and not takes_all and not is_confirmed and not overtaken):
            self._carry_out(request, action, selection, reason)
            return back
        return self.page(
            request,
            "confirm.html",
            title=f"{_ACTIONS[action]} {count(selection):,} dead event{'' if count(selection) == 1 else 's'}?",
            action=action,
            label=_ACTIONS[action],
            selection=write_selection(selection),
            parts=[(service, len(ids)) for service, ids in selection.items()],
            needs_reason=action == "give-up",
            overtaken=overtaken,
            problem="Say why: the reason stays on the event." if is_confirmed else "",
            back_url=request.get_full_path(),
        )

    def _all_matching(self, asked: DeadFilter, chosen: list[str]) -> Selection:
        """Return what an action takes of all that match: of the keys that died last, the oldest events first."""
        streams = {service: asked.scan(_route(service)) for service in chosen}
        page = read_page(streams, cut={}, upward=False, limit=AT_ONCE)
        while not page.rows and page.stopped is not None:  # many that do not match died after those that do
            page = read_page(streams, cut=page.bottom, upward=False, limit=AT_ONCE)
        last: dict[str, list[int]] = {}
        for service, row_id in page.rows:
            last.setdefault(service, []).append(row_id)
        return {service: KeyOrder(_route(service)).oldest(ids, asked) for service, ids in last.items()}

    def _carry_out(self, request: HttpRequest, action: str, selection: Selection, reason: str) -> None:
        done = asked = 0
        for service, ids in selection.items():
            try:
                if action == "replay":
                    done += operations.replay(request, service, ids)
                else:
                    done += operations.give_up(request, service, ids, reason=reason)
            except operations.NotDoneError as error:
                self.message_user(request, f"{service}: {error}", messages.ERROR)
            else:
                asked += len(ids)
        if not asked:
            return
        if action == "replay":
            text = outcome(done, asked, verb="replayed", otherwise="not dead any more")
        else:
            text = outcome(done, asked, verb="given up", otherwise="not open any more")
        self.message_user(request, text, messages.SUCCESS if done == asked else messages.WARNING)


def _overtaken(selection: Selection) -> int:
    """Return how many of ``selection`` would take effect before an older dead event of their key."""
    return sum(len(KeyOrder(_route(service)).overtaken(ids)) for service, ids in selection.items())


def _route(service: str) -> Any:
    return route_registry().catalog.route(service)


def _preview(head: str | None) -> Shown | None:
    if head is None:
        return None
    return shown_json(head, limit=2 * PREVIEW_CHARACTERS, is_whole=len(head) < PREVIEW_CHARACTERS)
