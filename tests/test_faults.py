"""Power cuts, full disks, lost rights and too little memory: each for real, in a process of its own."""

import json
import os
import shutil
import subprocess
import sys
import time
from datetime import UTC, timedelta

import pytest
import torch

from medsiam.batch import BatchSettings, run_batch
from medsiam.cases.folder import LOCK, only_writer
from medsiam.cases.index import CaseIndex
from medsiam.console import libraries_quiet_unless
from medsiam.encoding import weights
from medsiam.errors import IndexRefused, ResultDamaged, WeightsRefused
from medsiam.report.digests import verify
from medsiam.report.writer import write_comparison
from medsiam.serving.job import Outcome, Request
from medsiam.serving.lifeline import lifeline
from medsiam.serving.queue import WORKERS, Queue
from tests import case_maker
from tests import comparison_maker as maker
from tests.archive_maker import FIRST, tiny_head, write_archive
from tests.fault_runner import Nursery
from tests.serving import wait_for

CURVE = {"even_at": 0.25, "steepness": 20.0, "region": "head"}
QUICK = ("--fast", "--device", "cpu")
SMALL = ("json", "nifti")
# It writes what the parent names, and waits in the midst of it where that is asked for.
WRITE = """
import time
from pathlib import Path
from medsiam.report.writer import write_comparison
from tests import comparison_maker as maker

out = Path({out!r})

def wait(stage):
    (out.parent / "half").touch()
    while not (out.parent / "go").exists():
        time.sleep(0.01)
    return {{}}

write_comparison(maker.comparison(), out, formats={formats!r}, write_more={more})
"""


@pytest.fixture(scope="module")
def nursery():
    with Nursery() as opened:
        yield opened


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """One patient with two visits."""
    return write_archive(tmp_path_factory.mktemp("faults") / "archive", 1, 2)


def pair(archive):
    return archive / "P000" / "visit0", archive / "P000" / "visit1"


def write_code(out, formats=SMALL, more="None"):
    return WRITE.format(out=str(out), formats=formats, more=more)


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def one_line(told):
    return told.startswith("medsiam: ") and told.count("\n") == 1


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture
def small_disk(tmp_path):
    """A disk of so many kilobytes: a function of that."""
    places = []

    def mounted(kilobytes):
        place = tmp_path / "disk"
        place.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(place)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"a disk cannot be mounted here: {done.stderr.strip()}")
        places.append(place)
        return place

    yield mounted
    for place in places:
        subprocess.run(["umount", "-l", str(place)], check=True)


def enlarge(disk, kilobytes):
    subprocess.run(["mount", "-o", f"remount,size={kilobytes}k", str(disk)], check=True)


# ------------------------------------------------------------------ kill -9


def test_a_kill_between_any_two_files_leaves_the_earlier_result_or_the_later_one_whole(nursery, tmp_path):
    """Killed before each renaming in turn: no seal stands above files of another result."""
    earlier, verdicts = tmp_path / "earlier", []
    write_comparison(maker.stable(), earlier, formats=SMALL)
    for moment in range(40):
        out = shutil.copytree(earlier, tmp_path / str(moment))
        code, told = nursery.run(code=write_code(out), die_at=moment)
        if code == 0:
            break
        assert code == -9, told
        if (out / "report.json").exists():
            assert digests_hold(out)
        assert verify(out).others == 0 and not list(out.glob(".medsiam-*"))
        verdicts.append(read(out / "report.json")["verdict"])
    assert len(verdicts) == 10 and set(verdicts) == {"stable"} and verify(out).others == 0


def digests_hold(out):
    """Whether each file is as its digest says, looked at without the command that mends."""
    listed = read(out / "digests.json")["files"]
    shown = subprocess.run(["sha256sum", *listed], cwd=out, capture_output=True, text=True, check=True).stdout
    return dict(line.split("  ")[::-1] for line in shown.splitlines()) == listed


def test_a_kill_between_any_two_files_of_a_first_result_leaves_none(nursery, tmp_path):
    """And the next run makes it whole."""
    for moment in range(5):
        out = tmp_path / str(moment)
        assert nursery.run(code=write_code(out), die_at=moment)[0] == -9
        assert not (out / "report.json").exists()
        with pytest.raises(ResultDamaged):
            verify(out)
        write_comparison(maker.stable(), out, formats=SMALL)
        assert verify(out).others == 0 and not list(out.glob(".*"))


def test_a_comparison_that_is_killed_while_it_writes_leaves_nothing_to_take_for_a_result(
    nursery, archive, tmp_path
):
    """The command itself, as soon as it has begun to write."""
    out = tmp_path / "out"
    child = nursery.start(["compare", *pair(archive), "--out", out, *QUICK])
    deadline = time.monotonic() + 60
    while not list(out.glob(".medsiam-*/fresh/*")) and time.monotonic() < deadline:
        time.sleep(0.002)
    child.kill()
    assert child.wait()[0] == -9
    assert [path.name for path in out.glob("[!.]*")] == []
    with pytest.raises(ResultDamaged, match="nothing tells what its files were"):
        verify(out)
    assert not list(out.iterdir())


# ------------------------------------------------------------------ a full disk


def test_a_comparison_on_a_full_disk_ends_with_4_and_the_earlier_one_stays(nursery, archive, small_disk):
    out = small_disk(400) / "out"
    write_comparison(maker.stable(), out, formats=("json",))
    before = contents(out)
    code, told = nursery.run(["compare", *pair(archive), "--out", out, *QUICK])
    assert (code, one_line(told), "free some space" in told) == (4, True, True), told
    assert contents(out) == before and verify(out).others == 0


def test_a_file_that_may_not_grow_is_a_full_disk_too(nursery, archive, tmp_path):
    """A quota, for those who cannot mount a disk."""
    code, told = nursery.run(
        ["compare", *pair(archive), "--out", tmp_path / "out", *QUICK], file_bytes=200_000
    )
    assert (code, one_line(told)) == (4, True), told
    assert not (tmp_path / "out").exists()


def test_a_batch_on_a_full_disk_ends_with_4_and_goes_on_once_there_is_room(nursery, archive, small_disk):
    """What its ledger holds is no result; what it has placed is."""
    disk = small_disk(400)
    words = ["batch", archive, "--out", disk / "night", "--device", "cpu"]
    code, told = nursery.run(words)
    assert (code, one_line(told)) == (4, True), told
    assert not [path for path in (disk / "night").rglob("[!.]*.*") if ".medsiam" not in path.parts]
    enlarge(disk, 20_000)
    assert nursery.run(words)[0] == 0
    assert verify(disk / "night").others == 0


def test_an_index_on_a_full_disk_keeps_what_it_holds(nursery, archive, small_disk):
    disk = small_disk(4000)
    words = ["index", "add", "--index", disk / "cases", "--device", "cpu"]
    assert nursery.run([*words, pair(archive)[0]])[0] == 0
    free = shutil.disk_usage(disk).free
    (disk / "ballast").write_bytes(bytes(free - 4096))
    code, told = nursery.run([*words, pair(archive)[1]])
    assert (code, one_line(told)) == (4, True), told
    (disk / "ballast").unlink()
    assert len(CaseIndex.open(disk / "cases")) == 1
    assert nursery.run([*words, pair(archive)[1]])[0] == 0
    assert len(CaseIndex.open(disk / "cases")) == 2


# ------------------------------------------------------------------ rights


@pytest.mark.parametrize("command", ["compare", "batch", "index add"])
def test_a_folder_that_may_only_be_read_is_refused_in_one_line(nursery, archive, tmp_path, command):
    """Exit 3: another folder helps, another try does not."""
    out = tmp_path / "out"
    out.mkdir(mode=0o500)
    words = {
        "compare": ["compare", *pair(archive), "--out", out, *QUICK],
        "batch": ["batch", archive, "--out", out, "--device", "cpu"],
        "index add": ["index", "add", archive, "--index", out, "--device", "cpu"],
    }
    code, told = nursery.run(words[command], rootless=True)
    assert (code, one_line(told)) == (3, True), told
    assert not list(out.iterdir())


def test_a_right_that_is_taken_away_in_the_middle_leaves_the_earlier_result(nursery, tmp_path):
    """All was written, and then none of it could be placed."""
    out = tmp_path / "out"
    write_comparison(maker.stable(), out, formats=SMALL)
    before = contents(out)
    child = nursery.start(code=write_code(out, more="wait"), rootless=True)
    wait_for((tmp_path / "half").exists, what="the child has written half")
    out.chmod(0o500)
    (tmp_path / "go").touch()
    code, told = child.wait()
    assert code == 99 and "InputRefused: cannot write the result to" in told
    out.chmod(0o700)
    assert contents(out) == before and verify(out).others == 0


@pytest.mark.parametrize("moment", [1, 4, 6, 9])
def test_a_right_that_is_taken_away_between_two_files_loses_nothing(nursery, tmp_path, moment):
    """Not even the earlier files can be put back then; they are once the folder is open again."""
    out = tmp_path / "out"
    write_comparison(maker.stable(), out, formats=SMALL)
    before = contents(out)
    code, told = nursery.run(code=write_code(out), rootless=True, close_at=(moment, str(out)))
    assert code == 99 and "InputRefused: cannot write the result to" in told
    out.chmod(0o700)
    assert verify(out).others == 0 and contents(out) == before


def test_a_batch_that_may_not_write_any_more_ends_with_3_and_one_line(nursery, archive, tmp_path):
    """Its ledger was closed while the first case was computed: that is no bug."""
    out = tmp_path / "out"
    (out / ".medsiam" / "ledger").mkdir(parents=True)
    code, told = nursery.run(
        ["batch", archive, "--out", out, "--device", "cpu", "--formats", "json"],
        rootless=True,
        close_at=(0, str(out / ".medsiam" / "ledger")),
    )
    assert (code, one_line(told)) == (3, True), told
    assert "choose a folder you may write to" in told and not (out / "manifest.json").exists()


def test_an_index_that_may_not_be_written_any_more_is_not_told_to_be_damaged(nursery, archive, tmp_path):
    """A backup would not help."""
    words = ["index", "add", "--index", tmp_path / "cases", "--device", "cpu"]
    assert nursery.run([*words, pair(archive)[0]])[0] == 0
    tables = [path for path in (tmp_path / "cases" / "cases").rglob("*") if path.is_dir()]
    for path in tables:
        path.chmod(0o500)
    code, told = nursery.run([*words, pair(archive)[1]], rootless=True)
    assert (code, one_line(told), "check its permissions" in told) == (3, True, True), told
    for path in tables:
        path.chmod(0o700)
    assert len(CaseIndex.open(tmp_path / "cases")) == 1


# ------------------------------------------------------------------ memory


@pytest.mark.parametrize(
    ("command", "memory_mb"), [("compare", 40), ("compare", 150), ("batch", 150), ("index add", 40)]
)
def test_too_little_memory_ends_with_4_and_one_line(nursery, archive, tmp_path, command, memory_mb):
    """While it reads, while it computes: nothing half-written stays."""
    words = {
        "compare": ["compare", *pair(archive), "--out", tmp_path / "out", *QUICK],
        "batch": ["batch", archive, "--out", tmp_path / "out", "--device", "cpu"],
        "index add": ["index", "add", archive, "--index", tmp_path / "out", "--device", "cpu"],
    }
    code, told = nursery.run(words[command], memory_mb=memory_mb)
    assert (code, one_line(told), "out of memory" in told or "no memory" in told) == (4, True, True), told
    if command != "index add":
        assert not [path for path in tmp_path.rglob("*.*") if ".medsiam" not in path.parts]


@pytest.mark.parametrize(("verbose", "told"), [(False, [KeyError]), (True, [MemoryError, KeyError])])
def test_a_generator_that_ends_where_memory_has_run_out_adds_no_line(monkeypatch, verbose, told):
    """numba's did: Python tells of it beside the one line that is promised."""
    seen = []
    monkeypatch.setattr(sys, "unraisablehook", lambda each: seen.append(type(each.exc_value)))

    def ends(error):
        try:
            yield
        finally:
            raise error

    with libraries_quiet_unless(verbose):
        for error in (MemoryError(), KeyError()):
            begun = ends(error)
            next(begun)
            del begun
    assert seen == told


EMBED = """
import json, resource
from pathlib import Path
import torch
from medsiam.encoding.encoder import Encoder, EncoderSettings, TwinEncoder
from medsiam.encoding.preparation import PreparationSettings
from medsiam.errors import ResourceExhausted, as_medsiam_error
from tests.archive_maker import tiny_head

torch.manual_seed(0)
settings = EncoderSettings(preparation=PreparationSettings(48, 4.5))
encoder = Encoder(TwinEncoder(settings).eval(), "drawn@0")
scans = [tiny_head(seed, None) for seed in range(8)]
whole = [each.embedding for each in encoder.encode(scans)]
sizes, room = [], []

def grow(network, given):
    # Of a single scan some layers take as much room as of eight: what grows with the batch must count most.
    sizes.append(len(given[0]))
    room.clear()
    room.append(torch.empty(len(given[0]) * 2**24, dtype=torch.uint8))

encoder.network.register_forward_pre_hook(grow)
encoder.network.register_forward_hook(lambda *_: room.clear())
for more_mb in (*range(1, 60, 5), *range(60, 660, 40)):
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + more_mb * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    # The holes that earlier work has left in the heap are filled, so that there is this much and no more.
    filled = []
    try:
        while True:
            filled.append(bytearray(2**18))
    except MemoryError:
        del filled[max(0, len(filled) - 4 * more_mb):]
    sizes.clear()
    try:
        found = [each.embedding for each in encoder.encode(scans)]
        far = max(abs(a - b).max() for a, b in zip(found, whole, strict=True))
    except Exception as error:
        assert isinstance(as_medsiam_error(error), ResourceExhausted), error
        far = None
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    del filled
    room.clear()
    print(json.dumps([sizes, None if far is None else float(far)]))
"""


def test_a_batch_that_does_not_fit_is_halved_until_it_does_and_refused_where_one_scan_does_not(nursery):
    """By the allocator's own refusals, with more and more room; in parts it is the same to rounding."""
    code, told = nursery.run(code=EMBED)
    assert code == 0, told
    tried = [json.loads(line) for line in told.splitlines()]
    assert any(sizes[-1:] == [1] and far is None for sizes, far in tried) and tried[-1][0] == [8], tried
    halved = [far for sizes, far in tried if far is not None and len(sizes) > 1]
    assert halved and max(halved) < 1e-5


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_scan_that_the_gpu_has_no_room_for_is_embedded_on_the_cpu():
    """By the driver's own refusal; the network stays where it was, and goes on once there is room."""
    scans = [tiny_head(seed, None) for seed in range(4)]
    wanted = weights.load_encoder(device="cpu").encode(scans)
    encoder = weights.load_encoder(device="cuda")
    torch.cuda.set_per_process_memory_fraction(1e-6)
    try:
        found = encoder.encode(scans)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert next(encoder.network.parameters()).is_cuda and encoder.encode(scans)[0].pyramid[0].values.is_cuda
    for one, other in zip(found, wanted, strict=True):
        assert abs(one.embedding - other.embedding).max() < 1e-5 and not one.pyramid[0].values.is_cuda


# ------------------------------------------------------------------ locks


HOLD = """
import time
from pathlib import Path
from medsiam.batch import BatchSettings, run_batch
from medsiam.cases.folder import only_writer
with only_writer(Path({folder!r})):
    Path({sign!r}).touch()
    time.sleep(600)
"""


def test_a_lock_file_that_is_deleted_lets_no_second_writer_in_and_a_kill_does(nursery, tmp_path):
    """Somebody tidies up hidden files while a writer is at work."""
    index = case_maker.index_in(tmp_path)
    child = nursery.start(code=HOLD.format(folder=str(index.folder), sign=str(tmp_path / "held")))
    wait_for((tmp_path / "held").exists, what="the child holds the lock")
    (index.folder / LOCK).unlink()
    with (
        pytest.raises(IndexRefused, match="another process writes"),
        only_writer(index.folder, patience_s=0.2),
    ):
        pass
    child.kill()
    child.wait()
    assert index.add([case_maker.case(1)]).new == 1


# ------------------------------------------------------------------ two at once


def test_two_comparisons_into_one_folder_at_once_leave_one_of_them_whole(nursery, tmp_path):
    """Twelve writers, each with its own verdict; the last one's files are all its own."""
    out = tmp_path / "out"
    codes = write_code(out), write_code(out).replace("maker.comparison()", "maker.stable()")
    children = [nursery.start(code=codes[n % 2]) for n in range(12)]
    ended = [child.wait() for child in children]
    assert {code for code, _ in ended} == {0}, ended
    assert verify(out).others == 0 and not list(out.glob(".*"))


def test_two_batches_into_one_folder_at_once_share_the_work(nursery, tmp_path):
    """Each case is computed once, and both tell the same worklist."""
    archive, out = write_archive(tmp_path / "archive", 2, 2), tmp_path / "night"
    words = ["batch", archive, "--out", out, "--device", "cpu", "--formats", "json"]
    children = [nursery.start([*words, "--log", tmp_path / f"log{n}"]) for n in range(2)]
    for child in children:
        code, told = child.wait()
        assert code == 0 and "compared: 2, refused: 0, failed: 0" in told
    ends = [json.loads((tmp_path / f"log{n}").read_text().splitlines()[-1]) for n in range(2)]
    assert sum(each["fresh"] for each in ends) == 2
    assert verify(out).others == 0


# ------------------------------------------------------------------ weights


def flipped(path, place):
    """The path of a copy with one bit changed."""
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    copy = path.with_name(f"flipped-{path.name}")
    copy.write_bytes(content)
    return copy


def test_one_flipped_byte_of_the_user_s_weights_is_refused_wherever_it_is(tmp_path):
    """In the record, which tells what a distance means, as in the numbers: by the digests within."""
    mine = tmp_path / "mine.safetensors"
    weights.save_encoder(weights.load_encoder("mr-ct-3d"), mine, metadata={"same_patient": CURVE})
    header = 8 + int.from_bytes(mine.read_bytes()[:8], "little")
    record = mine.read_bytes().index(b"same_patient")
    places = [*range(0, header, header // 8), *range(record, record + 80, 9), mine.stat().st_size // 2, -1]
    assert weights.load_encoder(mine).same_patient
    for place in places:
        with pytest.raises(WeightsRefused, match=r"; .*(fetch it again|give |check|; only safetensors)"):
            weights.load_encoder(flipped(mine, place))


def test_one_flipped_byte_of_the_shipped_weights_ends_every_command_with_what_to_do(tmp_path, monkeypatch):
    """By the digest beside it."""
    shutil.copytree(weights.SHIPPED_FOLDER, tmp_path, dirs_exist_ok=True)
    monkeypatch.setattr(weights, "SHIPPED_FOLDER", tmp_path)
    path = weights.SHIPPED["mr-ct-3d"].path
    assert weights.load_encoder("mr-ct-3d").weights_sha256
    flipped(path, -1).replace(path)
    with pytest.raises(WeightsRefused, match="reinstall medsiam"):
        weights.load_encoder("mr-ct-3d")


# ------------------------------------------------------------------ a clock that jumps


DAY_S = 86400.0


def test_a_clock_that_goes_back_a_day_makes_no_batch_anew_and_refuses_no_scan(tmp_path):
    """Also where files bear times that are yet to come."""
    archive, out = write_archive(tmp_path / "archive", 1, 2), tmp_path / "out"
    just_scanned = FIRST + timedelta(days=365, hours=1)
    settings, now = BatchSettings(formats=("json",)), just_scanned.replace(tzinfo=UTC)
    assert run_batch(archive, out, settings, clock=lambda: now).counts["compared"] == 1
    for path in out.rglob("*"):
        os.utime(path, (time.time() + DAY_S, time.time() + DAY_S))
    again = run_batch(archive, out, settings, clock=lambda: now - timedelta(days=1))
    assert (again.fresh, again.counts["compared"], again.counts["refused"]) == (0, 1, 0)


def test_a_clock_that_goes_back_a_day_holds_up_no_job_and_forgets_none(tmp_path):
    """A pause is no longer than it was, and what is done stays done."""
    now = [1_700_000_000.0]
    queue = Queue(tmp_path, clock=lambda: now[0], chance=lambda: 1.0)
    with lifeline(tmp_path / WORKERS) as worker:
        for uid in ("1.2", "1.3"):
            queue.hand_in(Request("compare", "orthanc", uid), "v")
        queue.settle(queue.claim(worker), Outcome("done"))
        queue.settle(queue.claim(worker), Outcome("waiting", counts=True))
        now[0] -= DAY_S
        assert queue.forget(0.5 * DAY_S) == () and queue.claim(worker).study_uid == "1.3"
        queue.hand_in(Request("compare", "orthanc", "1.4"), "v")
        assert queue.claim(worker).study_uid == "1.4"
