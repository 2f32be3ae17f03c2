"""The report: one file that holds everything, names nothing outside, and says what the numbers mean."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from deploy.cli import main
from deploy.recorder import EVALUATIONS, RecordedRollout
from deploy.report.page import render
from deploy.report.samples import best_and_worst, first_and_last
from deploy.report.timeline import lane_shares, timeline_figure
from deploy.run_files import read_run
from protocol.contracts import Shape
from protocol.serialization import assistant_text
from tests.deploy.rollouts import ROOT, trace_of
from tests.deploy.runs import CAT, DOG, START, write_run


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def outside_plotly(page: str) -> str:
    """The page without the library's own script."""
    head, _, rest = page.partition("<script>")
    return head + rest.partition("</script>")[2]


def figures(page: str) -> dict[str, dict[str, list[dict[str, object]]]]:
    found = re.search(r"^const figures = (.*);$", page, re.MULTILINE)
    assert found is not None
    made: dict[str, dict[str, list[dict[str, object]]]] = json.loads(found[1].replace("NaN", "null"))
    return made


def test_a_report_is_one_file_without_an_address_outside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "one")
    assert main(["report", str(run)]) == 0
    assert capsys.readouterr().out.strip() == str(run / "report.html")
    page = (run / "report.html").read_text()
    assert not re.findall(r"https?://", outside_plotly(page))
    assert page.count("<script>") == 2
    assert "default-src 'none'" in page
    links = re.findall(r'(?:src|href)="([^"]{0,9})', outside_plotly(page))
    assert {link[:5] for link in links} <= {"data:", "#summ", "#curv", "#time", "#samp", "#sett"}


def test_the_summary_says_what_happened_in_words(tmp_path: Path) -> None:
    page = render([read_run(write_run(tmp_path / "one", truncated=0.37))])
    assert "0.500 → 0.700" in page
    assert "Truncation rose from 0 % to 37 % after step 10: raise max_new_tokens or the guard" in page
    assert ">finished<" in page
    assert ">1 to act on<" in page
    assert re.search(r'Rollouts trained</div><div class="value">160<', page)
    assert "packages" in page
    assert "torch" in page


def test_f1_is_said_to_be_by_shape_and_descriptions_have_a_number_and_a_curve_of_their_own(tmp_path: Path) -> None:
    run = write_run(tmp_path / "one")
    page = render([read_run(run)])
    assert "by shape; +0.200; best 0.700" in page
    assert re.search(r'Exact descriptions</div><div class="value">0\.44 → 0\.40<', page)
    (curve,) = figures(page)["descs"]["data"]
    assert (curve["name"], curve["x"], curve["y"]) == ("evaluation", [0, 20], [0.44, 0.4])
    text = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(
        text.replace('"eval_rollout_desc_pairs_total": 9.0', '"eval_rollout_desc_pairs_total": 0')
    )
    assert "Exact descriptions" not in render([read_run(run)]), "a share of no pairs is none"


def test_texts_from_data_are_escaped(tmp_path: Path) -> None:
    page = render([read_run(write_run(tmp_path / "one"))])
    assert "red &lt;circle&gt;" in page
    assert "red <circle>" not in page


def test_samples_show_the_worst_and_the_best_and_say_what_is_missing(tmp_path: Path) -> None:
    run = write_run(tmp_path / "one")
    page = render([read_run(run)])
    assert page.count("data:image/jpeg;base64,") == 6 + 8
    assert f"rollmatch replay --run {run} --key record=6/epoch=0/rollout=0" in page
    (run / "x.png").unlink()
    without = render([read_run(run)])
    assert "data:image/jpeg" not in without
    assert "No picture: " in without


def test_of_equal_scores_the_better_shapes_and_then_the_right_words_are_the_best(tmp_path: Path) -> None:
    run = write_run(tmp_path / "one")
    loose = replace(CAT, shape=Shape("bbox_2d", (100, 100, 300, 250)))
    third = replace(DOG, index=3, shape=Shape("bbox_2d", (800, 800, 950, 950)))
    other_word = [replace(CAT, desc="a bar"), DOG, third]
    answers = [([loose], (CAT,)), (other_word, (CAT, DOG, third)), ([CAT, DOG], (CAT, DOG)), ([CAT], (CAT,))]
    rollouts = [
        RecordedRollout(step=at, time=START, actor="actor-0", latency_s=1.0, encoded=trace.encode())
        for at, (said, truths) in enumerate(answers)
        for trace in [trace_of(at, assistant_text(said), truths=truths, image=str(run / "x.png"))]
    ]
    data = replace(read_run(run), rollouts=[*rollouts, *rollouts])
    best, _ = best_and_worst(data, count=4)
    assert [sample.title for sample in best] == ["t:3", "t:4", "t:2", "t:1"]
    assert "mean maskIoU 1.00, 2 described exactly" in best[2].facts
    assert "mean maskIoU 0.75, 1 described exactly" in best[3].facts


def test_the_same_images_are_shown_at_the_first_and_the_last_evaluation(tmp_path: Path) -> None:
    run = write_run(tmp_path / "one", steps=20)
    pairs = first_and_last(read_run(run))
    assert [before.trace.key.record for before, _ in pairs] == [0, 1, 2, 3]
    assert all(before.trace.key == after.trace.key for before, after in pairs)
    assert all((before.trace.f1, after.trace.f1) == (0.0, 1.0) for before, after in pairs)
    page = render([read_run(run)])
    assert "The same images before and after" in page
    assert f"rollmatch replay --run {run} --key record=0/epoch=-1/rollout=0 --step 20" in page


def test_answers_of_an_evaluation_that_a_resume_took_back_are_not_the_last(tmp_path: Path) -> None:
    run = write_run(tmp_path / "one", steps=20)
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(lines[:-1]))
    assert first_and_last(read_run(run)) == []


def test_the_same_images_are_one_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, picture = write_run(tmp_path / "one"), tmp_path / "new" / "a.png"
    assert main(["report", str(run), "--picture", str(picture)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(picture)
    with Image.open(picture) as image:
        assert image.width > image.height > 2 * 360
    assert main(["report", str(run), "--picture", str(picture.with_suffix(".gif"))]) == 2
    assert "write one of .png" in capsys.readouterr().err
    (run / EVALUATIONS).unlink()
    assert main(["report", str(run), "--picture", str(picture)]) == 2
    assert "has no two evaluations whose answers were kept" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["-o", "--picture"])
def test_a_target_that_is_no_file_is_refused_with_its_option(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    run = write_run(tmp_path / "one")
    (tmp_path / "a.png").mkdir()
    for target, words in ((tmp_path / "a.png", "is a folder"), (run / "x.png" / "b.png", "x.png is no folder")):
        assert main(["report", str(run), option, str(target)]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"rollmatch: {option}: ")
        assert words in error
    assert not (run / "report.html").exists()


def test_an_evaluations_folder_has_a_report_of_its_answers(tmp_path: Path) -> None:
    run = write_run(tmp_path / "one")
    (run / "rollouts.jsonl").unlink()
    lines = (run / EVALUATIONS).read_text().splitlines(keepends=True)
    (run / EVALUATIONS).write_text("".join(line for line in lines if line.startswith('{"step": 20,')))
    page = render([read_run(run)])
    assert "of the evaluated answers" in page
    assert "The same images" not in page
    assert page.count("data:image/jpeg;base64,") == 5


def test_a_run_without_its_model_still_has_a_report(tmp_path: Path) -> None:
    run = write_run(tmp_path / "one")
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(re.sub(r"(?m)^  model: .*$", "  model: /gone", text))
    page = render([read_run(run)])
    assert "Targets are not shown: model.model: /gone/tokenizer.json is missing" in page


def test_several_runs_are_compared_line_by_line_and_setting_by_setting(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name, training__learning_rate=rate) for name, rate in (("a", 1e-4), ("b", 2e-4))]
    page = render([read_run(run) for run in runs])
    names = [trace["name"] for trace in figures(page)["f1"]["data"]]
    assert names == ["a", "b", "a: evaluation", "b: evaluation"]
    assert re.search(r"training\.learning_rate</code></td><td><code>0\.0001</code></td><td><code>0\.0002", page)
    assert "training.weight_decay</code>" not in page
    assert re.search(r"F1, evaluation</td><td[^>]*>0\.500 → 0\.700</td><td[^>]*>0\.500 → 0\.700</td>", page)


def test_the_timeline_has_a_lane_for_the_driver_each_actor_and_each_rank(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "one"))
    figure = timeline_figure(run)
    assert figure is not None
    assert figure["layout"]["yaxis"]["categoryarray"] == ["rank-1", "rank-0", "actor-1", "actor-0", "driver"]
    shares = {share.lane: round(share.busy, 2) for share in lane_shares(run)}
    assert shares == {"actor-0": 0.62, "actor-1": 0.4, "rank-0": 0.35, "rank-1": 0.15}


def test_busy_shares_leave_out_the_time_in_which_nothing_is_trained(tmp_path: Path) -> None:
    run = write_run(tmp_path / "one")
    span = {"time": START + 400, "kind": "span", "lane": "driver", "name": "evaluate"}
    with (run / "events.jsonl").open("a") as events:
        events.write(json.dumps(span | {"start": START + 200, "end": START + 400}) + "\n")
    shares = {share.lane: round(share.busy, 2) for share in lane_shares(read_run(run))}
    assert shares == {"actor-0": 0.62, "actor-1": 0.4, "rank-0": 0.35, "rank-1": 0.15}


def test_busy_shares_leave_out_the_time_between_a_crash_and_the_resume(tmp_path: Path) -> None:
    run = write_run(tmp_path / "one")
    busy = [share.busy for share in lane_shares(read_run(run))]
    lines = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    later = [
        {name: value + 3 * 86400 if name in ("time", "start", "end") else value for name, value in line.items()}
        for line in lines
        if line["kind"] in ("span", "optimizer_step")
    ]
    with (run / "events.jsonl").open("a") as events:
        events.writelines(json.dumps(line) + "\n" for line in later)
    assert [share.busy for share in lane_shares(read_run(run))] == pytest.approx(busy, abs=0.05)


def test_staleness_is_drawn_where_it_may_be_above_0(tmp_path: Path) -> None:
    on_policy, overlapped = (
        render([read_run(write_run(tmp_path / name, rollout__max_staleness=bound))])
        for name, bound in (("a", 0), ("b", 1))
    )
    assert "staleness" not in figures(on_policy)
    assert "staleness" in figures(overlapped)


def test_what_trains_descriptions_is_said_as_the_run_is_set(tmp_path: Path) -> None:
    settings = {"custom__extra__rollout_matching__teach_format": True}
    plain, taught = read_run(write_run(tmp_path / "a")), read_run(write_run(tmp_path / "b", **settings))
    assert "Lines: the desc monitor. No loss trains them." in render([plain])
    for page in (render([taught]), render([plain, taught])):
        assert "Lines: the desc monitor. Only where teach_format finds nothing to keep a loss trains them." in page


def test_a_run_that_only_began_can_be_looked_at(tmp_path: Path) -> None:
    run = tmp_path / "young"
    run.mkdir()
    (run / "metrics.jsonl").write_text("")
    page = render([read_run(run)])
    assert "No optimizer step yet" in page
    assert "recorded no rollouts" in page


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path)]) == 2
    assert "holds no metrics.jsonl" in capsys.readouterr().err


def test_of_a_step_that_was_repeated_after_a_crash_the_later_line_counts(tmp_path: Path) -> None:
    run = write_run(tmp_path / "one", steps=4)
    with (run / "metrics.jsonl").open("a") as lines:
        lines.write(json.dumps({"step": 3, "time": 1.0, "loss/total": 9.0}) + "\n" + '{"step": 4, "ti')
    assert read_run(run).series("loss/total") == ([1, 2, 3, 4], [2.75, 2.5, 9.0, 2.0])
