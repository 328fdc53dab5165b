"""The benchmarks run, at sizes whose figures mean nothing."""

from __future__ import annotations

import json
from contextlib import redirect_stdout
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks import cpu, gan, gpu, guided, quantizer, run

from t2i.generation.clip_guided.cutouts import Cutouts
from t2i.text_encoders import sentence
from t2i.training import profiling


@pytest.mark.parametrize("name", ["vqgan", "gan", "prior", "decoding", "any_order", "data", "guided", "frechet"])
def test_a_benchmark_prints_its_rows(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    run.main(["--quick", "--threads", "1", name])
    lines = capsys.readouterr().out.splitlines()
    assert "torch" in lines[0]
    assert "threads" in lines[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[4:]]
    many = 3 if run.MIXED else 1
    wanted = {"decoding": 2, "data": 4, "gan": many, "guided": 3 if run.MIXED else 2, "frechet": 4,
              "any_order": 2}
    assert len(rows) == wanted.get(name, 1)
    assert all(len(row) == 5 and float(row[-1]) >= 0 for row in rows)


def test_the_quantizer_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    run.main(["--quick", "--threads", "1", "quantizer"])
    rows = capsys.readouterr().out.splitlines()[4:]
    assert [row.split("|")[1].strip() for row in rows] == ["quantizer: nearest", "quantizer: vq step"]


@pytest.mark.slow
def test_the_quantizers_peak_is_taken_in_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantizer, "METHODS", ("nearest",))
    (row,) = quantizer.run(vectors=512, codes=64, dims=(8,), repeats=1)
    assert row["method"] == "nearest"
    assert row["seconds"] > 0


def test_both_ways_to_step_a_vqgan_move_the_autoencoder_alike() -> None:
    """What is compared must be the same work: from equal starts the generator ends equal, up to rounding."""
    ends = []
    for way in ("fused", "naive"):
        players = run.Players(quick=True)
        getattr(players, way)()
        ends.append([p.detach().clone() for p in players.tokenizer.parameters()])
    assert all((a - b).abs().max() < 3e-4 for a, b in zip(*ends, strict=True))


def test_an_unknown_name_is_an_error_with_the_choices(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run.main(["quantiser"])
    assert "quantizer, vqgan, gan, prior, decoding, any_order, data, guided" in capsys.readouterr().err


def test_both_ways_to_step_a_dfgan_move_both_players_alike() -> None:
    ends = []
    for way in ("reused", "plain"):
        players = gan.Round(quick=True, mixed=False)
        # Adam's first step makes as much of a gradient that is nought but for rounding as of any other.
        players.g, players.d = (torch.optim.SGD(o.param_groups[0]["params"], 0.1) for o in (players.g, players.d))
        getattr(players, way)()
        ends.append([p.detach().clone() for net in (players.generator, players.discriminator)
                     for p in net.parameters()])
    for a, b in zip(*ends, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)


def test_both_ways_to_move_a_picture_move_it_alike() -> None:
    ends = []
    for way in ("ours", "split", "naive"):
        made = guided.Drawing(quick=True)
        # No chance: it is drawn in another order.
        made.drawing.cutouts = [Cutouts(made.seen, made.count, "whole", shift=0)]
        made.drawing.optimizer = torch.optim.SGD(made.drawing.canvas.parameters(), 1.0)
        start = made.drawing.canvas.z.detach().clone()
        getattr(made, way)()
        ends.append(made.drawing.canvas.z.detach() - start)
    assert ends[0].abs().max() > 0 and torch.equal(ends[0], ends[1])
    torch.testing.assert_close(ends[0], ends[2], atol=1e-7, rtol=1e-4)


def test_the_parts_of_an_iteration_are_all_of_it() -> None:
    made = guided.Drawing(quick=True)
    (seconds,) = run.turns(1, made.split)
    parts = made.rounds[-1]
    assert list(parts) == ["decode", "views", "CLIP", "backward"] and all(value > 0 for value in parts.values())
    assert 0.5 * seconds < sum(parts.values()) <= seconds
    assert made.parts().startswith("decode 0.") and "backward 0." in made.parts()


@pytest.mark.slow
@pytest.mark.compiles
@pytest.mark.timeout(600)
def test_the_benchmark_of_a_gpu_runs_on_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiling, "TIMED", 1)
    monkeypatch.setattr(sentence, "package_files", cache(sentence.package_files))
    held, printed = tmp_path / "gpu.json", StringIO()
    with redirect_stdout(printed):
        assert gpu.main(["--device", "cpu", "--tiny", "--json", str(held)]) == 0
    rows = json.loads(held.read_text())["rows"]
    parts = {row["part"].partition(":")[0] for row in rows}
    assert parts == {"decoding", "prior", "VQGAN", "quickstart", "quantizer", "AMP", "trace"}
    curves = [row for row in rows if row["part"].startswith("AMP")]
    assert len(curves) == 6 and all(row["not_finite"] == 0 and len(row["losses"]) == 4 for row in curves)
    assert all(row.get("same_codes", 1.0) == 1.0 for row in rows)
    assert len(printed.getvalue().splitlines()) == 4 + len(rows)


def test_the_benchmark_against_peers_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    held, threads = tmp_path / "cpu.json", torch.get_num_threads()
    try:
        assert cpu.main(["--tiny", "--threads", "1", "--json", str(held)]) == 0
    finally:
        torch.set_num_threads(threads)
    found = json.loads(held.read_text())
    assert found["tiny"]
    assert {row["part"].partition(":")[0] for row in found["rows"]} == {"decoding", "VQGAN", "quantizer"}
    names = {row["part"].removeprefix("decoding: ") for row in found["rows"]}
    assert {"as trained, fp32", "weights read, as trained, fp32"} <= names
    assert len(capsys.readouterr().out.splitlines()) == 4 + len(found["rows"])
    with pytest.raises(SystemExit):
        cpu.main(["quantiser"])
    assert "there are decoding, vqgan, quantizer" in capsys.readouterr().err


def test_a_part_of_the_gpus_benchmark_that_fails_or_runs_over_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(bench: gpu.Bench):
        yield gpu.row("quantizer", "", "1 ms")
        raise MemoryError("no room\nat all")

    monkeypatch.setitem(gpu.PARTS, "quantizer", (failing, 1))
    rows = list(gpu.measured("quantizer", gpu.Bench("cpu", True)))
    assert [row["measured"] for row in rows] == ["1 ms", "failed: MemoryError: no room"]
    stopped = gpu.apart("quantizer", 0, "--device", "cpu", "--tiny")
    assert [row["measured"] for row in stopped] == ["stopped after its 0 s"]
    assert sum(limit for name, (_, limit) in gpu.PARTS.items() if name not in gpu.ON_REQUEST) <= 540


@pytest.mark.parametrize("benchmark", [cpu, gpu])
def test_the_benchmarks_against_peers_know_their_parts(benchmark: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        benchmark.main(["quantizer", "decodign"])
    assert f"decodign: no such part; there are {', '.join(benchmark.PARTS)}" in capsys.readouterr().err
