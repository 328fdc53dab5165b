"""The card of an exported folder, read by the hub's own library, and what of a folder is pushed."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import ModelCard
from PIL import Image
from tests.convert.test_convert import hf, prior, vqgan  # noqa: F401  # fixtures

from t2i.checkpoint import file_format
from t2i.cli.console import main
from t2i.config.compose import compose
from t2i.convert import hub
from t2i.convert.convert import export
from t2i.generation import text_to_image


def evaluated(path: Path, ckpt: Path, hash: str | None = None) -> None:
    score = {"value": 0.75, "low": 0.5, "high": 0.875, "n": 40, "better": "higher"}
    held = {"scores": {"composition": {"seen": {}}, "composition_seen": score},
            "protocols": {"composition_seen": {"protocol": None, "seed": 0, "sampler": {"guidance": 1.5}}},
            "protocol": {"hash": hash or file_format.file_hash(ckpt), "data": {"_target_": "t2i.data.shapes.Shapes"}}}
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(held))


def test_a_card_with_scores_pictures_and_licence(prior: Path, tmp_path: Path) -> None:  # noqa: F811
    evaluated(prior.with_name("evaluation.json"), prior)
    (tmp_path / "grids").mkdir()
    for step in (10, 20):
        Image.new("RGB", (4, 4), (step, 0, 0)).save(tmp_path / f"grids/samples-{step:06}.png")
    cfg = compose([f"ckpt={prior}", 'prompt="a [red] circle: 1"', "n=2", f"out={tmp_path / 'drawn'}"], "sample")
    text_to_image.run(cfg)
    words = ["--license", "cc-by-4.0", "--drawings", str(tmp_path / "drawn")]
    assert main(["export", f"ckpt={prior}", f"out={tmp_path / 'small'}", *words]) == 0
    card = ModelCard.load(tmp_path / "small/README.md")
    found = card.data.to_dict()
    assert (found["license"], found["library_name"], found["pipeline_tag"]) == ("cc-by-4.0", "t2i", "text-to-image")
    assert (found["language"], found["datasets"], found["metrics"]) == (["en"], ["shapes"], ["composition_seen"])
    assert found["tags"] == ["t2i", "prior"]
    prompt = cfg["prompt"]
    assert found["widget"] == [{"text": prompt, "output": {"url": f"{i}.png"}} for i in range(2)]
    (result,) = card.data.eval_results
    assert (result.task_type, result.dataset_type, result.metric_type, result.metric_value) == (
        "text-to-image", "shapes", "composition_seen", 0.75)
    assert result.metric_args == {"seed": 0, "sampler": {"guidance": 1.5}, "low": 0.5, "high": 0.875, "n": 40,
                                  "better": "higher"}  # the hub's library leaves out what is null
    for part in ("| composition_seen | 0.75 | 0.5 to 0.875 | 40 |", "(samples.png)", "from_pretrained(", "(1.png)"):
        assert part in card.text, part
    with Image.open(tmp_path / "small/samples.png") as grid:
        assert grid.getpixel((0, 0)) == (20, 0, 0)  # the last one
    first = next((tmp_path / "drawn").glob("000-*-0.png"))
    assert (tmp_path / "small/0.png").read_bytes() == first.read_bytes()


def test_a_card_of_a_bare_checkpoint(vqgan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    evaluated(vqgan.with_name("evaluation.json"), vqgan, "0123456789abcdef")
    folder = export(vqgan, tmp_path / "a/tokenizer")
    assert "evaluation.json is of another file (0123456789abcdef): its scores are left out" in capsys.readouterr().out
    card = ModelCard.load(folder / "README.md")
    assert card.data.license == "other" and card.data.pipeline_tag is None and card.data.eval_results is None
    assert "reconstruct(" in card.text and card.data.to_dict().keys() == {"license", "library_name", "tags", "language",
                                                                          "datasets"}
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    (folder / "README.md").write_text("mine")
    export(vqgan, folder)
    assert (folder / "README.md").read_text() == "mine" and "stays as it is" in capsys.readouterr().out


def test_mistakes_in_exporting(prior: Path, vqgan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    cfg = compose([f"ckpt={prior}", "prompt=a", "n=1", f"out={tmp_path / 'drawn'}"], "sample")
    text_to_image.run(cfg)
    out = str(tmp_path / "out")
    cases = {("--license", "My Own"): "--license 'My Own': a key as the hub has them is wanted",
             ("--drawings", str(tmp_path / "drawn")): "they are of another checkpoint",
             ("--drawings", "none"): "none/drawing.json cannot be read"}
    for words, expected in cases.items():
        assert main(["export", str(vqgan), out, *words]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and expected in error and error.count("\n") == 1
    assert not (tmp_path / "out/model.safetensors").exists()


class Hub:
    """In the place of the hub's API: keeps what it is asked for."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []

    def create_repo(self, repo: str, **given: Any) -> None:
        self.calls.append((repo, given))

    def upload_folder(self, **given: Any) -> Any:
        self.calls.append((given["repo_id"], given))
        return SimpleNamespace(commit_url="https://hub.example/commit/1")


def test_pushing(
    vqgan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]  # noqa: F811
) -> None:
    folder = export(vqgan, tmp_path / "model")
    monkeypatch.setattr(hub, "get_token", lambda: None)
    capsys.readouterr()
    assert main(["push", str(folder), "owner/name"]) == 2
    assert capsys.readouterr().err == "error: push to owner/name needs a token of the hub: `hf auth login`, or" \
                                      " HF_TOKEN=…\n"
    monkeypatch.setattr(hub, "get_token", lambda: "token")
    for name in ("owner/name", "a b"):  # the tests are offline
        assert main(["push", str(folder), name]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"error: push to {name} failed: ") and error.count("\n") == 1
    api = Hub()
    monkeypatch.setattr(hub, "HfApi", lambda: api)
    assert main(["push", str(folder), "owner/name", "--private"]) == 0
    assert capsys.readouterr().out == "Pushed: https://hub.example/commit/1\n"
    (made, how), (_, sent) = api.calls
    assert (made, how) == ("owner/name", {"private": True, "exist_ok": True})
    assert Path(sent["folder_path"]) == folder
    assert sent["allow_patterns"] == ["model.safetensors", "config.json", "README.md", "*.png"]
    (folder / "README.md").unlink()
    assert main(["push", str(folder), "owner/name"]) == 2
    assert "has no README.md: a folder is wanted that `t2i export` wrote" in capsys.readouterr().err
