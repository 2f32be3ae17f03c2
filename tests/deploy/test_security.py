"""docs/security.md, claim by claim, where a test can look: images, pickles, secrets, addresses."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from actors.images import open_image
from deploy.environment import write_environment
from deploy.images import Resizer
from deploy.render import as_yaml, read_assets, render
from protocol.config import load_config
from protocol.config.service import MetricsConfig
from protocol.contracts import Record, RequestKey, RolloutRequest
from protocol.errors import ConfigError, ImageError

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("protocol", "actors", "learner", "deploy")
CLUSTER = ROOT / "configs" / "cluster_8gpu.yaml"


def calls() -> Iterator[tuple[str, str, dict[str | None, ast.expr]]]:
    """(file, called name, keyword arguments) of every call in the packages."""
    for path in sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                keywords = {keyword.arg: keyword.value for keyword in node.keywords}
                yield str(path.relative_to(ROOT)), ast.unparse(node.func), keywords


def request(path: Path, width: int = 64, height: int = 64) -> RolloutRequest:
    record = Record(index=0, source="t.jsonl:1", images=(str(path),), width=width, height=height, objects=())
    return RolloutRequest(key=RequestKey(0), record=record, seed=0)


def test_only_a_resumed_checkpoint_is_unpickled_and_no_code_comes_from_a_model_folder() -> None:
    unpickling = {"pickle.load", "pickle.loads", "cloudpickle.loads", "torch.load", "np.load", "joblib.load"}
    executing = {"eval", "exec", "os.system", "yaml.unsafe_load", "yaml.full_load"}
    found = list(calls())
    assert [(file, name) for file, name, _ in found if name in unpickling | executing] == [
        ("learner/worker.py", "torch.load")
    ]
    assert not [file for file, _, keywords in found if "trust_remote_code" in keywords or "shell" in keywords]
    loaders = {"AutoModelForImageTextToText.from_pretrained", "Qwen3VLForConditionalGeneration.from_pretrained"}
    models = [keywords for _, name, keywords in found if name in loaders]
    assert len(models) == 3
    assert all(ast.unparse(keywords["use_safetensors"]) == "True" for keywords in models)


def test_every_image_is_opened_in_one_of_five_formats() -> None:
    opened = [ast.unparse(keywords["formats"]) for _, name, keywords in calls() if name == "Image.open"]
    assert len(opened) >= 7
    assert set(opened) == {"IMAGE_FORMATS"}


def test_a_small_file_that_unfolds_is_refused_from_its_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = tmp_path / "bomb.png"
    Image.new("1", (12_000, 12_000)).save(bomb)
    assert bomb.stat().st_size < 50_000
    monkeypatch.setattr(Image.Image, "convert", lambda *_: pytest.fail("it was decoded"))
    with (
        pytest.warns(Image.DecompressionBombWarning),
        pytest.raises(ImageError, match="is 12000x12000, the record says"),
    ):
        open_image(request(bomb))


def test_a_program_for_another_reader_is_no_image_whatever_its_name(tmp_path: Path) -> None:
    postscript = tmp_path / "a.png"
    postscript.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n")
    with pytest.raises(ImageError, match="cannot read image"):
        open_image(request(postscript))


def test_an_import_writes_no_image_outside_its_folder(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    Resizer(tmp_path / "out" / "copies", tmp_path / "images", 8192)(tmp_path / "images" / ".." / "a.png", 64, 64)
    (copy,) = (tmp_path / "out").rglob("*.png")
    assert copy.is_relative_to(tmp_path / "out" / "copies")


def test_a_run_file_builds_no_objects(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("training: !!python/object/apply:os.system ['touch /tmp/never']\n")
    with pytest.raises(ConfigError, match="is not valid YAML"):
        load_config(path)


def test_no_environment_variable_reaches_a_manifest_or_a_runs_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WANDB_API_KEY", "RAY_AUTH_TOKEN", "HF_TOKEN"):
        monkeypatch.setenv(name, "s3cret")
    config = load_config(CLUSTER)
    config.dump(tmp_path / "config.yaml")
    write_environment(tmp_path)
    written = [path.read_text() for path in tmp_path.iterdir()]
    written += [as_yaml(manifest) for manifest in render(config, read_assets()).values()]
    assert len(written) > 10
    assert not any("s3cret" in text for text in written)


def test_the_endpoint_is_for_this_machine_unless_it_is_told_otherwise() -> None:
    assert MetricsConfig().host == "127.0.0.1"
