"""How relay and consumer go with processes, payload sizes, keys and services: curves, the ceiling's beside ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from statistics import median
from typing import Final

from benchmarks.arithmetic import Step, speed
from benchmarks.installation import SERVICES, Installation, installed
from benchmarks.speed.plan import Plan, keys_of
from benchmarks.speed.report import Curve, Line, Result
from benchmarks.speed.stage import Load, Stage, Who

_SIZES: Final = {"0.2 kB": 200, "1 kB": 1_000, "10 kB": 10_000, "100 kB": 100_000, "2 MB": 2_000_000}
_BYTES_OF_A_BACKLOG: Final = 100_000_000
_NAMES: Final = ("processes", "payload", "keys")
_KEYS: Final = ("all different", "as usual", "one")
_TIMEOUT_S: Final = 600.0

Run = Callable[[Who, Load, int], float]


def measure(plan: Plan) -> Result:
    """Draw every curve for relay and consumer, then look at five services at once."""
    result = Result("scale")
    by_role: dict[str, dict[str, dict[str, list[float]]]] = {}
    for role in ("relay", "consumer"):
        with installed("bench", keep=plan.keep) as installation:
            stage = Stage(installation)
            by_role[role] = _curves(_run_of(stage, role), plan, role, result)
    _draw(
        result, "processes", "Processes of one service", x="processes", y="events/s", by_role=by_role, at=plan.processes
    )
    _draw(
        result, "payload", "Payload sizes, one process", x="payload", y="MB/s", by_role=by_role, at=list(_sizes(plan))
    )
    _draw(result, "keys", "Keys, one process", x="keys", y="events/s", by_role=by_role, at=_KEYS)
    with installed("bench", keep=plan.keep, services=SERVICES) as installation:
        _five_services(installation, plan, result)
    return result


def _run_of(stage: Stage, role: str) -> Run:
    run = stage.relay if role == "relay" else stage.consume
    return lambda who, load, processes: run(who, load, processes=processes)


def _curves(run: Run, plan: Plan, role: str, result: Result) -> dict[str, dict[str, list[float]]]:
    """Return, by curve, what ours and the ceiling reach at each value of x."""
    found: dict[str, dict[str, list[float]]] = {name: {"ours": [], "ceiling": []} for name in _NAMES}
    usual = Load(plan.events, plan.keys, plan.payload)
    for processes in plan.processes:
        _point(
            found["processes"],
            run,
            usual,
            plan=plan,
            result=result,
            name=f"{role}, {processes} processes",
            processes=processes,
        )
    for name, size in _sizes(plan).items():
        load = load_of(size, plan)
        _point(
            found["payload"],
            run,
            load,
            plan=plan,
            result=result,
            name=f"{role}, payload of {name}",
            megabytes=size / 1e6,
        )
    for name, keys in zip(_KEYS, (plan.events, plan.keys, 1), strict=True):
        load = Load(plan.events, keys, plan.payload)
        _point(found["keys"], run, load, plan=plan, result=result, name=f"{role}, keys: {name}")
    return found


def _point(
    curve: Mapping[str, list[float]],
    run: Run,
    load: Load,
    *,
    plan: Plan,
    result: Result,
    name: str,
    processes: int = 1,
    megabytes: float = 1.0,
) -> None:
    """Measure the ceiling and ours in turn; add their medians to ``curve``."""
    ours, ceilings = [], []
    for _ in range(plan.repeats):
        ceilings.append(run("ceiling", load, processes))
        ours.append(run("ours", load, processes))
    line = Line(name, "events/s", ours, ceilings)
    result.lines.append(line)
    print(f"{name}: {line.figure:,.0f} of {median(ceilings):,.0f} events/s", flush=True)
    curve["ours"].append(median(ours) * megabytes)
    curve["ceiling"].append(median(ceilings) * megabytes)


def load_of(size: int, plan: Plan) -> Load:
    """Return a backlog of a size that takes some time and some batches, however large the payloads are."""
    events = max(min(plan.events, _BYTES_OF_A_BACKLOG // size), 60)
    return Load(events, keys_of(events), size, batch=min(500, max(events // 10, 5)))


def _sizes(plan: Plan) -> Mapping[str, int]:
    return {name: size for name, size in _SIZES.items() if not plan.quick or size <= 1_000}


def _draw(
    result: Result,
    name: str,
    title: str,
    *,
    x: str,
    y: str,
    by_role: Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]],
    at: Sequence[object],
) -> None:
    series: dict[str, Sequence[float | None]] = {}
    for role, curves in by_role.items():
        series[role] = curves[name]["ours"]
        series[f"{role}, database only"] = curves[name]["ceiling"]
    result.curves.append(Curve(name, title, x, y, [str(each) for each in at], series))


# --- five services ---------------------------------------------------------------------------------------------------


def _five_services(installation: Installation, plan: Plan, result: Result) -> None:
    """Relay and consume five services in one process each; the ceiling is one service with as many events in all."""
    stage = Stage(installation)
    each = max(plan.events // (4 * len(SERVICES)), 100)
    found: dict[str, list[float]] = {"published_at one": [], "published_at five": [], "consumed_at five": []}
    for _ in range(plan.repeats):
        found["published_at one"].append(_relay_once(stage, SERVICES[:1], each * len(SERVICES)))
        _consume_all(installation, SERVICES[:1])  # what is left on a topic has the ids of the next rows
        found["published_at five"].append(_relay_once(stage, SERVICES, each))
        _consume_all(installation, SERVICES)
        with suppress(ValueError):  # few events may all be in one batch
            found["consumed_at five"].append(speed(_marks(stage, SERVICES, "consumed_at")))
    result.lines.append(
        Line("five services at once, relayed by one process, to one service", "events/s", *_pair(found))
    )
    if found["consumed_at five"]:
        result.lines.append(
            Line("five services at once, consumed by one process", "events/s", found["consumed_at five"])
        )


def _consume_all(installation: Installation, services: Sequence[str]) -> None:
    installation.manage("consumers", "consume", *services, "--once").wait(timeout_s=_TIMEOUT_S)


def _pair(found: Mapping[str, list[float]]) -> tuple[list[float], list[float]]:
    return found["published_at five"], found["published_at one"]


def _relay_once(stage: Stage, services: Sequence[str], each: int) -> float:
    installation = stage.installation
    for service in SERVICES:
        stage.outbox.execute(f"TRUNCATE TABLE {_table(service)}")
    installation.start("publisher", "-m", "benchmarks.speed.services", *services, "--each", str(each)).wait(
        timeout_s=_TIMEOUT_S
    )
    relay = installation.manage("relays", "run_relay", *services, "--once")
    relay.wait(timeout_s=_TIMEOUT_S)
    steps = _marks(stage, services, "published_at")
    if sum(count for _, count in steps) != each * len(services):
        raise RuntimeError(f"not all events were relayed:\n{relay.text[-4000:]}")
    return speed(steps)


def _marks(stage: Stage, services: Sequence[str], column: str) -> list[Step]:
    tables = " UNION ALL ".join(
        f"SELECT {column} FROM {_table(service)} WHERE {column} IS NOT NULL" for service in services
    )
    return [
        (float(moment), int(count))
        for moment, count in stage.outbox.execute(
            f"SELECT TIMESTAMPDIFF(MICROSECOND, '2000-01-01', {column}) / 1000000, COUNT(*) FROM ({tables}) marked"
            f" GROUP BY {column} ORDER BY {column}"
        )
    ]


def _table(service: str) -> str:
    return f"{service.replace('-', '_')}_outbox_messages"
