"""A guest in Orthanc: hands each stable study to `medsiam serve`, and shows what became of it.

Licence of this file alone: it runs inside orthanc-python, which is under the AGPL-3.0, so
what the two make together may be passed on under the AGPL-3.0 only. By itself the file is
under Apache-2.0 like the rest of medsiam, of which it imports nothing: it speaks with it
by HTTP. It needs Python's standard library and the module that Orthanc offers its scripts.

Orthanc must know it by another name than orthanc.py, which is that module's own:
link or copy it as medsiam_plugin.py and name that as "PythonScript". See docs/orthanc.md.

    stable study -> marked in its metadata -> POST /jobs -> states followed -> metadata

Orthanc's own log of changes is the list of what is to do: how far it was followed is kept
as a global property, so that a restart of either side loses nothing and repeats nothing.
"""

from __future__ import annotations

import hashlib
import http.client
import ipaddress
import json
import random
import re
import ssl
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import orthanc

# Free for scripts from 1024 on; another script may use other numbers ("Metadata" in the settings).
FIRST_NUMBER = 4700
SCANS = ("MR", "CT", "CR", "DX")
# Our own evidence: UIDs derived by hash, and numbers that scanners do not give.
OWN_UIDS, OWN_NUMBERS = "2.25.", range(9001, 9007)

TIMEOUT_S, PAGE_TIMEOUT_S = 10.0, 30.0
LOOK_S = 1.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 2.0, 60.0
MOST_ANSWER_BYTES = 64 * 2**20
ROWS = 500
JOB_ID = re.compile(r"[0-9a-f]{32}")

BUTTONS = """
(function () {
  function said(text) { $('#medsiam-state').text(text); }
  function told(uuid) {
    $.ajax({url: '../studies/' + uuid + '/medsiam', dataType: 'json', cache: false,
      success: function (state) { said('medsiam: ' + state.state + (state.told ? ' - ' + state.told : '')); },
      error: function () { said(''); }});
  }
  function asked(uuid, what) {
    said('medsiam: asking ...');
    $.ajax({url: '../studies/' + uuid + '/' + what, type: 'POST', data: '{}', dataType: 'json',
      success: function () { told(uuid); },
      error: function (answer) {
        var why = 'refused';
        try { why = JSON.parse(answer.responseText).error; } catch (e) { why = 'medsiam cannot be reached'; }
        said('medsiam: ' + why);
      }});
  }
  function button(id, label, icon, does) {
    var looks = {id: id, href: '#', 'data-role': 'button', 'data-icon': icon, 'data-theme': 'e'};
    return $('<a>').attr(looks).text(label).click(function (event) {
      event.preventDefault();
      does(($.mobile.pageData || {}).uuid);
    });
  }
  function opened(uuid) { window.open('../studies/' + uuid + '/medsiam-report', '_blank', 'noopener'); }
  $('#study').live('pagebeforecreate', function () {
    var place = $('#study-access').parent();
    place.append(button('medsiam-compare', 'Compare with prior', 'refresh',
      function (uuid) { asked(uuid, 'medsiam-compare'); }));
    place.append(button('medsiam-similar', 'Similar cases', 'search',
      function (uuid) { asked(uuid, 'medsiam-similar'); }));
    place.append(button('medsiam-report', 'Open report', 'info', opened));
    place.append($('<p>').attr('id', 'medsiam-state'));
  });
  $('#study').live('pagebeforeshow', function () {
    said('');
    if ($.mobile.pageData && $.mobile.pageData.uuid) { told($.mobile.pageData.uuid); }
  });
  $('#lookup').live('pagebeforecreate', function () {
    $('#lookup-form').parent().append(button('medsiam-worklist', 'medsiam worklist', 'grid',
      function () { window.open('../medsiam/worklist', '_blank', 'noopener'); }));
  });
}());
"""


class Away(Exception):
    """medsiam serve cannot take this now; another try may pass."""


class Refused(Exception):
    """medsiam serve will not take this, whatever is tried."""


class Settings:
    """The section "Medsiam" of Orthanc's configuration."""

    def __init__(self, told: dict[str, Any]) -> None:
        unknown = set(told) - {
            "Url", "Token", "TokenFile", "Archive", "Automatic", "Metadata", "AllowPlain", "CaFile",
            "PrefectUrl", "PrefectDeployment", "PrefectToken",
        }  # fmt: skip
        if unknown:
            raise ValueError(f"medsiam: there is no setting {sorted(unknown)[0]!r} in the section Medsiam")
        self.url = str(told.get("Url", "http://127.0.0.1:8767")).rstrip("/")
        self.archive = str(told.get("Archive", "orthanc"))
        self.automatic = bool(told.get("Automatic", True))
        self.number = int(told.get("Metadata", FIRST_NUMBER))
        self.ca_file = told.get("CaFile")
        self._token, self._token_file = told.get("Token", ""), told.get("TokenFile")
        self.prefect_url = str(told.get("PrefectUrl", "")).rstrip("/")
        self.prefect_deployment = str(told.get("PrefectDeployment", ""))
        self.prefect_token = str(told.get("PrefectToken", ""))
        if self.number < 1024:
            raise ValueError("medsiam: Metadata is a number from 1024 on")
        for url in filter(None, (self.url, self.prefect_url)):
            _check_url(url, bool(told.get("AllowPlain", False)))

    def token(self) -> str:
        """Read at each use, so that a new one needs no restart."""
        if self._token_file:
            return Path(self._token_file).read_text(encoding="ascii").strip()
        return str(self._token)


def _check_url(url: str, allow_plain: bool) -> None:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username:
        raise ValueError(f"medsiam: {url[:60]!r} is no address; write http://127.0.0.1:8767")
    try:
        here = parts.hostname == "localhost" or ipaddress.ip_address(parts.hostname).is_loopback
    except ValueError:
        here = False
    if parts.scheme == "http" and not here and not allow_plain:
        raise ValueError("medsiam: http to another machine would show the token; use https, or AllowPlain")


# ---------------------------------------------------------------- medsiam serve, by HTTP


class Serve:
    """What is asked of `medsiam serve`, or of a Prefect deployment in its place."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def hand(self, kind: str, study_uid: str, content: str, again: bool) -> dict[str, Any]:
        """The job that was handed in. Raises Away or Refused."""
        if self._settings.prefect_url and kind == "compare":
            return self._flow_run(study_uid, content, again)
        told = {"kind": kind, "archive": self._settings.archive, "study_uid": study_uid}
        return self.ask("POST", "/jobs", {**told, "content": content, "again": again})

    def _flow_run(self, study_uid: str, content: str, again: bool) -> dict[str, Any]:
        path = f"/deployments/{quote(self._settings.prefect_deployment)}/create_flow_run"
        told = {"parameters": {"archive": self._settings.archive, "study_uid": study_uid}}
        key = f"medsiam-{study_uid}-{content[:16]}" + (f"-{time.time():.0f}" if again else "")
        url, token = self._settings.prefect_url, self._settings.prefect_token
        run = json.loads(self._answer("POST", url, token, path, {**told, "idempotency_key": key}))
        return {"id": str(run.get("id", "")), "state": "queued", "told": "handed to Prefect"}

    def ask(self, verb: str, path: str, told: dict[str, Any] | None = None) -> dict[str, Any]:
        """The answer to a question as JSON. Raises Away or Refused."""
        try:
            answer = json.loads(self._answer(verb, self._settings.url, self._token(), path, told))
        except ValueError as error:
            raise Away("medsiam serve answered with no JSON") from error
        return answer if isinstance(answer, dict) else {}

    def page(self, path: str) -> bytes:
        """A page. Raises Away or Refused."""
        return self._answer("GET", self._settings.url, self._token(), path, None, PAGE_TIMEOUT_S)

    def _token(self) -> str:
        try:
            return self._settings.token()
        except (OSError, ValueError) as error:
            raise Away("the token file of the section Medsiam cannot be read") from error

    def _answer(
        self, verb: str, url: str, token: str, path: str, told: Any, timeout: float = TIMEOUT_S
    ) -> bytes:
        connection, root = self._connection(url, timeout)
        headers = {"Content-Type": "application/json"} | (
            {"Authorization": f"Bearer {token}"} if token else {}
        )
        try:
            connection.request(verb, root + path, None if told is None else json.dumps(told), headers)
            answer = connection.getresponse()
            body = answer.read(MOST_ANSWER_BYTES)
        except (OSError, http.client.HTTPException) as error:
            raise Away("medsiam serve cannot be reached") from error
        finally:
            connection.close()
        if answer.status in (200, 201, 202):
            return body
        raise _why_not(verb, answer.status, body)

    def _connection(self, url: str, timeout: float) -> tuple[http.client.HTTPConnection, str]:
        parts = urlsplit(url)
        host = str(parts.hostname)
        if parts.scheme == "http":
            return http.client.HTTPConnection(host, parts.port, timeout=timeout), parts.path
        trusted = ssl.create_default_context(cafile=self._settings.ca_file)
        secure = http.client.HTTPSConnection(host, parts.port, timeout=timeout, context=trusted)
        return secure, parts.path


def _why_not(verb: str, status: int, body: bytes) -> Exception:
    try:
        why = str(json.loads(body)["error"])[:200]
    except (ValueError, KeyError, TypeError):
        why = f"medsiam serve answered {status}"
    # Only what no setting mends is given up; a study waits for a token, an archive's name, a proxy.
    return Refused(why) if status == 400 or (status == 404 and verb == "GET") else Away(why)


# ---------------------------------------------------------------- Orthanc, by its own REST API


def get(uri: str) -> Any:
    """What Orthanc answers, None where there is no such thing."""
    try:
        return json.loads(orthanc.RestApiGet(uri))
    except (orthanc.OrthancException, ValueError):
        return None


def scans_of(study: str) -> list[tuple[str, int]]:
    """The scans of a study: series UID and how many instances; our own evidence is none."""
    found = []
    for series in get(f"/studies/{study}/series") or []:
        tags = series.get("MainDicomTags", {})
        if tags.get("Modality") in SCANS and not _is_ours(tags):
            found.append((tags.get("SeriesInstanceUID", ""), len(series.get("Instances", []))))
    return found


def _is_ours(tags: dict[str, str]) -> bool:
    number = tags.get("SeriesNumber", "").strip()
    is_numbered = number.isdecimal() and int(number) in OWN_NUMBERS
    return is_numbered and tags.get("SeriesInstanceUID", "").startswith(OWN_UIDS)


def content_of(scans: list[tuple[str, int]]) -> str:
    """The digest that `medsiam serve` makes of the same scans."""
    lines = sorted(f"{uid} {count}\n" for uid, count in scans)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def stable_age_s() -> float:
    """After how many quiet seconds Orthanc calls a study stable."""
    return float(CONFIGURATION.get("StableAge", 60))


class Marks:
    """What stands in a study's metadata: its state as a word, and the details as JSON."""

    def __init__(self, number: int) -> None:
        self._word, self._details = number, number + 1

    def of(self, study: str) -> dict[str, Any]:
        """The details, {} where the study was never marked."""
        told = get(f"/studies/{study}/metadata/{self._details}")
        return told if isinstance(told, dict) else {}

    def write(self, study: str, details: dict[str, Any]) -> None:
        """Marks a study; one that was deleted meanwhile is let be."""
        try:
            orthanc.RestApiPut(f"/studies/{study}/metadata/{self._details}", json.dumps(details).encode())
            orthanc.RestApiPut(f"/studies/{study}/metadata/{self._word}", str(details["state"]).encode())
        except orthanc.OrthancException:
            orthanc.LogInfo("medsiam: a study was gone before it could be marked")

    def tell(self, study: str, details: dict[str, Any], job: dict[str, Any]) -> None:
        """Marks a study with the state of its job, where that is new."""
        fresh = {**details, "job": job["id"], "state": job["state"], "told": job.get("told", "")}
        fresh |= {"verdict": job.get("verdict"), "content": job.get("content") or details.get("content", "")}
        if fresh != details:
            self.write(study, fresh)


# ---------------------------------------------------------------- the thread that follows


class Follower(threading.Thread):
    """Hands stable studies on, in the order of Orthanc's changes, and follows their jobs."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(name="medsiam", daemon=True)
        self._settings, self._serve, self._marks = settings, Serve(settings), Marks(settings.number)
        self._wake, self._over = threading.Event(), False
        self._backlog: dict[str, int] = {}
        self._arriving: set[str] = set()
        self._begun_s = time.monotonic()
        self._series: dict[str, str] = {}
        self._seen = 0
        self._samples: list[tuple[float, int]] = []
        self._kept: dict[str, Any] = {}
        self._written = ""
        self._pause_s, self._not_before, self._why = 0.0, 0.0, ""

    def wake(self) -> None:
        """A study has become stable."""
        self._wake.set()

    def end(self) -> None:
        """Returns once the thread has ended."""
        self._over = True
        self._wake.set()
        self.join(timeout=TIMEOUT_S + 5.0)

    def run(self) -> None:
        """Until the end; a fault is logged and never ends it."""
        step = self._catch_up
        while not self._over:
            if self._guarded(step):
                step = self._step
            self._wake.wait(LOOK_S)
            self._wake.clear()

    def _guarded(self, step: Any) -> bool:
        try:
            step()
            return True
        except Exception as error:
            # Its kind alone: a message may hold what a scan says.
            orthanc.LogError(f"medsiam: {type(error).__name__} in its thread; it goes on")
            return False

    def _catch_up(self) -> None:
        """Whatever came before a restart and was not handed in goes into the backlog.

        Orthanc forgets which studies were still arriving, so that they never become
        stable by its own word: every study that was touched is looked at, once it has
        had the time again to become so.
        """
        self._kept = json.loads(orthanc.GetGlobalProperty(self._settings.number, "{}"))
        last = get("/changes?last")["Last"]
        self._seen = min(int(self._kept.get("seen", last)), last)
        while not self._over:
            rows, done = self._changes()
            for row in rows:
                study = self._study_of(row)
                if study:
                    self._backlog[study] = row["Seq"]
                    is_stable = row["ChangeType"] == "StableStudy"
                    (self._arriving.discard if is_stable else self._arriving.add)(study)
            if done:
                return

    def _step(self) -> None:
        done = False
        while not done:
            rows, done = self._changes()
            stable = [row for row in rows if row["ChangeType"] == "StableStudy"]
            self._backlog |= {row["ID"]: row["Seq"] for row in stable}
            self._arriving -= {row["ID"] for row in stable}
        if self._settings.automatic:
            for study in list(self._backlog):
                if self._over:
                    return
                if self._is_settled_or_odd(study):
                    self._backlog.pop(study)
        else:
            self._backlog.clear()
        self._follow()
        self._keep()

    def _changes(self) -> tuple[list[dict[str, Any]], bool]:
        told = get(f"/changes?since={self._seen}&limit={ROWS}") or {"Changes": [], "Done": True}
        self._seen = max(self._seen, told.get("Last", 0))
        return told["Changes"], bool(told["Done"])

    def _study_of(self, row: dict[str, Any]) -> str:
        """The study that a change touched, "" where it is none of ours."""
        kind, name = row["ChangeType"], row["ID"]
        if kind in ("NewStudy", "StableStudy"):
            return str(name)
        if kind == "NewInstance":
            name = (get(f"/instances/{name}") or {}).get("ParentSeries", "")
        if kind in ("NewSeries", "NewInstance") and name:
            if name not in self._series:
                self._series[name] = (get(f"/series/{name}") or {}).get("ParentStudy", "")
            return self._series[name]
        return ""

    def _is_settled_or_odd(self, study: str) -> bool:
        """As _is_settled; a study that cannot be looked at holds up no other."""
        try:
            return self._is_settled(study)
        except Exception as error:
            orthanc.LogError(f"medsiam: {type(error).__name__} over study {study}; it is left out")
            return True

    def _is_settled(self, study: str) -> bool:
        """Whether nothing more is to be done for a study; hands it in where it is new."""
        told = get(f"/studies/{study}")
        if told is None:
            return True
        if not told.get("IsStable", True) or (
            study in self._arriving and time.monotonic() - self._begun_s < stable_age_s()
        ):
            return False
        scans, details = scans_of(study), self._marks.of(study)
        content = content_of(scans)
        if not scans or (details.get("content") == content and details.get("state") != "pending"):
            return True
        rests = time.monotonic() < self._not_before
        told_why = self._why if rests else ""
        fresh = {"state": "pending", "content": content, "job": "", "told": told_why, "verdict": None}
        if details.get("content") != content or (rests and details != fresh):
            self._marks.write(study, fresh)
        if rests:
            return False
        return self._handed(study, told["MainDicomTags"]["StudyInstanceUID"], fresh)

    def _handed(self, study: str, study_uid: str, details: dict[str, Any]) -> bool:
        try:
            job = self._serve.hand("compare", study_uid, details["content"], again=False)
        except Refused as error:
            self._marks.write(study, {**details, "state": "failed", "told": str(error)})
            return True
        except Away as error:
            self._rest(error)
            self._marks.write(study, {**details, "told": str(error)})
            return False
        self._pause_s = self._not_before = 0.0
        self._marks.tell(study, details, job)
        return True

    def _follow(self) -> None:
        """Writes what became of jobs since the last look into their studies' metadata."""
        if self._settings.prefect_url or time.monotonic() < self._not_before:
            return
        try:
            told = self._serve.ask("GET", f"/jobs?after={int(self._kept.get('revision', 0))}")
        except (Away, Refused) as error:
            self._rest(error)
            return
        self._pause_s = 0.0
        if told.get("queue") != self._kept.get("queue"):
            # Another queue stands there: its count begins anew.
            self._kept |= {"queue": told.get("queue"), "revision": 0}
            return
        for job in told.get("jobs", []):
            if job["kind"] == "compare" and job["archive"] == self._settings.archive:
                self._guarded(lambda job=job: self._tell(job))
            self._kept["revision"] = job["revision"]

    def _tell(self, job: dict[str, Any]) -> None:
        for found in json.loads(orthanc.RestApiPost("/tools/lookup", job["study_uid"].encode())):
            if found["Type"] != "Study":
                continue
            details = self._marks.of(found["ID"])
            if details.get("job") not in (None, "", job["id"]) and job["content"] != details.get("content"):
                continue
            if job.get("same_as"):
                job = self._serve.ask("GET", f"/jobs/{job['same_as']}")
            self._marks.tell(found["ID"], details, job)

    def _rest(self, error: Exception) -> None:
        """Pauses, longer each time, so that a service that is away is not stormed."""
        if time.monotonic() < self._not_before:
            return
        self._why = str(error)
        self._pause_s = min(LONGEST_PAUSE_S, max(FIRST_PAUSE_S, 2.0 * self._pause_s))
        self._not_before = time.monotonic() + self._pause_s * random.uniform(0.5, 1.0)
        orthanc.LogWarning(f"medsiam: {error}; next try in {self._pause_s:.0f} s")

    def _keep(self) -> None:
        """Keeps how far the changes were followed, never past a study that may still be arriving."""
        now = time.monotonic()
        self._samples.append((now, self._seen))
        old = [seq for then, seq in self._samples if now - then > 2.0 * stable_age_s() + 60.0]
        safe = old[-1] if old else int(self._kept.get("seen", self._samples[0][1]))
        self._samples = [each for each in self._samples if each[1] > safe] or [(now, self._seen)]
        self._kept["seen"] = min([safe, *(seq - 1 for seq in self._backlog.values())])
        text = json.dumps(self._kept, sort_keys=True)
        if text != self._written:
            orthanc.SetGlobalProperty(self._settings.number, text)
            self._written = text


# ---------------------------------------------------------------- routes


def refuse(output: Any, status: int, why: str) -> None:
    """An error as JSON."""
    body = json.dumps({"error": why})
    output.SetHttpHeader("Content-Type", "application/json")
    output.SendHttpStatus(status, body, len(body))


def route(verb: str) -> Any:
    """A REST callback for one verb, its errors told as JSON; requests of other sites' pages are refused."""

    def of(does: Any) -> Any:
        def answer(output: Any, uri: str, **request: Any) -> None:
            if request["method"] != verb:
                output.SendMethodNotAllowed(verb)
                return
            headers = request.get("headers", {})
            origin = headers.get("origin", "")
            if verb == "POST" and origin and urlsplit(origin).netloc != headers.get("host", ""):
                refuse(output, 403, "this comes from the page of another site")
                return
            try:
                does(output, *request.get("groups", ()))
            except Refused as error:
                refuse(output, 404, str(error))
            except Away as error:
                refuse(output, 503, str(error))

        return answer

    return of


def answer_json(output: Any, told: Any) -> None:
    """An answer as JSON."""
    output.AnswerBuffer(json.dumps(told), "application/json")


def answer_page(output: Any, page: bytes) -> None:
    """A page, with what keeps it in its place; its own policy stands within it."""
    output.SetHttpHeader("Cache-Control", "no-store")
    output.SetHttpHeader("X-Content-Type-Options", "nosniff")
    output.SetHttpHeader("Content-Security-Policy", "frame-ancestors 'self'")
    output.AnswerBuffer(page, "text/html")


def ask_for(kind: str, output: Any, study: str) -> None:
    """Hands a study in because someone pressed a button: once more, if it was done."""
    told = get(f"/studies/{study}")
    if told is None:
        raise Refused("there is no such study")
    scans = scans_of(study)
    if not scans:
        raise Refused("the study holds no scan that can be compared")
    content = content_of(scans)
    job = SERVE.hand(kind, told["MainDicomTags"]["StudyInstanceUID"], content, again=True)
    if kind == "compare":
        MARKS.tell(study, {**MARKS.of(study), "content": content}, job)
    answer_json(output, job)


@route("GET")
def state(output: Any, study: str) -> None:
    """What stands in the study's metadata."""
    if get(f"/studies/{study}") is None:
        raise Refused("there is no such study")
    answer_json(output, MARKS.of(study) or {"state": "none"})


@route("POST")
def compare(output: Any, study: str) -> None:
    """Asks for a comparison."""
    ask_for("compare", output, study)


@route("POST")
def similar(output: Any, study: str) -> None:
    """Asks for similar cases."""
    ask_for("similar", output, study)


def page_of(kind: str, output: Any, study: str) -> None:
    """The newest page of a kind that a study has."""
    told = get(f"/studies/{study}")
    if told is None:
        raise Refused("there is no such study")
    jobs = SERVE.ask("GET", f"/jobs?study={quote(told['MainDicomTags']['StudyInstanceUID'])}")["jobs"]
    for job in jobs:
        if job["kind"] == kind and job["has_report"] and JOB_ID.fullmatch(job["id"]):
            answer_page(output, SERVE.page(f"/jobs/{job['id']}/report.html"))
            return
    raise Refused(
        f"there is no page yet; the study is {jobs[0]['state']}" if jobs else "there is no page yet"
    )


@route("GET")
def report(output: Any, study: str) -> None:
    """The report of the study's comparison."""
    page_of("compare", output, study)


@route("GET")
def similar_page(output: Any, study: str) -> None:
    """The study's similar cases."""
    page_of("similar", output, study)


@route("GET")
def worklist(output: Any) -> None:
    """The worklist, its links leading into Orthanc."""
    answer_page(output, SERVE.page("/worklist?viewer=orthanc"))


@route("GET")
def job_page(output: Any, job: str) -> None:
    """The page of a job, as the worklist links it."""
    answer_page(output, SERVE.page(f"/jobs/{job}/report.html"))


@route("GET")
def study_page(output: Any, study_uid: str) -> None:
    """Leads to a study in Orthanc Explorer."""
    for found in json.loads(orthanc.RestApiPost("/tools/lookup", study_uid.encode())):
        if found["Type"] == "Study":
            output.Redirect(f"../../app/explorer.html#study?uuid={found['ID']}")
            return
    raise Refused("there is no such study")


ROUTES = (
    ("/studies/([0-9a-f-]{44})/medsiam", state),
    ("/studies/([0-9a-f-]{44})/medsiam-compare", compare),
    ("/studies/([0-9a-f-]{44})/medsiam-similar", similar),
    ("/studies/([0-9a-f-]{44})/medsiam-report", report),
    ("/studies/([0-9a-f-]{44})/medsiam-cases", similar_page),
    ("/medsiam/worklist", worklist),
    ("/medsiam/jobs/([0-9a-f]{32})/report.html", job_page),
    ("/medsiam/studies/([0-9.]{1,64})", study_page),
)


def changed(change: int, level: int, resource: str) -> None:
    """Orthanc tells a change: only a sign is given, nothing is done here."""
    global FOLLOWER
    if change == orthanc.ChangeType.ORTHANC_STARTED:
        FOLLOWER = Follower(SETTINGS)
        FOLLOWER.start()
    elif change == orthanc.ChangeType.ORTHANC_STOPPED and FOLLOWER is not None:
        FOLLOWER.end()
    elif change == orthanc.ChangeType.STABLE_STUDY and FOLLOWER is not None:
        FOLLOWER.wake()


CONFIGURATION: dict[str, Any] = json.loads(orthanc.GetConfiguration())
SETTINGS = Settings(CONFIGURATION.get("Medsiam", {}))
SERVE, MARKS = Serve(SETTINGS), Marks(SETTINGS.number)
FOLLOWER: Follower | None = None

for pattern, callback in ROUTES:
    orthanc.RegisterRestCallback(pattern, callback)
orthanc.RegisterOnChangeCallback(changed)
orthanc.ExtendOrthancExplorer(BUTTONS)
