"""`rollmatch report RUN [RUN ...]`: the arguments."""

from __future__ import annotations

import argparse
from pathlib import Path

from deploy.run_files import read_run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run; several are compared")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="HTML file to write (RUN/report.html of the first run)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Writes the page and prints where it is."""
    from deploy.report.page import write_report

    path = arguments.output or arguments.runs[0] / "report.html"
    write_report([read_run(folder) for folder in arguments.runs], path)
    print(path)
    return 0
