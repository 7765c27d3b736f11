"""One patient with an unmistakable name goes through every command; nothing that is written knows them.

The DICOM objects for the archive are the exception: they must carry the patient.
"""

from __future__ import annotations

import base64
import binascii
import gzip
import re
import shutil
import socket
import subprocess
import time
import zlib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from medsiam import cli
from tests.archive_maker import write_visit

NAME, NUMBER, BIRTH = "Zyxwolska^Quetzalia", "QZX90417735", "19310523"
SECRETS = ("Zyxwolska", "Quetzalia", NUMBER, "90417735", BIRTH, "1931-05-23")
# Where people keep scans: the folder is named by the patient.
HOME = f"Zyxwolska, Quetzalia {NUMBER}"
QUICK = ("--device", "cpu", "--fast")


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
        write_visit(root / HOME, "visits", visit, name=NAME, number=NUMBER, birth=BIRTH)
    broken = shutil.copytree(root / HOME / "visits" / "visit0", root / HOME / "broken" / HOME)
    first = sorted(broken.iterdir())[0]
    first.write_bytes(first.read_bytes()[:700])
    # Its folder may be named by the patient; the name of a file is told, see docs/privacy.md.
    (root / HOME / "broken.nii.gz").write_bytes(b"\x1f\x8b broken")
    (root / "labels.csv").write_text(f"patient,grade\n{NUMBER},II\n", encoding="utf-8")
    yield root
    patch.undo()


def visit(place, number):
    return place / HOME / "visits" / f"visit{number}"


@pytest.fixture(scope="module")
def said(place):
    """What every command says, by its name; all they write lies below `written`."""
    out = place / "written"
    index, two = ("--index", out / "index"), (visit(place, 0), visit(place, 1))
    formats = ("--formats", "json,html,nifti,dicom")
    commands = {
        "index add": (
            "index", "add", place / HOME, *index, "--labels", place / "labels.csv", "--device", "cpu",
        ),
        "index list": ("index", "list", *index, "--json"),
        "index info": ("index", "info", *index),
        "search": ("search", two[1], *index, "--out", out / "search", "--include-same-patient"),
        "compare": ("compare", *two, "--out", out / "compare", *QUICK, *index, "--json", *formats),
        "refused": ("compare", place / HOME / "broken", two[1], "--out", out / "refused", *QUICK),
        "refused file": ("compare", place / HOME / "broken.nii.gz", two[1], "--out", out / "no", *QUICK),
        "trajectory": ("trajectory", *two, visit(place, 2), "--out", out / "course", *QUICK),
        "batch": ("batch", place / HOME, "--out", out / "night", "--json", "--log", out / "log", *index),
        "verify": ("verify", out / "night"),
        "deidentify": ("deidentify", place / HOME, "--out", out / "export", "--json"),
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
    """What stands on the screen stands in a log tomorrow."""
    found = {name: leaks(result.output.encode()) for name, result in said.items()}
    assert not any(found.values()), found


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
