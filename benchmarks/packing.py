"""Memory and time of packing many pictures, in a process of its own.

    python benchmarks/packing.py --pictures FOLDER --count 100000 --size 64

The JPEGs of the folder are linked under new names until there are enough, and packed. Printed are the process's peak
resident memory, what of it was there before packing began (the libraries), and pictures a second.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from t2i.data import packed
from t2i.data.coco import COCO


def resident() -> float:
    """Peak resident memory so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def anonymous() -> float:
    """What of the memory is the process's own and not a mapped file (a library, a cache), in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


def layout(root: Path, pictures: Path, count: int) -> None:
    """COCO's own layout with five captions a picture, made of links."""
    import json

    folder = root / "train2017"
    folder.mkdir(parents=True)
    (root / "annotations").mkdir()
    files = sorted(pictures.glob("*.jpg"))
    if not files:
        raise SystemExit(f"{pictures} has no *.jpg")
    images, annotations = [], []
    for i in range(count):
        name = f"{i:012}.jpg"
        os.link(files[i % len(files)], folder / name) if i >= len(files) else shutil.copy(files[i], folder / name)
        if i < len(files):
            files[i] = folder / name
        images.append({"id": i, "file_name": name, "height": 480, "width": 640, "license": 1,
                       "flickr_url": f"http://example.org/{i}_{'x' * 20}_z.jpg", "date_captured": "2013-11-14 17:02"})
        annotations += [{"id": 5 * i + k, "image_id": i, "caption": f"Caption {k} of {i} tells what is to be seen here"}
                        for k in range(5)]
    held = {"images": images, "annotations": annotations}
    (root / "annotations/captions_train2017.json").write_text(json.dumps(held))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=Path, required=True)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        if not (pid := os.fork()):  # what makes the layout shall not count
            layout(Path(scratch) / "coco", args.pictures, args.count)
            os._exit(0)
        if os.waitpid(pid, 0)[1]:
            raise SystemExit(1)
        before, own = resident(), anonymous()
        started = time.perf_counter()
        data = COCO("train", f"{scratch}/coco", image_size=args.size)
        listed, seconds = resident(), time.perf_counter() - started
        started, most = time.perf_counter(), [own]
        packed.attach(data, Path(scratch) / "cache", lambda done, total: most.append(anonymous()), args.workers)
        took = time.perf_counter() - started
        print(f"{len(data)} pictures of {args.size} px: listed in {seconds:.1f} s, packed in {took:.0f} s"
              f" ({len(data) / took:.0f}/s, {args.workers} threads)")
        print(f"Resident at most {resident():.0f} MB, of which {before:.0f} MB were there after the imports and"
              f" {listed:.0f} MB at most until all was listed; not of mapped files while packing at most"
              f" {max(most):.0f} MB, after the imports {own:.0f} MB")


if __name__ == "__main__":
    main()
