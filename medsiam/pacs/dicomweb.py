"""An archive by DICOMweb: QIDO finds, WADO fetches, STOW stores.

By the standard library alone: every request, retry and redirect is in plain sight.
Secrets come from the environment or a file, go to one host only, and are in no message.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import mmap
import os
import re
import shutil
import ssl
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from email.message import Message
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from pydicom.dataset import Dataset

from medsiam.errors import ArchiveRefused
from medsiam.pacs.settings import ArchiveSettings
from medsiam.pacs.values import SERIES_KEYS, STUDY_KEYS, SeriesFound, Stored, StudyFound, series_of, study_of
from medsiam.reading.parsing import parse
from medsiam.reading.tags import PARSE_ERRORS, uid

LOOPBACK = ("localhost", "127.0.0.1", "::1")

# Answers that another try may change. A refused connection, a wrong password and a
# missing study are told at once.
WORTH_RETRYING = frozenset({429, 502, 503, 504})
FIRST_PAUSE_S = 1.0

# One request holds so much at most, so that a proxy's limit or a break loses little.
MOST_BYTES_A_REQUEST = 32 * 2**20
MOST_JSON_BYTES = 64 * 2**20
MOST_SERIES_BYTES = 16 * 2**30
# Answers come in pages; an archive that never ends is not believed.
PAGE = 500
MOST_ANSWERS = 20_000

REASONS = {
    401: "it does not accept the token or password; set MEDSIAM_PACS_TOKEN, or MEDSIAM_PACS_USER "
    "and MEDSIAM_PACS_PASSWORD",
    403: "the token or user has no right to do this; ask the archive's administrator",
    404: "there is no such study, or no DICOMweb service at this address; check both",
}


class Dicomweb:
    """The archive behind a DICOMweb address, such as https://pacs.example/dicom-web.

    Raises ArchiveRefused for an address that would expose a secret.
    """

    def __init__(self, url: str, settings: ArchiveSettings) -> None:
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise ArchiveRefused(
                f"{url[:80]!r} is no address ({error}); write https://host/dicom-web"
            ) from error
        if parts.username or parts.password:
            raise ArchiveRefused(
                "the address holds a user or password, which others can see in the list of processes; "
                "set MEDSIAM_PACS_USER and MEDSIAM_PACS_PASSWORD instead"
            )
        if not parts.hostname:
            raise ArchiveRefused(f"{url[:80]!r} names no host; write https://host/dicom-web")
        self._is_plain = parts.scheme == "http"
        if self._is_plain and parts.hostname not in LOOPBACK and not settings.allow_plain:
            raise ArchiveRefused(
                f"http to {parts.hostname} would send patients' data unencrypted; use https, or set "
                "archive.allow_plain in --pacs-config"
            )
        self._host, self._port = parts.hostname, port
        self._root = parts.path.rstrip("/")
        self._settings = settings
        self._secret = _authorization(settings)

    def find_studies(self, *, study_uid: str = "", patient_id: str = "") -> tuple[StudyFound, ...]:
        """Studies by their UID or their patient."""
        keys = {"StudyInstanceUID": study_uid, "PatientID": patient_id}
        asked = {key: value for key, value in keys.items() if value}
        return tuple(study_of(answer) for answer in self._find("/studies", asked, STUDY_KEYS))

    def find_series(self, study_uid: str) -> tuple[SeriesFound, ...]:
        """The series of a study."""
        answers = self._find(f"/studies/{quote(study_uid)}/series", {}, SERIES_KEYS)
        return tuple(series_of(answer, study_uid) for answer in answers)

    def fetch_series(self, study_uid: str, series_uid: str, folder: Path) -> int:
        """How many files of a series were written into a folder."""
        path = f"/studies/{quote(study_uid)}/series/{quote(series_uid)}"
        accept = 'multipart/related; type="application/dicom"; transfer-syntax=*'
        folder.mkdir(parents=True, exist_ok=True)
        with self._answer("GET", path, {"Accept": accept}) as answer, tempfile.TemporaryFile() as file:
            _copy(answer, file, MOST_SERIES_BYTES)
            count = 0
            for count, part in enumerate(_parts(file, answer.headers), 1):
                (folder / f"{count:06d}.dcm").write_bytes(part)
        if count == 0:
            raise ArchiveRefused(f"{self._host} sent no file of the series; it may have been deleted")
        return count

    def store(self, paths: Sequence[Path]) -> Stored:
        """What became of the objects of these files."""
        done = 0
        failed: list[tuple[str, str]] = []
        for batch in _batches(paths):
            uids = [_sop_uid(path) for path in batch]
            rejected = self._store(batch)
            done += sum(uid not in rejected for uid in uids)
            failed += [(uid, rejected[uid]) for uid in uids if uid in rejected]
        return Stored(done, tuple(failed))

    def _store(self, batch: Sequence[Path]) -> dict[str, str]:
        """The objects of one request that were not taken, with the reason."""
        boundary = hashlib.sha256(b"".join(str(path).encode() for path in batch)).hexdigest()
        headers = {
            "Content-Type": f'multipart/related; type="application/dicom"; boundary={boundary}',
            "Accept": "application/dicom+json",
        }
        body = _multipart(batch, boundary)
        with self._answer("POST", "/studies", headers, body, also=(202, 409)) as answer:
            told = _json(answer)
        response = _dataset(told[0] if isinstance(told, list) else told) if told else Dataset()
        return {
            uid(
                item, "ReferencedSOPInstanceUID"
            ): f"the archive gave failure reason {item.get('FailureReason')}"
            for item in response.get("FailedSOPSequence") or ()
        }

    def _find(self, path: str, keys: dict[str, str], wanted: Sequence[str]) -> Iterator[Dataset]:
        for offset in range(0, MOST_ANSWERS, PAGE):
            query = [*keys.items(), *(("includefield", name) for name in wanted)]
            query += [("limit", str(PAGE)), ("offset", str(offset))]
            target = f"{path}?{urlencode(query)}"
            with self._answer("GET", target, {"Accept": "application/dicom+json"}, also=(204,)) as answer:
                found = _json(answer) if answer.status != 204 else []
            if not isinstance(found, list):
                raise ArchiveRefused(f"{self._host} answered a question with no list; is this DICOMweb?")
            yield from (_dataset(item) for item in found)
            if len(found) < PAGE:
                return

    @contextmanager
    def _answer(
        self,
        verb: str,
        path: str,
        headers: dict[str, str],
        body: bytes | None = None,
        also: tuple[int, ...] = (),
    ) -> Iterator[http.client.HTTPResponse]:
        """The answer to a request, once it is one that was hoped for."""
        # Storing again what was stored changes nothing, so it may be tried again too.
        for attempt in range(self._settings.retries + 1):
            connection = self._connection()
            try:
                answer = self._asked(connection, verb, path, headers, body)
                if answer.status in (200, *also):
                    yield answer
                    return
                if answer.status not in WORTH_RETRYING or attempt == self._settings.retries:
                    raise ArchiveRefused(self._refusal(answer.status))
            finally:
                connection.close()
            time.sleep(FIRST_PAUSE_S * 3**attempt)

    def _asked(
        self,
        connection: http.client.HTTPConnection,
        verb: str,
        path: str,
        headers: dict[str, str],
        body: bytes | None,
    ) -> http.client.HTTPResponse:
        try:
            connection.request(verb, self._root + path, body, {**headers, **self._secret})
            return connection.getresponse()
        except ssl.SSLError as error:
            raise ArchiveRefused(
                f"the certificate of {self._host} cannot be trusted ({error.reason or 'no reason'}); "
                "name its authority in archive.ca_file"
            ) from error
        except TimeoutError as error:
            raise ArchiveRefused(
                f"{self._host} did not answer within {self._settings.timeout_s:g} s; try again later"
            ) from error
        except (OSError, http.client.HTTPException) as error:
            why = getattr(error, "strerror", None) or type(error).__name__
            raise ArchiveRefused(
                f"{self._where} cannot be reached ({why}); is the archive running?"
            ) from error

    def _connection(self) -> http.client.HTTPConnection:
        timeout = self._settings.timeout_s
        if self._is_plain:
            return http.client.HTTPConnection(self._host, self._port, timeout=timeout)
        try:
            trusted = ssl.create_default_context(cafile=self._settings.ca_file)
        except (OSError, ssl.SSLError) as error:
            raise ArchiveRefused(
                f"{self._settings.ca_file} holds no certificates that can be read"
            ) from error
        return http.client.HTTPSConnection(self._host, self._port, timeout=timeout, context=trusted)

    @property
    def _where(self) -> str:
        return self._host if self._port is None else f"{self._host}:{self._port}"

    def _refusal(self, status: int) -> str:
        """Why an answer is a refusal. A redirect is one: the secret must not go elsewhere."""
        moved = "it points to another address; give that one" if 300 <= status < 400 else ""
        why = REASONS.get(status) or moved or "it could not do what was asked; look into its log"
        return f"the archive at {self._where} answered {status}: {why}"


def _authorization(settings: ArchiveSettings) -> dict[str, str]:
    """The header that proves who asks; {} where no secret is given."""
    token = os.environ.get("MEDSIAM_PACS_TOKEN", "")
    if settings.token_file is not None:
        try:
            token = settings.token_file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ArchiveRefused(f"the token file {settings.token_file} cannot be read") from error
    if token.strip():
        if not re.fullmatch(r"[!-~]+", token.strip()):
            raise ArchiveRefused("the token holds characters that no token has; write it on one line")
        return {"Authorization": f"Bearer {token.strip()}"}
    user = os.environ.get("MEDSIAM_PACS_USER", "")
    if not user:
        return {}
    pair = f"{user}:{os.environ.get('MEDSIAM_PACS_PASSWORD', '')}".encode()
    return {"Authorization": f"Basic {base64.b64encode(pair).decode()}"}


def _batches(paths: Sequence[Path]) -> Iterator[list[Path]]:
    batch: list[Path] = []
    size = 0
    for path in paths:
        if batch and size + path.stat().st_size > MOST_BYTES_A_REQUEST:
            yield batch
            batch, size = [], 0
        batch.append(path)
        size += path.stat().st_size
    if batch:
        yield batch


def _multipart(paths: Sequence[Path], boundary: str) -> bytes:
    head = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
    return b"".join(head + path.read_bytes() + b"\r\n" for path in paths) + f"--{boundary}--\r\n".encode()


def _parts(file: Any, headers: Message) -> Iterator[bytes]:
    """The bodies of a multipart answer. Raises ArchiveRefused where it is none."""
    boundary = headers.get_boundary()
    if headers.get_content_maintype() != "multipart" or not boundary:
        raise ArchiveRefused(f"the archive sent {headers.get_content_type()} where files were asked for")
    mark = b"--" + boundary.encode()
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        start = data.find(mark)
        while start >= 0 and data[start + len(mark) : start + len(mark) + 2] != b"--":
            body = data.find(b"\r\n\r\n", start)
            end = data.find(b"\r\n" + mark, body)
            if body < 0 or end < 0:
                raise ArchiveRefused("the archive's answer breaks off in the middle; try again")
            yield data[body + 4 : end]
            start = end + 2


def _copy(answer: http.client.HTTPResponse, file: Any, most_bytes: int) -> None:
    try:
        shutil.copyfileobj(_Limited(answer, most_bytes), file, 2**20)  # type: ignore[arg-type]
    except (OSError, http.client.HTTPException) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise ArchiveRefused("the archive's answer breaks off in the middle; try again") from error
    file.flush()
    if file.tell() == 0:
        raise ArchiveRefused("the archive answered with nothing; try again")


class _Limited:
    """An answer that is read up to a limit."""

    def __init__(self, answer: http.client.HTTPResponse, most_bytes: int) -> None:
        self._answer, self._left = answer, most_bytes

    def read(self, count: int) -> bytes:
        data = self._answer.read(count)
        self._left -= len(data)
        if self._left < 0:
            raise ArchiveRefused("the archive sends more than any series holds; it was stopped")
        return data


def _json(answer: http.client.HTTPResponse) -> Any:
    data = answer.read(MOST_JSON_BYTES + 1)
    try:
        return json.loads(data) if data.strip() else None
    except (ValueError, RecursionError) as error:
        raise ArchiveRefused("the archive's answer is no JSON; is this DICOMweb?") from error


def _dataset(told: Any) -> Dataset:
    """One answer as a data set."""
    try:
        return Dataset.from_json(told)
    except PARSE_ERRORS as error:
        raise ArchiveRefused("the archive's answer is no DICOM; is this DICOMweb?") from error


def _sop_uid(path: Path) -> str:
    with path.open("rb") as file:
        return uid(parse(file).dataset, "SOPInstanceUID")
