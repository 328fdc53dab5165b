"""A mirror of a run at Weights & Biases: losses, metrics, grids and tables of pictures on one axis, `step`.

`metrics.csv` and TensorBoard are the truth (`t2i.training.loggers`); nothing that happens here stops a training or
holds it up for more than about half a minute. Which id a segment of a run gets is kept in `<run>/wandb.json`:
{"id": of the run, "segments": ids given so far, "online": the id that the server has, or null}. How it is used:
docs/wandb.md.
"""

from __future__ import annotations

import json
import os
import secrets
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import wandb
from PIL import Image
from pytorch_lightning import loggers
from pytorch_lightning.loggers.logger import rank_zero_experiment
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from t2i.checkpoint import atomic, file_format
from t2i.training.loggers import RunLogger
from t2i.version import code_version
from t2i.viz import grids

PATIENCE = 15  # seconds for the server's answer at the start; wandb's own 90 would hold up a training
SENDING = 30  # seconds for what is unsent at the end; the rest lies in the run's folder, for `wandb sync`

_claimed: dict[str, Path] = {}  # ids handed over by the environment -> the run folder that took them


class WandbLogger(RunLogger, loggers.WandbLogger):
    """Lightning's, but for what a mirror needs: online where there is a key and a server, else offline under
    `<run>/wandb`; on one axis, `step`.

    A continued run goes on under its id online; what is trained again is not logged again. Offline nothing can be
    continued, and each further segment gets an id of its own, `<id>-2`, `<id>-3`, in the same group. The first failure
    of a run that is open is told once, then the mirror is off.

    Args:
        project: where W&B puts it; under a W&B sweep the sweep's project counts.
        group: what ties runs together; None for the run's `group`, or its name, so that its segments are together.
        log_model: whether a segment that ends sends `last.ckpt` and `best.ckpt` as the artifact `model-<id>`.
    """

    def __init__(self, project: str = "t2i", group: str | None = None, log_model: bool = False) -> None:
        super().__init__(project=project, group=group)
        self.log_model = log_model
        self.sent = 0  # the last step that the server had when this segment began
        self.broken = False

    def begin(self, run_dir: Path, config: Mapping[str, Any]) -> None:
        """`config`: nested as it is; `code` is added (`code_version`)."""
        super().begin(run_dir, config)
        self._name, self.config = config["name"], config
        self.group = self._wandb_init["group"] or config["group"] or config["name"]

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        if self._experiment is None and not self.broken:  # Lightning asks for it before anything is logged
            with self._mirrored():
                self._open()
        return self._experiment  # None once the mirror is off

    def _open(self) -> None:
        self.run_dir.mkdir(parents=True, exist_ok=True)
        mode = os.environ.get("WANDB_MODE") or ("online" if has_key() else "offline")
        try:
            self._start(mode)
        except Exception as error:  # wandb raises its own, requests' and the socket's
            if mode != "online":
                raise
            reason = str(error).partition("\n")[0]
            warnings.warn(f"W&B cannot be used online ({type(error).__name__}: {reason}); this run is logged offline,"
                          f" `wandb sync {self.run_dir / 'wandb'}/offline-run-*` sends it later", stacklevel=2)
            with suppress(OSError):  # its service may be dead already
                wandb.teardown()  # else it keeps trying, and holds the id
            self._start("offline")

    def _start(self, mode: Any) -> None:
        online = mode == "online"
        wanted, kept = self._segment(online)
        run = wandb.init(
            project=self._project, group=self.group, name=self._name, id=wanted, dir=str(self.run_dir.resolve()),
            config={**self.config, "code": code_version()}, mode=mode, resume="allow" if online else None,
            reinit="create_new",
            settings=wandb.Settings(console="off", silent=True, init_timeout=PATIENCE, finish_timeout=SENDING,
                                    disable_git=True, disable_code=True),
        )
        run.define_metric("step")
        run.define_metric("*", step_metric="step")
        self._experiment, self._id = run, run.id
        self.sent = last_step(run.summary) if online and run.resumed else 0
        atomic.write_text(self.run_dir / "wandb.json", json.dumps(kept))

    def _segment(self, online: bool) -> tuple[str, dict[str, Any]]:
        """The id to open, and what `wandb.json` then holds."""
        path = self.run_dir / "wandb.json"
        kept = json.loads(path.read_text()) if path.is_file() else None
        handed = handed_id(self.run_dir)
        if kept is None or (handed is not None and kept["id"] != handed):
            kept = {"id": handed or secrets.token_hex(4), "segments": 0, "online": None}
        if online and kept["online"]:
            return kept["online"], kept
        number = kept["segments"] + 1
        wanted = kept["id"] if number == 1 else f"{kept['id']}-{number}"
        return wanted, {**kept, "segments": number, "online": wanted if online else kept["online"]}

    @contextmanager
    def _mirrored(self) -> Iterator[None]:
        """Inside, the first failure is told and turns the mirror off."""
        try:
            yield
        except Exception as error:  # no failure of the service, the disk or the library is worth a training
            self.broken = True
            warnings.warn(f"W&B is off from here on ({type(error).__name__}: {error}); metrics.csv and tb/ go on",
                          stacklevel=4)

    @rank_zero_only
    def _log(self, values: Callable[[], Mapping[str, Any]], step: int) -> None:
        if not self.broken:
            with self._mirrored():
                run = self.experiment
                if step > self.sent:  # a continued run trains the steps after its checkpoint again, to the same values
                    run.log({**values(), "step": step})

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self._log(lambda: {name: float(value) for name, value in metrics.items()}, 0 if step is None else step + 1)

    def log_image(self, name: str, image: Image.Image, step: int) -> None:  # type: ignore[override]
        self._log(lambda: {name: wandb.Image(image)}, step)

    def log_table(self, name: str, page: Mapping[str, Any], step: int) -> None:  # type: ignore[override]
        """As a table `tables/<name>`: a caption and its pictures a row."""

        def table() -> dict[str, Any]:
            rows = page["rows"] if "rows" in page else [("picture", page["images"])]
            columns = [[wandb.Image(picture) for picture in grids.to_bytes(images)] for _, images in rows]
            captions = page["captions"] or [""] * len(columns[0])
            return {f"tables/{name}": wandb.Table(columns=["caption", *(label for label, _ in rows)],
                                                  data=[list(row) for row in zip(captions, *columns, strict=True)])}

        with staging(self.run_dir / "wandb" / "staging"):
            self._log(table, step)

    def finalize(self, status: str) -> None:
        """Nothing: `finish` closes."""

    @rank_zero_only
    def finish(self, failed: bool = False) -> None:
        """Closes this segment with the hashes of its checkpoints; what is logged later opens the next one."""
        run, self._experiment, self._id = self._experiment, None, None
        if run is not None and not self.broken:
            with self._mirrored():
                paths = [path for name in ("last", "best") if (path := self.run_dir / f"{name}.ckpt").is_file()]
                hashes = {path.stem: file_format.file_hash(path) for path in paths}
                for name, value in hashes.items():
                    run.summary[f"checkpoint/{name}"] = value
                if self.log_model and paths:
                    with staging(self.run_dir / "wandb" / "staging"):
                        model = wandb.Artifact(f"model-{run.id}", "model", metadata={"name": self._name, **hashes})
                        for path in paths:
                            model.add_file(str(path))  # copied: a run that goes on replaces it
                        run.log_artifact(model)
                run.finish(exit_code=int(failed))


@contextmanager
def staging(folder: Path) -> Iterator[None]:
    """Inside, wandb puts files of artifacts into `folder` until they are sent, unless WANDB_DATA_DIR says where.

    By itself it takes a folder of the user's home, and a run folder moved to another machine could not be synced.
    """
    if os.environ.get("WANDB_DATA_DIR"):
        yield
        return
    os.environ["WANDB_DATA_DIR"] = str(folder.resolve())
    try:
        yield
    finally:
        del os.environ["WANDB_DATA_DIR"]


def last_step(summary: Any) -> int:
    """The last step that a W&B run holds by its summary; 0 for none."""
    return int(summary.get("step") or 0)


def handed_id(run_dir: Path) -> str | None:
    """The run id in WANDB_RUN_ID (an agent of a W&B sweep sets it), for the first run folder of a process that asks.

    Raises RuntimeError for a further one inside a W&B sweep, where wandb takes no other id than this.
    """
    handed = os.environ.get("WANDB_RUN_ID")
    if not handed or _claimed.setdefault(handed, run_dir) == run_dir:
        return handed or None
    if os.environ.get("WANDB_SWEEP_ID"):
        raise RuntimeError(f"a job of a W&B sweep is one run, and {_claimed[handed]} is it")
    return None


def has_key() -> bool:
    """Whether W&B would find a key by itself; nothing is asked or printed."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    import netrc
    from urllib.parse import urlparse

    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(str(host)) is not None
    except (OSError, netrc.NetrcParseError):
        return False
