"""A mirror of a run at Weights & Biases: losses, metrics, grids and tables of pictures on one axis, `step`.

`metrics.csv` and TensorBoard are the truth (`t2i.training.loggers`); nothing that happens here stops a training or
holds it up
for more than about half a minute. Which id a segment of a run gets is kept in `<run>/wandb.json`:
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

from PIL import Image
from pytorch_lightning.loggers.logger import Logger
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from t2i.checkpoint import atomic, file_format
from t2i.version import code_version
from t2i.viz import grids

PATIENCE = 15  # seconds for the server's answer at the start; wandb's own 90 would hold up a training
SENDING = 30  # seconds for what is unsent at the end; the rest lies in the run's folder, for `wandb sync`

_claimed: dict[str, Path] = {}  # ids handed over by the environment -> the run folder that took them


class WandB(Logger):
    """Logs to W&B: online where there is a key and a server, else offline under `<run>/wandb`.

    A continued run goes on under its id online; what is trained again is not logged again. Offline nothing can be
    continued, and each further segment gets an id of its own, `<id>-2`, `<id>-3`, in the same group. The first failure
    of a run that is open is told once, then the mirror is off.

    Args:
        run_dir: the run's folder.
        config: plain containers, nested as they are; `code` is added (`code_version`).
        name: shown for the run.
        group: what ties runs together; None for the run's name, so that its segments are together.
        project: where W&B puts it; under a W&B sweep the sweep's project counts.
    """

    def __init__(self, run_dir: Path, config: dict[str, Any], name: str, group: str | None, project: str) -> None:
        super().__init__()
        self.run_dir, self.config, self.project = Path(run_dir), config, project
        self.title, self.group = name, group or name
        self.id: str | None = None  # of the segment that is open
        self.sent = 0  # the last step that the server had when this segment began
        self.run: Any = None
        self.broken = False

    @property
    def name(self) -> str:
        return self.title

    @property
    def version(self) -> str:
        return self.id or ""

    def _do(self, what: Callable[..., None], *values: Any) -> None:
        if self.broken:
            return
        try:
            what(*values)
        except Exception as error:  # a mirror: no failure of the service, the disk or the library is worth a training
            self.broken = True
            warnings.warn(f"W&B is off from here on ({type(error).__name__}: {error}); metrics.csv and tb/ go on",
                          stacklevel=2)

    def _open(self) -> Any:
        if self.run is None:
            import wandb

            self.run_dir.mkdir(parents=True, exist_ok=True)
            mode = os.environ.get("WANDB_MODE") or "online"
            if mode != "online":
                self._start(mode)
            elif not has_key():
                self._start("offline")
            else:
                try:
                    self._start("online")
                except Exception as error:  # wandb raises its own, requests' and the socket's
                    reason = str(error).splitlines()[0] if str(error) else ""
                    warnings.warn(f"W&B cannot be used online ({type(error).__name__}: {reason}); this run is logged"
                                  f" offline, `wandb sync {self.run_dir / 'wandb'}/offline-run-*` sends it later",
                                  stacklevel=2)
                    with suppress(OSError):  # its service may be dead already
                        wandb.teardown()  # else it keeps trying, and holds the id
                    self._start("offline")
        return self.run

    def _start(self, mode: Any) -> None:
        import wandb

        online = mode == "online"
        wanted, kept = self._segment(online)
        run = wandb.init(
            project=self.project, group=self.group, name=self.title, id=wanted, dir=str(self.run_dir.resolve()),
            config={**self.config, "code": code_version()}, mode=mode, resume="allow" if online else None,
            reinit="create_new",
            settings=wandb.Settings(console="off", silent=True, init_timeout=PATIENCE, finish_timeout=SENDING,
                                    disable_git=True, disable_code=True),
        )
        run.define_metric("step")
        run.define_metric("*", step_metric="step")
        self.run, self.id = run, run.id
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

    def _log(self, values: Mapping[str, Any], step: int) -> None:
        run = self._open()
        if step > self.sent:  # a continued run trains the steps after its checkpoint again, to the same values
            run.log({**values, "step": step})

    def _metrics(self, metrics: Mapping[str, float], step: int) -> None:
        self._log({name: float(value) for name, value in metrics.items()}, step)

    def _image(self, name: str, image: Image.Image, step: int) -> None:
        import wandb

        self._log({name: wandb.Image(image)}, step)

    def _table(self, name: str, page: Mapping[str, Any], step: int) -> None:
        import wandb

        rows = page["rows"] if "rows" in page else [("picture", page["images"])]
        columns = [[wandb.Image(picture) for picture in grids.to_bytes(images)] for _, images in rows]
        captions = page["captions"] or [""] * len(columns[0])
        table = wandb.Table(columns=["caption", *(label for label, _ in rows)],
                            data=[list(cells) for cells in zip(captions, *columns, strict=True)])
        with staging(self.run_dir / "wandb" / "staging"):
            self._log({f"tables/{name}": table}, step)

    def _finish(self, failed: bool) -> None:
        if self.run is not None:
            for name in ("last", "best"):
                path = self.run_dir / f"{name}.ckpt"
                if path.is_file():
                    self.run.summary[f"checkpoint/{name}"] = file_format.file_hash(path)
            self.run.finish(exit_code=int(failed))

    @rank_zero_only
    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """The config went along when the run was opened."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self._do(self._metrics, metrics, 0 if step is None else step + 1)

    @rank_zero_only
    def log_image(self, name: str, image: Image.Image, step: int) -> None:
        """Shows a picture; `step` in batches done."""
        self._do(self._image, name, image, step)

    @rank_zero_only
    def log_table(self, name: str, page: Mapping[str, Any], step: int) -> None:
        """Shows a page of a module's `pictures(batch)` as a table `tables/<name>`: a caption and its pictures a row.

        `page` is {"rows": [(label, images), ...], "captions"} or {"images", "captions"}, images in [-1, 1] or bytes.
        """
        self._do(self._table, name, page, step)

    @rank_zero_only
    def finish(self, failed: bool = False) -> None:
        """Closes this segment with the hashes of its checkpoints; what is logged later opens the next one."""
        self._do(self._finish, failed)
        self.run = self.id = None


@contextmanager
def staging(folder: Path) -> Iterator[None]:
    """Inside, wandb puts a table's pictures into `folder` until they are sent, unless WANDB_DATA_DIR says where.

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
