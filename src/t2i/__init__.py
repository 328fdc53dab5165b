"""Text-to-image experiments. From Python a model is trained by `t2i.train`, opened by `t2i.load` or
`t2i.from_pretrained`; torch is imported by their first call, not by `import t2i`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from t2i.generation.clip_guided.live import GuidedStep
    from t2i.generation.text_to_image_pipeline import TextToImagePipeline


def _run(app: str, settings: tuple[str, ...]) -> Any:
    from t2i.cli.app import RUNS, keep_freed_memory
    from t2i.config.compose import compose

    keep_freed_memory()
    return RUNS[app](compose(settings, app), list(settings))


def train(*settings: str) -> Path:
    """Trains a model, or a recipe's stages, as `t2i train` does with the same words, and returns the checkpoint, of a
    pipeline that of its last stage. The same call again goes on, or finds it finished. `Stop` of a notebook saves.

        t2i.load(t2i.train("experiments=quickstart")).draw("a red circle")

    ValueError names what is wrong with the settings.
    """
    if "estimate=true" in settings:
        raise ValueError("estimate=true trains nothing: on the command line, t2i train … estimate=true")
    try:
        return Path(_run("train", settings)["run_dir"]) / "last.ckpt"
    except SystemExit as stopped:
        raise KeyboardInterrupt("stopped") from stopped


def evaluate(*settings: str) -> dict[str, Any]:
    """Scores a checkpoint as `t2i evaluate` does with the same words; returns what it writes to evaluation.json
    (`["scores"]`, `["protocol"]`). ValueError as of `train`."""
    return dict(_run("evaluate", settings))


def prepare(*settings: str) -> dict[str, Any]:
    """Looks a data set over as `t2i prepare` does with the same words; returns what it found. ValueError as of `train`.
    """
    return dict(_run("prepare", settings))


def load(
    path: str | Path, *, device: str = "auto", trust: Iterable[str] = (), weights: str | None = None
) -> TextToImagePipeline:
    """The model of a checkpoint (`runs/…/last.ckpt`), an exported folder or its safetensors file.

    Args:
        device: auto, cpu, cuda or mps.
        trust: packages whose classes the file may build, and files, folders or hub names that it may open.
        weights: bf16 or int8, a prior's while it draws: as in sample.py; None: as trained.

    ValueError says what the file is instead, or what is wrong with it.
    """
    from t2i.generation.text_to_image_pipeline import TextToImagePipeline

    return TextToImagePipeline.load(path, device, trust, weights)


def from_pretrained(
    name: str | Path, *, revision: str | None = None, device: str = "auto", trust: Iterable[str] = (),
    weights: str | None = None,
) -> TextToImagePipeline:
    """The model of an exported folder (`t2i export`), here or on the Hugging Face hub (`owner/name`). Its weights, a
    safetensors file, and its config are read; nothing of it is run.

    Args:
        revision: a branch, tag or commit on the hub.
        device, trust, weights: as of `load`.
    """
    from t2i.generation.text_to_image_pipeline import TextToImagePipeline

    return TextToImagePipeline.from_pretrained(name, revision, device, trust, weights)


def guided(
    prompt: str, clips: str | Sequence[str], model: TextToImagePipeline | None = None, *, seed: int = 0,
    device: str = "auto", **settings: Any,
) -> Iterator[GuidedStep]:
    """Draws by optimisation until a CLIP agrees, and yields the picture on its way: at the start, every `show_step`
    iterations, and at the end. The last one is what `sample.py method=clip_guided` draws.

        for step in t2i.guided("a red circle", "runs/quickstart/clip/hf", canvas="pixels", steps=100, show_step=5):
            step.image, step.similarity

    Args:
        prompt: may be several, with weights: "a red circle | a blue square:0.5".
        clips: a CLIP's folder or hub name, or several.
        model: of `t2i.load`, a prior, a VQGAN or a tokenizer; None with canvas pixels, fourier or siren.
        settings: those of conf/method/clip_guided.yaml, but for film, show and versus.

    ValueError, by the call itself, names the setting, its value and what is allowed.
    """
    from t2i.generation.clip_guided import live

    return live.guided(prompt, clips, model, seed, device, settings)
