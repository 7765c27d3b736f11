"""An archive by DIMSE: C-ECHO, C-FIND, C-GET or C-MOVE, C-STORE, and a small provider that receives."""

from __future__ import annotations

import hashlib
import os
import re
import socket
import ssl
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pydicom
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.uid import (
    ComputedRadiographyImageStorage,
    CTImageStorage,
    DigitalXRayImageStorageForPresentation,
    DigitalXRayImageStorageForProcessing,
    EnhancedCTImageStorage,
    EnhancedMRImageStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    LegacyConvertedEnhancedCTImageStorage,
    LegacyConvertedEnhancedMRImageStorage,
    MRImageStorage,
    RLELossless,
)
from pynetdicom import AE, AllStoragePresentationContexts, build_role, evt
from pynetdicom.association import Association
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelMove,
    Verification,
)

from medsiam.errors import ArchiveRefused
from medsiam.pacs.settings import ArchiveSettings
from medsiam.pacs.values import SERIES_KEYS, STUDY_KEYS, SeriesFound, Stored, StudyFound, series_of, study_of

ADDRESS = re.compile(
    r"dimse(?P<tls>-tls)?://(?P<aet>[!-?A-~]{1,16})@(?P<host>[A-Za-z0-9._:\[\]-]+):(?P<port>\d{1,5})/?"
)

LAST_PORT = 65_535
SUCCESS, PENDING = 0x0000, (0xFF00, 0xFF01)
# Seconds within which an archive that listens takes a connection.
PROBE_S = 5.0
# Warnings of C-STORE: the object was taken.
TAKEN = frozenset({SUCCESS, 0xB000, 0xB006, 0xB007})

# What a series that is fetched may consist of, and how its pixels may travel.
FETCHED_CLASSES = (
    MRImageStorage, CTImageStorage, EnhancedMRImageStorage, EnhancedCTImageStorage,
    ComputedRadiographyImageStorage, DigitalXRayImageStorageForPresentation,
    DigitalXRayImageStorageForProcessing, LegacyConvertedEnhancedMRImageStorage,
    LegacyConvertedEnhancedCTImageStorage,
)  # fmt: skip
SYNTAXES: list[Any] = [
    ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEGLosslessSV1, JPEG2000Lossless, RLELossless
]  # fmt: skip


class Dimse:
    """The archive at an address such as dimse://ORTHANC@10.0.0.5:4242, or dimse-tls:// with encryption.

    Raises ArchiveRefused for an address that is not of this form, or certificates that cannot be read.
    """

    def __init__(self, url: str, settings: ArchiveSettings) -> None:
        match = ADDRESS.fullmatch(url)
        if match is None or not 0 < int(match["port"]) <= LAST_PORT:
            raise ArchiveRefused(f"{url[:80]!r} is no DIMSE address; write dimse://AETITLE@host:port")
        self._aet, self._host, self._port = match["aet"], match["host"].strip("[]"), int(match["port"])
        self._settings = settings
        self._tls = (_trusting(settings), self._host) if match["tls"] else None
        if self._tls and settings.retrieve == "move":
            raise ArchiveRefused(
                "with dimse-tls, C-MOVE would bring the series back unencrypted; set archive.retrieve to get"
            )

    def echo(self) -> None:
        """Returns where the archive answers to its name. Raises ArchiveRefused."""
        with self._association([(Verification, None)]) as association:
            self._check(association.send_c_echo(), "answer")

    def find_studies(self, *, study_uid: str = "", patient_id: str = "") -> tuple[StudyFound, ...]:
        """Studies by their UID or their patient."""
        query = _query("STUDY", STUDY_KEYS, StudyInstanceUID=study_uid, PatientID=patient_id)
        return tuple(study_of(answer) for answer in self._find(query))

    def find_series(self, study_uid: str) -> tuple[SeriesFound, ...]:
        """The series of a study."""
        query = _query("SERIES", SERIES_KEYS, StudyInstanceUID=study_uid)
        return tuple(series_of(answer, study_uid) for answer in self._find(query))

    def fetch_series(self, study_uid: str, series_uid: str, folder: Path) -> int:
        """How many files of a series were written into a folder."""
        query = _query("SERIES", (), StudyInstanceUID=study_uid, SeriesInstanceUID=series_uid)
        (self._move if self._settings.retrieve == "move" else self._get)(query, folder)
        count = len(list(folder.glob("*.dcm")))
        if count == 0:
            raise ArchiveRefused(f"{self._aet} sent no file of the series; it may have been deleted")
        return count

    def store(self, paths: Sequence[Path]) -> Stored:
        """What became of the objects of these files."""
        kinds = {(meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID) for meta in map(_meta, paths)}
        done, failed = 0, []
        with self._association(sorted((kind, [syntax]) for kind, syntax in kinds)) as association:
            for path in paths:
                reason = self._stored(association, path)
                done += not reason
                failed += [(_meta(path).MediaStorageSOPInstanceUID, reason)] if reason else []
        return Stored(done, tuple(failed))

    def _stored(self, association: Association, path: Path) -> str:
        """Why an object was not taken, "" where it was."""
        if not association.is_established:
            return "the association broke off before it"
        try:
            status = association.send_c_store(path)
        except ValueError:
            return "the archive does not take objects of this kind"
        if not status:
            return "no answer came"
        return "" if status.Status in TAKEN else f"the archive gave status 0x{status.Status:04X}"

    def _find(self, query: Dataset) -> list[Dataset]:
        model = StudyRootQueryRetrieveInformationModelFind
        found = []
        with self._association([(model, None)]) as association:
            for status, answer in association.send_c_find(query, model):
                if status and status.Status in PENDING and answer is not None:
                    found.append(answer)
                else:
                    self._check(status, "find")
        return found

    def _get(self, query: Dataset, folder: Path) -> None:
        model = StudyRootQueryRetrieveInformationModelGet
        contexts: list[tuple[Any, Any]] = [(model, None), *((kind, SYNTAXES) for kind in FETCHED_CLASSES)]
        roles = [build_role(kind, scp_role=True) for kind in FETCHED_CLASSES]
        handlers = [(evt.EVT_C_STORE, keeper(folder))]
        with self._association(contexts, ext_neg=roles, evt_handlers=handlers) as association:
            for status, _ in association.send_c_get(query, model):
                self._check(status, "send", also=PENDING)

    def _move(self, query: Dataset, folder: Path) -> None:
        model = StudyRootQueryRetrieveInformationModelMove
        aet = self._settings.calling_aet
        with (
            receiving(folder, aet=aet, port=self._settings.move_port),
            self._association([(model, None)]) as association,
        ):
            for status, _ in association.send_c_move(query, aet, model):
                self._check(status, f"send to {aet}, which it must know as this machine,", also=PENDING)

    @contextmanager
    def _association(self, contexts: Sequence[tuple[Any, Any]], **options: Any) -> Iterator[Association]:
        entity = AE(ae_title=self._settings.calling_aet)
        entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = self._settings.timeout_s
        entity.connection_timeout = self._settings.timeout_s
        for kind, syntaxes in contexts:
            entity.add_requested_context(kind, syntaxes)
        association = entity.associate(
            self._host, self._port, ae_title=self._aet, tls_args=self._tls, **options
        )
        if not association.is_established:
            raise ArchiveRefused(self._why_not(association))
        try:
            yield association
        finally:
            if association.is_established:
                association.release()

    def _listens(self) -> bool:
        with suppress(OSError), socket.create_connection((self._host, self._port), PROBE_S):
            return True
        return False

    def _why_not(self, association: Association) -> str:
        where = f"{self._aet} at {self._host}:{self._port}"
        if association.is_rejected:
            primitive = association.acceptor.primitive
            reason = getattr(primitive, "reason_str", "") or "no reason given"
            return (
                f"{where} refused the association ({reason}); check both AE titles: it must be called "
                f"{self._aet}, and know us as {self._settings.calling_aet} (archive.calling_aet)"
            )
        if association.is_aborted and association.acceptor.primitive is not None:
            return f"{where} accepts no service that was asked for, or ended the talk; look into its log"
        if not self._tls and self._listens():
            # It may close the line before its refusal was read.
            return f"{where} ended the talk without a reason; check both AE titles, and look into its log"
        trust = ", and its certificate one of archive.ca_file" if self._tls else ""
        return f"{where} cannot be reached; is the archive running, and the port right{trust}?"

    def _check(self, status: Any, what: str, also: tuple[int, ...] = ()) -> None:
        """Raises ArchiveRefused unless a status tells success."""
        if not status:
            raise ArchiveRefused(
                f"{self._aet} did not answer within {self._settings.timeout_s:g} s or broke off; try again"
            )
        if status.Status != SUCCESS and status.Status not in also:
            # Its comment is left out: it may name whom was asked for.
            raise ArchiveRefused(
                f"{self._aet} could not {what} (status 0x{status.Status:04X}); look into its log"
            )


@contextmanager
def receiving(folder: Path, *, aet: str, port: int, host: str = "") -> Iterator[int]:
    """A small provider that writes what it is sent into a folder; yields its port.

    host  the address to listen at; every one where empty
    Raises ArchiveRefused where the port is taken.
    """
    entity = AE(ae_title=aet)
    entity.require_called_aet = True
    entity.supported_contexts = AllStoragePresentationContexts
    for context in entity.supported_contexts:
        context.transfer_syntax = list(SYNTAXES)
    entity.add_supported_context(Verification)
    try:
        server = entity.start_server(
            (host, port), block=False, evt_handlers=[(evt.EVT_C_STORE, keeper(folder))]
        )
    except OSError as error:
        raise ArchiveRefused(
            f"port {port} cannot be listened at ({error.strerror}); choose another archive.move_port"
        ) from error
    assert server is not None, "a server that does not block"
    try:
        yield int(server.server_address[1])
    finally:
        server.shutdown()


def keeper(folder: Path) -> Callable[[Any], int]:
    """What writes each object that arrives into a folder, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)

    def keep(event: Any) -> int:
        # The UID comes from outside: it is never part of a path.
        name = hashlib.sha256(str(event.request.AffectedSOPInstanceUID).encode()).hexdigest()[:32]
        try:
            handle, draft = tempfile.mkstemp(dir=folder, suffix=".part")
            with os.fdopen(handle, "wb") as file:
                file.write(event.encoded_dataset())
            os.replace(draft, folder / f"{name}.dcm")
        except OSError:
            return 0xA700  # out of resources
        return SUCCESS

    return keep


def _trusting(settings: ArchiveSettings) -> ssl.SSLContext:
    """What encrypts, checks the archive's certificate, and shows ours where there is one."""
    try:
        context = ssl.create_default_context(cafile=settings.ca_file)
        if settings.cert_file is not None:
            context.load_cert_chain(settings.cert_file, settings.key_file)
    except (OSError, ssl.SSLError) as error:
        raise ArchiveRefused(
            "archive.ca_file, cert_file or key_file holds nothing that can be read; write PEM files"
        ) from error
    return context


def _query(level: str, wanted: Sequence[str], **keys: str) -> Dataset:
    query = Dataset()
    for keyword in wanted:
        setattr(query, keyword, "" if keyword != "NumberOfSeriesRelatedInstances" else None)
    for keyword, value in keys.items():
        setattr(query, keyword, value)
    query.QueryRetrieveLevel = level
    return query


def _meta(path: Path) -> Any:
    try:
        return pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["SOPInstanceUID"]).file_meta
    except (InvalidDicomError, OSError) as error:
        raise ArchiveRefused(f"{path.name} is no DICOM file that can be sent; leave it out") from error
