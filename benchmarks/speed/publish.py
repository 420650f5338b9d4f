"""Publishing against INSERTs of the same rows by the bare driver, in a process of its own."""

from __future__ import annotations

from typing import Final

from benchmarks.installation import installed
from benchmarks.speed.plan import Plan
from benchmarks.speed.report import Line, Result, Target

_SINGLES: Final = 200
_MANY: Final = 1_000
_CPU: Final = Target(150.0, "most", of="figure")
_STATEMENTS: Final = Target(1.0, "most", of="figure")
_MANY_RATIO: Final = Target(0.7, "least")
_BYTES: Final = Target(1.5, "most", of="figure")
_STATEMENTS_OF_MANY: Final = Target(2.0, "most", of="figure")
_TIMEOUT_S: Final = 900.0


def measure(plan: Plan) -> Result:
    """Run the process and read its answer."""
    result = Result("publish")
    rounds = 2 if plan.quick else 10 * plan.repeats
    with installed("bench", keep=plan.keep) as installation:
        process = installation.start(
            "publishing", "-m", "benchmarks.speed.publishing", "--rounds", str(rounds), "--bytes", str(plan.payload)
        )
        process.wait(timeout_s=_TIMEOUT_S)
        answer = process.answer
    rates = {name: [count / seconds for seconds in answer[name]] for name, count in _COUNTS.items()}
    result.lines += [
        Line("publish, statements", "a call", [answer["statements"]], target=_STATEMENTS, counted=True),
        Line(
            "publish_many of 1,000, statements",
            "a call",
            [answer["statements_of_many"]],
            target=_STATEMENTS_OF_MANY,
            counted=True,
        ),
        Line(
            "publish, bytes to and from the database",
            "× payload",
            [answer["bytes_to_payload"]],
            target=_BYTES,
            counted=True,
        ),
        Line("publish, Python", "µs", answer["publish_cpu_us"], answer["raw_cpu_us"], _CPU),
        Line("publish_many of 1,000", "events/s", rates["publish_many_s"], rates["raw_many_s"], _MANY_RATIO),
        Line("publish, alone in its transaction", "events/s", rates["publish_alone_s"], rates["raw_alone_s"]),
    ]
    return result


_COUNTS: Final = {"publish_many_s": _MANY, "raw_many_s": _MANY, "publish_alone_s": _SINGLES, "raw_alone_s": _SINGLES}
