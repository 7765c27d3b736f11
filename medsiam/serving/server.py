"""The queue's HTTP face, by the standard library: few routes, each a pattern, all behind a token.

No word of a request becomes part of a path: a job is looked up by its id, and the
page of a job that is known is sent.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import json
import re
import socket
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from medsiam.errors import MedsiamError, ResourceExhausted, ServingRefused
from medsiam.serving.job import JOB_ID, UID, Job, Request, page_of
from medsiam.serving.queue import Queue
from medsiam.serving.settings import ServeSettings
from medsiam.serving.worklist import render_worklist, worklist_policy

MOST_BODY_BYTES = 16_384
# Silence is borne so long; a whole request may take so long.
QUIET_S, WHOLE_REQUEST_S = 10.0, 30.0
# A caller may ask so often at once before the rate per minute counts.
BURST = 120.0
# Callers whose rate is remembered; a machine has few addresses.
MOST_CALLERS = 1024
LISTED = 500

HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
PAGE_POLICY = "frame-ancestors 'self'"


@dataclass(frozen=True)
class Answer:
    """What is sent back."""

    status: int
    body: bytes
    kind: str = "application/json"
    headers: tuple[tuple[str, str], ...] = ()


class Rates:
    """How often each caller may still ask: a bucket that fills again with time."""

    def __init__(self, a_minute: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._a_second, self._clock = a_minute / 60.0, clock
        self._most = max(1.0, min(BURST, a_minute))
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._lock = threading.Lock()

    def allows(self, caller: str, cost: float = 1.0) -> bool:
        """Whether this request of a caller may pass; counts it."""
        with self._lock:
            now = self._clock()
            left, then = self._left.pop(caller, (self._most, now))
            left = min(self._most, left + (now - then) * self._a_second)
            passes = left >= cost
            self._left[caller] = (left - cost if passes else left, now)
            while len(self._left) > MOST_CALLERS:
                self._left.popitem(last=False)
            return passes


class QueueServer(ThreadingHTTPServer):
    """The queue of a folder at an address."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, folder: Path, settings: ServeSettings, token: str) -> None:
        self.folder, self.settings, self.queue = folder, settings, Queue(folder)
        self.token = token.encode()
        self.rates = Rates(settings.http.requests_a_minute)
        self._free = threading.BoundedSemaphore(settings.http.most_connections)
        if ":" in settings.http.host:
            self.address_family = socket.AF_INET6
        try:
            super().__init__((settings.http.host, settings.http.port), Handler)
        except OSError as error:
            raise ServingRefused(
                f"{settings.http.host}:{settings.http.port} cannot be listened at ({error.strerror}); "
                "choose another http.port"
            ) from error

    def process_request(self, request: Any, client_address: Any) -> None:
        """Starts a thread for a connection, or closes it where there are too many."""
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answers one connection, and frees its place."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing of a caller who went away; a traceback could hold what was sent."""


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: QueueServer
    server_version, sys_version = "medsiam", ""
    timeout = QUIET_S

    def setup(self) -> None:
        """A caller who sends a byte now and then is cut off all the same."""
        super().setup()
        self._end = threading.Timer(WHOLE_REQUEST_S, self._cut)
        self._end.daemon = True
        self._end.start()

    def finish(self) -> None:
        """Ends the connection."""
        self._end.cancel()
        super().finish()

    def do_GET(self) -> None:
        """Answers a question."""
        self._send(self._answer(self._get))

    def do_POST(self) -> None:
        """Takes a job."""
        self._send(self._answer(self._post))

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing: a request line is a caller's text."""

    def _cut(self) -> None:
        self.close_connection = True
        try:
            self.connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            return

    def _answer(self, route: Callable[[str, dict[str, str]], Answer]) -> Answer:
        """The route's answer, or why there is none."""
        try:
            parts = urlsplit(self.path)
            if not self.server.rates.allows(self.client_address[0]):
                return _refusal(429, "too many requests; wait a moment", ("Retry-After", "5"))
            if parts.path != "/health" and not self._may_ask():
                challenge = ("WWW-Authenticate", 'Basic realm="medsiam", charset="UTF-8"')
                return _refusal(401, "the token is missing or wrong; send it as a bearer token", challenge)
            return route(parts.path, dict(parse_qsl(parts.query, max_num_fields=8)))
        except ResourceExhausted as error:
            return _refusal(507, str(error))
        except MedsiamError as error:
            return _refusal(400, str(error))
        except ValueError:
            return _refusal(400, "this cannot be read as a request; correct it")
        except Exception as error:
            # Its kind alone: a message may hold what was sent.
            return _refusal(500, f"this is a bug: {type(error).__name__}")

    def _may_ask(self) -> bool:
        kind, _, given = self.headers.get("Authorization", "").partition(" ")
        if kind.lower() == "basic":
            try:
                # A browser asks for a user and a password: the password is the token.
                given = base64.b64decode(given, validate=True).decode("latin-1").partition(":")[2]
            except (binascii.Error, ValueError):
                return False
        elif kind.lower() != "bearer":
            return False
        return hmac.compare_digest(given.strip().encode("latin-1", "replace"), self.server.token)

    def _get(self, path: str, words: dict[str, str]) -> Answer:
        queue = self.server.queue
        if path == "/health":
            return _json({"status": "ok"})
        if path == "/jobs":
            return self._listed(words)
        if path in ("/worklist", "/"):
            page = render_worklist(queue.jobs(limit=LISTED), queue.counts(), has_viewer="viewer" in words)
            return _page(page.encode(), worklist_policy())
        found = re.fullmatch(r"/jobs/([0-9a-f]{32})(/report\.html)?", path)
        job = queue.job(found[1]) if found else None
        if found is None or job is None:
            return _refusal(404, "there is nothing of that name here")
        return _page_of(self.server.folder, queue, job) if found[2] else _json(job.as_dict())

    def _listed(self, words: dict[str, str]) -> Answer:
        study, after = words.get("study", ""), words.get("after")
        if study and not UID.fullmatch(study):
            raise ServingRefused("study is no UID; send the study's own")
        if after is not None and not re.fullmatch(r"\d{1,15}", after):
            raise ServingRefused("after is no whole number; send a revision")
        number = None if after is None else int(after)
        jobs = self.server.queue.jobs(study_uid=study, after=number, limit=LISTED)
        told = {"queue": self.server.queue.name(), "counts": self.server.queue.counts()}
        return _json({**told, "jobs": [job.as_dict() for job in jobs]})

    def _post(self, path: str, words: dict[str, str]) -> Answer:
        if path != "/jobs":
            return _refusal(404, "there is nothing of that name here")
        # A page of another site can send a form, but not this kind without asking first.
        if self.headers.get_content_type() != "application/json":
            return _refusal(415, "send application/json")
        length = self.headers.get("Content-Length", "")
        if not re.fullmatch(r"\d{1,9}", length) or self.headers.get("Transfer-Encoding"):
            return _refusal(411, "Content-Length is missing; send the request in one piece")
        if int(length) > MOST_BODY_BYTES:
            return _refusal(413, f"the request is longer than {MOST_BODY_BYTES} bytes; a job is far smaller")
        request = _request(self.rfile.read(int(length)))
        if request.archive not in {entry.name for entry in self.server.settings.archives}:
            # Not 400: who asked may be right, and the settings here be behind.
            return _refusal(
                409, f"there is no archive {request.archive[:40]!r} in the settings of this service"
            )
        job, is_new = self.server.queue.hand_in(request, self.server.settings.version(request.archive))
        return _json(job.as_dict(), status=202 if is_new else 200)

    def _send(self, answer: Answer) -> None:
        self.send_response(answer.status)
        for name, value in (*HEADERS.items(), *answer.headers):
            self.send_header(name, value)
        self.send_header("Content-Type", answer.kind)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        self.wfile.write(answer.body)


def _request(body: bytes) -> Request:
    """The job that a body asks for. Raises ServingRefused."""
    try:
        told = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ServingRefused("the request is no JSON; send kind, archive and study_uid") from error
    known = {"kind", "archive", "study_uid", "content", "again"}
    if not isinstance(told, dict) or not {"kind", "archive", "study_uid"} <= set(told) <= known:
        raise ServingRefused(
            "a job has kind, archive, study_uid and perhaps content, again; send these alone"
        )
    return Request(**told)


def _page_of(folder: Path, queue: Queue, job: Job) -> Answer:
    """The page of a job, or of the one that took its place."""
    other = queue.job(job.same_as) if JOB_ID.fullmatch(job.same_as) else None
    job = other or job
    if not job.is_made:
        return _refusal(404, f"the job is {job.state} and has no page")
    try:
        return _page(page_of(folder, job).read_bytes(), PAGE_POLICY)
    except OSError:
        return _refusal(404, "the page is no longer kept")


def _page(body: bytes, policy: str) -> Answer:
    return Answer(200, body, "text/html; charset=utf-8", (("Content-Security-Policy", policy),))


def _json(told: Any, *, status: int = 200) -> Answer:
    return Answer(status, json.dumps(told).encode())


def _refusal(status: int, why: str, *headers: tuple[str, str]) -> Answer:
    return Answer(status, json.dumps({"error": why}).encode(), headers=headers)
