"""A Prefect server and workers of a test's own: real processes on loopback, in a folder that goes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
# Migrations on a busy machine take most of a minute.
START_S = 150.0
LEASES_ON_DISK = "prefect.server.concurrency.lease_storage.filesystem"


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        return int(trial.getsockname()[1])


def wait_for(is_so: Callable[[], Any], limit_s: float, what: str) -> Any:
    """The first true answer. Raises TimeoutError."""
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        if found := is_so():
            return found
        time.sleep(0.2)
    raise TimeoutError(f"{what} did not come about in {limit_s:.0f} s")


class PrefectServer:
    """A server with its workers; everything it started is gone after `stop`.

    database  its address; SQLite in the folder where None
    """

    def __init__(self, home: Path, *, database: str | None = None) -> None:
        self.home, self.port = home, free_port()
        self.api = f"http://127.0.0.1:{self.port}/api"
        self.processes: list[subprocess.Popen[bytes]] = []
        self.server: subprocess.Popen[bytes] | None = None
        self.env = {
            "PREFECT_HOME": str(home),
            "PREFECT_API_URL": self.api,
            "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": LEASES_ON_DISK,
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_SERVER_UI_ENABLED": "false",
            "DO_NOT_TRACK": "1",
            "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
            "PREFECT_WORKER_QUERY_SECONDS": "2",
            "OMP_NUM_THREADS": "1",
            "OMP_WAIT_POLICY": "PASSIVE",
            "PYTHONPATH": str(ROOT),
            "NO_COLOR": "1",
        }
        if database:
            self.env["PREFECT_API_DATABASE_CONNECTION_URL"] = database

    def start(self) -> PrefectServer:
        """The server, once it answers."""
        self.server = self.spawn(
            "server", "start", "--host", "127.0.0.1", "--port", str(self.port), "--no-ui"
        )
        wait_for(self.is_well, START_S, "the server")
        return self

    def is_well(self) -> bool:
        """Whether it answers."""
        with suppress(OSError), urllib.request.urlopen(f"{self.api}/health", timeout=2) as answer:
            return answer.status == 200
        return False

    def spawn(self, *command: str, **env: str) -> subprocess.Popen[bytes]:
        """A process of the prefect command in a group of its own, its words in a file."""
        return self.module("prefect", *command, **env)

    def module(self, name: str, *words: str, **env: str) -> subprocess.Popen[bytes]:
        """A Python module as a process, likewise."""
        told = (words or (name,))[0]
        with (self.home / f"{told}-{len(self.processes)}.txt").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", name, *words],
                env={**os.environ, **self.env, **env},
                cwd=ROOT,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.processes.append(process)
        return process

    def command(self, *words: str) -> str:
        """What a command of prefect prints. Raises CalledProcessError."""
        told = subprocess.run(
            [sys.executable, "-m", "prefect", "--no-prompt", *words],
            env={**os.environ, **self.env}, cwd=ROOT, capture_output=True, text=True,
        )  # fmt: skip
        assert told.returncode == 0, told.stdout + told.stderr
        return told.stdout

    def worker(self, queue: str = "gpu-0", **env: str) -> subprocess.Popen[bytes]:
        """A worker of one queue, one run at a time."""
        return self.spawn("worker", "start", "--pool", "gpu", "--work-queue", queue, "--limit", "1",
                          "--name", f"{queue}-{len(self.processes)}", **env)  # fmt: skip

    def ask(self, path: str, told: Mapping[str, Any] | None = None, method: str = "POST") -> Any:
        """The server's answer to a request."""
        data = None if told is None else json.dumps(told).encode()
        request = urllib.request.Request(
            f"{self.api}/{path}", data, {"Content-Type": "application/json"}, method=method
        )
        for pause_s in (1.0, 2.0, 4.0, 8.0):
            try:
                return _answer(request)
            except urllib.error.HTTPError as error:
                # What a busy SQLite answers; Prefect's own client asks again too.
                if error.code != 503:
                    raise
                time.sleep(pause_s)
        return _answer(request)

    def deployment(self, name: str) -> str:
        """The id of `flow/deployment`."""
        return str(self.ask(f"deployments/name/{name}", method="GET")["id"])

    def begin(self, name: str, **parameters: str) -> str:
        """The id of a new run of a deployment."""
        wanted = {"parameters": parameters, "state": {"type": "SCHEDULED"}}
        return str(self.ask(f"deployments/{self.deployment(name)}/create_flow_run", wanted)["id"])

    def run(self, run_id: str) -> dict[str, Any]:
        """A flow run as the server tells it."""
        return dict(self.ask(f"flow_runs/{run_id}", method="GET"))

    def runs(self, **where: Any) -> list[dict[str, Any]]:
        """Flow runs by a filter."""
        return list(self.ask("flow_runs/filter", {"flow_runs": where, "sort": "START_TIME_DESC"}))

    def ended(self, run_id: str, limit_s: float = 120.0) -> dict[str, Any]:
        """A flow run that is completed, failed or cancelled; one that crashed may still be run again."""
        ends = ("COMPLETED", "FAILED", "CANCELLED")
        wait_for(lambda: self.run(run_id)["state_type"] in ends, limit_s, f"the end of {run_id}")
        return self.run(run_id)

    def stop(self) -> None:
        """Kills every process that was started here, with its children."""
        for process in self.processes:
            kill_group(process)


def _answer(request: urllib.request.Request) -> Any:
    with urllib.request.urlopen(request, timeout=30) as answer:
        content = answer.read()
    return json.loads(content) if content else None


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """kill -9 of a process and of all that it started and that did not leave its group."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def flow_processes(worker: subprocess.Popen[bytes]) -> list[int]:
    """The processes that a worker runs flows in."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, IndexError):
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            words = (entry / "cmdline").read_bytes()
            if parent == worker.pid and b"prefect" in words:
                found.append(int(entry.name))
    return found


def kill_flow(worker: subprocess.Popen[bytes]) -> bool:
    """kill -9 of the flow that a worker runs, and not of the worker; whether there was one."""
    pids = flow_processes(worker)
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return bool(pids)
