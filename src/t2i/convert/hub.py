"""Exported models on the Hugging Face hub: two files of a repository are fetched; what `t2i export` wrote is uploaded,
and nothing else that lies in its folder."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi, get_token, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError

from t2i.checkpoint import file_format
from t2i.checkpoint.safetensors_io import CONFIG, WEIGHTS
from t2i.config.messages import shown
from t2i.convert.model_card import CARD

FAULTS = (HTTPError, HfHubHTTPError, HFValidationError, OSError)  # without a network, a permission, a right name


def _why(error: BaseException) -> str:
    return shown(" ".join(str(error).split()), 300)


def fetch(name: str, revision: str | None = None) -> Path:
    """The folder in the hub's cache with a repository's weights and config; ValueError where they cannot be had."""
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=[WEIGHTS, CONFIG]))
    except FAULTS as error:
        raise ValueError(f"{shown(name)} is no folder here, and cannot be had from the hub: {_why(error)}") from error


def push(folder: str | Path, repo: str, private: bool = False) -> str:
    """Uploads an exported folder: weights, config, card and pictures, nothing else in it. Makes the repository if there
    is none. Returns the address of the commit; ValueError in a line without a network or a token."""
    folder = Path(folder).expanduser()
    if missing := [name for name in (WEIGHTS, CONFIG, CARD) if not (folder / name).is_file()]:
        raise ValueError(f"{folder} has no {', no '.join(missing)}: a folder is wanted that `t2i export` wrote")
    file_format.read(folder)  # that it is whole, and says what it is
    if get_token() is None:
        raise ValueError(f"push to {shown(repo)} needs a token of the hub: `hf auth login`, or HF_TOKEN=…")
    api = HfApi()
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        done = api.upload_folder(repo_id=repo, folder_path=folder, allow_patterns=[WEIGHTS, CONFIG, CARD, "*.png"],
                                 commit_message="t2i push")
    except FAULTS as error:
        raise ValueError(f"push to {shown(repo)} failed: {_why(error)}") from error
    return str(done.commit_url)
