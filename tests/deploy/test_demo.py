"""The demo's data and model: what the documents say of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from actors.codec import HubCodec
from actors.rollout_actor import load_processor
from deploy.demo.scenes import SceneSettings, draw_scene, write_scenes
from deploy.demo.text import answer_text
from protocol.parsing import parse
from protocol.records import RecordFile
from protocol.serialization import assistant_text

MODEL = Path(__file__).resolve().parents[2] / "deploy" / "demo" / "model"


def test_a_scene_is_a_function_of_seed_and_index() -> None:
    first, again, other = draw_scene(3, 5), draw_scene(3, 5), draw_scene(3, 6)
    assert first.objects == again.objects
    assert first.image.tobytes() == again.image.tobytes()
    assert first.image.tobytes() != other.image.tobytes()


def test_objects_lie_inside_and_do_not_overlap() -> None:
    for index in range(100):
        scene = draw_scene(3, index, SceneSettings(max_objects=8))
        assert 1 <= len(scene.objects) <= 8
        boxes = [
            (min(o.points[::2]), min(o.points[1::2]), max(o.points[::2]), max(o.points[1::2])) for o in scene.objects
        ]
        for at, box in enumerate(boxes):
            assert 0 <= box[0] < box[2] <= 128
            assert 0 <= box[1] < box[3] <= 128
            for left, top, right, bottom in boxes[:at]:
                assert box[0] >= right or left >= box[2] or box[1] >= bottom or top >= box[3]


def test_more_than_eight_objects_are_refused() -> None:
    with pytest.raises(ValueError, match="max_objects"):
        SceneSettings(max_objects=9)


def test_written_scenes_read_back_as_records_with_the_text_the_model_was_trained_on(tmp_path: Path) -> None:
    records = list(RecordFile(write_scenes(tmp_path, "train", 40, seed=3)))
    for index, record in enumerate(records):
        assert assistant_text(record.objects) == answer_text(draw_scene(3, index).objects)
        assert Path(record.images[0]).exists()
    assert {truth.shape.geometry for record in records for truth in record.objects} == {"bbox_2d", "poly"}


def test_a_finished_data_set_is_not_drawn_again(tmp_path: Path) -> None:
    path = write_scenes(tmp_path, "train", 3, seed=3)
    before = path.stat().st_mtime_ns
    assert write_scenes(tmp_path, "train", 3, seed=3).stat().st_mtime_ns == before


def test_the_model_is_small_and_comes_with_its_training_log() -> None:
    assert sum(path.stat().st_size for path in MODEL.iterdir()) < 16 * 2**20
    stages = [json.loads(line)["stage"] for line in (MODEL / "training_log.jsonl").read_text().splitlines()]
    assert stages[0] == "complete"
    assert stages[-1] == "incomplete"


def test_its_tokenizer_cuts_canonical_text_where_qwens_does() -> None:
    codec = HubCodec(load_processor(str(MODEL)).tokenizer)
    text = (
        '{"object_1": {"desc": "red bar", "bbox_2d": ["<|coord_1|>", "<|coord_2|>", "<|coord_3|>", "<|coord_999|>"]}}'
    )
    ids = codec.encode(text)
    pieces = [codec.piece(token_id) for token_id in ids]

    assert "".join(pieces) == text
    assert pieces[:6] == ['{"', "object", "_", "1", '":', ' {"']
    assert pieces[-3:] == ["<|coord_999|>", '"]', "}}"], "the last two braces are one token: a cut falls inside it"
    (found,) = parse(ids, codec).predictions
    assert found.shape.bins == (1, 2, 3, 999)
