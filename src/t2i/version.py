"""Which code runs: for what is written down beside pictures, scores and runs."""

from __future__ import annotations

import subprocess
import tomllib
import warnings
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def version() -> str:
    """Of t2i; a checkout need not be installed."""
    source = ROOT / "pyproject.toml"
    return tomllib.loads(source.read_text())["project"]["version"] if source.is_file() else metadata.version("t2i")


def code_version(root: Path = ROOT) -> dict[str, Any]:
    """Versions of t2i and torch, and where `root` is a git checkout its commit and whether files that git knows differ
    from it (None: no git)."""
    import torch

    found: dict[str, Any] = {"t2i": version(), "torch": torch.__version__, "commit": None, "changed": None}
    if (root / ".git").exists():
        try:
            found["commit"] = _git(root, "rev-parse", "HEAD")
            found["changed"] = bool(_git(root, "status", "--porcelain", "--untracked-files=no"))
        except (OSError, subprocess.SubprocessError) as error:
            warnings.warn(f"git does not say which commit this is: {error}", stacklevel=2)
    return found


def _git(root: Path, *words: str) -> str:
    # Without optional locks: looking must not get into the way of somebody's commit.
    command = ["git", "--no-optional-locks", "-C", str(root), *words]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=10).stdout.strip()
