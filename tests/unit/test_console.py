"""What commands show: plain lines of any length in a pipe, colours and a bar on a terminal."""

from __future__ import annotations

from io import StringIO

import pytest
from rich.text import Text

from outbox.management.console import console_on, progress, show, table


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _of_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)


def rows() -> list[tuple[str | Text, ...]]:
    return [("a", "1", ""), (Text("longer", "bold red"), "1,000", "x" * 500)]


def shown(out: StringIO, *, color: bool | None = None) -> str:
    show(console_on(out, color=color), table(("NAME", "N", "NOTE"), rows(), right=("N",)), "y [red]" * 100)
    return out.getvalue()


@pytest.mark.parametrize("variable", ["FORCE_COLOR", "TTY_COMPATIBLE"])
def test_pipe_gets_whole_plain_lines_whatever_the_environment_says(
    monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, "1")
    assert shown(StringIO()) == (
        f"NAME        N  NOTE\na           1\nlonger  1,000  {'x' * 500}\n{('y [red]' * 100)}\n"
    )


@pytest.mark.parametrize(("columns", "longest"), [("60", 60), ("40", 45)])
def test_terminal_gets_colours_and_a_column_of_several_lines(
    monkeypatch: pytest.MonkeyPatch, columns: str, longest: int
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    text = shown(Terminal())
    assert "\x1b[1;31mlonger\x1b[0m" in text
    *lines, last = Text.from_ansi(text).plain.rstrip("\n").split("\n")
    assert max(map(len, lines)) == longest
    assert "".join(lines).count("x") == 500, "folded, and nothing is cut"
    assert last == "y [red]" * 100, "the terminal itself breaks what is no table"


def test_options_of_the_command_overrule_what_the_output_is() -> None:
    assert "\x1b[1;31mlonger\x1b[0m" in shown(StringIO(), color=True)
    assert "\x1b" not in shown(Terminal(), color=False)


def test_bar_is_drawn_on_a_terminal_with_what_is_printed_meanwhile() -> None:
    out = Terminal()
    console = console_on(out)
    with progress(console, "rows", 2, is_still=True) as draw:
        draw(1)
        show(console, "meanwhile")
        draw(2)
    assert "1/2" in out.getvalue()
    assert "2/2" in out.getvalue()
    assert "meanwhile\n" in out.getvalue()


def test_bar_is_not_drawn_in_a_pipe() -> None:
    out = StringIO()
    console = console_on(out)
    with progress(console, "rows", 2) as draw:
        draw(1)
        show(console, "meanwhile")
    assert out.getvalue() == "meanwhile\n"
