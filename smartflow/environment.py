"""Reads the environment strictly: a variable is one of its values, or an error names it, its value and the remedy.

``django-environ``, which reads the file ``.env``, takes every unknown word for ``False`` and ``5 minutes`` for 5. So
none of its readers is used.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, Final
from zoneinfo import ZoneInfo

import environ
from django.core.exceptions import ImproperlyConfigured

_TRUE: Final = frozenset({"true", "on", "ok", "y", "yes", "1"})
_FALSE: Final = frozenset({"false", "off", "no", "n", "0"})
_INTEGER: Final = re.compile(r"-?[0-9]{1,18}")
_NUMBER: Final = re.compile(r"-?[0-9]{1,18}(\.[0-9]{1,18})?")
_SHOWN: Final = 80
"""Characters of a value that a message repeats."""


class Environment:
    """The variables of this process. Every reader raises ``ImproperlyConfigured``; secrets are read by ``text``."""

    def __init__(self, variables: Mapping[str, str] = os.environ) -> None:
        self._variables = variables

    def __contains__(self, variable: str) -> bool:
        return variable in self._variables

    def text(self, variable: str, default: str = "") -> str:
        """Return the value as it is: one that begins with ``$``, as a password may, names no other variable."""
        return self._variables.get(variable, default)

    def flag(self, variable: str, default: bool) -> bool:
        """Return a truth value. An empty variable is no value, and so an error."""
        if variable not in self:
            return default
        if (word := truth(self._variables[variable])) is None:
            raise refused(variable, self._variables[variable], "use true or false, or remove the variable")
        return word

    def integer(self, variable: str, default: int, *, least: int, most: int) -> int:
        """Return a whole number of ``least`` to ``most``."""
        wanted = f"a whole number of {least} to {most}"
        return int(self._number(variable, default, _INTEGER, wanted, least=least, most=most))

    def number(self, variable: str, default: float, *, least: float, most: float) -> float:
        """Return a number of ``least`` to ``most``."""
        wanted = f"a number of {least:g} to {most:g} without a unit"
        return self._number(variable, default, _NUMBER, wanted, least=least, most=most)

    def choice(self, variable: str, choices: Collection[str], default: str) -> str:
        """Return one of ``choices``, spelt exactly so."""
        value = self._variables.get(variable, default)
        if value != default and value not in choices:
            raise refused(variable, value, f"choose one of {', '.join(choices)}")
        return value

    def names(
        self,
        variable: str,
        default: Iterable[str] = (),
        *,
        each: re.Pattern[str] | None = None,
        form: str = "",
    ) -> list[str]:
        """Return what is joined by commas. Where ``each`` is given every item matches it; ``form`` says so in words."""
        if variable not in self:
            return [*default]
        text = self._variables[variable]
        found = [*filter(None, map(str.strip, text.split(",")))]
        if text.strip() and not found:
            raise refused(variable, text, "give values joined by commas, or leave it empty")
        for item in found:
            if each is not None and not each.fullmatch(item):
                raise refused(variable, item, f"give {form}, joined by commas")
        return found

    def secrets(self, variable: str) -> list[str]:
        """Return what is joined by commas as it is: a blank is a part of a secret."""
        found = [*filter(None, self.text(variable).split(","))]
        if self.text(variable) and not found:
            raise ImproperlyConfigured(
                f"{variable} holds commas only; give values joined by commas, or leave it empty."
            )
        return found

    def json_object(self, variable: str) -> dict[str, Any]:
        """Return a JSON object, by default an empty one. No message repeats a value of it, which may be a secret."""
        if variable not in self:
            return {}
        remedy = 'give a JSON object, such as {"RELAY": {"BATCH_SIZE": 500}}, or remove the variable'
        try:
            given = json.loads(
                self._variables[variable], object_pairs_hook=_unless_repeated, parse_constant=_refuse_constant
            )
        except RecursionError:
            raise ImproperlyConfigured(f"{variable} is nested too deep to be read; {remedy}.") from None
        except ValueError as error:
            raise ImproperlyConfigured(f"{variable} is no JSON: {error}; {remedy}.") from None
        if not isinstance(given, dict):
            raise ImproperlyConfigured(f"{variable} must be a JSON object, not a {type(given).__name__}; {remedy}.")
        return given

    def time_zone(self, variable: str, default: str) -> str:
        """Return the name of a time zone that this system knows."""
        name = self._variables.get(variable, default)
        try:
            ZoneInfo(name)
        except (ValueError, OSError, LookupError):  # a folder of zones, or a name that no file can have, is no zone
            remedy = "give a name of the time zone database, such as UTC or Europe/Berlin"
            raise refused(variable, name, remedy) from None
        return name

    def refuse_unknown(self, pattern: re.Pattern[str], *, known: Collection[str]) -> None:
        """Refuse a variable whose name matches ``pattern`` and is none of ``known``: a setting that nobody reads."""
        for variable in sorted(self._variables):
            if pattern.fullmatch(variable) and variable not in known:
                raise ImproperlyConfigured(
                    f"{variable} is no setting of this project, so it would have no effect; rename it to one of "
                    f"{', '.join(known)}, or remove it."
                )

    def _number(
        self, variable: str, default: float, pattern: re.Pattern[str], wanted: str, *, least: float, most: float
    ) -> float:
        if variable not in self:
            return default
        text = self._variables[variable].strip()
        number = float(text) if pattern.fullmatch(text) else math.nan
        if not least <= number <= most:
            raise refused(variable, text, f"give {wanted}")
        return number


def read_dot_env(path: Path) -> None:
    """Add the variables of a file to the environment, which wins; a file that is not there has none.

    :raises ImproperlyConfigured: a line is no ``NAME=value``: a setting would be dropped. What stands in it is not
        repeated, as it may be a password.
    """
    dropped: list[str] = []

    def note(record: logging.LogRecord) -> bool:
        if record.levelno >= logging.WARNING:
            dropped.extend(line for line in map(str, record.args or ()) if line.strip() and line.strip()[0] != "#")
        return False

    logger = logging.getLogger("environ.environ")
    logger.addFilter(note)
    try:
        environ.Env.read_env(path)
    except UnicodeDecodeError:
        raise ImproperlyConfigured(f"{path} is not UTF-8; save it as UTF-8.") from None
    finally:
        logger.removeFilter(note)
    if dropped:
        lines = path.read_text(encoding="utf-8").splitlines()
        numbers = ", ".join(str(number) for number, line in enumerate(lines, 1) if line in dropped)
        raise ImproperlyConfigured(
            f"{path}: not of the form NAME=value, without blanks around '=': line {numbers}. Correct it, or begin it "
            f"with '#'."
        )


def truth(word: str) -> bool | None:
    """Return what ``word`` says, None where it is no word for true or false."""
    word = word.strip().lower()
    return word in _TRUE if word in _TRUE | _FALSE else None


def refused(variable: str, value: str, remedy: str) -> ImproperlyConfigured:
    """Return the error of a variable whose value is no secret."""
    shown = value if len(value) <= _SHOWN else f"{value[:_SHOWN]}…"
    return ImproperlyConfigured(f"{variable} is {shown!r}; {remedy}.")


def _unless_repeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse an object that has a key twice: its first value would be dropped."""
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"it has the key {repeated[:_SHOWN]!r} twice")
    return found


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")
