"""Guards the ``on_commit`` hooks of handlers: the commit is done by then, so what they raise changes nothing any more.

Django drops the hooks behind one that raises, and raises its error from the commit, which looks as if that had failed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from outbox.consumer.watchdog import Watchdog
from outbox.log_text import get_logger

logger = get_logger(__name__)


def guard_hooks(connection: Any, *, since: int, watchdog: Watchdog, limit_s: float, name: str) -> None:
    """Have each hook from the position ``since`` on logged where it fails, and ended after ``limit_s``.

    Within a transaction that is not the consumer's own, as in Django's ``TestCase``, hooks stay as they are.
    """
    hooks = connection.run_on_commit
    for position in range(since, len(hooks)):
        savepoints, hook, _is_robust = hooks[position]
        guarded = _guarded(hook, watchdog=watchdog, limit_s=limit_s, using=connection.alias, name=name)
        hooks[position] = (savepoints, guarded, True)


def _guarded(
    hook: Callable[[], Any], *, watchdog: Watchdog, limit_s: float, using: str, name: str
) -> Callable[[], None]:
    def run() -> None:
        try:
            watchdog.call(lambda _: hook(), None, limit_s=limit_s, using=using, name=name)
        except KeyboardInterrupt:
            raise
        except BaseException:
            logger.exception("on_commit hook failed, its event is consumed: event_type=%s hook=%r", name, hook)

    return run
