"""Nothing that was acknowledged is lost, nothing is there twice, nothing erased is left."""

import os
import random
import stat
import subprocess
import sys
import time
from collections import Counter
from datetime import datetime
from pathlib import Path

import pytest

from medsiam.cases.changes import link_changes
from medsiam.cases.erase import erase_patient, erase_scan, file_receipt
from medsiam.cases.index import CaseIndex
from medsiam.errors import IndexRefused
from tests import case_maker as maker

KEY = b"a key for tests, thirty-two byte"
NOW = datetime(2026, 1, 2, 3, 4, 5)
ROOT = Path(__file__).parents[1]
KILLS = 4


def writer(folder, *numbers):
    """A process that adds cases to the index."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.case_writer", str(folder), *map(str, numbers)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )


def stored(index):
    """How often each series is in the index."""
    return Counter(case.series_uid for case in index.store.find("scan", None))


def files_with(folder, needle):
    return [path for path in folder.rglob("*") if path.is_file() and needle in path.read_bytes()]


@pytest.mark.slow
def test_a_writer_that_is_killed_leaves_what_it_acknowledged_once_and_an_index_that_opens(tmp_path):
    """kill -9 at random moments, each time going on from the beginning."""
    index = maker.index_in(tmp_path)
    acknowledged = set()
    moments = random.Random(0)
    for _ in range(KILLS):
        process = writer(index.folder, 0, 4000, 20)
        acknowledged |= set(process.stdout.readline().split())
        time.sleep(moments.uniform(0.0, 0.6))
        process.kill()
        acknowledged |= set(process.stdout.read().split())
        process.wait()
    found = stored(CaseIndex.open(index.folder))
    assert acknowledged and {f"1.2.3.{n}" for n in acknowledged} <= set(found)
    assert set(found.values()) == {1}


@pytest.mark.slow
def test_three_writers_at_once_store_each_case_once(tmp_path):
    """All of them write the same cases."""
    index = maker.index_in(tmp_path)
    processes = [writer(index.folder, first, 300, 30) for first in (0, 100, 200)]
    for process in processes:
        process.communicate()
        assert process.returncode == 0
    found = stored(index)
    assert (len(found), set(found.values())) == (500, {1})


@pytest.mark.slow
def test_a_reader_answers_while_a_writer_writes(tmp_path):
    """From a whole version, every time."""
    index = maker.index_in(tmp_path)
    index.add([maker.case(0)])
    process = writer(index.folder, 1, 400, 20)
    sizes = []
    while process.poll() is None:
        assert index.search(maker.vector(0), count=1)[0].case.series_uid == "1.2.3.0"
        sizes.append(len(index))
    assert sizes == sorted(sizes) and len(index) == 401


@pytest.mark.parametrize("engine", maker.ENGINES)
def test_an_erased_patient_is_in_no_file(tmp_path, engine):
    """Vectors, pictures, words and old versions; the receipt says what was looked for."""
    index = maker.index_in(tmp_path, engine)
    whose = "f" * 20
    index.add([maker.case(n) for n in range(30)])
    index.add([maker.case(n, patient_key=whose, labels={"dx": f"secret {n}"}) for n in (40, 41)])
    link_changes(index, {whose})
    index.settle()
    gone = maker.case(40)
    assert index.store.count("change") == 1
    receipt = erase_patient(index, whose, key=KEY, now=NOW)
    assert dict(receipt.cases) == {"scan": 2, "finding": 0, "change": 1}
    assert all(proof.found_before > 0 == proof.found_after for proof in receipt.proof.values())
    for needle in (
        whose.encode(),
        gone.case_id.encode(),
        gone.thumbnails,
        gone.vector.astype("f2").tobytes(),
    ):
        assert files_with(index.folder, needle) == []
    assert len(index) == 30
    assert index.search(maker.vector(7), count=1)[0].case.series_uid == "1.2.3.7"


def test_what_is_looked_for_is_seen_while_it_is_there(tmp_path):
    """A search that never sees anything would prove nothing."""
    index = maker.index_in(tmp_path)
    index.add([maker.case(1)])
    for needle in (b"1.2.3.1", maker.case(1).vector.astype("f2").tobytes(), maker.case(1).thumbnails):
        assert files_with(index.folder, needle)
    index.drop([maker.case(1).case_id], "scan")
    assert files_with(index.folder, maker.case(1).thumbnails)


def test_erasing_keeps_the_search_index_true(tmp_path):
    """Its codes are made from the vectors, so they go too."""
    index = maker.index_in(tmp_path, exact_below=256)
    index.add([maker.case(n) for n in range(400)])
    index.settle()
    erase_patient(index, maker.case(5).patient_key, key=KEY, now=NOW)
    assert index.search(maker.vector(5), count=1)[0].similarity < 0.95
    assert index.search(maker.vector(6), count=1)[0].case.series_uid == "1.2.3.6"


def test_one_scan_can_be_erased_with_the_changes_it_was_part_of(tmp_path):
    """A scan under the wrong patient, say."""
    index = maker.index_in(tmp_path)
    scans = [maker.case(n, patient_key="e" * 20) for n in (1, 2, 3)]
    index.add(scans)
    link_changes(index, {"e" * 20})
    receipt = erase_scan(index, scans[1].case_id, key=KEY, now=NOW)
    assert dict(receipt.cases) == {"scan": 1, "finding": 0, "change": 2}
    assert len(index) == 2


def test_the_last_patient_can_be_erased(tmp_path):
    """Then the index is empty, and an index still."""
    index = maker.index_in(tmp_path)
    index.add([maker.case(1)])
    erase_patient(index, maker.case(1).patient_key, key=KEY, now=NOW)
    assert len(CaseIndex.open(index.folder)) == 0
    assert index.add([maker.case(2)]).new == 1


def test_a_patient_who_is_not_there_is_told(tmp_path):
    """Silence would look like success."""
    index = maker.index_in(tmp_path)
    index.add([maker.case(1)])
    with pytest.raises(IndexRefused, match="holds nothing of that patient"):
        erase_patient(index, "0" * 19 + "9", key=KEY, now=NOW)
    assert len(index) == 1


def test_an_erasure_that_was_cut_short_is_finished_by_the_next(tmp_path):
    """The rows are gone by then, their bytes are not."""
    index = maker.index_in(tmp_path)
    index.add([maker.case(n) for n in (1, 2)])
    index.drop([maker.case(1).case_id], "scan")
    (index.folder / ".erasing").touch()
    with pytest.raises(IndexRefused):
        erase_patient(index, maker.case(1).patient_key, key=KEY, now=NOW)
    assert files_with(index.folder, maker.case(1).thumbnails) == []


def test_the_receipt_names_nobody(tmp_path):
    """Not even by the key that the index had."""
    index = maker.index_in(tmp_path)
    index.add([maker.case(1), maker.case(2)])
    receipt = erase_patient(index, maker.case(1).patient_key, key=KEY, now=NOW)
    path = file_receipt(index, receipt, str(receipt.as_dict()))
    assert maker.case(1).patient_key not in path.read_text() + path.name
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_files_are_for_their_owner_alone(tmp_path):
    """Whatever the umask says."""
    earlier = os.umask(0o022)
    try:
        index = maker.index_in(tmp_path)
        index.add([maker.case(n) for n in range(5)])
        index.settle()
        assert os.umask(0o022) == 0o022
    finally:
        os.umask(earlier)
    for path in (index.folder, *index.folder.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_a_folder_that_others_may_read_is_refused_without_the_flag(tmp_path):
    """Embeddings tell people apart."""
    folder = tmp_path / "open"
    folder.mkdir(mode=0o755)
    folder.chmod(0o755)
    with pytest.raises(IndexRefused, match="chmod 700"):
        CaseIndex.make(folder, maker.ENCODER, maker.SIZES)
    assert list(folder.iterdir()) == []
    assert len(CaseIndex.make(folder, maker.ENCODER, maker.SIZES, allow_shared=True)) == 0


def _add_with_little_room(folder, count):
    """In a child whose files may not grow beyond 64 kB: a full disk for those without root."""
    code = (
        "import os, resource, signal, sys\n"
        "from pathlib import Path\n"
        "from medsiam.cases.index import CaseIndex\n"
        "from medsiam.errors import ResourceExhausted\n"
        "from tests import case_maker as maker\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))\n"
        f"index = CaseIndex.open(Path({str(folder)!r}))\n"
        f"big = [maker.case(n, thumbnails=os.urandom(20000)) for n in range(100, 100 + {count})]\n"
        "try:\n    index.add(big)\n"
        "except ResourceExhausted as error:\n    print(error)\n    sys.exit(4)\n"
    )
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )


@pytest.mark.slow
def test_a_disk_that_is_full_loses_nothing_and_tells_it_in_one_line(tmp_path):
    """What was stored stays, and the index goes on once there is room."""
    index = maker.index_in(tmp_path)
    index.add([maker.case(n) for n in range(3)])
    ended = _add_with_little_room(index.folder, 50)
    assert ended.returncode == 4, ended.stderr
    assert "free some space" in ended.stdout and ended.stdout.count("\n") == 1
    assert len(index) == 3
    assert index.add([maker.case(n) for n in range(3, 6)]).new == 3


def test_a_lock_that_is_held_is_waited_for_and_then_told(tmp_path):
    """Two writers must not write at once; a third must not wait for ever."""
    from medsiam.cases.folder import only_writer

    index = maker.index_in(tmp_path)
    with (
        only_writer(index.folder),
        pytest.raises(IndexRefused, match="another process writes"),
        only_writer(index.folder, patience_s=0.1),
    ):
        pass
    with only_writer(index.folder, patience_s=0.1):
        pass
