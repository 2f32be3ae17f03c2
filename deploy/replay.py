"""`rollmatch replay`: one rollout through parse → match → target again, with every decision shown.

    rollmatch replay --run runs/demo --key record=17/epoch=0
    rollmatch replay --run runs/demo --key record=17/epoch=0 custom.extra.rollout_matching.maskiou_gate=0.5
    rollmatch replay --run runs/demo --key record=3/epoch=-1 --step 0         (an evaluation's)
    rollmatch replay --json answer.json --config configs/demo.yaml

A JSON file holds `text` or `token_ids`, and the ground truth as records have it:

    {"text": "{\\"object_1\\": ...}", "objects": [{"desc": "cat", "bbox_2d": [1, 2, 30, 40]}]}

Needs the run's folder and the checkpoint's tokenizer.json; no engine, no cluster, no pixels.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from actors.settings import ActorSettings
from deploy.file_codec import load_codec
from deploy.recorder import RecordedRollout, find_rollout
from protocol.config import RunConfig, load_config
from protocol.contracts import RequestKey
from protocol.errors import ConfigError, RecordError
from protocol.record_lines import parse_record
from protocol.replay import Answer, Replay, replay
from protocol.traces import RolloutTrace
from protocol.vocab import END_OF_TURN, NUM_BINS, TokenCodec

AGAIN = (
    "matched_for_supervision",
    "fn_appended",
    "prefix_len",
    "train_len",
    "encoded_len",
    "prefix_coord_targets",
    "tail_ignored",
)
"""Counters of a target that a replay under the run's settings gives again."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--run", dest="run_dir", type=Path, metavar="RUN", help="folder of a run that recorded its rollouts"
    )
    what.add_argument("--json", type=Path, metavar="FILE", help='an answer: {"text" or "token_ids", "objects"}')
    parser.add_argument("--key", help="which rollout of the run: record=17/epoch=0 (rollout=0 if not given)")
    parser.add_argument(
        "--step", type=int, help="of several with this key, such as evaluations: of this step, else the last"
    )
    parser.add_argument("--config", type=Path, help="run file to replay with; for --run its own if not given")
    parser.add_argument("--pairs", type=int, default=40, metavar="N", help="most candidate pairs shown (default 40)")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="other settings: custom.extra.rollout_matching.maskiou_gate=0.5",
    )


def run(arguments: argparse.Namespace) -> int:
    """Prints the replay."""
    from deploy.replay_view import print_replay

    config = _config(arguments)
    codec = load_codec(config.model.model)
    if arguments.run_dir is None:
        answer = read_answer(arguments.json, codec)
        print_replay(replay_answer(answer, config, codec), config, str(arguments.json), max_pairs=arguments.pairs)
    else:
        found = _recorded(arguments)
        seen, about = (
            replay_answer(found.trace, config, codec),
            f"{arguments.run_dir}, step {found.step}, {found.actor}",
        )
        print_replay(seen, config, about, found.trace, max_pairs=arguments.pairs)
    return 0


def replay_answer(answer: Answer | RolloutTrace, config: RunConfig, codec: TokenCodec) -> Replay:
    """The answer under a run's settings."""
    settings = ActorSettings.from_config(config)
    return replay(answer, codec, settings.match, settings.target)


def difference(seen: Replay, trace: RolloutTrace) -> str:
    """How the replay differs from what the run made of the answer; empty where it does not."""
    if len(seen.parsed.predictions) != len(trace.predictions) or seen.match.pairs != trace.pairs:
        return f"differs from the run, which matched {len(trace.pairs)} of {len(trace.predictions)} predictions"
    then, now = asdict(trace.stats), asdict(seen.target.stats)
    changed = [f"{name} {then[name]} → {now[name]}" for name in AGAIN if then[name] != now[name]]
    return f"differs from the run, whose settings were others: {', '.join(changed)}" if changed else ""


def _config(arguments: argparse.Namespace) -> RunConfig:
    path = arguments.config
    if path is None:
        if arguments.run_dir is None:
            raise ConfigError("--config: is missing; an answer from a JSON file is replayed with a run file's settings")
        path = arguments.run_dir / "config.yaml"
    return load_config(path, overrides=arguments.overrides)


def _recorded(arguments: argparse.Namespace) -> RecordedRollout:
    if arguments.key is None:
        raise ConfigError("--key: is missing; name a rollout of the run, e.g. --key record=17/epoch=0")
    try:
        key = RequestKey.parse(arguments.key)
    except ValueError as error:
        raise ConfigError(f"--key: {error}") from error
    return find_rollout(arguments.run_dir, key, arguments.step)


def read_answer(path: Path, codec: TokenCodec) -> Answer:
    """An answer from a JSON file; ConfigError that names what it lacks."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read as JSON ({error}); correct the file") from error
    if not isinstance(data, dict) or ("text" in data) == ("token_ids" in data):
        raise ConfigError(f"{path}: must be an object with either text or token_ids; add one of them")
    ids = _ids(data, codec, path)
    defaults = {"images": ["not given"], "width": NUM_BINS, "height": NUM_BINS, "objects": []}
    try:
        record = parse_record(json.dumps(defaults | data), index=0, source=str(path), root=Path())
    except RecordError as error:
        raise ConfigError(str(error)) from error
    return Answer(
        key=RequestKey(0),
        record=record if "images" in data else replace(record, images=()),
        token_ids=np.asarray(ids, dtype=np.int32),
        prompt_len=int(data.get("prompt_len", 1)),
        suffix_ids=tuple(data.get("suffix_ids", codec.encode(END_OF_TURN + "\n"))),
    )


def _ids(data: Mapping[str, Any], codec: TokenCodec, path: Path) -> list[int]:
    if "text" in data:
        if not isinstance(data["text"], str):
            raise ConfigError(f"{path}: text is {data['text']!r:.40}, expected the answer as a string; correct it")
        return codec.encode(data["text"])
    ids = data["token_ids"]
    if not isinstance(ids, list) or not all(isinstance(each, int) and 0 <= each < 2**31 for each in ids):
        raise ConfigError(f"{path}: token_ids is {ids!r:.40}, expected a list of whole numbers >= 0; correct it")
    return ids
