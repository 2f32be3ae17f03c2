"""What can be said of the images without an engine that builds them."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "deploy" / "docker"


def instructions(kind: str) -> list[tuple[str, str]]:
    """(instruction, arguments) of a Dockerfile, continuation lines joined."""
    text = re.sub(r"\\\n\s*", "", (FOLDER / f"{kind}.Dockerfile").read_text())
    lines = (line for line in text.splitlines() if line and not line.startswith("#"))
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in lines)]


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_an_image_is_built_from_its_lock_and_runs_as_nobody_special(kind: str) -> None:
    found = instructions(kind)
    assert [word for word, _ in found].count("FROM") == 2, "what builds stays behind"
    assert any(word == "RUN" and f"--no-deps -r requirements/{kind}.lock" in rest for word, rest in found)
    assert ("USER", "1000:1000") in found
    assert found.index(("USER", "1000:1000")) > max(at for at, (word, _) in enumerate(found) if word == "COPY")
    assert any(word == "HEALTHCHECK" and "/healthz" in rest for word, rest in found)
    assert not any(word == "ADD" or "curl" in rest for word, rest in found), "nothing is fetched beside the lock"


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_a_lock_takes_the_build_of_torch_that_its_torchvision_matches(kind: str) -> None:
    lines = (ROOT / "requirements" / f"{kind}.lock").read_text().splitlines()
    assert "torch===2.13.0" in lines, "with two `=`, pip and uv may take a build with a local version, such as +cpu"


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_everything_that_is_copied_exists_and_is_let_through(kind: str) -> None:
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for word, rest in instructions(kind):
        if word != "COPY" or "--from" in rest:
            continue
        *sources, _ = [part for part in rest.split() if not part.startswith("--")]
        for source in sources:
            assert (ROOT / source).exists(), source
            assert any(Path(source).match(pattern) or source == pattern for pattern in allowed), source


def test_every_installed_package_is_copied() -> None:
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    copied = {rest.split()[0] for word, rest in instructions("gpu") if word == "COPY"}
    assert {name.split(".")[0] for name in packages} <= copied
