"""Commands in real processes with little of something: forked from one that has loaded everything.

    with Nursery() as nursery:
        child = nursery.start(["compare", ...], file_bytes=65536)
        code, told = child.wait()

Loading torch and monai takes seconds; a fork of a process that did so once takes milliseconds.
"""

import ctypes
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Of linux/capability.h.
CAPABILITY_VERSION = 0x20080522
# Neither a test's own key nor threads, whose number would change with the machine.
SURROUNDINGS = {"MEDSIAM_KEY": "the key of the test, long enough", "OMP_NUM_THREADS": "1"}


@dataclass
class Child:
    """A process of the nursery."""

    nursery: "Nursery"
    pid: int
    told: Path

    def wait(self):
        """(exit code, what it said on both outputs); a signal is a code below 0."""
        return self.nursery.ask(wait=self.pid), self.told.read_text(errors="replace")

    def kill(self):
        """As a power cut would."""
        os.kill(self.pid, signal.SIGKILL)


class Nursery:
    """The process that has loaded everything."""

    def __enter__(self):
        self.folder = tempfile.TemporaryDirectory()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.fault_runner"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=os.environ | SURROUNDINGS | {"PYTHONPATH": str(ROOT)},
        )
        self.count = 0
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait(timeout=20)
        self.process.stdout.close()
        self.folder.cleanup()

    def ask(self, **words):
        """The nursery's answer."""
        self.process.stdin.write(json.dumps(words) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def start(self, words=(), *, code="", **limits):
        """A child that runs a command, or code.

        memory_mb    how much more address space it may take than it has
        file_bytes   how large a file may grow
        rootless     permissions hold for it, as they do not for root
        die_at       it is killed before it gives the file so-and-so-many its new name
        close_at     (n, folder): instead of that the folder may only be read from then on
        """
        self.count += 1
        told = Path(self.folder.name) / str(self.count)
        pid = self.ask(words=list(map(str, words)), code=code, told=str(told), limits=limits)
        return Child(self, pid, told)

    def run(self, words=(), **more):
        """(exit code, what was said) of a child that has ended."""
        return self.start(words, **more).wait()


def _serve():
    """Forks children until standard input ends."""
    import medsiam.batch
    import medsiam.cases.intake
    import medsiam.cli
    import medsiam.encoding.weights
    import medsiam.report.writer
    import medsiam.similar  # noqa: F401
    import tests.comparison_maker  # noqa: F401

    for line in sys.stdin:
        asked = json.loads(line)
        if "wait" in asked:
            answer = os.waitstatus_to_exitcode(os.waitpid(asked["wait"], 0)[1])
        else:
            answer = os.fork()
            if not answer:
                _be_child(**asked)
        print(json.dumps(answer), flush=True)


def _be_child(words, code, told, limits):
    ended = 99
    try:
        handle = os.open(told, os.O_WRONLY | os.O_CREAT)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        _limit(**limits)
        if code:
            exec(compile(code, "<child>", "exec"), {})
            ended = 0
        else:
            ended = _command(words)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(ended)


def _command(words):
    from medsiam.cli import app

    try:
        app(words, prog_name="medsiam")
    except SystemExit as ended:
        return ended.code or 0
    return 0


def _limit(memory_mb=None, file_bytes=None, rootless=False, die_at=None, close_at=None):
    if rootless:
        # Another user could not even read the interpreter where that lies in root's home.
        header, none = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION, 0), (ctypes.c_uint32 * 6)()
        assert ctypes.CDLL(None).capset(header, none) == 0, "a process may always give up its rights"
    if memory_mb is not None:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + memory_mb * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    if file_bytes is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
    if die_at is not None:
        _at_renaming(die_at, lambda: os.kill(os.getpid(), signal.SIGKILL))
    if close_at is not None:
        _at_renaming(close_at[0], lambda: os.chmod(close_at[1], 0o500))


def _at_renaming(number, act):
    left = [number]

    def count(event, _):
        if event == "os.rename":
            left[0] -= 1
            if left[0] == -1:
                act()

    sys.addaudithook(count)


if __name__ == "__main__":
    _serve()
