"""The documentation's commands run as they are printed: every block that is marked ```bash run."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

pytestmark = pytest.mark.integration
ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted({*(ROOT / "docs").glob("*.md"), ROOT / "README.md"})
BLOCK = re.compile(r"^ *```bash run\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
RUNNABLE = [page for page in PAGES if BLOCK.search(page.read_text())]


def write_coco(folder: Path) -> None:
    """Two instance files with a few flat pictures of 640x480, as a user's own would lie there."""
    (folder / "images").mkdir(parents=True)
    for split, count in (("train", 8), ("val", 2)):
        images, annotations = [], []
        for number in range(count):
            name = f"{split}-{number}.jpg"
            Image.new("RGB", (640, 480), (200, 20 * number, 90)).save(folder / "images" / name)
            images.append({"id": number, "file_name": name, "width": 640, "height": 480})
            box = {"id": number, "image_id": number, "category_id": 1, "iscrowd": 0, "area": 4000}
            annotations.append(box | {"bbox": [10 + number, 20, 50, 80]})
        content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cell"}]}
        (folder / f"instances_{split}.json").write_text(json.dumps(content))


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder that looks like the checkout, where commands may write."""
    for name in ("configs", "deploy", "docs"):
        (tmp_path / name).symlink_to(ROOT / name)
    bin_folder = tmp_path / ".venv" / "bin"
    bin_folder.mkdir(parents=True)
    command = bin_folder / "rollmatch"
    command.write_text(f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{sys.executable}" -m deploy.cli "$@"\n')
    command.chmod(0o755)
    write_coco(tmp_path / "coco")
    return tmp_path


@pytest.mark.parametrize("page", RUNNABLE, ids=lambda page: page.name)
def test_the_commands_of_a_page_run_as_they_are_printed(page: Path, checkout: Path) -> None:
    environment = os.environ | {
        "PATH": f"{checkout / '.venv' / 'bin'}:{os.environ['PATH']}",
        "COCO": str(checkout / "coco"),
    }
    for block in BLOCK.findall(page.read_text()):
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block],
            cwd=checkout,
            env=environment,
            text=True,
            capture_output=True,
            timeout=300,
        )
        assert done.returncode == 0, f"{page.name}:\n{block}\n{done.stdout}\n{done.stderr}"


def test_some_pages_have_commands_that_run() -> None:
    assert {"tutorial.md", "cluster.md", "sizing.md", "kueue.md"} <= {page.name for page in RUNNABLE}
