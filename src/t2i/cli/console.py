"""The console command `t2i`, also `python -m t2i`: the four apps, and what else is done with runs and model files."""

from __future__ import annotations

import argparse
import runpy
import sys
from collections.abc import Callable
from typing import NoReturn

from t2i.cli.app import guarded
from t2i.config.places import APPS, ROOT

ABOUT = """Trains, draws and scores, and looks at runs and model files, others' and ours. Nothing in a file is run."""
EXAMPLES = """
t2i train experiments=quickstart     as python train.py does in a clone; t2i train --help
t2i sample ckpt=runs/quickstart/prior/last.ckpt prompt="a red circle"
t2i evaluate ckpt=runs/quickstart/prior/last.ckpt
t2i prepare data=folder data.root=photos
t2i app ckpt=runs/quickstart/prior/last.ckpt      a page to draw and edit in; t2i app --help
t2i compare runs/a runs/b            settings, cost, scores, curves and pictures on one page; t2i compare --help
t2i plot runs/a                      the curves of metrics.csv anew; t2i plot --help
t2i inspect vqgan_imagenet_f16_16384.ckpt
t2i convert vqgan_imagenet_f16_16384.ckpt vqgan.safetensors
t2i reconstruct vqgan.safetensors photo.jpg out.png
t2i export ckpt=runs/quickstart/prior/last.ckpt out=prior --license mit --drawings drawings
t2i export ckpt=runs/vqgan-shapes/last.ckpt out=vqgan format=diffusers
t2i push prior owner/name
"""


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser("t2i", description=ABOUT, epilog=EXAMPLES,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--trust", action="append", default=[], metavar="WORD",
                      help="a package whose classes a checkpoint may build, or a folder, file or hub name that it may"
                      " open; may be given several times")
    commands = made.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, about in zip(APPS, ("a model, or a recipe's stages", "pictures for captions", "scores of a model",
                                  "looks a data set over"), strict=True):
        commands.add_parser(name, help=about, add_help=False)
    commands.add_parser("app", help="a page to draw, edit and look at runs in", add_help=False)
    commands.add_parser("compare", help="runs side by side on one page", add_help=False)
    commands.add_parser("plot", help="the curves of runs", add_help=False)
    one = commands.add_parser("inspect", help="what a file is, its sizes, and what in it is not a tensor")
    one.add_argument("file")
    one = commands.add_parser("convert", help="a tokenizer of others, or a checkpoint of ours, as one file with config")
    one.add_argument("file")
    one.add_argument("out", help="….safetensors, or ….ckpt")
    one.add_argument("--image-size", type=int, help="of the pictures that another project's tokenizer is for")
    one = commands.add_parser("export", help="the same as a folder for the hub: model.safetensors, config.json and"
                              " README.md, a model card with the scores of evaluation.json; of a CLIP hf")
    one.add_argument("file", metavar="[ckpt=]FILE")
    one.add_argument("folder", metavar="[out=]FOLDER")
    one.add_argument("format", nargs="?", metavar="[format=]t2i|diffusers", default="t2i", choices=["t2i", "diffusers"],
                     help="diffusers: a tokenizer as a VQModel, without a card")
    one.add_argument("--license", help="the card's: a key of the hub's, such as mit; other where it is not given")
    one.add_argument("--language", action="append", default=[], help="of the captions, such as en; may be given several"
                     " times")
    one.add_argument("--drawings", metavar="FOLDER", help="what sample.py drew with this checkpoint, for the card")
    one = commands.add_parser("push", help="an exported folder to the Hugging Face hub")
    one.add_argument("folder")
    one.add_argument("repo", help="owner/name; made if it is not there")
    one.add_argument("--private", action="store_true", help="the repository, if it is made")
    one = commands.add_parser("reconstruct", help="pictures through a tokenizer and back, input above result")
    one.add_argument("file")
    one.add_argument("pictures", nargs="+")
    one.add_argument("out", help="….png")
    one.add_argument("--image-size", type=int, help="side of the pictures, which are cut to squares and resized")
    return made


def compare(words: list[str]) -> None:
    from t2i.evaluation.compare.compare import ABOUT, parse, run

    if {"-h", "--help"} & set(words):
        print(ABOUT.strip())
    else:
        run(*parse(words))


def plot(words: list[str]) -> None:
    from t2i.viz.plots import ABOUT, run

    if {"-h", "--help"} & set(words):
        print(ABOUT.strip())
    elif not words:
        raise ValueError(f"plot takes run folders\n{ABOUT.strip()}")
    else:
        run(words)


def app(words: list[str]) -> None:
    from t2i.app.server import run

    run(words)


# These read their words themselves.
WORDS: dict[str, Callable[[list[str]], None]] = {"app": app, "compare": compare, "plot": plot}


def in_order(words: list[str]) -> list[str]:
    """`ckpt=`, `out=` and `format=` of `t2i export`, in whatever order, as the places that they stand for."""
    keys = ("ckpt=", "out=", "format=")
    if words[:1] != ["export"] or not any(word.startswith(keys) for word in words):
        return words
    given = sorted((word for word in words if word.startswith(keys)),
                   key=lambda word: next(i for i, key in enumerate(keys) if word.startswith(key)))
    places = iter(given)
    return [next(places).partition("=")[2] if word.startswith(keys) else word for word in words]


def files(words: list[str]) -> None:
    from t2i.checkpoint.registry import trust

    words = in_order(words)
    asked, rest = parser().parse_known_args(words)
    if asked.command in (*APPS, *WORDS):  # these read their words themselves
        raise ValueError(f"{asked.command} comes first: t2i {asked.command} …")
    if rest:
        parser().error(f"unrecognized arguments: {' '.join(rest)}")
    trust(asked.trust)
    if asked.command == "inspect":
        from t2i.convert.inspection import inspected

        print(inspected(asked.file))
    elif asked.command == "convert":
        from t2i.convert.convert import convert

        print(f"Written: {convert(asked.file, asked.out, asked.image_size)}")
    elif asked.command == "export":
        from t2i.convert.convert import export

        made = export(asked.file, asked.folder, asked.license, asked.language, asked.drawings, asked.format)
        print(f"Written: {made}")
    elif asked.command == "push":
        from t2i.convert.hub import push

        print(f"Pushed: {push(asked.folder, asked.repo, asked.private)}")
    else:
        from t2i.convert.reconstruct import reconstruct

        print(reconstruct(asked.file, asked.pictures, asked.out, asked.image_size))


def hydra_app(name: str, words: list[str]) -> NoReturn:
    """Runs an app's own file as Python would, which is also what Lightning starts further processes with."""
    sys.argv[:] = [str(ROOT / f"{name}.py"), *words]
    runpy.run_path(sys.argv[0], run_name="__main__")
    raise AssertionError(f"{name}.py came back")  # it ends with its exit code


def main(words: list[str] | None = None) -> int:
    words = sys.argv[1:] if words is None else words
    if words and words[0] in APPS:
        hydra_app(words[0], words[1:])
    run = WORDS.get(words[0]) if words else None
    return guarded((lambda: run(words[1:])) if run else (lambda: files(words)), "debug=true" in words)
