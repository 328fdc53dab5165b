"""Who may import whom: the table of rooms, held against the source with `ast`."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src"
FILES = sorted(p.relative_to(SOURCE).as_posix() for p in SOURCE.glob("t2i/**/*.py"))
# Top floor first: a room may import what stands below it. Rooms of one line stand side by side and do not meet.
ROOMS = (
    ("cli",), ("app",), ("training",), ("evaluation",), ("generation",), ("convert",), ("models",), ("metrics",),
    ("nets", "quantizers", "losses"), ("text_encoders",), ("data",), ("viz",), ("checkpoint",), ("config",),
    ("types", "version"),
)  # fmt: skip
FLOOR = {room: len(ROOMS) - i for i, line in enumerate(ROOMS) for room in line}
# Models are built of parts that enter through their constructors, and do not know each other.
ENTER = ("t2i.quantizers", "t2i.data",
         *(f"t2i.text_encoders.{name}." for name in ("bilstm", "clip", "sentence")))
HEAVY = {"torch", "torchvision", "pytorch_lightning", "transformers", "numpy", "matplotlib"}
# What answers before anything heavy is imported.
LIGHT = ["t2i/__init__.py", "t2i/version.py", *(f for f in FILES if f.startswith("t2i/config/")),
         *(f"t2i/checkpoint/{name}.py" for name in ("registry", "lock", "plain_files", "renames"))]


def imports(path: str, top_level_only: bool = False) -> set[str]:
    """Modules and names that a file imports, `from a import b` as a.b."""
    tree = ast.parse((SOURCE / path).read_text(encoding="utf-8"))
    found: set[str] = set()
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def room_of(name: str) -> str:
    return name.split(".")[1]


@pytest.mark.parametrize("path", FILES)
def test_a_room_imports_what_stands_below_it(path: str) -> None:
    names = imports(path)
    ours = {name for name in names if name.startswith("t2i.")}
    parts = path.removesuffix(".py").split("/")
    if len(parts) > 2:  # __init__ and __main__ of the package itself stand outside
        own = parts[1]
        above = {n for n in ours if room_of(n) != own and FLOOR[room_of(n)] >= FLOOR[own]}
        assert not above, f"{path} imports from its own floor or above: {sorted(above)}"
    apps = ("train", "sample", "evaluate", "prepare")
    assert not {n for n in names if n.split(".")[0] in apps}, f"{path} imports an app"
    assert "lightning" not in {n.split(".")[0] for n in names}, f"{path}: only pytorch_lightning is imported"


@pytest.mark.parametrize("path", LIGHT)
def test_nothing_heavy_before_the_config_is_checked(path: str) -> None:
    assert not {n.split(".")[0] for n in imports(path, top_level_only=True)} & HEAVY


def test_models_do_not_know_their_parts_or_each_other() -> None:
    models = {p.split("/")[-1][:-3] for p in FILES if p.startswith("t2i/models/")}
    shared = {"any_order", "base", "distributed", "optimizers", "prior", "sampling", "static_decoding", "text_gan",
              "__init__"}
    for path in (p for p in FILES if p.startswith("t2i/models/")):
        names = imports(path)
        assert not {n for n in names if n.startswith(ENTER)}, f"{path}: these enter as constructor arguments"
        others = {n for n in names if n.startswith("t2i.models.") and n.split(".")[2] in models - shared}
        assert not others, f"{path} imports another model: {others}"


def test_nets_and_losses_know_no_lightning() -> None:
    for path in FILES:
        if path.split("/")[1] in ("nets", "quantizers", "losses"):
            assert not {n for n in imports(path) if n.startswith("pytorch_lightning")}, path


def test_the_house_is_tidy() -> None:
    loose = {p.name for p in (SOURCE / "t2i").glob("*.py")}
    assert loose <= {"__init__.py", "__main__.py", "types.py", "version.py"}
    rooms = {p.name for p in (SOURCE / "t2i").iterdir() if p.is_dir() and p.name != "__pycache__"}
    assert rooms == set(FLOOR) - {"types", "version"}
    for path in FILES:
        text = (SOURCE / path).read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 600, f"{path} has more than 600 lines: is it one thing?"
        if path.endswith("__init__.py") and path != "t2i/__init__.py":  # which has `t2i.load` and `t2i.from_pretrained`
            assert not text.strip(), f"{path} is not empty"
