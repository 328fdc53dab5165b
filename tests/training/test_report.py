"""The report: everything inside one file, free text escaped, missing parts left out."""

from __future__ import annotations

from PIL import Image

from t2i.training.report import write_report


def test_report_holds_its_pictures_scores_and_commands(tmp_path) -> None:
    run_dir = tmp_path / "clip"
    for name in ("grids/samples-000010.png", "grids/samples-000200.png", "plots/loss.png"):
        (run_dir / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), "red").save(run_dir / name)
    kinds = {"score": {"count": 0.9125, "overall": 0.9}, "ceiling_renders": {"count": 1.0, "overall": 1.0}}
    path = write_report(
        tmp_path,
        [{"name": "clip", "run_dir": run_dir, "command": "python train.py a=<b>", "seconds": 75.2, "steps": 200,
          "metrics": {"val/loss": 0.123456, "train/loss": 1.0}}, {"name": "prior", "run_dir": tmp_path / "none"}],
        {"seen": kinds, "heldout": {"score": {"count": 0.5}}}, [('a "quoted" <caption>', run_dir / "plots/loss.png")],
        ['python sample.py prompt="a & b"'],
    )
    text = path.read_text()
    assert path == tmp_path / "report.html" and text.count("data:image/png;base64,") == 3
    assert "0.912" in text and "ceiling: true renders" in text and "Held-out combinations" in text
    assert "a=&lt;b&gt;" in text and "<b>" not in text and "a &amp; b" in text and "&lt;caption&gt;" in text
    assert "samples, step 200" in text and "step 10<" not in text and "1:15" in text and "0.1235" in text
    assert "http" not in text.replace("http-equiv", "")


def test_report_of_nothing_is_a_page(tmp_path) -> None:
    assert "<h1>" in write_report(tmp_path, []).read_text()
