"""`rollmatch report RUN [RUN ...]`: the arguments."""

from __future__ import annotations

import argparse
from pathlib import Path

from deploy.run_files import read_run
from protocol.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run; several are compared")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="HTML file to write (RUN/report.html of the first run)"
    )
    parser.add_argument(
        "--picture",
        type=Path,
        metavar="FILE",
        help="also draw the same validation images at the first run's first and last evaluation (.png, .jpg)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Writes the page and prints where it is."""
    from deploy.report.page import write_report
    from deploy.report.picture import write_picture

    for option, file in (("-o", arguments.output), ("--picture", arguments.picture)):
        if file is not None:
            _require_file(option, file)
    path = arguments.output or arguments.runs[0] / "report.html"
    runs = [read_run(folder) for folder in arguments.runs]
    write_report(runs, path)
    print(path)
    if arguments.picture is not None:
        write_picture(runs[0], arguments.picture, columns=4)
        print(arguments.picture)
    return 0


def _require_file(option: str, path: Path) -> None:
    """ConfigError where no file can be written, before anything is read or drawn."""
    if path.is_dir():
        raise ConfigError(f"{option}: {path} is a folder; name the file to write, in it or elsewhere")
    taken = next((parent for parent in path.parents if parent.exists()), path)
    if not taken.is_dir():
        raise ConfigError(f"{option}: {taken} is no folder, and {path} is to lie below it; name another file")
