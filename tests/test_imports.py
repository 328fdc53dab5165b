"""Who may import whom, read from the source with `ast` (docs: DESIGN's rooms)."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src"
FILES = sorted(p.relative_to(SOURCE).as_posix() for p in SOURCE.glob("t2i/**/*.py"))
SHARED = {"t2i.types", "t2i.scenes", "t2i.clip_folder", "t2i.bilstm_folder", "t2i.register", "t2i.shown", "t2i.files",
          "t2i.json_file"}
# Room -> what of t2i it may import beside itself; "checkpoint" is the format, which a tokenizer's loader reads;
# guides read others' files by it and by "interop.tensors".
ROOMS: dict[str, set[str]] = {
    "nets": SHARED,
    "quantizers": SHARED,
    "losses": SHARED,
    "text": SHARED | {"t2i.from_file"},
    "data": SHARED,
    "metrics": SHARED,
    "guides": SHARED | {"t2i.checkpoint", "t2i.interop.tensors"},
    "models": SHARED
    | {"t2i.nets", "t2i.losses", "t2i.sampling", "t2i.metrics", "t2i.models.base", "t2i.models.ranks",
       "t2i.models.adversarial", "t2i.checkpoint", "t2i.optim"},
}
ALONE = {
    "t2i/sampling.py": SHARED,
    "t2i/views.py": SHARED,
    "t2i/prompts.py": {"t2i.shown"},
    "t2i/shown.py": set(),
    "t2i/json_file.py": {"t2i.shown"},
    "t2i/alone.py": {"t2i.shown"},
    "t2i/types.py": set(),
    "t2i/register.py": set(),
    "t2i/from_file.py": {"t2i.check", "t2i.register", "t2i.shown"},
    "t2i/scenes.py": set(),
    "t2i/clip_folder.py": {"t2i.files", "t2i.from_file", "t2i.json_file", "t2i.shown"},
    "t2i/limits.py": set(),
    "t2i/check.py": {"t2i.limits", "t2i.shown"},
    "t2i/config.py": {"t2i.check"},
    "t2i/command.py": {"t2i.check", "t2i.config", "t2i.launchers", "t2i.shown", "t2i.sweep_results"},
    "t2i/launchers.py": {"t2i.config", "t2i.engine", "t2i.machine"},
    "t2i/machine.py": set(),
    "t2i/version.py": set(),
    "t2i/sweep_results.py": set(),
    "t2i/protocols.py": set(),
    "t2i/files.py": {"t2i.shown"},
    "t2i/exported.py": {"t2i.shown"},
    "t2i/checkpoint.py": {"t2i.exported", "t2i.files", "t2i.from_file", "t2i.register", "t2i.shown"},
}
HYDRA = {"t2i/config.py", "t2i/checkpoint.py"}
LIGHT = {"t2i/limits.py", "t2i/check.py", "t2i/config.py", "t2i/command.py", "t2i/prompts.py",
         "t2i/launchers.py", "t2i/sweep_results.py", "t2i/protocols.py",
         "t2i/machine.py", "t2i/version.py", "t2i/register.py", "t2i/shown.py", "t2i/alone.py", "t2i/json_file.py"}
HEAVY = {"torch", "torchvision", "pytorch_lightning", "transformers", "numpy", "matplotlib", "hydra", "omegaconf"}


def imports(path: str, top_level_only: bool = False) -> set[str]:
    tree = ast.parse((SOURCE / path).read_text(encoding="utf-8"))
    found: set[str] = set()
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            module = node.module or ""
            is_package = module in ("t2i", *(f"t2i.{room}" for room in ROOMS))
            found |= {f"{module}.{a.name}" for a in node.names} if is_package else {module}
    return found


def within(name: str, allowed: set[str]) -> bool:
    return any(name == item or name.startswith(item + ".") for item in allowed)


@pytest.mark.parametrize("path", FILES)
def test_import_rules(path: str) -> None:
    names = imports(path)
    ours = {name for name in names if name == "t2i" or name.startswith("t2i.")}
    room = path.split("/")[1]
    if room in ROOMS:
        own = set() if room == "models" else {f"t2i.{room}"}
        assert not {n for n in ours if not within(n, ROOMS[room] | own)}, f"{path} reaches into another room"
    elif path in ALONE:
        assert not {n for n in ours if not within(n, ALONE[path])}, f"{path} reaches into another room"
    doors = ("train", "sample", "evaluate", "prepare")
    assert not {n for n in names if n.split(".")[0] in doors}, f"{path} imports a door"
    if path not in HYDRA:
        assert not {n for n in names if n.split(".")[0] in ("hydra", "omegaconf")}, f"{path} imports hydra"
    assert "lightning" not in {n.split(".")[0] for n in names}, f"{path}: only pytorch_lightning is imported"


@pytest.mark.parametrize("path", sorted(LIGHT))
def test_nothing_heavy_before_the_config_is_checked(path: str) -> None:
    assert not {n.split(".")[0] for n in imports(path, top_level_only=True)} & HEAVY


def test_models_do_not_know_quantizers_or_each_other() -> None:
    for path in (p for p in FILES if p.startswith("t2i/models/")):
        bad = {n for n in imports(path) if n.startswith(("t2i.quantizers", "t2i.data", "t2i.text"))}
        assert not bad, f"{path}: {bad} enter as constructor arguments"


def test_packages_are_empty_and_files_small() -> None:
    for path in FILES:
        text = (SOURCE / path).read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 600, f"{path} has more than 600 lines: is it one thing?"
        assert not (path.endswith("__init__.py") and text.strip()), f"{path} is not empty"
    rooms = {p.name for p in (SOURCE / "t2i").iterdir() if p.is_dir()}
    assert not rooms & {"utils", "common", "components", "helpers"}
