"""The verdict of `evaluate --attest`; its engines are in tests/integration/test_loop.py."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from actors.attestation import Comparison
from actors.settings import ActorSettings
from deploy import attest as attesting
from deploy.attest import Attestation, attest, print_attestation
from deploy.demo.scenes import write_scenes
from protocol.config import load_config
from protocol.errors import ConfigError
from tests.deploy.rollouts import MODEL, ROOT


def comparison(difference: float, *weights: str) -> Comparison:
    return Comparison(
        num_weights=3,
        differing_weights=weights,
        num_answers=2,
        differing_answers=(),
        max_logprob_difference=difference,
    )


@pytest.mark.parametrize(
    ("export", "start", "words"),
    [
        (comparison(0.0), comparison(0.5, "a"), "the same"),
        (comparison(0.0), comparison(0.0, "a"), "the same"),
        (comparison(0.5), comparison(0.5, "a"), "DIFFERENT"),
        (comparison(0.0005), comparison(0.0005), "inconclusive: the probes cannot tell the export from the start"),
    ],
)
def test_an_engine_that_ignored_the_publish_would_not_pass(export: Comparison, start: Comparison, words: str) -> None:
    found = Attestation(export, start)
    assert found.attested is (words == "the same")
    assert found.as_json()["attested"] is found.attested
    console = Console(width=120, file=io.StringIO())
    print_attestation(found, console=console)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert f"against the export: {words}" in shown
    evidence = {row.split("│")[1].strip(): row.split("│")[2:] for row in shown.splitlines() if row.count("│") == 5}
    weights = [cell.strip() for cell in evidence["weights (vLLM's digests)"][:3]]
    assert weights == ["3", str(len(start.differing_weights)), str(len(export.differing_weights))]
    assert [cell.strip() for cell in evidence["greedy answers"][:3]] == ["2", "0", "0"]


def test_what_differs_is_named() -> None:
    console = Console(width=120, file=io.StringIO())
    print_attestation(Attestation(comparison(0.5, "lm_head"), comparison(0.5, "a")), console=console)
    assert "differs: lm_head" in console.file.getvalue()  # type: ignore[attr-defined]


MATCHING = "custom.extra.rollout_matching"


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ((f"{MATCHING}.rollout_backend=hf",), rf"^{MATCHING}\.rollout_backend: --attest compares vLLM engines"),
        ((), r"^--attest: .* has no folder merged"),
        (("custom.val_jsonl=null", "training.eval_steps=null"), r"^custom\.val_jsonl: is missing"),
        (("model.model=./gone",), r"^model\.model: gone is no folder"),
    ],
)
def test_what_cannot_be_attested_is_refused_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: tuple[str, ...], told: str
) -> None:
    monkeypatch.setattr(attesting, "ray_session", lambda *_: pytest.fail("something was started"))
    monkeypatch.chdir(ROOT)
    write_scenes(tmp_path / "data", "val", 3, seed=1)
    data = tmp_path / "data" / "val.jsonl"
    settings = [f"custom.train_jsonl={data}", f"training.output_dir={tmp_path / 'runs'}"]
    if not overrides or "custom.val_jsonl=null" not in overrides:
        settings.append(f"custom.val_jsonl={data}")
    if overrides:
        (tmp_path / "checkpoint-4" / "merged").mkdir(parents=True)
    config = load_config(ROOT / "configs" / "demo.yaml", overrides=[*settings, f"model.model={MODEL}", *overrides])
    with pytest.raises(ConfigError, match=told):
        attest(config, tmp_path / "checkpoint-4", 2)


def test_an_engine_that_is_attested_serves_no_adapters() -> None:
    lora = ("training.packing=true", "tuner.train_type=lora", f"{MATCHING}.vllm.enable_lora=true")
    settings = ActorSettings.from_config(load_config(ROOT / "configs" / "demo.yaml", overrides=list(lora)))
    assert settings.engine.options["enable_lora"]
    found = attesting._serving_merged_weights(settings).engine.options
    assert found == {name: value for name, value in settings.engine.options.items() if "lora" not in name}
