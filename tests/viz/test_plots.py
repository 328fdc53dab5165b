"""Curves of metrics.csv: which file holds what, when an axis is logarithmic, what is not there."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from t2i.cli import console
from t2i.config.compose import ROOT
from t2i.viz import plots

NAMES = ["train/loss", "val/loss", "val/loss/pixel", "val/loss_without_caption", "val/gap", "val/logits/real",
         "train/lambda", "train/form/commitment", "train/codebook_usage_1", "val/codebook_usage_1",
         "val/codebook_perplexity_1", "val/codebook_perplexity_2", "val/psnr", "train/psnr", "val/ssim",
         "val/composition_overall", "val/composition_count", "val/text_to_image", "val/fd_clip"]


def write(folder: Path, names: list[str], rows: int = 3) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    lines = [f"{step},0," + ",".join(str(step * (k + 1)) for k in range(len(names))) for step in range(1, rows + 1)]
    path = folder / "metrics.csv"
    path.write_text("\n".join([",".join(["step", "epoch", *names]), *lines]))
    return path


def test_losses_are_read_and_plotted(tmp_path: Path) -> None:
    csv = tmp_path / "metrics.csv"
    csv.write_text("step,epoch,train/loss,val/loss\n1,0,2.5,\n2,0,0.1,\n2,0,,3\n3,0,nan,\nx")
    series = plots.read_metrics(csv)
    assert series["train/loss"][0] == [1, 2, 3] and series["val/loss"] == ([2], [3.0])
    assert Image.open(plots.plot_run(tmp_path)[0]).size[0] > 300
    with pytest.raises(ValueError, match="no columns train/lost"):
        plots.plot_run(tmp_path, {"loss": ["train/lost"]})
    csv.write_text("step,epoch\n")
    assert plots.plot_run(tmp_path) == []


def test_every_metric_has_its_place_in_one_file() -> None:
    losses, codebook, scores = plots.shares(NAMES)
    assert sorted([*losses, *codebook, *scores]) == sorted(NAMES)
    assert codebook == ["train/codebook_usage_1", "val/codebook_usage_1", "val/codebook_perplexity_1",
                        "val/codebook_perplexity_2"]
    assert scores == ["val/psnr", "train/psnr", "val/ssim", "val/composition_overall", "val/composition_count",
                      "val/text_to_image", "val/fd_clip"]


def test_three_files_and_none_that_is_empty(tmp_path: Path) -> None:
    write(tmp_path / "a", NAMES)
    assert [path.name for path in plots.plot_run(tmp_path / "a")] == ["loss.png", "codebook.png", "scores.png"]
    write(tmp_path / "b", ["train/loss", "val/loss", "val/gap"])
    assert plots.plot_run(tmp_path / "b") == [tmp_path / "b/plots/loss.png"]
    assert [path.name for path in (tmp_path / "b/plots").iterdir()] == ["loss.png"]
    write(tmp_path / "c", ["val/psnr"])
    assert plots.plot_run(tmp_path / "c") == [tmp_path / "c/plots/scores.png"]
    write(tmp_path / "d", NAMES, rows=0)
    assert plots.plot_run(tmp_path / "d") == [] and not (tmp_path / "d/plots").exists()
    # Tasks of the composition share a panel; usage and perplexity have one each.
    sizes = [Image.open(tmp_path / f"a/plots/{name}.png").size for name in ("codebook", "scores")]
    assert sizes == [(920, 290), (1380, 580)]


def test_groups_name_any_column_of_the_loss_plot(tmp_path: Path) -> None:
    write(tmp_path, NAMES)
    made = plots.plot_run(tmp_path, {"quality": ["val/psnr", "val/ssim"]})
    assert Image.open(made[0]).size == (460, 290)


def test_an_axis_is_logarithmic_over_a_factor_of_twenty_and_above_zero() -> None:
    assert plots.is_log([1.0, 20.0]) and plots.is_log([float("nan"), 0.1, 7.0, float("inf")])
    assert not plots.is_log([1.0, 19.0]) and not plots.is_log([0.0, 100.0]) and not plots.is_log([-1.0, 100.0])
    assert not plots.is_log([]) and not plots.is_log([float("nan")])


def test_long_curves_become_means_of_equal_runs() -> None:
    steps, values = plots._thinned(range(1000), [float(k) for k in range(1000)])
    assert len(values) == 334 and values[0] == 1.0 and steps[:2] == [1.0, 4.0] and values[-1] == 999.0


def test_a_line_has_the_colour_it_was_given() -> None:
    lines = [plots.Line("a", [1, 2], [1.0, 1.0], 1), plots.Line("b", [1, 2], [2.0, 2.0], 2)]
    pixels = np.asarray(Image.open(io.BytesIO(plots.sheet({"x": lines}, legend=False))).convert("RGB")).reshape(-1, 3)
    there = {tuple(int(v) for v in pixel) for pixel in np.unique(pixels, axis=0)}
    rgb = [tuple(int(colour[k : k + 2], 16) for k in (1, 3, 5)) for colour in plots.COLOURS]
    assert rgb[1] in there and rgb[2] in there and rgb[0] not in there
    assert len(set(plots.COLOURS)) == len(plots.COLOURS)


def test_the_door_draws_runs_and_tells_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "a", ["train/loss"])
    write(tmp_path / "b", [])
    assert console.main(["plot", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    assert capsys.readouterr().out.splitlines() == [f"{tmp_path}/a/plots/loss.png",
                                                    f"{tmp_path}/b: metrics.csv holds nothing to draw yet"]
    (tmp_path / "c").mkdir()
    for word, said in ((str(tmp_path / "c"), "has no metrics.csv"), ("out=x", "out=x is no folder")):
        assert console.main(["plot", word]) == 2
        assert said in capsys.readouterr().err
    assert console.main(["plot"]) == 2 and console.main(["plot", "--help"]) == 0


def test_help_imports_nothing_heavy() -> None:
    code = ("import sys; from t2i.cli.console import main; main(['plot', '-h']);"
            " assert not {'torch', 'matplotlib', 'numpy'} & set(sys.modules), sorted(sys.modules)")
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, env={"PYTHONPATH": str(ROOT / "src")})


def test_what_scores_cost_is_no_curve() -> None:
    losses, codebook, scores = plots.shares(["val/fd_clip", "val/score_n", "val/score_share", "train/loss"])
    assert (losses, codebook, scores) == (["train/loss"], [], ["val/fd_clip"])
