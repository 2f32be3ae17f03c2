"""Monitor dumps: the payload of SPEC 18, pages and pictures, written behind the loop and never in its way."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageColor

from actors.loop import TrainedWindow
from actors.outcome import Outcome
from deploy.dumps import clip
from deploy.overlay import COLOURS, Mark, draw_sample, outlines
from deploy.recorder import read_rollouts
from deploy.rollout_log import RolloutLog
from protocol.config import RunConfig, load_config
from protocol.contracts import GroundTruth, MatchedPair, RequestKey, Shape
from protocol.segments import SegmentMeta, SegmentStats
from protocol.serialization import assistant_text
from tests.deploy.rollouts import ROOT, trace_of

CAT = GroundTruth(index=1, desc="red circle", shape=Shape("bbox_2d", (100, 100, 300, 300)))
DOG = GroundTruth(index=2, desc="blue bar", shape=Shape("poly", (500, 500, 700, 700, 500, 700)))
GHOST = GroundTruth(index=2, desc="<green> ghost", shape=Shape("bbox_2d", (800, 800, 900, 900)))
MATCHING = "custom.extra.rollout_matching"
TRAINED = {"rollout/segments": 1.0, "train/epoch": 0.5}


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., RunConfig]:
    def build(*more: str) -> RunConfig:
        overrides = [
            f"training.output_dir={tmp_path}",
            "training.run_name=run",
            f"{MATCHING}.monitor_dump.enabled=true",
        ]
        made = load_config(ROOT / "configs" / "demo.yaml", overrides=[*overrides, *more])
        made.run_dir.mkdir(exist_ok=True)
        return made

    monkeypatch.chdir(ROOT)
    Image.new("RGB", (128, 128), "white").save(tmp_path / "x.png")
    return build


def answered(
    tmp_path: Path,
    record: int,
    text: str | None = None,
    image: str = "x.png",
    truths: tuple[GroundTruth, ...] = (CAT, DOG),
) -> Outcome:
    text = assistant_text([CAT, GHOST]) if text is None else text
    trace = trace_of(record, text, truths=truths, image=str(tmp_path / image))
    described = meta(record, trace.stats)
    return Outcome(key=RequestKey(record), meta=described, trace=trace.encode(), actor="actor-0", latency_s=1.0)


def meta(record: int, stats: SegmentStats | None = None) -> SegmentMeta:
    key, stats = RequestKey(record), stats or SegmentStats()
    return SegmentMeta(key=key, length=9, num_bytes=99, first_version=0, last_version=0, stats=stats)


def train(log: RolloutLog, *records: int, first_step: int = 1, m_steps: int = 1) -> None:
    """The loop trains a window of these records."""
    for step in range(first_step, first_step + m_steps):
        log.step(step, TRAINED | {"rollout/buffer_reuse": float(step > first_step)})
    segments = tuple(meta(record) for record in records)
    log.window(TrainedWindow(first_step=first_step, last_step=first_step + m_steps - 1, version=0, segments=segments))


def test_a_dump_is_written_with_everything_that_the_runbook_names(
    config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    log = RolloutLog(config(f"{MATCHING}.prefix_policy=rollout"))
    log.outcome(answered(tmp_path, 18))
    log.outcome(answered(tmp_path, 17))
    train(log, 17, 18)
    log.close()

    folder = tmp_path / "run" / "monitor_dumps"
    names = ["step_000000.html", "step_000000.json", "step_000000.md", "step_000000_0.png"]
    assert sorted(path.name for path in folder.iterdir()) == names, "max_samples is 1"
    payload = json.loads((folder / "step_000000.json").read_text(encoding="ascii"))
    assert payload["meta"]["maskiou_gate"] == 0.3
    (sample,) = payload["samples"]
    assert sample["match"]["matched_pairs"] == [[0, 0]]
    assert sample["match"]["fn_gt_indices"] == [1]
    assert sample["match"]["fp_pred_indices"] == [1]
    assert (sample["stats"]["precision"], sample["stats"]["recall"], sample["stats"]["f1"]) == (0.5, 0.5, 0.5)
    assert (sample["stats"]["fn_count"], sample["stats"]["matched_maskiou_mean"]) == (1, 1.0)
    assert sample["train_text"] == sample["prefix_text"] + sample["append_text"]
    assert [message["role"] for message in sample["messages"]] == ["system", "user", "assistant"]
    assert "F1 0.500: 1 matches, 2 predictions" in (folder / "step_000000.md").read_text()


def test_the_page_colours_the_masks_escapes_texts_and_names_nothing_outside(
    config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    log = RolloutLog(config(f"{MATCHING}.prefix_policy=rollout"))
    log.outcome(answered(tmp_path, 17))
    train(log, 17)
    log.close()
    page = (tmp_path / "run" / "monitor_dumps" / "step_000000.html").read_text()
    assert '<span class="ignored">blue bar</span>' in page
    assert "&lt;green&gt; ghost" in page
    assert "<green>" not in page
    assert re.findall(r'(?:src|href)="([^"]*)"', page) == ["step_000000_0.png"]


def test_dumps_keep_to_their_schedule_and_their_number(config: Callable[..., RunConfig], tmp_path: Path) -> None:
    more = ("every_steps=2", "dump_first_step=false", "max_events=2", "max_samples=2")
    log = RolloutLog(config(*(f"{MATCHING}.monitor_dump.{each}" for each in more)))
    for step in range(10):
        log.outcome(answered(tmp_path, step))
        log.step(step, {"eval_rollout_f1": 1.0})  # an evaluation dumps nothing, and takes nothing away
        train(log, step, first_step=step + 1)
    log.close()
    folder = tmp_path / "run" / "monitor_dumps"
    dumps = sorted(folder.glob("*.json"))
    assert [path.stem for path in dumps] == ["step_000002", "step_000004"]
    assert {json.loads(path.read_text())["epoch"] for path in dumps} == {TRAINED["train/epoch"]}


def test_a_dump_shows_what_its_window_trained_though_the_next_ones_answers_came_meanwhile(
    config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    log = RolloutLog(config(f"{MATCHING}.monitor_dump.max_samples=4", f"{MATCHING}.monitor_dump.every_steps=1"))
    for record in (0, 1, 2):
        log.outcome(answered(tmp_path, record))
    train(log, 0, 1, m_steps=3)
    log.outcome(answered(tmp_path, 3))
    log.outcome(answered(tmp_path, 4))
    train(log, 2, 3, first_step=4, m_steps=3)
    log.close()
    dumped = {
        path.stem: [sample["base_idx"] for sample in json.loads(path.read_text())["samples"]]
        for path in (tmp_path / "run" / "monitor_dumps").glob("*.json")
    }
    assert dumped == {"step_000000": [0, 1], "step_000003": [2, 3]}, "and none of an M-step"


def test_segments_whose_trace_is_not_there_are_left_out(config: Callable[..., RunConfig], tmp_path: Path) -> None:
    log = RolloutLog(config(f"{MATCHING}.monitor_dump.max_samples=2", f"{MATCHING}.monitor_dump.every_steps=1"))
    log.outcome(answered(tmp_path, 17))
    train(log, 16, 17)
    train(log, 18, first_step=2)
    log.close()
    assert log._writer.take_counters() == {"dump/dropped": 0.0, "dump/failed": 0.0}
    (dump,) = (tmp_path / "run" / "monitor_dumps").glob("*.json")
    assert [sample["base_idx"] for sample in json.loads(dump.read_text())["samples"]] == [17]


def test_nothing_is_kept_for_dumps_where_none_is_to_come(config: Callable[..., RunConfig], tmp_path: Path) -> None:
    log = RolloutLog(config(f"{MATCHING}.monitor_dump.max_events=1"))
    for step in range(3):
        log.outcome(answered(tmp_path, step))
        log.outcome(answered(tmp_path, 100 + step))
        train(log, step, first_step=step + 1)
    assert not log._untrained
    log.close()


def test_only_what_a_window_may_still_train_is_kept(config: Callable[..., RunConfig], tmp_path: Path) -> None:
    """However long the run: records that fail, evaluations and trained segments do not pile up."""
    log = RolloutLog(config(f"{MATCHING}.monitor_dump.max_events=0"))
    for step in range(3):
        log.outcome(replace(answered(tmp_path, 100 + step), meta=None, failure="Oversize: x: too long"))
        log.evaluated(answered(tmp_path, 200 + step))
        log.outcome(answered(tmp_path, step))
        assert list(log._untrained) == [RequestKey(step)]
        train(log, step, first_step=step + 1)
    assert not log._untrained
    log.close()


def test_a_run_that_goes_back_forgets_the_window_that_it_was_in(
    config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    log = RolloutLog(config())
    log.outcome(answered(tmp_path, 17))
    log.outcome(answered(tmp_path, 18))
    log.step(1, TRAINED | {"train/epoch": 7.0})
    log.rewind(0)
    assert not log._untrained
    log.outcome(answered(tmp_path, 17))
    train(log, 17)
    log.close()
    payload = json.loads((tmp_path / "run" / "monitor_dumps" / "step_000000.json").read_text())
    assert payload["epoch"] == TRAINED["train/epoch"]


def test_a_dump_says_what_generating_its_window_took_though_m_steps_generated_nothing(
    config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    log = RolloutLog(config())
    log.outcome(answered(tmp_path, 17))
    log.step(1, TRAINED | {"time/rollout_generate_s": 20.0})
    log.step(2, TRAINED | {"time/rollout_generate_s": 0.0})
    log.window(TrainedWindow(first_step=1, last_step=2, version=0, segments=(meta(17),)))
    log.close()
    payload = json.loads((tmp_path / "run" / "monitor_dumps" / "step_000000.json").read_text())
    assert payload["meta"]["rollout_generate_s"] == 20.0


def test_nothing_is_dumped_where_dumps_are_switched_off(config: Callable[..., RunConfig], tmp_path: Path) -> None:
    log = RolloutLog(config(f"{MATCHING}.monitor_dump.enabled=false"))
    log.outcome(answered(tmp_path, 17))
    train(log, 17)
    log.close()
    assert not (tmp_path / "run" / "monitor_dumps").exists()


def test_rollouts_that_no_step_follows_are_recorded_at_the_end(
    config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    log = RolloutLog(config())
    log.outcome(answered(tmp_path, 17))
    log.step(1, TRAINED)
    log.outcome(answered(tmp_path, 18))
    log.close()
    found = [(rollout.trace.key.record, rollout.step) for rollout in read_rollouts(tmp_path / "run")]
    assert found == [(17, 0), (18, 1)]


def test_long_texts_are_clipped_and_say_so(config: Callable[..., RunConfig], tmp_path: Path) -> None:
    log = RolloutLog(
        config(f"{MATCHING}.monitor_dump.max_text_chars=10", f"{MATCHING}.monitor_dump.write_markdown=false")
    )
    log.outcome(answered(tmp_path, 17))
    train(log, 17)
    log.close()
    folder = tmp_path / "run" / "monitor_dumps"
    assert not list(folder.glob("*.md"))
    (sample,) = json.loads((folder / "step_000000.json").read_text())["samples"]
    assert re.fullmatch(r".{10}\.\.\. \[[0-9]+ more characters\]", sample["rollout_text"])


def test_a_sample_in_which_there_is_nothing_has_rates_of_zero(config: Callable[..., RunConfig], tmp_path: Path) -> None:
    log = RolloutLog(config())
    log.outcome(answered(tmp_path, 17, text=assistant_text([]), truths=()))
    train(log, 17)
    log.close()
    (sample,) = json.loads((tmp_path / "run" / "monitor_dumps" / "step_000000.json").read_text())["samples"]
    assert {sample["stats"][name] for name in ("precision", "recall", "f1", "matched_maskiou_mean")} == {0.0}


def test_a_text_that_just_fits_is_whole() -> None:
    assert [clip("text", most) for most in (4, 3)] == ["text", "tex... [1 more characters]"]


def test_a_dump_that_fails_is_counted_and_training_data_are_still_recorded(
    config: Callable[..., RunConfig], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = RolloutLog(config())
    log.outcome(answered(tmp_path, 17, image="gone.png"))
    train(log, 17)
    log.close()
    assert log._writer.take_counters()["dump/failed"] == 1.0
    assert "could not write the monitor dump of step 0" in caplog.text
    assert (tmp_path / "run" / "rollouts.jsonl").read_text().count("\n") == 1


def test_the_first_parse_failures_of_each_actor_are_logged_with_their_place(
    config: Callable[..., RunConfig], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for wanted in ("true", "false"):
        log = RolloutLog(config(f"{MATCHING}.debug_dump_parse_failures={wanted}", f"{MATCHING}.debug_dump_max=2"))
        log.outcome(answered(tmp_path, 1))
        for record in (2, 3, 4):
            log.outcome(answered(tmp_path, record, text='{"object_1": {"desc": ""}'))
        log.close()
    failures = [line for line in caplog.messages if "debug_dump_parse_failures" in line]
    assert [line.partition("/")[0] for line in failures] == ["record=2", "record=3"]
    assert all("^^^" in line for line in failures)


WHOLE = assistant_text([CAT])


@pytest.mark.parametrize("text", [WHOLE.replace(CAT.desc, ""), WHOLE[:-1], WHOLE])
@pytest.mark.parametrize("is_segment", [True, False])
def test_an_answer_that_was_refused_in_part_or_cut_off_is_a_parse_failure(
    config: Callable[..., RunConfig], tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str, is_segment: bool
) -> None:
    outcome = answered(tmp_path, 2, text=text)
    assert outcome.meta is not None
    stats = outcome.meta.stats
    assert (stats.parse_dropped_invalid, stats.parse_truncated) == (CAT.desc not in text, text == WHOLE[:-1])
    log = RolloutLog(config(f"{MATCHING}.debug_dump_parse_failures=true"))
    log.outcome(outcome if is_segment else replace(outcome, meta=None, failure="Oversize: x: too long"))
    log.close()
    assert [line.startswith("record=2/") for line in caplog.messages] == ([] if text == WHOLE else [True])


def test_every_mark_has_its_colour_in_the_picture(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64), "white").save(tmp_path / "x.png")
    far = GroundTruth(index=3, desc="x", shape=Shape("bbox_2d", (20, 500, 120, 600)))
    predicted = [(CAT.desc, Shape("bbox_2d", (110, 120, 320, 310))), (GHOST.desc, GHOST.shape)]
    drawn = outlines((CAT, DOG, far), predicted, [MatchedPair(0, 0, 0.9)])
    assert [each.mark for each in drawn] == [Mark.FOUND, Mark.MISSED, Mark.MISSED, Mark.MATCHED, Mark.SPURIOUS]
    page = draw_sample(tmp_path / "x.png", drawn, width=600)
    image = page.crop((0, 0, 600, 600))  # without the legend
    colours: Any = {colour for _, colour in image.getcolors(1 << 20) or []}
    assert {ImageColor.getrgb(COLOURS[mark]) for mark in Mark} <= colours
