"""What do the flows cost beside `medsiam batch`, do they survive kill -9, do two workers share the work?

    python bench/flows.py overhead [PATIENTS]
    python bench/flows.py kills [KILLS] [--patients N]
    python bench/flows.py scale [PATIENTS] [--turns N]

overhead  one archive by run_batch and by compare_archive, both warm in one process
kills     kill -9 of flow, worker, worker with its flow (a machine), or server at random moments;
          what is dead is started again, as systemd would. Afterwards: every case once, files and
          evidence as the digests say, no lock held
scale     one worker, then two on one OUT, in turns, with PostgreSQL behind Prefect's server
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from medsiam.batch import BatchSettings, plan_archive, run_batch
from medsiam.bench.scores import Score, Scores
from medsiam.report.digests import verify
from tests.archive_maker import write_archive
from tests.prefect_server import PrefectServer, flow_processes, free_port, kill_flow, kill_group, wait_for

VISITS = 3
NIGHT = "compare_archive/night"
SECOND = "compare_archive/night-second-gpu"
VICTIMS = ("flow", "worker", "machine", "server")
POSTGRES = Path("/usr/lib/postgresql")
ONE_DEVICE = "batch: {formats: [json, dicom]}\nlocks: {lock_cpu: true, folder: %s}\n"
TWO_CORES = "batch: {formats: [json]}\nlocks: {folder: %s}\n"


def overhead(patients: int) -> Scores:
    """Prefect's share, one process and one server on SQLite."""
    with tempfile.TemporaryDirectory() as folder, server_of(Path(folder)) as server:
        root = Path(folder)
        archive = write_archive(root / "archive", patients, VISITS)
        os.environ.update(server.env)
        from flows.deployed import compare_archive  # after the server's address is known

        warm = write_archive(root / "warm", 1, 2)
        run_batch(warm, root / "warm-batch")
        compare_archive(str(warm), str(root / "warm-flow"))
        plain, flow = Stopwatch(), Stopwatch()
        with plain:
            made = run_batch(archive, root / "plain", BatchSettings())
        with flow:
            compare_archive(str(archive), str(root / "flow"))
    cases = made.fresh
    rows = (
        Score("cases", float(cases)),
        Score("medsiam batch (wall s)", plain.wall_s),
        Score("compare_archive (wall s)", flow.wall_s),
        Score("medsiam batch (processor s)", plain.processor_s),
        Score("compare_archive (processor s)", flow.processor_s),
        Score("Prefect a case (processor ms)", 1000.0 * (flow.processor_s - plain.processor_s) / cases),
        Score("Prefect beyond batch, wall (%)", 100.0 * (flow.wall_s / plain.wall_s - 1.0)),
        Score("Prefect beyond batch, processor (%)", 100.0 * (flow.processor_s / plain.processor_s - 1.0)),
    )
    return Scores("flows overhead", f"{patients} made-up patients, tiny", 0, rows)


def kills(count: int, patients: int) -> Scores:
    """Runs an archive again and again until so many have been killed."""
    draw, felled, computed, twice, undone, damaged = random.Random(5), Counter[str](), 0, 0, 0, 0
    evidence = 0
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, server_of(Path(folder)) as server:
        root = Path(folder)
        archive = write_archive(root / "archive", patients, VISITS)
        config = root / "flows.yaml"
        config.write_text(ONE_DEVICE % (root / "locks"))
        cases = len(plan_archive(archive, root / "none").cases)
        place = Place(server, server.worker())
        server.module("flows.watch")
        while felled.total() < count:
            out = root / f"out{felled.total()}"
            run = server.begin(NIGHT, archive=str(archive), out=str(out), config=str(config))
            while felled.total() < count and not has_ended(server, run):
                time.sleep(draw.uniform(1.0, 12.0))
                victim = draw.choice(VICTIMS)
                if is_running(server, run) and place.fell(victim):
                    felled[victim] += 1
                    print(f"{time.monotonic() - began:6.0f} s  kill -9 {victim}", flush=True)
            wait_for(lambda run=run: has_ended(server, run), 600, "the end of a run")
            fresh = Counter(told["case_id"] for told in events(out) if told["is_fresh"])
            computed, twice = computed + fresh.total(), twice + sum(n - 1 for n in fresh.values())
            undone += cases - len(records(out))
            damaged += 0 if verify(out).others == 0 else 1
            evidence += len(list(out.glob("*/*/dicom/**/*.dcm")))
        is_free = subprocess.run(
            [sys.executable, "-c", TRY, str(root / "locks")], cwd=Path(__file__).parents[1]
        )
    rows = (
        *(Score(f"killed: {victim}", float(felled[victim])) for victim in VICTIMS),
        Score("cases told as computed", float(computed)),
        Score("computed twice", float(twice), "", "0"),
        Score("not done", float(undone), "", "0"),
        Score("DICOM objects, each as its digest says", float(evidence)),
        Score("results with files nobody speaks of", float(damaged), "", "0"),
        Score("device still held", float(is_free.returncode), "", "0"),
        Score("minutes", (time.monotonic() - began) / 60.0),
    )
    return Scores("flows kills", f"{patients} made-up patients, tiny", 0, rows)


TRY = """
import sys
from flows.device_lock import held
from flows.settings import LockSettings
with held("cpu", LockSettings(folder=sys.argv[1]), patience_s=0.0):
    pass
"""


class Place:
    """A server and a worker; whichever is killed is started again."""

    def __init__(self, server: PrefectServer, worker: subprocess.Popen[bytes]) -> None:
        self.server, self.worker = server, worker

    def fell(self, victim: str) -> bool:
        """kill -9 and, where it is a service, a new one; whether there was anything to kill."""
        if victim == "flow":
            return kill_flow(self.worker)
        if victim == "server":
            assert self.server.server is not None
            kill_group(self.server.server)
            self.server.start()
            return True
        if victim == "machine":
            kill_flow(self.worker)
            kill_group(self.worker)
        else:
            self.worker.kill()
            self.worker.wait()
        self.worker = self.server.worker()
        return True


def scale(patients: int, turns: int) -> Scores:
    """The rate of one and of two workers on PostgreSQL."""
    rates: dict[str, list[float]] = {"one": [], "two": []}
    spent_s = dict.fromkeys(rates, 0.0)
    twice = undone = 0
    with ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = stack.enter_context(server_of(root, database=stack.enter_context(postgres())))
        archive = write_archive(root / "archive", patients, VISITS)
        cases = len(plan_archive(archive, root / "none").cases)
        config = root / "flows.yaml"
        config.write_text(TWO_CORES % (root / "locks"))
        workers = [server.worker(queue) for queue in ("gpu-0", "gpu-1")]
        for turn in range(turns):
            for name, nights in (("one", (NIGHT,)), ("two", (NIGHT, SECOND))):
                out = root / f"{name}{turn}"
                told = {"archive": str(archive), "config": str(config), "out": str(out)}
                spent_s[name] -= sum(map(processor_s, workers))
                runs = [server.begin(night, **told) for night in nights]
                wait_for(lambda runs=runs: all(has_ended(server, run) for run in runs), 600, f"{name}'s end")
                # The flow's process ends after its run; only then its time is its worker's.
                wait_for(lambda: not any(map(flow_processes, workers)), 60, "the end of the processes")
                spent_s[name] += sum(map(processor_s, workers))
                rates[name].append(rate_of(out))
                fresh = Counter(each["case_id"] for each in events(out) if each["is_fresh"])
                twice, undone = twice + fresh.total() - len(fresh), undone + cases - len(records(out))
        words = "".join(path.read_text(errors="replace") for path in server.home.glob("*.txt"))
    one, two = (statistics.harmonic_mean(rates[name]) for name in ("one", "two"))
    rows = (
        Score("cases, times turns", float(cases * turns)),
        Score("one worker, cases an hour", one),
        Score("two workers, cases an hour", two),
        Score("two beside one", two / one, "", "1.8"),
        *(Score(f"{name}: processor s a case", spent_s[name] / (cases * turns)) for name in rates),
        Score("computed twice", float(twice), "", "0"),
        Score("not done", float(undone), "", "0"),
        Score('"database is locked"', float(words.count("database is locked")), "", "0"),
        Score("load of the machine at the end", os.getloadavg()[0]),
        Score("cores", float(os.cpu_count() or 1)),
    )
    return Scores("flows scale", f"{patients} made-up patients, tiny", 0, rows)


def processor_s(worker: subprocess.Popen[bytes]) -> float:
    """Processor seconds of a worker and of the flows that it ran to their end."""
    told = Path(f"/proc/{worker.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    # utime, stime, cutime and cstime of proc(5), in ticks.
    return sum(map(int, told[11:15])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def server_of(folder: Path, *, database: str | None = None) -> Iterator[PrefectServer]:
    """A server with all deployments."""
    home = folder / "prefect"
    home.mkdir()
    server = PrefectServer(home, database=database)
    try:
        server.start().command("deploy", "--all")
        yield server
    finally:
        server.stop()


@contextmanager
def postgres() -> Iterator[str]:
    """The address of a PostgreSQL of our own on loopback; it is gone afterwards."""
    tools = max(POSTGRES.glob("*/bin"))
    home, port = Path(tempfile.mkdtemp(prefix="medsiam-pg-")), free_port()
    # It refuses to run as root.
    who = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    if who:
        shutil.chown(home, "postgres")
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={home}"

    def call(*words: str) -> None:
        subprocess.run([*who, *words], check=True, cwd="/", stdout=subprocess.DEVNULL)

    call(str(tools / "initdb"), "-D", str(home / "data"), "-U", "prefect", "--auth=trust")
    call(
        str(tools / "pg_ctl"), "-D", str(home / "data"), "-o", options, "-l", str(home / "log"), "-w", "start"
    )
    try:
        call(str(tools / "createdb"), "-h", "127.0.0.1", "-p", str(port), "-U", "prefect", "prefect")
        yield f"postgresql+asyncpg://prefect@127.0.0.1:{port}/prefect"
    finally:
        call(str(tools / "pg_ctl"), "-D", str(home / "data"), "-m", "immediate", "stop")
        shutil.rmtree(home, ignore_errors=True)


class Stopwatch:
    """Seconds of a block, by the wall and of the processor."""

    wall_s = processor_s = 0.0

    def __enter__(self) -> None:
        self._began = time.perf_counter(), time.process_time()

    def __exit__(self, *_: object) -> None:
        self.wall_s = time.perf_counter() - self._began[0]
        self.processor_s = time.process_time() - self._began[1]


def has_ended(server: PrefectServer, run: str) -> bool:
    """Whether a run is completed; one that failed stops the measurement."""
    try:
        told = server.run(run)
    except OSError:
        return False
    assert told["state_type"] != "FAILED", told["state"]["message"]
    return bool(told["state_type"] == "COMPLETED")


def is_running(server: PrefectServer, run: str) -> bool:
    """Whether a run computes, so that a kill hits something."""
    try:
        return bool(server.run(run)["state_type"] == "RUNNING")
    except OSError:
        return False


def events(out: Path, kind: str = "case") -> list[dict[str, Any]]:
    """The lines of a run's log of one kind."""
    told = map(json.loads, (out / ".medsiam" / "flow.jsonl").read_text(encoding="utf-8").splitlines())
    return [each for each in told if each["event"] == kind]


def rate_of(out: Path) -> float:
    """Cases an hour, from the moment the first worker began to the last case."""
    began = min(datetime.fromisoformat(each["time"]) for each in events(out, "known"))
    cases = [each for each in events(out) if each["is_fresh"]]
    ended = max(datetime.fromisoformat(each["time"]) for each in cases)
    return 3600.0 * len(cases) / (ended - began).total_seconds()


def records(out: Path) -> list[Path]:
    """What the ledger holds."""
    return sorted((out / ".medsiam" / "ledger").glob("*.json"))


def main() -> None:
    """Prints what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("overhead", "kills", "scale"))
    parser.add_argument("number", type=int, nargs="?", default=20)
    parser.add_argument("--patients", type=int, default=6)
    parser.add_argument("--turns", type=int, default=2)
    told = parser.parse_args()
    measures: dict[str, Callable[[], Scores]] = {
        "overhead": lambda: overhead(told.number),
        "kills": lambda: kills(told.number, told.patients),
        "scale": lambda: scale(told.number, told.turns),
    }
    print(measures[told.what]().table())


if __name__ == "__main__":
    main()
