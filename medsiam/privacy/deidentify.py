"""Scans without their patient: PS3.15 Basic Profile, with modified dates.

Kept is what kept.py names, nothing else. UIDs and the patient's number become keyed
hashes, so that studies of one patient stay together and nobody finds the way back
without the key. All dates of a patient move by the same number of days, so that
intervals stay true. Pixels are not touched: burned-in text that the header admits
is left out, a face in a head scan is still there.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from uuid import UUID

import pydicom
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence as DicomSequence

from medsiam import __version__
from medsiam.errors import InputRefused, Unreadable, named
from medsiam.privacy import kept
from medsiam.reading import tags
from medsiam.reading.archive import Opener, Source, find_sources
from medsiam.reading.headers import ENHANCED_CLASSES, RADIOGRAPH_CLASSES, SLICE_CLASSES
from medsiam.reading.identity import keyed_hash
from medsiam.reading.parsing import PREAMBLE_BYTES, looks_like_dicom, parse
from medsiam.reading.tags import PARSE_ERRORS
from medsiam.report.placing import REPORT, holds_refusal

# Reports, captures and drawings hold text that no list of attributes can clean.
EXPORTED_CLASSES = ENHANCED_CLASSES | RADIOGRAPH_CLASSES | SLICE_CLASSES

# UIDs of the standard itself: kinds of objects, transfer syntaxes, well-known frames.
STANDARD_UIDS = "1.2.840.10008."

# Days that a patient's dates move back by: never none, and far enough that neither
# season nor year is known.
LEAST_SHIFT_DAYS, MOST_SHIFT_DAYS = 400, 4000

METHOD = f"medsiam {__version__}: PS3.15 Basic Profile, pixels as they were"
PROFILES = (
    ("113100", "Basic Application Confidentiality Profile"),
    ("113107", "Retain Longitudinal Temporal Information Modified Dates Option"),
)

NOT_DICOM, NOT_A_SCAN = "no DICOM", "no scan but a report, drawing or capture"
BURNED_IN, DAMAGED, NOBODY = "text burned into the picture", "damaged", "no patient number"


@dataclass(frozen=True)
class Exported:
    """How many files were written, of how many patients, and how many were left out for which reason."""

    written: int
    patients: int
    left_out: dict[str, int]


def deidentify(path: str | Path, out: str | Path, *, key: bytes) -> Exported:
    """What became of every file of a folder, file or zip; the copies stand in `out` at once or not at all.

    key  secret that numbers, UIDs and shifts are made with: the same key gives the same copies
    Raises InputRefused where there is nothing to export, or `out` holds something.
    """
    counts: Counter[str] = Counter()
    patients = set()
    with _whole(Path(out)) as stage:
        for found in _scans(find_sources(Path(path))):
            if isinstance(found, str):
                counts[found] += 1
                continue
            made = clean(found, key=key)
            home = stage / made.PatientID / made.StudyInstanceUID / made.SeriesInstanceUID
            home.mkdir(parents=True, exist_ok=True)
            made.save_as(home / f"{made.SOPInstanceUID}.dcm", enforce_file_format=True)
            patients.add(made.PatientID)
            counts["written"] += 1
        written = counts.pop("written", 0)
        if not written:
            refusal = InputRefused(f"there is no scan to export: {_reasons(counts)}; name another folder")
            raise named(refusal, repr(Path(path).name))
    return Exported(written, len(patients), dict(sorted(counts.items())))


def clean(ds: Dataset, *, key: bytes) -> Dataset:
    """A scan's data set without its patient, in the same transfer syntax.

    Raises Unreadable where it has no patient number: nothing would hold its dates together.
    """
    number, issuer = tags.identifier(ds, "PatientID"), tags.identifier(ds, "IssuerOfPatientID")
    if not number:
        raise Unreadable("the file tells no patient number, so its dates cannot be moved together; add one")
    made = _kept(ds, _Secret(key, number, issuer))
    made.PatientID = keyed_hash(key, "export patient", number, issuer)
    made.PatientName = f"{made.PatientID}^"
    for keyword in kept.EMPTIED:
        setattr(made, keyword, "")
    made.PatientIdentityRemoved = "YES"
    made.DeidentificationMethod = METHOD
    made.DeidentificationMethodCodeSequence = DicomSequence(_code(*profile) for profile in PROFILES)
    made.LongitudinalTemporalInformationModified = "MODIFIED"
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ds.file_meta.TransferSyntaxUID
    return made


@dataclass(frozen=True)
class _Secret:
    """What one patient's copies are made with."""

    key: bytes
    number: str
    issuer: str

    @property
    def shift(self) -> timedelta:
        """By how much this patient's dates move back."""
        digest = keyed_hash(self.key, "export shift", self.number, self.issuer)
        days = LEAST_SHIFT_DAYS + int(digest, 16) % (MOST_SHIFT_DAYS - LEAST_SHIFT_DAYS)
        return timedelta(days=days)

    def uid(self, uid: str) -> str:
        """The UID that always stands for this one; those of the standard stay."""
        if uid.startswith(STANDARD_UIDS) or not uid:
            return uid
        digest = hmac.new(self.key, b"export uid\x1f" + uid.encode(), hashlib.sha256).digest()
        return f"2.25.{UUID(bytes=digest[:16], version=5).int}"

    def date(self, text: str) -> str:
        """A date (DA), or the date that a moment (DT) begins with, moved; "" where it is none."""
        day = tags.parse_day(text[:8]) if "." not in text[:8] else tags.parse_day(text)
        if day is None:
            return ""
        rest = text[8:] if "." not in text[:8] else ""
        return f"{day - self.shift:%Y%m%d}{rest}"


def _kept(ds: Dataset, secret: _Secret) -> Dataset:
    made = Dataset()
    for element in ds:
        keyword = element.keyword
        if keyword in kept.UIDS and element.VR == "UI":
            values = element.value if element.VM > 1 else [element.value]
            setattr(made, keyword, [secret.uid(str(value or "")) for value in values])
        elif keyword in kept.DATES:
            setattr(made, keyword, secret.date(str(element.value or "")))
        elif keyword in kept.SEQUENCES and element.VR == "SQ":
            setattr(made, keyword, DicomSequence(_kept(item, secret) for item in element.value))
        elif keyword in kept.AS_THEY_ARE and element.VR != "SQ":
            made.add(DataElement(element.tag, element.VR, element.value))
    return made


def _code(value: str, meaning: str) -> Dataset:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, "DCM", meaning
    return code


def _scans(sources: Iterable[Source]) -> Iterator[Dataset | str]:
    """Each file's data set, or the reason why it is left out."""
    with Opener() as opener:
        for source in sources:
            with opener.open(source) as file:
                if not looks_like_dicom(file.read(PREAMBLE_BYTES)):
                    yield NOT_DICOM
                    continue
                file.seek(0)
                try:
                    # Bounded in time and memory; what it takes may be read as a whole.
                    reason = _why_not(parse(file).dataset)
                    file.seek(0)
                    yield reason or pydicom.dcmread(file)
                except (Unreadable, *PARSE_ERRORS):
                    yield DAMAGED


def _why_not(header: Dataset) -> str:
    if tags.uid(header, "SOPClassUID") not in EXPORTED_CLASSES:
        return NOT_A_SCAN
    if tags.words(header, "BurnedInAnnotation") == ("YES",):
        return BURNED_IN
    if not tags.identifier(header, "PatientID"):
        return NOBODY
    return "" if tags.uid(header, "SOPInstanceUID") else DAMAGED


def _reasons(counts: Counter[str]) -> str:
    told = ", ".join(f"{count} files {reason}" for reason, count in sorted(counts.items()))
    return f"{told}; give a folder of CT, MR, PET series or radiographs"


@contextmanager
def _whole(out: Path) -> Iterator[Path]:
    """An empty folder whose content then stands in `out`; `out` is as it was where anything fails."""
    refused_before = holds_refusal(out) and [each.name for each in out.iterdir()] == [REPORT]
    if out.exists() and not refused_before and (not out.is_dir() or any(out.iterdir())):
        raise InputRefused(
            f"{out} is there and not empty; copies of patients are never mixed, name a new folder"
        )
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(prefix=".medsiam-", dir=out.parent))
    except OSError as error:
        raise InputRefused(
            f"cannot write to {out.parent}: {error.strerror}; choose another folder"
        ) from error
    try:
        yield stage
        os.chmod(stage, 0o755)
        if refused_before:
            (out / REPORT).unlink()
        os.replace(stage, out)
    finally:
        shutil.rmtree(stage, ignore_errors=True)
