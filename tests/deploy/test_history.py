"""A resumed run's files hold what its checkpoint covers, and what happened to the run itself."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from deploy.history import FILES, cut_back, lengths
from protocol.errors import ConfigError


def append(path: Path, *lines: dict[str, Any]) -> None:
    with path.open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_lines_after_the_checkpoint_go_and_what_happened_to_the_run_stays(tmp_path: Path) -> None:
    events, metrics = tmp_path / "events.jsonl", tmp_path / "metrics.jsonl"
    append(events, {"kind": "publish", "version": 1})
    append(metrics, {"step": 1})
    covered = lengths(tmp_path)
    append(events, {"kind": "publish", "version": 2}, {"kind": "restart"}, {"kind": "end"})
    append(metrics, {"step": 2}, {"step": 1, "train/restarts": 1})
    append(tmp_path / "quarantine.jsonl", {"key": "a"})
    cut_back(tmp_path, covered)
    cut_back(tmp_path, covered)

    assert read(events) == [{"kind": "publish", "version": 1}, {"kind": "restart"}, {"kind": "end"}]
    assert read(metrics) == [{"step": 1}, {"step": 1, "train/restarts": 1}]
    assert read(tmp_path / "quarantine.jsonl") == []


def test_what_happened_to_the_run_before_the_checkpoint_is_not_told_twice(tmp_path: Path) -> None:
    events = tmp_path / "events.jsonl"
    append(events, {"kind": "restart", "actor": "a"}, {"kind": "resume"}, {"kind": "publish"})
    covered = lengths(tmp_path)
    append(events, {"kind": "publish"}, {"kind": "restart", "actor": "b"})
    cut_back(tmp_path, covered)
    assert [line.get("actor", line["kind"]) for line in read(events)] == ["a", "resume", "publish", "b"]


def test_what_a_checkpoint_counts_on_is_on_disk_before_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in FILES:
        append(tmp_path / name, {"kind": "publish"})
    synced = []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name))
    lengths(tmp_path)
    assert sorted(synced) == sorted(FILES)


def test_a_writer_that_is_open_goes_on_behind_the_cut(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    with path.open("a") as file:
        file.write("1\n2\n")
        file.flush()
        cut_back(tmp_path, {"ledger.jsonl": 2})
        file.write("3\n")
    assert path.read_text() == "1\n3\n"


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_shorter_than_remembered_is_refused_before_any_is_cut(tmp_path: Path, name: str) -> None:
    for file in FILES:
        append(tmp_path / file, {"kind": "publish"}, {"kind": "publish"})
    covered = lengths(tmp_path) | {name: 10_000}
    with pytest.raises(ConfigError, match=rf"training\.resume: .*{name} holds \d+ bytes, and 10000 when"):
        cut_back(tmp_path, covered | {file: 0 for file in FILES if file != name})
    assert all(len(read(tmp_path / file)) == 2 for file in FILES)


@pytest.mark.parametrize("name", FILES)
def test_a_file_in_which_no_line_ends_there_is_refused_before_any_is_cut(tmp_path: Path, name: str) -> None:
    for file in FILES:
        append(tmp_path / file, {"kind": "publish"}, {"kind": "publish"})
    covered = lengths(tmp_path)
    for wrong in (covered[name] - 1, covered[name] // 2 + 1):
        with pytest.raises(ConfigError, match=rf"training\.resume: .*{name} is not .*: no line ends at byte {wrong};"):
            cut_back(tmp_path, {file: covered[file] // 2 for file in FILES} | {name: wrong})
    assert all(len(read(tmp_path / file)) == 2 for file in FILES)
