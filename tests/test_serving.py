"""The queue of `medsiam serve`: what is handed in is done once, whatever dies in between; its HTTP face."""

import http.client
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from base64 import b64encode
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from medsiam.config import load_settings, settings_as_dict
from medsiam.errors import ArchiveRefused, ConfigRefused, NotComparable, ResourceExhausted, ServingRefused
from medsiam.pacs.settings import ArchiveSettings
from medsiam.serving import lifeline
from medsiam.serving.job import RESULTS, Outcome, Request, content_of, page_of
from medsiam.serving.queue import LONGEST_PAUSE_S, MOST_DEATHS, MOST_TRIES, WORKERS, Queue
from medsiam.serving.server import MOST_BODY_BYTES, QueueServer, Rates
from medsiam.serving.settings import (
    ArchiveEntry,
    HttpSettings,
    ServeSettings,
    WorkSettings,
    token_of,
)
from medsiam.serving.work import Bench, do_job
from medsiam.serving.worklist import render_worklist
from tests.orthanc import free_port
from tests.serving import TOKEN, answer_of

ROOT = Path(__file__).parents[1]
CONTENT = content_of([("1.2.3.4", 8)])
ASKED = Request("compare", "orthanc", "1.2.3", CONTENT)
ARCHIVE = ArchiveEntry("orthanc", "http://127.0.0.1:1/dicom-web", ArchiveSettings(timeout_s=2.0, retries=0))


class Clock:
    """A clock that is set by hand."""

    def __init__(self):
        self.now = 1_700_000_000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def queue(tmp_path, clock):
    return Queue(tmp_path, clock=clock, chance=lambda: 1.0)


@pytest.fixture
def worker(tmp_path):
    """The name of a worker that lives as long as the test."""
    with lifeline.lifeline(tmp_path / WORKERS) as name:
        yield name


def away(**values):
    return Outcome("waiting", "it cannot be reached", "archive", **{"is_archives": True, **values})


def test_the_same_study_is_one_job_and_one_more_series_another(queue):
    """A repeat does nothing; what the study holds is part of the question, and so are the settings."""
    first, is_new = queue.hand_in(ASKED, "v1")
    assert is_new and queue.hand_in(ASKED, "v1") == (first, False)
    grown = replace(ASKED, content=content_of([("1.2.3.4", 8), ("1.2.3.5", 1)]))
    assert queue.hand_in(grown, "v1")[1] and queue.hand_in(ASKED, "v2")[1]
    assert queue.counts() == {"queued": 3}


def test_a_finished_job_is_done_again_only_where_that_is_asked_for(queue, worker):
    """The button of a reader, not the next stable study."""
    job = taken(queue, worker)
    queue.settle(job, Outcome("refused", "no prior", "not-comparable"))
    assert not queue.hand_in(ASKED, "v")[1] and queue.claim(worker) is None
    assert queue.hand_in(replace(ASKED, again=True), "v")[1]
    assert queue.claim(worker).id == job.id


def taken(queue, worker, asked=ASKED):
    queue.hand_in(asked, "v")
    return queue.claim(worker)


def test_two_workers_never_have_one_job(queue, tmp_path, worker):
    """Eight threads ask at once for forty jobs; each is given out once."""
    for n in range(40):
        queue.hand_in(replace(ASKED, study_uid=f"1.2.{n}"), "v")
    got = []

    def take():
        with lifeline.lifeline(tmp_path / WORKERS) as name:
            while (job := Queue(tmp_path).claim(name)) is not None:
                got.append(job.id)
                Queue(tmp_path).settle(job, Outcome("done"))

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == len(set(got)) == 40 and queue.counts() == {"done": 40}


HOLDER = """
import sys, time
from pathlib import Path
from medsiam.serving.lifeline import lifeline
from medsiam.serving.queue import WORKERS, Queue
folder = Path(sys.argv[1])
with lifeline(folder / WORKERS) as name:
    print(Queue(folder).claim(name).id, flush=True)
    time.sleep(600)
"""


def holder(folder):
    """A process that takes a job and keeps it."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    return process, process.stdout.readline().strip()


def test_the_job_of_a_killed_worker_is_taken_up_again_and_never_before(queue, tmp_path, worker):
    """kill -9 leaves no word; the kernel's lock tells it. A job that always kills is given up."""
    job = queue.hand_in(ASKED, "v")[0]
    for death in range(1, MOST_DEATHS + 1):
        process, held = holder(tmp_path)
        assert held == job.id and queue.claim(worker) is None
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        if death == 1:
            again = queue.claim(worker)
            assert again.id == job.id and again.attempts == 2
            queue.release(worker)
    assert queue.claim(worker) is None and queue.job(job.id).state == "failed"
    assert "ended 3 times" in queue.job(job.id).told


def test_a_worker_that_lost_its_job_writes_nothing(queue, worker):
    """It was given to another meanwhile."""
    job = taken(queue, worker)
    with pytest.raises(ServingRefused, match="no longer this worker's"):
        queue.settle(replace(job, worker="another"), Outcome("done"))
    assert queue.job(job.id).state == "running"


def test_an_archive_that_is_away_is_asked_less_and_less_and_nothing_is_lost(queue, worker, clock):
    """100 studies wait for one archive: a handful of tries an hour in all, and all are done in the end."""
    for n in range(100):
        queue.hand_in(replace(ASKED, study_uid=f"1.2.{n}"), "v")
    tries, start = 0, clock.now
    while clock.now < start + 3600.0:
        job = queue.claim(worker)
        if job is not None:
            tries += 1
            queue.settle(job, away(), give_up_s=7 * 86400.0)
        clock.now += 5.0
    assert 3 <= tries <= 20
    clock.now += LONGEST_PAUSE_S
    while (job := queue.claim(worker)) is not None:
        queue.settle(job, Outcome("done"))
    assert queue.counts()["done"] >= 90
    clock.now += LONGEST_PAUSE_S
    while (job := queue.claim(worker)) is not None:
        queue.settle(job, Outcome("done"))
    assert queue.counts() == {"done": 100}


def test_a_failing_archive_holds_up_no_other(queue, worker):
    """Its pause is its own."""
    queue.settle(taken(queue, worker), away())
    queue.hand_in(replace(ASKED, study_uid="1.2.9"), "v")
    assert queue.claim(worker) is None
    other = replace(ASKED, archive="second")
    assert taken(queue, worker, other).archive == "second"


def test_one_study_that_fails_holds_up_no_other(queue, worker):
    """The archive answers; this study alone is broken there."""
    queue.settle(taken(queue, worker), away(is_archives=False))
    assert taken(queue, worker, replace(ASKED, study_uid="1.2.9")).study_uid == "1.2.9"


def test_who_presses_the_button_need_not_wait(queue, worker):
    """Something was mended: the pauses of job and archive end."""
    job = taken(queue, worker)
    queue.settle(job, away())
    assert queue.claim(worker) is None
    queue.hand_in(replace(ASKED, again=True), "v")
    assert queue.claim(worker).id == job.id


def test_a_result_keeps_its_sentence_while_its_sending_waits(queue, worker, clock):
    """The reason of a delay is gone once it is over."""
    job = taken(queue, worker)
    queue.keep(job, verdict="stable", told="No change.", facts={})
    queue.settle(job, away())
    assert queue.job(job.id).told == "it cannot be reached"
    clock.now += LONGEST_PAUSE_S
    queue.settle(queue.claim(worker), Outcome("done"))
    assert (queue.job(job.id).told, queue.job(job.id).verdict) == ("No change.", "stable")


def test_waiting_ends_one_day(queue, worker, clock):
    """After give_up_days the job has failed, visibly, and may be asked for again."""
    job = taken(queue, worker)
    queue.settle(job, away(), give_up_s=1000.0)
    clock.now += 1001.0
    queue.settle(queue.claim(worker), away(), give_up_s=1000.0)
    assert queue.job(job.id).state == "failed" and queue.hand_in(replace(ASKED, again=True), "v")[1]


def test_a_fault_of_this_machine_is_tried_a_few_times(queue, worker, clock):
    """A full disk may pass, but not for ever."""
    queue.hand_in(ASKED, "v")
    for _ in range(MOST_TRIES):
        clock.now += 4.0 * LONGEST_PAUSE_S
        queue.settle(queue.claim(worker), Outcome("waiting", "the disk is full", counts=True))
    assert queue.counts() == {"failed": 1}


def test_a_clock_that_is_set_back_delays_nothing_for_long(queue, worker, clock):
    """The next try would lie years ahead."""
    queue.settle(taken(queue, worker), away())
    clock.now -= 3 * 365 * 86400.0
    assert queue.claim(worker) is not None


def test_a_study_that_has_grown_becomes_the_job_of_what_it_holds_now(queue, worker, clock):
    """The old question points at the new one, which waits until the study has settled."""
    job = taken(queue, worker)
    content = content_of([("1.2.3.4", 8), ("1.2.3.5", 1)])
    moved = queue.move_on(job, content, settle_s=10.0)
    assert queue.job(job.id).same_as == moved.id and moved.content == content
    assert queue.claim(worker) is None
    clock.now += 10.0
    assert queue.claim(worker).id == moved.id


def test_who_cannot_tell_what_a_study_holds_asks_for_a_look(queue, worker):
    """Each time anew; where nothing has changed, nothing is done."""
    blind = replace(ASKED, content="")
    job = taken(queue, worker, blind)
    queue.move_on(job, CONTENT, settle_s=10.0)
    queue.settle(queue.claim(worker), Outcome("done"))
    queue.move_on(taken(queue, worker, blind), CONTENT, settle_s=10.0)
    assert queue.claim(worker) is None and queue.counts() == {"done": 1}


def test_a_prior_that_comes_late_reopens_what_had_none(queue, worker):
    """The later study was refused before the earlier one arrived."""
    job = taken(queue, worker)
    queue.settle(job, Outcome("refused", "no prior", NotComparable.code))
    assert queue.has_without_prior("orthanc") and not queue.has_without_prior("second")
    assert queue.reopen("orthanc", ["1.2.99"]) == 0 and queue.reopen("orthanc", ["1.2.3"]) == 1
    assert queue.claim(worker).id == job.id


def test_changes_are_told_in_order_and_old_jobs_are_forgotten(queue, worker, clock):
    """What the plugin follows; what the worker clears away."""
    job = taken(queue, worker)
    seen = queue.jobs(after=0)[-1].revision
    queue.settle(job, Outcome("done"))
    assert [each.state for each in queue.jobs(after=seen)] == ["done"]
    assert queue.jobs(after=queue.jobs()[0].revision) == ()
    clock.now += 100.0
    assert queue.forget(200.0) == () and queue.forget(50.0) == (job.id,)


def test_the_queue_is_its_owners_alone_and_a_damaged_one_is_told(tmp_path):
    """Evidence that waits there carries names."""
    Queue(tmp_path / "q")
    assert stat.S_IMODE((tmp_path / "q").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "q" / "queue.sqlite").stat().st_mode) == 0o600
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "queue.sqlite").write_bytes(b"no database" * 100)
    with pytest.raises(ServingRefused, match=r"move queue\.sqlite away"):
        Queue(tmp_path / "bad")


@pytest.mark.parametrize(
    "values",
    [
        {"kind": "erase"},
        {"study_uid": "../../etc/passwd"},
        {"study_uid": "1.2." + "3" * 64},
        {"study_uid": 5},
        {"content": "../x"},
        {"content": "A" * 64},
        {"archive": ["orthanc"]},
        {"again": "yes"},
    ],
)
def test_a_request_of_another_form_is_refused(values):
    """Before it reaches the queue; the good one passes."""
    told = {"kind": "compare", "archive": "orthanc", "study_uid": "1.2.3", "content": CONTENT}
    assert Request(**told)
    with pytest.raises(ServingRefused):
        Request(**{**told, **values})


# ------------------------------------------------------------------ what becomes of a job


@pytest.mark.parametrize(
    ("error", "state", "code"),
    [
        (ArchiveRefused("down"), "waiting", "archive"),
        (NotComparable("no prior"), "refused", "not-comparable"),
        (ResourceExhausted("full"), "waiting", "resources"),
        (OSError(28, "No space left on device"), "waiting", "resources"),
        (ZeroDivisionError("Muller^Jorgen"), "failed", "bug"),
    ],
)
def test_each_failure_has_its_state(queue, worker, tmp_path, monkeypatch, error, state, code):
    """And a bug's message, which may hold a name, is not told."""

    def fails(*_):
        raise error

    monkeypatch.setattr("medsiam.serving.work._done", fails)
    outcome = do_job(bench(queue, tmp_path, worker), taken(queue, worker))
    assert (outcome.state, outcome.code) == (state, code) and "Muller" not in outcome.told


def bench(queue, folder, worker, archive=ARCHIVE):
    return Bench(queue, folder, ServeSettings(archives=(archive,)), worker, lambda step: None)


@pytest.mark.parametrize("url", ["http://127.0.0.1:{}/dicom-web", "dimse://ORTHANC@127.0.0.1:{}"])
def test_an_archive_that_is_down_is_waited_for(queue, worker, tmp_path, url):
    """A real refused connection, by each way."""
    entry = replace(ARCHIVE, url=url.format(free_port()))
    outcome = do_job(bench(queue, tmp_path, worker, entry), taken(queue, worker))
    assert outcome.state == "waiting" and outcome.is_archives and "cannot be reached" in outcome.told


# ------------------------------------------------------------------ settings


def test_the_settings_file_tells_the_defaults_and_every_key():
    """configs/serve.yaml."""
    path = ROOT / "configs" / "serve.yaml"
    assert load_settings(path, ServeSettings) == ServeSettings()
    text = path.read_text(encoding="utf-8")
    for section in ("http", "work"):
        assert all(f"  {key}: " in text for key in settings_as_dict(ServeSettings())[section])


@pytest.mark.parametrize(
    "text",
    [
        "archives: [{name: '../x', url: 'http://127.0.0.1/d'}]",
        "archives: [{name: a}]",
        "archives: [{name: a, url: u}, {name: a, url: v}]",
        "archives: [{name: a, url: u, archive: {timeout: 3}}]",
        "http: {port: 70000}",
    ],
)
def test_settings_that_make_no_sense_are_refused(tmp_path, text):
    """With the key; a good file passes."""
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(ConfigRefused):
        load_settings(tmp_path / "bad.yaml", ServeSettings)
    (tmp_path / "good.yaml").write_text("archives: [{name: a, url: 'http://127.0.0.1/d'}]")
    assert load_settings(tmp_path / "good.yaml", ServeSettings).archive("a").url


def test_results_depend_on_the_settings():
    """Another noise floor or another rule for the prior is another question."""
    plain = ServeSettings(archives=(ARCHIVE,))
    fast = replace(plain, work=WorkSettings(fast=True))
    other = replace(plain, archives=(replace(ARCHIVE, prior=replace(ARCHIVE.prior, longest_days=1.0)),))
    assert len({each.version("orthanc") for each in (plain, fast, other)}) == 3


def test_a_token_is_always_there_and_beyond_this_machine_it_is_ones_own(tmp_path, monkeypatch):
    """Loopback by default; more needs two words of the administrator."""
    monkeypatch.delenv("MEDSIAM_SERVE_TOKEN", raising=False)
    made = token_of(HttpSettings(), tmp_path)
    assert len(made) >= 32 and token_of(HttpSettings(), tmp_path) == made
    assert stat.S_IMODE((tmp_path / "token").stat().st_mode) == 0o600
    with pytest.raises(ServingRefused, match="allow_remote"):
        token_of(HttpSettings(host="0.0.0.0"), tmp_path)
    with pytest.raises(ServingRefused, match="a token is needed"):
        token_of(HttpSettings(host="0.0.0.0", allow_remote=True), tmp_path)
    monkeypatch.setenv("MEDSIAM_SERVE_TOKEN", "short")
    with pytest.raises(ServingRefused, match="24 or more"):
        token_of(HttpSettings(), tmp_path)
    monkeypatch.setenv("MEDSIAM_SERVE_TOKEN", TOKEN)
    assert token_of(HttpSettings(host="0.0.0.0", allow_remote=True), tmp_path) == TOKEN


# ------------------------------------------------------------------ the HTTP face


@contextmanager
def answering(folder, **http):
    """A server in this process; yields its address and the server."""
    settings = ServeSettings(http=HttpSettings(port=0, **http), archives=(ARCHIVE,))
    server = QueueServer(folder, settings, TOKEN)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", server
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def served(tmp_path):
    with answering(tmp_path) as opened:
        yield opened


GOOD = {"kind": "compare", "archive": "orthanc", "study_uid": "1.2.3", "content": CONTENT}
BEARER = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}


def post(url, told=GOOD, **headers):
    body = told if isinstance(told, bytes) else json.dumps(told).encode()
    status, answer = answer_of(f"{url}/jobs", body, {**BEARER, **headers})
    return status, json.loads(answer)


def test_a_job_is_taken_told_and_listed(served):
    """202 the first time, 200 the second; its state by id, by study and by revision."""
    url, _ = served
    status, job = post(url)
    assert status == 202 and job["state"] == "queued" and post(url)[0] == 200
    assert json.loads(answer_of(f"{url}/jobs/{job['id']}", headers=BEARER)[1])["study_uid"] == "1.2.3"
    for question in ("study=1.2.3", "after=0", ""):
        assert len(json.loads(answer_of(f"{url}/jobs?{question}", headers=BEARER)[1])["jobs"]) == 1


def test_nothing_but_the_health_is_told_without_the_token(served):
    """A wrong one, none, another kind; a browser may give it as a password."""
    url, _ = served
    assert answer_of(f"{url}/health")[0] == 200
    basic = b64encode(f"any:{TOKEN}".encode()).decode()
    for path in ("/jobs", "/worklist", f"/jobs/{'0' * 32}", "/nothing"):
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic !"}):
            assert answer_of(url + path, headers=headers)[0] == 401
    assert post(url, Authorization="Bearer " + TOKEN[:-1])[0] == 401
    assert answer_of(f"{url}/worklist", headers={"Authorization": f"Basic {basic}"})[0] == 200


@pytest.mark.parametrize(
    "path",
    [
        "/jobs/../../../etc/passwd",
        "/jobs/%2e%2e/report.html",
        f"/jobs/{'0' * 32}/../../queue.sqlite",
        f"/jobs/{'0' * 32}/report.html/..",
        "/queue.sqlite",
        "/token",
        "//etc/passwd",
        f"/jobs/{'g' * 32}",
        f"/jobs/{'0' * 31}%00/report.html",
    ],
)
def test_no_path_of_a_request_reaches_the_disk(served, path):
    """Every one that is no route is nothing."""
    status, body = answer_of(served[0] + path, headers=BEARER)
    assert status == 404 and json.loads(body)["error"]


def test_the_page_of_a_job_is_served_and_only_where_it_is_made(served, tmp_path):
    """One that is not made, one that was cleared away, and one that is there."""
    url, server = served
    job = post(url)[1]
    page = f"{url}/jobs/{job['id']}/report.html"
    assert answer_of(page, headers=BEARER)[0] == 404
    with lifeline.lifeline(tmp_path / WORKERS) as name:
        mine = server.queue.claim(name)
        server.queue.keep(mine, verdict="stable", told="No change.", facts={})
        server.queue.settle(mine, Outcome("done"))
    assert "no longer kept" in answer_of(page, headers=BEARER)[1].decode()
    place = page_of(tmp_path, server.queue.job(job["id"]))
    assert place.is_relative_to(tmp_path / RESULTS)
    place.parent.mkdir(parents=True)
    place.write_text("<p>the report")
    assert answer_of(page, headers=BEARER) == (200, b"<p>the report")


@pytest.mark.parametrize(
    ("told", "headers", "status"),
    [
        (b"x" * (MOST_BODY_BYTES + 1), {}, 413),
        (b"[" * 10_000, {}, 400),
        (b"\xff\xfe", {}, 400),
        (b"[]", {}, 400),
        ({**GOOD, "path": "/etc/passwd"}, {}, 400),
        ({**GOOD, "archive": "http://elsewhere/"}, {}, 409),
        ({**GOOD, "study_uid": "1/../2"}, {}, 400),
        (GOOD, {"Content-Type": "text/plain"}, 415),
    ],
)
def test_a_body_that_makes_no_sense_is_refused(served, told, headers, status):
    """With its reason; nothing stands in the queue then."""
    url, server = served
    assert post(url, told, **headers)[0] == status and server.queue.counts() == {}


def test_a_caller_who_asks_too_often_is_put_off(tmp_path):
    """429 with a time to wait; the rate recovers."""
    with answering(tmp_path, requests_a_minute=5.0) as (url, _):
        assert [answer_of(f"{url}/health")[0] for _ in range(7)].count(429) == 2
    clock = Clock()
    rates = Rates(60.0, clock)
    assert [rates.allows("a") for _ in range(61)].count(False) == 1 and rates.allows("b")
    clock.now += 2.0
    assert rates.allows("a") and rates.allows("a") and not rates.allows("a")


def test_too_many_connections_and_silent_callers_are_cut_off(tmp_path, monkeypatch):
    """A caller who says nothing holds a place for some seconds only."""
    monkeypatch.setattr("medsiam.serving.server.Handler.timeout", 0.3)
    with answering(tmp_path, most_connections=2) as (url, server):
        silent = [socket.create_connection(("127.0.0.1", server.server_port)) for _ in range(2)]
        time.sleep(0.1)
        with pytest.raises((OSError, http.client.HTTPException)):
            answer_of(f"{url}/health")
        time.sleep(0.5)
        assert answer_of(f"{url}/health")[0] == 200
        for connection in silent:
            connection.close()


def test_a_caller_who_drips_is_cut_off(tmp_path, monkeypatch):
    """A byte now and then would keep any timeout of silence away."""
    monkeypatch.setattr("medsiam.serving.server.WHOLE_REQUEST_S", 0.4)
    with (
        answering(tmp_path) as (_, server),
        socket.create_connection(("127.0.0.1", server.server_port)) as drip,
    ):
        started = time.monotonic()
        with pytest.raises(OSError):
            while time.monotonic() < started + 5.0:
                drip.sendall(b"G")
                time.sleep(0.05)
        assert time.monotonic() - started < 2.0


def test_a_second_service_in_one_folder_is_refused(tmp_path):
    """Two would answer for one queue."""
    with (
        lifeline.alone_in(tmp_path),
        pytest.raises(ServingRefused, match="being served already"),
        lifeline.alone_in(tmp_path),
    ):
        pass
    with lifeline.alone_in(tmp_path):
        pass


def test_a_port_that_is_taken_is_told(tmp_path):
    """One line."""
    with answering(tmp_path) as (_, server):
        settings = ServeSettings(http=HttpSettings(port=server.server_port))
        with pytest.raises(ServingRefused, match="cannot be listened at"):
            QueueServer(tmp_path, settings, TOKEN)


# ------------------------------------------------------------------ the worklist


def test_the_worklist_has_change_first_and_escapes_what_it_is_told(queue, worker):
    """A sentence may quote what a scan says."""
    for n, (verdict, told) in enumerate((("stable", "calm"), ("progressed", "<script>x</script>"))):
        job = taken(queue, worker, replace(ASKED, study_uid=f"1.2.{n}"))
        queue.keep(job, verdict=verdict, told=told, facts={"patient_key": "abc", "magnitude": 0.5})
        queue.settle(job, Outcome("done"))
    queue.settle(taken(queue, worker, replace(ASKED, study_uid="1.2.7")), away())
    page = render_worklist(queue.jobs(), queue.counts(), has_viewer=False)
    order = [page.index(word) for word in (">progressed<", ">stable<", ">waiting<", "it cannot be reached")]
    assert order == sorted(order) and "&lt;script&gt;x" in page and "<script" not in page
    assert "studies/1.2.7" not in page
    assert "studies/1.2.7" in render_worklist(queue.jobs(), queue.counts(), has_viewer=True)
