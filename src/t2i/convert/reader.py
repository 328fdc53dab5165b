"""Models that draw, out of other projects' published files: what `sample.py` reads beside checkpoints of ours.

The names of a file's tensors tell whose it is. Such files hold generators alone; the text encoder is named beside.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from t2i.checkpoint import building, file_format
from t2i.config.places import program
from t2i.convert.damsm import read_damsm
from t2i.convert.dfgan import nets, read_dfgan, read_generator
from t2i.convert.kinds import kind_of
from t2i.convert.stackgan import read_stage1, read_stage2
from t2i.convert.tensors import first, read_tensors
from t2i.models.stackgan import Coarse, StackGAN1, StackGAN2
from t2i.nets.stackgan import StackDiscriminator
from t2i.text_encoders.bilstm import BiLSTMText
from t2i.text_encoders.bilstm_folder import CONFIG, VOCABULARY, WEIGHTS

READ = "DF-GAN (netG) and StackGAN (STAGE1_G, STAGE2_G)"


def read_text_encoder(path: str | Path, vocabulary: str | Path | None) -> BiLSTMText:
    """DAMSM's pair of files, or a folder of ours, which has its words."""
    found = Path(path).expanduser()
    if found.is_dir():
        if vocabulary is not None:
            raise ValueError(f"text_encoder.vocabulary={vocabulary}: the folder text_encoder.path={path} has its own"
                             " words; leave it out")
        return BiLSTMText(str(found))
    if not found.is_file():
        raise ValueError(f"text_encoder.path={path}: no such file or folder")
    if vocabulary is None:
        raise ValueError("text_encoder.vocabulary= is missing")
    return read_damsm(found, vocabulary)


def _dfgan(path: str | Path, held: Any, text_encoder: Any, vocabulary: Any) -> Any:
    missing = ["text_encoder.path="] if text_encoder is None else []
    if vocabulary is None and (text_encoder is None or Path(text_encoder).expanduser().is_file()):
        missing.append("text_encoder.vocabulary=")
    if missing:
        width = read_generator(nets(held, str(path))["netG"], str(path)).text_dim
        raise ValueError(
            f"{path} is a DF-GAN, which comes without its text encoder: {' and '.join(missing)}"
            f" {'is' if len(missing) == 1 else 'are'} missing."
            " DF-GAN's README names the files, AttnGAN's DAMSM encoders (bird/text_encoder200.pth or"
            " coco/text_encoder100.pth, each with its captions_DAMSM.pickle). The command:\n"
            f'{program("sample")} ckpt={path} prompt="…" text_encoder.path={text_encoder or "bird/text_encoder200.pth"}'
            f" text_encoder.vocabulary={vocabulary or 'bird/captions_DAMSM.pickle'}\n"
            "Or text_encoder.path= alone: a folder of model=clip model.text_tower=bilstm with sentences of"
            f" {width} numbers"
        )
    return read_dfgan(held, read_text_encoder(text_encoder, vocabulary), str(path))


def _stackgan(path: str | Path, held: Any, stage: int, text_encoder: Any, vocabulary: Any) -> Any:
    """StackGAN's stages as our models. Their discriminators are small ones with random weights, of no use in drawing.
    """
    stage1, stage2 = (read_stage1(held, str(path)), None) if stage == 1 else read_stage2(held, str(path))
    width = stage1.text_dim
    encoder = None if text_encoder is None else read_text_encoder(text_encoder, vocabulary)
    if encoder is None or encoder.pooled_dim != width:
        given = "" if encoder is None else f" (text_encoder.path={text_encoder} has {encoder.pooled_dim})"
        raise ValueError(
            f"{path} is a StackGAN, whose captions are embeddings of {width:,} numbers, made by another program"
            f" (char-CNN-RNN), which is not read here. text_encoder.path= takes a folder of model=clip"
            f" model.text_tower=bilstm whose sentences have {width:,} numbers{given}; from Python,"
            f" t2i.convert.stackgan.read_stage{stage} takes embeddings"
        )
    last = stage2 or stage1
    discriminator = StackDiscriminator(last.image_size, 1, last.condition_dim)
    if stage2 is None:
        return StackGAN1(stage1, discriminator, encoder, max_steps=1, projection="none").eval()
    coarse = Coarse(stage1, width, "none", encoder).eval().requires_grad_(False)
    return StackGAN2(coarse, stage2, discriminator, max_steps=1, projection="none").eval()


def load_generator(
    path: str | Path, text_encoder: str | Path | None = None, vocabulary: str | Path | None = None, held: Any = None
) -> Any:
    """The model of another project's file, in eval mode: `sample`, `image_size`, `options` and `kind` as ours have.

    Args:
        text_encoder: DAMSM's text_encoder*.pth, or a folder of model=clip model.text_tower=bilstm.
        vocabulary: captions_DAMSM.pickle, with a .pth.
        held: the file's content, where it was read before.

    ValueError says what the file is, what is missing, and what does not fit.
    """
    held = read_tensors(path) if held is None else held
    kind = kind_of(held)
    system = "" if kind is None else kind.system
    if system == "dfgan":
        return _dfgan(path, held, text_encoder, vocabulary)
    if system in ("stackgan1", "stackgan2"):
        return _stackgan(path, held, int(system[-1]), text_encoder, vocabulary)
    if system == "discriminator":
        raise ValueError(f"{path} holds a discriminator, which draws nothing: {READ} are read. It holds {first(held)}")
    what = f"is {kind.text}, not a checkpoint of this project" if kind else (
        "is no checkpoint of this project (it has no section 't2i')")
    raise ValueError(f"{path} {what} nor of one that is read: {READ}. It holds {first(held)}")


def _text_encoder(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """What a config's `text_encoder` gives of `path` and `vocabulary`."""
    given = cfg.get("text_encoder") or {}
    return {name: given[name] for name in ("path", "vocabulary") if given.get(name) is not None}


def open_model(cfg: Mapping[str, Any], kind: str | tuple[str, ...]) -> Any:
    """The model of `ckpt`: a checkpoint of ours of that kind, or another project's file with `text_encoder`."""
    given = _text_encoder(cfg)
    try:
        model = building.load(cfg["ckpt"], kind=kind)
    except ValueError:
        held = read_tensors(cfg["ckpt"])  # what cannot be read at all is told here, in the same words
        if isinstance(held, Mapping) and "t2i" in held:
            raise
    else:
        if given:
            raise ValueError(f"text_encoder.{next(iter(given))}= is for other projects' files; {cfg['ckpt']} has its"
                             " text encoder in it")
        return model
    return load_generator(cfg["ckpt"], given.get("path"), given.get("vocabulary"), held)


def text_encoder_hashes(cfg: Mapping[str, Any]) -> dict[str, str]:
    """The files of `text_encoder` and their hashes; empty where none is given."""
    found: list[Path] = []
    for value in _text_encoder(cfg).values():
        path = Path(value).expanduser()
        found += [path / name for name in (CONFIG, VOCABULARY, WEIGHTS)] if path.is_dir() else [path]
    return {str(path): file_format.file_hash(path) for path in found}
