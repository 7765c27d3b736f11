"""Orthanc with the plugin, `medsiam serve` beside it, and small radiographs: nothing is asked for by hand."""

import json
import os
import signal
import time

import numpy as np
import pytest

from medsiam.pacs.dicomweb import Dicomweb
from medsiam.pacs.settings import ArchiveSettings
from medsiam.serving.job import Request, content_of
from medsiam.serving.lifeline import lifeline
from medsiam.serving.queue import WORKERS, Queue
from medsiam.serving.settings import ArchiveEntry, ServeSettings
from medsiam.serving.work import Bench, do_job
from tests import dicom_maker
from tests.evidence_maker import NAME
from tests.orthanc import PASSWORD, USER, free_port
from tests.serving import Rest, Serving, orthanc_with_plugin, wait_for
from tests.test_report_chromium import CHROMIUM, Browser

pytestmark = pytest.mark.slow

QUICK = ArchiveSettings(timeout_s=10.0, retries=0)
CELLS = np.random.default_rng(1).integers(0, 4000, (64, 64))
EVIDENCE = {"SR", "DOC", "OT"}
OVER = ("done", "refused", "failed")


class House:
    """Orthanc, its plugin and the service, each of which can be ended and started again."""

    def __init__(self, folder):
        self.folder, self.scans = folder, 0
        self.ports, serve_port = (free_port(), free_port()), free_port()
        url = f"http://127.0.0.1:{self.ports[0]}/dicom-web"
        self.serving = Serving(folder / "serve", serve_port, url)
        self.rest, self.web = Rest(self.ports[0]), Dicomweb(url, QUICK)
        self._serve_port, self._archive = serve_port, None

    def open(self):
        """Starts Orthanc, where it was before."""
        self._archive = orthanc_with_plugin(self.folder / "orthanc", self._serve_port, self.ports)
        self._archive.__enter__()

    def shut(self):
        """Ends Orthanc."""
        if self._archive is not None:
            self._archive.__exit__(None, None, None)
            self._archive = None

    def store(self, patient, visit, series=1):
        """Stores a radiograph as a study's series; returns the study's UID."""
        study = f"1.2.8.{sum(patient.encode())}.{visit}"
        told = {
            "PatientID": patient, "PatientName": NAME, "StudyInstanceUID": study,
            "SeriesInstanceUID": f"{study}.{series}", "StudyDate": f"202{visit}0102",
            "AcquisitionDate": f"202{visit}0102", "SeriesNumber": series, "BodyPartExamined": "CHEST",
            "SOPInstanceUID": f"{study}.{series}.1",
        }  # fmt: skip
        self.scans += 1
        image = dicom_maker.radiograph("DX", CELLS, **told)
        place = dicom_maker.save(image, self.folder / "scans" / str(self.scans))
        assert self.web.store(list(place.iterdir())).failed == ()
        return study

    def over(self, study, patience_s=90.0):
        """The state of a study once nothing more is to come of it."""
        state = self.rest.state
        return wait_for(
            lambda: state(study) if state(study)["state"] in OVER else None, what=study, patience_s=patience_s
        )

    def jobs(self, study):
        """The jobs of a study."""
        return self.serving.jobs(study=study)

    def settled(self, study):
        """Returns once Orthanc has told that a study is stable, and the plugin has looked at it."""
        name = self.rest.study(study)
        wait_for(lambda: self.rest.json(f"/studies/{name}")["IsStable"], what="stable")
        time.sleep(2.0)


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDSIAM_PACS_USER", USER)
        patch.setenv("MEDSIAM_PACS_PASSWORD", PASSWORD)
        made = House(tmp_path_factory.mktemp("house"))
        try:
            made.open()
            made.serving.start()
            yield made
        finally:
            made.serving.end()
            made.shut()


@pytest.fixture(scope="module")
def followed(house):
    """A patient with two visits, the second of which was compared; its study's UID."""
    house.store("first", 1)
    study = house.store("first", 2)
    assert house.over(study)["state"] == "done"
    return study


def test_the_evidence_stands_beside_the_second_study_by_itself(house, followed):
    """Two studies stored, nothing else done; and the evidence that arrives is no reason to begin again."""
    assert house.rest.modalities(followed) >= EVIDENCE
    house.settled(followed)
    assert len(house.jobs(followed)) == 1 and house.jobs(followed)[0]["attempts"] == 1
    name = house.rest.study(followed)
    assert house.rest.ask(f"/studies/{name}/metadata/4700")[1] == b"done"


def test_the_report_is_one_click_away(house, followed):
    """Through Orthanc, under its password; nobody's name stands in it."""
    status, page = house.rest.ask(f"/studies/{house.rest.study(followed)}/medsiam-report")
    assert status == 200 and b"Research use only" in page and NAME.split("^")[0].encode() not in page


def test_no_name_and_no_number_leaves_the_archive(house, followed):
    """Queue, results, settings and logs are searched for them; what waited to be sent is gone."""
    secrets = (NAME.encode(), NAME.split("^")[0].encode())
    files = [path for path in house.serving.folder.rglob("*") if path.is_file()]
    assert any(path.name == "queue.sqlite" for path in files)
    for path in [*files, house.folder / "orthanc" / "orthanc.log"]:
        assert not any(secret in path.read_bytes() for secret in secrets), path
    assert list((house.serving.folder / "data" / "outbox").iterdir()) == []


def test_one_more_series_is_one_new_job_and_a_repeat_is_none(house, followed):
    """What the study holds decides."""
    house.store("first", 2)
    house.settled(followed)
    assert len(house.jobs(followed)) == 1
    house.store("first", 2, series=2)
    wait_for(lambda: len(house.jobs(followed)) == 2, what="a second job")
    house.settled(followed)
    assert house.over(followed)["state"] == "done"
    assert [job["state"] for job in house.jobs(followed)] == ["done", "done"]


def test_a_study_without_prior_is_refused_until_its_prior_comes(house):
    """Visible, final, and open again when an earlier study of the patient arrives."""
    study = house.store("late", 2)
    state = house.over(study)
    assert state["state"] == "refused" and "no prior" in state["told"]
    house.store("late", 1)
    wait_for(lambda: house.rest.state(study)["state"] == "done", what="compared after all")


def test_restarts_in_the_middle_lose_nothing_and_repeat_nothing(house):
    """The service is away, Orthanc is restarted before the study is stable, the worker is killed at work."""
    house.serving.end()
    house.store("middle", 1)
    study = house.store("middle", 2)
    house.shut()
    house.open()
    wait_for(lambda: "cannot be reached" in house.rest.state(study).get("told", ""), what="told")
    assert house.rest.state(study)["state"] == "pending"
    asked = house.rest.ask(f"/studies/{house.rest.study(study)}/medsiam-compare", b"{}")
    assert asked[0] == 503 and b"cannot be reached" in asked[1]
    house.serving.start()
    running = wait_for(lambda: [j for j in house.jobs(study) if j["state"] == "running"], what="at work")
    os.kill(house.serving.worker_pid(), signal.SIGKILL)
    assert house.over(study)["state"] == "done"
    assert [(job["id"], job["attempts"]) for job in house.jobs(study)] == [(running[0]["id"], 2)]
    assert house.rest.modalities(study) >= EVIDENCE


@pytest.mark.parametrize(
    ("url", "password", "told"),
    [
        ("dimse://WRONG@127.0.0.1:{dicom}", PASSWORD, "check both AE titles"),
        ("http://127.0.0.1:{http}/dicom-web", "expired", "does not accept the token"),
    ],
)
def test_an_archive_that_says_no_is_waited_for_with_its_reason(
    house, followed, tmp_path, monkeypatch, url, password, told
):
    """A wrong AE title, a password or token that is no longer good: mended, the job goes on by itself."""
    monkeypatch.setenv("MEDSIAM_PACS_PASSWORD", password)
    entry = ArchiveEntry("orthanc", url.format(http=house.ports[0], dicom=house.ports[1]), QUICK)
    job = done_by_hand(entry, followed, tmp_path)
    assert job.state == "waiting" and told in job.told


def done_by_hand(entry, study, folder):
    """A job of a queue of its own, after one try."""
    queue = Queue(folder)
    with lifeline(folder / WORKERS) as name:
        queue.hand_in(Request("compare", "orthanc", study), "v")
        while (job := queue.claim(name)) is not None:
            last = job
            bench = Bench(queue, folder, ServeSettings(archives=(entry,)), name, lambda step: None)
            outcome = do_job(bench, job)
            if outcome is not None:
                queue.settle(job, outcome)
    return queue.job(last.id)


def test_a_study_that_is_gone_is_refused(house, tmp_path):
    """Deleted before its turn came; the archive itself is well."""
    entry = ArchiveEntry("orthanc", f"http://127.0.0.1:{house.ports[0]}/dicom-web", QUICK)
    job = done_by_hand(entry, "1.2.3.99", tmp_path)
    assert job.state == "refused" and "no scan" in job.told


def test_plugin_and_worker_agree_on_what_a_study_holds(house, followed):
    """Otherwise every job would be handed on to another; our evidence is no part of it for either."""
    series = [each for each in house.web.find_series(followed) if each.is_comparable]
    assert len(series) == 2
    assert house.rest.state(followed)["content"] == content_of((each.uid, each.instances) for each in series)


def test_routes_answer_as_they_should(house, followed):
    """A study that is not there, another site's page, another verb, no index, a page that is not made."""
    rest, name = house.rest, house.rest.study(followed)
    assert rest.ask(f"/studies/{'0' * 8}-{'0' * 8}-{'0' * 8}-{'0' * 8}-{'0' * 8}/medsiam")[0] == 404
    foreign = {"Origin": "http://elsewhere.example"}
    assert rest.ask(f"/studies/{name}/medsiam-compare", b"{}", foreign)[0] == 403
    assert rest.ask(f"/studies/{name}/medsiam-compare")[0] == 405
    assert rest.ask(f"/studies/{name}/medsiam-cases")[0] == 404
    assert rest.ask(f"/medsiam/jobs/{'0' * 32}/report.html")[0] == 404
    job = rest.json(f"/studies/{name}/medsiam-similar", b"{}")
    asked = wait_for(
        lambda: json.loads(house.serving.ask(f"/jobs/{job['id']}")[1])["state"] == "refused", what="no index"
    )
    assert asked and rest.ask("/medsiam/worklist")[0] == 200


@pytest.fixture(scope="module")
def browser(house, tmp_path_factory):
    if CHROMIUM is None:
        pytest.skip("chromium is not installed")
    opened = Browser(tmp_path_factory.mktemp("profile"))
    opened.ask("Network.setExtraHTTPHeaders", headers=house.rest.headers)
    yield opened
    opened.close()


def opened(browser, house, path):
    browser.ask("Page.navigate", url="about:blank")
    browser.events.clear()
    browser.ask("Page.navigate", url=f"http://127.0.0.1:{house.ports[0]}{path}")
    browser.wait_for("location.href !== 'about:blank' && document.readyState === 'complete'")


def faults(browser):
    """Errors of scripts and of the page's policy."""
    browser.value("new Promise(done => setTimeout(done, 200))")
    said = [
        event
        for event in browser.events
        if event.get("method") in ("Log.entryAdded", "Runtime.exceptionThrown")
    ]
    told = [event for event in said if event["params"].get("entry", {}).get("level", "error") == "error"]
    return [json.dumps(event) for event in told if "favicon" not in json.dumps(event)]


def test_the_worklist_leads_to_report_and_study(browser, house, followed):
    """Clicked through in a browser, without a complaint of it."""
    opened(browser, house, "/medsiam/worklist")
    assert browser.value("document.title") == "Worklist" and faults(browser) == []
    assert browser.value("document.querySelectorAll('a.report').length") >= 1
    browser.click("a.report")
    browser.wait_for("document.getElementById('viewer')?.dataset.painted")
    assert faults(browser) == []
    opened(browser, house, "/medsiam/worklist")
    browser.click("a.study")
    browser.wait_for("location.href.includes('explorer.html#study?uuid=')")


def test_the_buttons_of_the_explorer_do_what_they_say(browser, house, followed):
    """State shown at once, comparison asked for again, report opened."""
    opened(browser, house, f"/app/explorer.html#study?uuid={house.rest.study(followed)}")
    browser.wait_for("document.querySelector('#medsiam-state')?.textContent.includes('medsiam: done')")
    labels = browser.value("['compare', 'similar', 'report'].map(n => $('#medsiam-' + n).text().trim())")
    assert labels == ["Compare with prior", "Similar cases", "Open report"]
    assert all(len(label) <= 18 for label in labels)
    browser.value("window.open = url => { window.shown = url; }; 0")
    browser.value("$('#medsiam-report')[0].click(); 0")
    assert browser.value("window.shown").endswith("/medsiam-report")
    browser.value("$('#medsiam-compare')[0].click(); 0")
    browser.wait_for("/queued|running/.test(document.querySelector('#medsiam-state').textContent)")
    assert faults(browser) == []
    assert house.over(followed)["state"] == "done"
