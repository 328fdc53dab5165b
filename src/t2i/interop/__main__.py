"""The door of `interop`: `python -m t2i.interop --help`."""

from __future__ import annotations

import argparse
import sys

from t2i.command import module
from t2i.register import trust

ABOUT = """Looks at model files, others' and ours, and writes them in our own format. Nothing in a file is run."""
EXAMPLES = """
python -m t2i.interop inspect vqgan_imagenet_f16_16384.ckpt
python -m t2i.interop convert vqgan_imagenet_f16_16384.ckpt vqgan.safetensors
python -m t2i.interop reconstruct vqgan.safetensors photo.jpg out.png
python -m t2i.interop export runs/quickstart/prior/last.ckpt prior
"""


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser("python -m t2i.interop", description=ABOUT, epilog=EXAMPLES,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--trust", action="append", default=[], metavar="WORD",
                      help="a package whose classes a checkpoint may build, or a folder, file or hub name that it may"
                      " open; may be given several times")
    commands = made.add_subparsers(dest="command", required=True, metavar="COMMAND")
    one = commands.add_parser("inspect", help="what a file is, its sizes, and what in it is not a tensor")
    one.add_argument("file")
    one = commands.add_parser("convert", help="a tokenizer of others, or a checkpoint of ours, as one file with config")
    one.add_argument("file")
    one.add_argument("out", help="….safetensors, or ….ckpt")
    one.add_argument("--image-size", type=int, help="of the pictures that another project's tokenizer is for")
    one = commands.add_parser("export", help="the same as a folder: model.safetensors and config.json; of a CLIP hf")
    one.add_argument("file")
    one.add_argument("folder")
    one = commands.add_parser("reconstruct", help="pictures through a tokenizer and back, input above result")
    one.add_argument("file")
    one.add_argument("pictures", nargs="+")
    one.add_argument("out", help="….png")
    one.add_argument("--image-size", type=int, help="side of the pictures, which are cut to squares and resized")
    return made


def run(asked: argparse.Namespace) -> None:
    trust(asked.trust)
    if asked.command == "inspect":
        from t2i.interop.inspection import inspected

        print(inspected(asked.file))
    elif asked.command == "convert":
        from t2i.interop.convert import convert

        print(f"Written: {convert(asked.file, asked.out, asked.image_size)}")
    elif asked.command == "export":
        from t2i.interop.convert import export

        print(f"Written: {export(asked.file, asked.folder)}")
    else:
        from t2i.interop.reconstruct import reconstruct

        print(reconstruct(asked.file, asked.pictures, asked.out, asked.image_size))


def main(words: list[str] | None = None) -> int:
    asked = parser().parse_args(words)
    return module(lambda: run(asked), [])


if __name__ == "__main__":
    sys.exit(main())
