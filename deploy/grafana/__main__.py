"""`python -m deploy.grafana`: writes the dashboards beside this file."""

from __future__ import annotations

import json
from pathlib import Path

from deploy.grafana.dashboards import dashboards

FOLDER = Path(__file__).parent


def main() -> None:
    for name, board in dashboards().items():
        (FOLDER / f"{name}.json").write_text(as_text(board), encoding="utf-8")


def as_text(board: dict[str, object]) -> str:
    """A dashboard as it is committed."""
    return json.dumps(board, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    main()
