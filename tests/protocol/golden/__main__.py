"""Command line of the golden harness; the last line is `N passed, M failed`, the exit status says whether M is 0."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tests.protocol.golden.runner import COMMITTED_CASES, load_cases, report


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.protocol.golden", description=__doc__)
    parser.add_argument("file", nargs="?", type=Path, default=COMMITTED_CASES, help="JSON list of cases")
    parser.add_argument("--only", metavar="AREA", help="run the cases of this area only")
    options = parser.parse_args()
    return 1 if report(load_cases(options.file, options.only)) else 0


if __name__ == "__main__":
    sys.exit(main())
