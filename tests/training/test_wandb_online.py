"""The W&B mirror online: a server of this machine answers wandb-core's few questions and keeps what it is sent."""

from __future__ import annotations

import gzip
import json
import os
import re
import threading
import time
import zlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import wandb

from t2i.training import wandb_logger
from t2i.training.wandb_logger import WandbLogger

PLACE = {"id": "p", "name": "t2i", "entity": {"id": "e", "name": "me"}}


class Server(ThreadingHTTPServer):
    """Runs by id: {"history": lines, "summary": JSON, "config": JSON, "exit": code}; `known` are the resumed ones."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.runs: dict[str, dict[str, Any]] = {}
        self.known: list[str] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, *_: Any) -> None:
        """Connections that wandb-core leaves behind."""

    def run(self, name: str) -> dict[str, Any]:
        return self.runs.setdefault(name, {"history": [], "summary": "{}", "config": "{}", "exit": None})

    def rows(self, name: str) -> list[tuple[int, float]]:
        found = [json.loads(line) for line in self.runs[name]["history"]]
        return [(row["step"], row["loss"]) for row in found]

    def answer(self, operation: str, given: dict[str, Any]) -> dict[str, Any]:
        if operation == "RunResumeStatus":
            name = given["name"]
            if name not in self.runs:
                return {"model": {**PLACE, "bucket": None}}
            self.known.append(name)
            run = self.runs[name]
            bucket = {"id": name, "name": name, "displayName": name, "summaryMetrics": run["summary"],
                      "config": run["config"], "logLineCount": 0, "historyLineCount": len(run["history"]),
                      "eventsLineCount": 0, "historyTail": json.dumps(run["history"][-1:]), "eventsTail": "[]",
                      "tags": [], "wandbConfig": '{"t": 1}'}
            return {"model": {**PLACE, "bucket": bucket}}
        if operation == "UpsertBucket":
            run, name = self.run(given["name"]), given["name"]
            run["config"] = given.get("config") or run["config"]
            run["group"] = given.get("groupName") or run.get("group")
            bucket = {"id": name, "name": name, "displayName": name, "description": None, "config": run["config"],
                      "sweepName": None, "project": PLACE, "historyLineCount": len(run["history"])}
            return {"upsertBucket": {"bucket": bucket, "inserted": True}}
        if operation == "CreateRunFiles":
            files = [{"name": name, "uploadUrl": f"{self.url}/upload/{name}"} for name in given["files"]]
            return {"createRunFiles": {"runID": given["run"], "uploadHeaders": [], "files": files}}
        return {}


class Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *_: Any) -> None:
        """Says nothing."""

    def body(self) -> bytes:
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        encoding = self.headers.get("Content-Encoding")
        if encoding == "gzip":
            return gzip.decompress(content)
        return zlib.decompress(content) if encoding == "deflate" else content

    def send(self, held: dict[str, Any]) -> None:
        content = json.dumps(held).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_PUT(self) -> None:
        self.body()
        self.send({})

    def do_POST(self) -> None:
        content = self.body()
        stream = re.search(r"/([^/]+)/file_stream", self.path)
        if self.path.endswith("/graphql"):
            asked = json.loads(content)
            operation = re.search(r"(?:query|mutation)\s+(\w+)", asked["query"])
            assert operation is not None
            self.send({"data": self.server.answer(operation[1], asked.get("variables") or {})})
        elif stream:
            sent = json.loads(content)
            run, files = self.server.run(stream[1]), sent.get("files") or {}
            if "wandb-history.jsonl" in files:
                lines = files["wandb-history.jsonl"]
                run["history"][lines["offset"] :] = lines["content"]  # as at W&B, an offset in use is written over
            if "wandb-summary.json" in files:
                run["summary"] = files["wandb-summary.json"]["content"][-1]
            if sent.get("complete"):
                run["exit"] = sent.get("exitcode")
            self.send({"limits": {}})
        else:
            self.send({})


@pytest.fixture
def server(monkeypatch: Any, tmp_path: Path) -> Iterator[Server]:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(wandb_logger, "_claimed", {})
    made = Server()
    wandb.teardown()  # it reads the environment once a process
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
    monkeypatch.setenv("WANDB_BASE_URL", made.url)
    yield made
    wandb.teardown()
    made.shutdown()
    made.server_close()


def segment(run_dir: Path, steps: range, times: float = 1.0) -> WandbLogger:
    log = WandbLogger()
    log.begin(run_dir, {"model": {"width": 8}, "name": "run", "group": "group"})
    for step in steps:
        log.log_metrics({"loss": times * step}, step - 1)
    return log


@pytest.mark.slow
def test_a_continued_run_goes_on_under_its_id_and_doubles_no_step(tmp_path: Path, server: Server) -> None:
    """Stopped after step 5, continued from a checkpoint at step 3."""
    segment(tmp_path, range(1, 6)).finish()
    kept = json.loads((tmp_path / "wandb.json").read_text())
    assert server.known == [] and kept["online"] == kept["id"]
    again = segment(tmp_path, range(4, 9), times=10.0)
    assert again.version == kept["id"] and again.sent == 5 and not again.broken
    again.finish()
    assert server.known == [kept["id"]] and list(server.runs) == [kept["id"]]
    assert server.rows(kept["id"]) == [(n, float(n)) for n in range(1, 6)] + [(n, 10.0 * n) for n in range(6, 9)]
    run = server.runs[kept["id"]]
    assert run["exit"] == 0 and run["group"] == "group" and json.loads(run["summary"])["step"] == 8
    assert json.loads(run["config"])["model"]["value"] == {"width": 8}


@pytest.mark.slow
def test_two_runs_of_one_process_are_two_runs(tmp_path: Path, server: Server) -> None:
    for name, times in (("a", 1.0), ("b", 2.0)):
        segment(tmp_path / name, range(1, 3), times).finish()
    ids = [json.loads((tmp_path / name / "wandb.json").read_text())["id"] for name in "ab"]
    assert ids[0] != ids[1] and sorted(server.runs) == sorted(ids)
    assert [server.rows(which) for which in ids] == [[(1, 1.0), (2, 2.0)], [(1, 2.0), (2, 4.0)]]


@pytest.mark.slow
def test_a_server_that_goes_away_holds_the_end_up_for_its_time_only(
    tmp_path: Path, server: Server, monkeypatch: Any
) -> None:
    monkeypatch.setattr(wandb_logger, "SENDING", 3)
    log = segment(tmp_path, range(1, 3))
    assert list(server.runs) == [log.version]
    server.shutdown()
    server.server_close()
    started = time.monotonic()
    for step in range(3, 6):
        log.log_metrics({"loss": 1.0}, step - 1)
    assert time.monotonic() - started < 3  # what is logged is sent by wandb's own process
    log.finish()
    assert 2 < time.monotonic() - started < 20
    assert len(list((tmp_path / "wandb").glob("run-*/*.wandb"))) == 1  # for `wandb sync`
