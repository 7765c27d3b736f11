"""`medsiam serve` as a process of its own, and an Orthanc that carries its plugin."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from base64 import b64encode
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from tests.orthanc import DICOMWEB, PASSWORD, PYTHON, USER, orthanc

ROOT = Path(__file__).parents[1]
TOKEN = "a-token-of-the-test-that-is-long-enough"
PATIENCE_S = 90.0


class Serving:
    """A running `medsiam serve`."""

    def __init__(self, folder, port, archive_url, fast=True, threads=1):
        self.folder, self.port, self.threads = folder, port, threads
        self.config = folder / "serve.yaml"
        folder.mkdir(parents=True, exist_ok=True)
        told = {
            "http": {"port": port},
            "work": {"fast": fast, "device": "cpu", "settle_s": 1.0},
            "archives": [{"name": "orthanc", "url": archive_url, "archive": {"retries": 0}}],
        }
        self.config.write_text(yaml.safe_dump(told))
        self.process = None

    def start(self):
        """Starts it and waits until it answers."""
        secrets = {
            "MEDSIAM_SERVE_TOKEN": TOKEN, "MEDSIAM_PACS_USER": USER, "MEDSIAM_PACS_PASSWORD": PASSWORD,
            "MEDSIAM_KEY": "the key of the test, long enough", "OMP_NUM_THREADS": str(self.threads),
            "PYTHONPATH": str(ROOT),
        }  # fmt: skip
        command = [sys.executable, "-m", "medsiam", "serve", "--data", str(self.folder / "data")]
        with (self.folder / "serve.log").open("ab") as log:
            self.process = subprocess.Popen(
                [*command, "--config", str(self.config)], env={**os.environ, **secrets}, stderr=log
            )
        wait_for(self.is_up, what="medsiam serve answers")

    def is_up(self):
        """Whether it answers; fails where it has ended."""
        assert self.process.poll() is None, self.log()
        try:
            return self.ask("/health")[0] == 200
        except OSError:
            return False

    def log(self):
        """What it said."""
        return (self.folder / "serve.log").read_text(errors="replace")

    def end(self, how=signal.SIGTERM):
        """Ends it: in good order, or as a power cut would."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(how)
            self.process.wait(timeout=30)

    def worker_pid(self):
        """The process that works, None between two of them."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return int(children[0]) if children else None

    def ask(self, path, told=None, headers=None):
        """(status, body) of a request with the token."""
        data = None if told is None else json.dumps(told).encode()
        sent = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json", **(headers or {})}
        return answer_of(f"http://127.0.0.1:{self.port}{path}", data, sent)

    def jobs(self, **words):
        """The jobs as the service lists them."""
        query = "&".join(f"{key}={value}" for key, value in words.items())
        return json.loads(self.ask(f"/jobs?{query}")[1])["jobs"]


def answer_of(url, data=None, headers=None):
    """(status, body) of a request, whatever the status."""
    request = urllib.request.Request(url, data, headers or {})
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def wait_for(is_true, *, what, patience_s=PATIENCE_S):
    """Returns what is_true gives once that is true."""
    deadline = time.monotonic() + patience_s
    while True:
        found = is_true()
        if found:
            return found
        assert time.monotonic() < deadline, f"never came true: {what}"
        time.sleep(0.2)


@contextmanager
def orthanc_with_plugin(folder, serve_port, ports=None, more=None):
    """Orthanc as in tests.orthanc, with the plugin that hands studies to a port; skips where it cannot."""
    if not PYTHON.exists():
        pytest.skip("Orthanc's Python plugin is not installed (Debian: orthanc-python)")
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(ROOT / "medsiam" / "plugins" / "orthanc.py", folder / "medsiam_plugin.py")
    told = {
        "Plugins": [str(DICOMWEB), str(PYTHON)], "PythonScript": str(folder / "medsiam_plugin.py"),
        "StableAge": 1,
        "Medsiam": {"Url": f"http://127.0.0.1:{serve_port}", "Token": TOKEN, **(more or {})},
    }  # fmt: skip
    with orthanc(folder, ports=ports, more=told) as opened:
        yield opened


class Rest:
    """Orthanc's own REST API, with the password."""

    def __init__(self, port):
        self.port = port
        self.headers = {"Authorization": "Basic " + b64encode(f"{USER}:{PASSWORD}".encode()).decode()}

    def ask(self, path, data=None, headers=None):
        """(status, body)."""
        return answer_of(f"http://127.0.0.1:{self.port}{path}", data, {**self.headers, **(headers or {})})

    def json(self, path, data=None):
        """The answer as JSON."""
        return json.loads(self.ask(path, data)[1])

    def study(self, uid):
        """Orthanc's name of a study, None where it has none."""
        found = [each["ID"] for each in self.json("/tools/lookup", uid.encode()) if each["Type"] == "Study"]
        return found[0] if found else None

    def state(self, uid):
        """What the plugin says of a study."""
        study = self.study(uid)
        return self.json(f"/studies/{study}/medsiam") if study else {}

    def modalities(self, uid):
        """The kinds of series of a study."""
        study = self.study(uid)
        if study is None:
            return set()
        return {series["MainDicomTags"]["Modality"] for series in self.json(f"/studies/{study}/series")}
