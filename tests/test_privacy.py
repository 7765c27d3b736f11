"""One patient with an unmistakable name goes through every command; nothing that is written knows them.

The DICOM objects for the archive are the exception: they must carry the patient.
"""

from __future__ import annotations

import base64
import binascii
import gzip
import json
import re
import shutil
import socket
import subprocess
import threading
import time
import zipfile
import zlib
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from typer.testing import CliRunner

from medsiam import cli
from medsiam.pacs.dicomweb import Dicomweb
from medsiam.pacs.exchange import send_folder
from medsiam.pacs.settings import ArchiveSettings
from medsiam.serving.lifeline import lifeline
from medsiam.serving.queue import WORKERS
from medsiam.serving.server import QueueServer
from medsiam.serving.settings import ArchiveEntry, HttpSettings, ServeSettings, WorkSettings
from medsiam.serving.work import Bench, do_job
from tests.archive_maker import write_visit
from tests.orthanc import PASSWORD, USER, orthanc
from tests.serving import TOKEN, answer_of

NAME, NUMBER, BIRTH = "Zyxwolska^Quetzalia", "QZX90417735", "19310523"
# What else a header tells of a person, each with a value that is found again.
TOLD = {
    "AccessionNumber": "QA55501234", "StudyID": "QS77704321", "InstitutionName": "Quillworth Infirmary",
    "InstitutionAddress": "9 Quillworth Lane", "ReferringPhysicianName": "Brunhildova^Ottokar",
    "OperatorsName": "Vandermolenski^Xenia", "OtherPatientIDs": "QOLD8812345",
    "PatientAddress": "7 Xyloquist Row", "PatientTelephoneNumbers": "0199555777",
    "PatientComments": "lives at Xyloquist Row", "StationName": "QUILLSTATION",
}  # fmt: skip
SECRETS = (
    "Zyxwolska", "Quetzalia", NUMBER, "90417735", BIRTH, "1931-05-23", "QA55501234", "QS77704321",
    "Quillworth", "Brunhildova", "Vandermolenski", "QOLD8812345", "Xyloquist", "0199555777", "QUILLSTATION",
)  # fmt: skip
# Where people keep scans: folders and files are named by the patient.
HOME = f"Zyxwolska, Quetzalia {NUMBER}"
QUICK = ("--device", "cpu", "--fast")
STUDY = f"1.2.826.{int.from_bytes(b'visits')}."
UNREADABLE = (
    f"loose/{NAME}.nii.gz", f"loose/{NAME}.png", f"packed/{HOME}.zip", "packed/outside.zip", "broken",
    f"{HOME}.nothing",
)  # fmt: skip
# What tells its user on standard error which file it means.
NAMING = ("index add", "batch", "refused")


def needles() -> list[bytes]:
    """The secrets as they may stand in a file: in two encodings of text, and in base64 at any offset."""
    found = []
    for secret in SECRETS:
        for encoding in ("utf-8", "utf-16-le"):
            data = secret.encode(encoding)
            found.append(data.lower())
            for lead in range(3):
                text = base64.b64encode(bytes(lead) + data)
                # The ends mix with what stands beside.
                found.append(text[(4 if lead else 0) : -4].lower())
    return [needle for needle in found if len(needle) >= 8]


NEEDLES = needles()
_BASE64 = re.compile(rb"[A-Za-z0-9+/]{200,}={0,2}")
_ZLIB_STARTS = (b"\x78\x01", b"\x78\x9c", b"\x78\xda")


def layers(data: bytes, depth: int = 0):
    """The bytes, and what is packed in them: gzip, zlib streams of a PDF or PNG, base64 of a page."""
    yield data
    if depth > 2:
        return
    for packed in _packed(data):
        yield from layers(packed, depth + 1)


def _packed(data: bytes):
    if data[:2] == b"\x1f\x8b":
        yield gzip.decompress(data)
        return
    for blob in _BASE64.findall(data):
        try:
            yield base64.b64decode(blob + b"=" * (-len(blob) % 4))
        except binascii.Error:
            continue
    if data[:4] in (b"\x89PNG", b"%PDF"):
        for start in _ZLIB_STARTS:
            for at in [match.start() for match in re.finditer(re.escape(start), data)]:
                try:
                    yield zlib.decompressobj().decompress(data[at:])
                except zlib.error:
                    continue


def leaks(data: bytes) -> set[bytes]:
    """What of the patient stands in these bytes, however packed."""
    return {needle for layer in layers(data) for needle in NEEDLES if needle in layer.lower()}


def leaking_files(folder: Path, *, but: str | None = None) -> dict[str, set[bytes]]:
    """Files whose name or content knows the patient."""
    found = {}
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        if but in inside.parts:
            continue
        told = leaks(str(inside).encode()) | (leaks(path.read_bytes()) if path.is_file() else set())
        if told:
            found[str(inside)] = told
    return found


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A room for one patient: three visits, a broken one, a table of labels; home, cache and temp in it."""
    root = tmp_path_factory.mktemp("patient")
    patch = pytest.MonkeyPatch()
    for name in ("XDG_CONFIG_HOME", "XDG_CACHE_HOME", "TMPDIR", "HOME"):
        folder = root / "written" / name.lower()
        folder.mkdir(parents=True)
        patch.setenv(name, str(folder))
    patch.delenv("MEDSIAM_KEY", raising=False)
    for visit in range(3):
        folder = write_visit(root / HOME, "visits", visit, name=NAME, number=NUMBER, birth=BIRTH)
        for path in sorted(folder.iterdir()):
            scan = pydicom.dcmread(path)
            for keyword, value in TOLD.items():
                setattr(scan, keyword, value)
            scan.save_as(folder / f"{HOME} {path.name}")
            path.unlink()
    broken = shutil.copytree(root / HOME / "visits" / "visit0", root / HOME / "broken" / HOME)
    first = sorted(broken.iterdir())[0]
    first.write_bytes(first.read_bytes()[:700])
    write_unreadable(root / HOME / "loose", root / HOME / "packed")
    (root / "labels.csv").write_text(f"patient,grade\n{NUMBER},II\n", encoding="utf-8")
    yield root
    patch.undo()


def write_unreadable(loose, packed):
    """What tells no patient but by its name; and zips that are refused as a whole."""
    loose.mkdir()
    (loose / f"{NAME}.nii.gz").write_bytes(b"\x1f\x8b broken")
    whole = nibabel.Nifti1Image(np.arange(1000, dtype="f4").reshape(10, 10, 10), np.diag([5.0, 5, 5, 1]))
    for number in (1, 2):
        nibabel.save(whole, loose / f"{HOME} {number}.nii")
    (loose / f"{NAME}.png").write_bytes(b"\x89PNG broken")
    packed.mkdir()
    (packed / f"{HOME}.zip").write_bytes(b"PK\x03\x04 broken")
    with zipfile.ZipFile(packed / "outside.zip", "w") as archive:
        archive.writestr(f"../{HOME}.dcm", b"nothing")


def visit(place, number):
    return place / HOME / "visits" / f"visit{number}"


@pytest.fixture(scope="module")
def said(place):
    """What every command says, by its name; all they write lies below `written`."""
    out = place / "written"
    index, two = ("--index", out / "index"), (visit(place, 0), visit(place, 1))
    formats = ("--formats", "json,html,nifti,dicom")
    loose = place / HOME / "loose"
    each_part = [place / HOME / part for part in ("visits", "broken", "loose", "packed")]
    commands = {
        "index add": (
            "index", "add", *each_part, *index, "--labels", place / "labels.csv", "--device", "cpu",
        ),
        "index list": ("index", "list", *index, "--json"),
        "index info": ("index", "info", *index),
        "search": ("search", two[1], *index, "--out", out / "search", "--include-same-patient"),
        "compare": ("compare", *two, "--out", out / "compare", *QUICK, *index, "--json", *formats),
        **{
            f"refused {n}": (
                "compare", place / HOME / each, two[1], "--out", out / f"no{n}", "--json", *QUICK,
            )
            for n, each in enumerate(UNREADABLE)
        },
        "compare loose": ("compare", loose, two[1], "--out", out / "loose", *QUICK),
        "refused series": (
            "compare", loose, two[1], "--prior-series", f"{HOME} 7.nii", "--out", out / "s", *QUICK,
        ),
        "refused objects": (
            "compare", loose / f"{HOME} 1.nii", two[1], "--out", out / "o", *QUICK, *formats,
        ),
        "refused export": ("deidentify", loose / f"{HOME} 1.nii", "--out", out / "e", "--json"),
        "trajectory": ("trajectory", *two, visit(place, 2), "--out", out / "course", *QUICK),
        "batch": ("batch", place / HOME, "--out", out / "night", "--json", "--log", out / "log", *index),
        "verify": ("verify", out / "night"),
        "deidentify": ("deidentify", visit(place, 0).parent, "--out", out / "export", "--json"),
        "index rebuild": ("index", "rebuild", *index, "--device", "cpu"),
        "index remove": ("index", "remove", "--patient", NUMBER, *index),
        "doctor": ("doctor", *index, "--device", "cpu"),
    }  # fmt: skip
    runner = CliRunner()
    return {name: runner.invoke(cli.app, list(map(str, words))) for name, words in commands.items()}


def test_every_command_did_its_work(said):
    """A command that was refused proves nothing."""
    codes = {name: result.exit_code for name, result in said.items()}
    # The doctor misses tools on some machines, which is an answer too.
    wanted = {name: 3 if name.startswith("refused") else 0 for name in codes} | {"doctor": codes["doctor"]}
    assert codes == wanted, {name: said[name].output for name in codes if codes[name] != wanted[name]}


def test_nothing_that_was_written_knows_the_patient(place, said):
    """Reports, pages, logs, ledgers, index, keys, caches, temporary files, and the names of all of them."""
    assert not leaking_files(place / "written", but="dicom")


def test_nothing_that_was_said_knows_the_patient(said):
    """What a program prints stands in a log tomorrow."""
    found = {name: leaks(result.stdout.encode()) for name, result in said.items()}
    assert not any(found.values()), found


def test_only_who_sits_before_it_is_told_which_file_is_meant(said):
    """On standard error, where a file must be found to be mended; by nothing else of the patient."""
    found = {name: leaks(result.stderr.encode()) for name, result in said.items()}
    assert all(name.startswith(NAMING) for name, told in found.items() if told), found
    assert (
        NAME in said["refused 0"].stderr and HOME in said["batch"].stderr and HOME in said["index add"].stderr
    )
    assert said["refused 0"].stderr.count("\n") == 1


def test_the_objects_for_the_archive_do(place, said):
    """So that the search above would have found what it looked for."""
    assert any((place / "written" / "compare" / "dicom").rglob("*"))
    assert leaking_files(place / "written" / "compare" / "dicom")
    assert leaks(b"<p>" + base64.b64encode(b"." * 200 + NAME.encode()) + b"</p>")
    assert leaks(gzip.compress(NUMBER.encode("utf-16-le"))) and not leaks(b"nobody")


def test_sending_says_nothing_of_the_patient(place, said, tmp_path):
    """A peer of another maker takes the objects, name and all; the command speaks of counts."""
    program = shutil.which("storescp")
    if program is None:
        pytest.skip("storescp is not installed (Debian: dcmtk)")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    peer = subprocess.Popen([program, "-aet", "PEER", "-od", str(tmp_path), str(port)])
    try:
        time.sleep(0.5)
        words = ("send", place / "written" / "compare", "--to", f"dimse://PEER@127.0.0.1:{port}")
        result = CliRunner().invoke(cli.app, [str(word) for word in words])
    finally:
        peer.terminate()
        peer.wait(timeout=10)
    assert result.exit_code == 0 and not leaks(result.output.encode())


@pytest.fixture(scope="module")
def served(place, said, tmp_path_factory):
    """Every page of the service, what its worker told, and what became of its jobs."""
    data, told = place / "written" / "serving", []
    with orthanc(tmp_path_factory.mktemp("pacs")) as (port, _), pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDSIAM_PACS_USER", USER)
        patch.setenv("MEDSIAM_PACS_PASSWORD", PASSWORD)
        entry = ArchiveEntry("orthanc", f"http://127.0.0.1:{port}/dicom-web", ArchiveSettings(retries=0))
        work = WorkSettings(fast=True, device="cpu", index=place / "written" / "index")
        settings = ServeSettings(http=HttpSettings(port=0), work=work, archives=(entry,))
        for number in range(2):
            send_folder(Dicomweb(entry.url, entry.archive), visit(place, number))
        server = QueueServer(data, settings, TOKEN)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        asked = [("compare", 0), ("compare", 1), ("similar", 1)]
        wanted = [{"kind": kind, "archive": "orthanc", "study_uid": f"{STUDY}{n}"} for kind, n in asked]
        pages = [ask(server, "/jobs", each) for each in wanted]
        with lifeline(data / WORKERS) as name:
            bench = Bench(server.queue, data, settings, name, told.append)
            while (job := server.queue.claim(name)) is not None:
                outcome = do_job(bench, job)
                if outcome is not None:
                    server.queue.settle(job, outcome)
        pages += [ask(server, path) for path in ("/worklist", "/jobs")]
        for job in server.queue.jobs():
            pages += [ask(server, f"/jobs/{job.id}"), ask(server, f"/jobs/{job.id}/report.html")]
        jobs = server.queue.jobs()
        server.shutdown()
        server.server_close()
    return pages, told, jobs


def ask(server, path, told=None):
    """The body of an answer."""
    headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
    data = None if told is None else json.dumps(told).encode()
    return answer_of(f"http://127.0.0.1:{server.server_port}{path}", data, headers)[1]


def test_the_service_knows_nobody_in_queue_pages_results_and_what_it_tells(place, served):
    """A comparison, one without a prior and a search, of a patient in a real archive."""
    pages, told, jobs = served
    states = sorted((job.kind, job.state) for job in jobs if not job.same_as)
    assert states == [("compare", "done"), ("compare", "refused"), ("similar", "done")], jobs
    assert not leaking_files(place / "written" / "serving") and told and not leaks("\n".join(told).encode())
    assert not [page for page in pages if leaks(page)] and any(b"<html" in page for page in pages)
    assert (place / "written" / "serving" / "queue.sqlite").stat().st_size > 4096
