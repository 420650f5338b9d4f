"""How long tests of properties look for a breach: by the same examples in every run, unless somebody asks for more."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, Phase, settings

TIMES = int(os.environ.get("OUTBOX_TEST_EXAMPLES", "1"))
"""So many times as many examples as usual; above 1 they are new ones in each run."""


def bounded(examples: int, *, steps: int = 50) -> settings:
    """Return settings for ``examples`` examples, of ``steps`` steps each where a property has steps."""
    return settings(
        max_examples=examples * TIMES,
        stateful_step_count=steps,
        derandomize=TIMES == 1,
        database=None,
        deadline=None,
        # Explaining a failure means many more examples, which take seconds each where there is a database.
        phases=[Phase.explicit, Phase.generate, Phase.shrink],
        suppress_health_check=[HealthCheck.too_slow],
    )
