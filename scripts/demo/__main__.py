"""See the outbox at work: `python -m scripts.demo`, or `make demo`.

From nothing to a checked result: a fresh database, some thousand events, some of them faulty, and a real relay and
consumer on them. On SQLite and the table broker, or on MariaDB and Kafka with --kafka.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

from scripts.demo.errors import DemoError
from scripts.demo.processes import ends_in_order
from scripts.demo.site import serve
from scripts.demo.stage import DEFAULT_DATABASE, DEFAULT_FOLDER, Kind, Stage, new_namespace, only_one


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what is asked for; say what failed and give 1."""
    options = _parser().parse_args(arguments)
    folder: Path = options.folder.resolve()
    try:
        with ends_in_order(), only_one(folder):
            if options.serve:
                serve(folder, port=options.port)
            else:
                _play(options, folder)
    except DemoError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ndemo: stopped", file=sys.stderr)
        return 130
    return 0


def _play(options: argparse.Namespace, folder: Path) -> None:
    stage = Stage(
        folder=folder,
        kind=Kind.KAFKA if options.kafka else Kind.EMBEDDED,
        namespace=new_namespace(),
        database=options.database,
    )
    environment = stage.environment()
    os.environ.clear()
    os.environ.update(environment)
    try:
        import django  # noqa: PLC0415 - first the environment, then Django, then what needs Django
    except ModuleNotFoundError as error:
        raise DemoError(f"{sys.executable} has no Django: `make demo` makes an environment that has.") from error
    django.setup()
    from scripts.demo.performance import run  # noqa: PLC0415

    run(stage, events=options.events, time_limit=timedelta(seconds=options.time_limit))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.demo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--kafka", action="store_true", help="play on MariaDB and Kafka instead of SQLite")
    what.add_argument("--serve", action="store_true", help="serve the admin on the last demo's data, workers running")
    parser.add_argument("--events", type=_positive, default=5000, metavar="N", help="how many (default: %(default)s)")
    parser.add_argument(
        "--time-limit", type=_positive, default=150, metavar="SECONDS", help="give up then (default: %(default)s)"
    )
    parser.add_argument("--port", type=_positive, default=8000, help="port of --serve (default: %(default)s)")
    parser.add_argument(
        "--folder", type=Path, default=DEFAULT_FOLDER, help="where the demo keeps its things (default: build/demo)"
    )
    parser.add_argument(
        "--database",
        default=DEFAULT_DATABASE,
        metavar="NAME",
        help="database that --kafka MAKES ANEW on the MariaDB server (default: %(default)s)",
    )
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
