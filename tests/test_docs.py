"""What README.md and docs/ name is there: files, links, classes, and every command composes."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import pytest

from t2i.config.compose import compose

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted(p for p in (ROOT / "docs").glob("*.md") if p.stem not in ("log", "decisions"))]
TEXTS = {page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8") for page in PAGES}
APPS = ("train", "sample", "evaluate", "prepare")


def fences(text: str) -> list[str]:
    """The code blocks of a page without a language."""
    return re.findall(r"^```\n(.*?)^```$", text, re.S | re.M)


def commands(app: str) -> list[tuple[str, str]]:
    """(page, overrides) of every command of an app in a code block; `torchrun …` and `&&` in front are left out."""
    called = re.compile(rf"(?:python {app}\.py|\bt2i {app}) ")
    return [(page, re.split(r"   +", called.split(line, maxsplit=1)[1])[0]) for page, text in TEXTS.items()
            for block in fences(text) for line in re.sub(r" *\\\n *", " ", block).split("\n") if called.search(line)]


@pytest.mark.parametrize("page", TEXTS)
def test_files_and_links_are_there(page: str) -> None:
    text = TEXTS[page]
    named = re.findall(r"`((?:src/t2i|tests|conf|experiments|docs|benchmarks|sweeps)/[\w./*-]+\.\w+)`", text)
    gone = [name for name in named if not list(ROOT.glob(name))]
    linked = [link for link in re.findall(r"\]\(([^)#:]+)\)", text) if not (ROOT / page).parent.joinpath(link).exists()]
    assert not gone + linked, f"{page} names {gone + linked}"


def test_what_holds_a_decision_is_there() -> None:
    text = (ROOT / "docs/decisions.md").read_text(encoding="utf-8")
    held = " ".join(re.findall(r"^\*\*Held by\*\*:(.*)$", text, re.M))
    named = re.findall(r"`((?:src|tests|docs|benchmarks)/[\w./]+\.(?:py|md))", held)
    assert len(named) > 40 and not [name for name in named if not (ROOT / name).exists()]


@pytest.mark.parametrize("page", TEXTS)
def test_classes_are_there(page: str) -> None:
    for module, name in re.findall(r"\bt2i((?:\.[a-z_0-9]+)+)\.([A-Z]\w+)", TEXTS[page]):
        path = ROOT / f"src/t2i{module.replace('.', '/')}.py"
        assert path.is_file(), f"{page}: t2i{module}"
        names = {n.name for n in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(n, ast.ClassDef)}
        assert name in names, f"{page}: t2i{module}.{name}"


@pytest.mark.parametrize(("app", "page", "line"), [(app, *found) for app in APPS for found in commands(app)])
def test_every_command_composes(app: str, page: str, line: str) -> None:
    words = [word for word in shlex.split(line) if word not in ("-m", "…")]
    if "--config-dir" in words:
        pytest.skip("run by tests/config/test_extend.py")
    if "-m" in line.split():  # of a sweep, the first job
        words = [word.split(",")[0] for word in words if not word.startswith(("hydra", "hparams_search"))
                 and "interval(" not in word]
    assert compose(words, app, files=False)
