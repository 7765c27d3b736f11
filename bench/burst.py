"""Is each study of a burst compared once, and none lost, through restarts of Orthanc and of the worker?

python -m bench.burst [STUDIES]        two visits a patient, small radiographs, in no order
python -m bench.burst head [fast]      one patient with two whole heads: seconds from store to evidence
"""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np

from medsiam.bench.scores import Score, Scores
from medsiam.demo import demo_visits, write_visit
from medsiam.pacs.dicomweb import Dicomweb
from medsiam.pacs.exchange import send_folder
from medsiam.pacs.settings import ArchiveSettings
from tests import dicom_maker
from tests.orthanc import PASSWORD, USER, free_port
from tests.serving import Rest, Serving, orthanc_with_plugin

STUDIES = 500
CELLS = np.random.default_rng(1).integers(0, 4000, (64, 64))
PATIENCE_S = 3600.0


class House:
    """Orthanc with the plugin and a stability of one second, and the service."""

    def __init__(self, folder: Path, *, fast: bool) -> None:
        self.folder, self.ports, self.port = folder, (free_port(), free_port()), free_port()
        url = f"http://127.0.0.1:{self.ports[0]}/dicom-web"
        self.serving = Serving(folder / "serve", self.port, url, fast=fast, threads=2)
        self.rest, self.web = Rest(self.ports[0]), Dicomweb(url, ArchiveSettings(retries=0))
        self._orthanc = None

    def open(self) -> None:
        self._orthanc = orthanc_with_plugin(self.folder / "orthanc", self.port, self.ports)
        self._orthanc.__enter__()

    def shut(self) -> None:
        self._orthanc.__exit__(None, None, None)


def burst(house: House, studies: int) -> Scores:
    """All studies stored as fast as they are taken, both sides restarted in the middle."""
    visits = [(f"P{n // 2:05d}", 1 + n % 2) for n in range(studies)]
    random.Random(0).shuffle(visits)
    started = time.perf_counter()
    for n, (patient, visit) in enumerate(visits):
        store(house, patient, visit)
        if n == studies // 2:
            house.shut()
            house.open()
    stored_s = time.perf_counter() - started
    later = [uid_of(patient, visit) for patient, visit in visits if visit == 2]
    killed = False
    while time.perf_counter() < started + PATIENCE_S:
        counts = json.loads(house.serving.ask("/jobs?after=999999999")[1])["counts"]
        if counts.get("done", 0) >= len(later) and not counts.keys() & {"queued", "running", "waiting"}:
            break
        if not killed and counts.get("done", 0) >= len(later) // 2 and house.serving.worker_pid():
            os.kill(house.serving.worker_pid(), signal.SIGKILL)
            killed = True
        time.sleep(0.5)
    whole_s = time.perf_counter() - started
    states = {job["study_uid"]: job for job in all_jobs(house)}
    reports = Counter(reports_of(house, study) for study in later)
    rows = (
        Score("studies stored", studies),
        Score("seconds to store them", stored_s),
        Score("jobs", len(all_jobs(house)), target=f"= {studies}"),
        Score(
            "later visits compared",
            sum(states[uid]["state"] == "done" for uid in later),
            target=f"= {len(later)}",
        ),
        Score("later visits with one report in Orthanc", reports[1], target=f"= {len(later)}"),
        Score(
            "first visits refused for want of a prior",
            counts.get("refused", 0),
            target=f"= {studies - len(later)}",
        ),
        Score("times the worker was killed", house.serving.log().count("the worker ended"), target="= 1"),
        Score(
            "comparisons computed",
            house.serving.log().count("writing the evidence"),
            target=f"{len(later)} or 1 more",
        ),
        Score("seconds until the last was done", whole_s),
    )
    return Scores("burst", "small radiographs, made up", 0, rows)


def head(house: House) -> Scores:
    """Seconds from the store of the second head to its evidence, and what they cost."""
    for visit in demo_visits()[:2]:
        write_visit(visit, house.folder / visit.name, seed=0)
    send_folder(house.web, house.folder / "visit1")
    wait_idle(house, 1)
    before_s = cpu_s(house)
    send_folder(house.web, house.folder / "visit2")
    started = time.perf_counter()
    wait_idle(house, 2)
    whole_s = time.perf_counter() - started
    report = next((house.serving.folder / "data" / "results").rglob("report.json"))
    stages = json.loads(report.read_text(encoding="utf-8"))["provenance"]["seconds"]
    rows = (
        Score("seconds from store to evidence (StableAge 1 s)", whole_s, target="<= 90"),
        *(Score(f"of these: {stage} (s)", seconds) for stage, seconds in stages.items()),
        Score("CPU seconds of the service", cpu_s(house) - before_s),
    )
    return Scores("head", "made-up heads of the demo", 0, rows)


def wait_idle(house: House, jobs: int) -> None:
    while True:
        told = house.serving.jobs()
        if len(told) >= jobs and all(job["state"] in ("done", "refused", "failed") for job in told):
            return
        time.sleep(0.1)


def cpu_s(house: House) -> float:
    """CPU seconds of the service and its worker."""
    pids = [house.serving.process.pid, house.serving.worker_pid()]
    fields = [Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split() for pid in pids if pid]
    return sum(int(each[n]) for each in fields for n in (11, 12, 13, 14)) / os.sysconf("SC_CLK_TCK")


def all_jobs(house: House) -> list[dict]:
    found, after = [], 0
    while page := house.serving.jobs(after=after):
        found += page
        after = page[-1]["revision"]
    return found


def reports_of(house: House, study: str) -> int:
    name = house.rest.study(study)
    series = house.rest.json(f"/studies/{name}/series")
    return sum(each["MainDicomTags"]["Modality"] == "SR" for each in series)


def uid_of(patient: str, visit: int) -> str:
    return f"1.2.9.{int(patient[1:])}.{visit}"


def store(house: House, patient: str, visit: int) -> None:
    study = uid_of(patient, visit)
    told = {
        "PatientID": patient, "StudyInstanceUID": study, "SeriesInstanceUID": f"{study}.1",
        "SOPInstanceUID": f"{study}.1.1", "StudyDate": f"202{visit}0102",
        "AcquisitionDate": f"202{visit}0102", "BodyPartExamined": "CHEST",
    }  # fmt: skip
    folder = house.folder / "scan"
    dicom_maker.save(dicom_maker.radiograph("DX", CELLS, **told), folder)
    house.web.store(list(folder.iterdir()))
    shutil.rmtree(folder)


def main(words: list[str]) -> None:
    os.environ |= {"MEDSIAM_PACS_USER": USER, "MEDSIAM_PACS_PASSWORD": PASSWORD}
    is_head = words[:1] == ["head"]
    with tempfile.TemporaryDirectory() as folder:
        house = House(Path(folder), fast=not is_head or "fast" in words)
        house.open()
        house.serving.start()
        try:
            print((head(house) if is_head else burst(house, int((words or [STUDIES])[0]))).table())
        finally:
            house.serving.end()
            house.shut()
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"CPU seconds of all processes: {used.ru_utime + used.ru_stime:.0f}")


if __name__ == "__main__":
    main(sys.argv[1:])
