"""What a real run left behind for people to look at agrees with what it trained on."""

from __future__ import annotations

from deploy.file_codec import load_codec
from deploy.ledger import NAME as LEDGER
from deploy.recorder import read_rollouts
from deploy.replay import replay_answer
from deploy.report.page import render
from deploy.run_files import read_run
from protocol.config import RunConfig
from tests.integration.conftest import read_lines


def check_recorded(config: RunConfig) -> None:
    """Every trained rollout was recorded, and replaying it gives the decisions and lengths that the actor reported."""
    recorded = list(read_rollouts(config.run_dir))
    trained = [key for line in read_lines(config.run_dir / LEDGER) for key in line["keys"]]
    assert sorted(str(rollout.trace.key) for rollout in recorded) == sorted(trained)
    codec = load_codec(config.model.model)
    for rollout in recorded:
        seen = replay_answer(rollout.trace, config, codec)
        assert seen.match.pairs == rollout.trace.pairs
        assert seen.target.stats.encoded_len == rollout.trace.stats.encoded_len
        assert seen.target.stats.train_len == rollout.trace.stats.train_len
    assert {rollout.actor for rollout in recorded} == {"actor-0"}
    assert (config.monitor_dump_dir / "step_000000_0.png").is_file()
    run = read_run(config.run_dir)
    lanes = {each.lane for each in run.spans}
    assert {"driver", "actor-0", "rank-0"} <= lanes
    assert "data:image/jpeg" in render([run])
