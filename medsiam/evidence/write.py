"""All objects of one comparison in a folder: the story of `--formats dicom`.

    findings (SEG) -> registration -> prior as a series -> key images -> PDF -> report (SR)

Each names the series that it comes from, the report all of the others too; all lie in
the current study.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path

from pydicom import dcmread

from medsiam.change.comparison import Comparison
from medsiam.evidence.capture import write_key_images
from medsiam.evidence.case import Case, save
from medsiam.evidence.pdf import encapsulated, layout_engine, pdf_of
from medsiam.evidence.prior_series import write_prior
from medsiam.evidence.registration_object import spatial_registration
from medsiam.evidence.seg import segmentation
from medsiam.evidence.sr import structured_report
from medsiam.reading.originals import Originals, find_originals
from medsiam.report.comparison_json import to_json
from medsiam.report.html import render
from medsiam.report.placing import EVIDENCE
from medsiam.volume import Acquisition


def evidence_of(
    paths: Sequence[Path], *, now: datetime
) -> Callable[[Comparison], Callable[[Path], Mapping[str, str]]]:
    """What writes a comparison's objects, for write_comparison; the scans' own headers lie in these paths.

    Raises InputRefused where the PDF cannot be made here.
    """
    # What is missing on this machine is told before anything is computed.
    layout_engine()
    known: dict[tuple[str, str, str], Originals] = {}

    def originals(acquisition: Acquisition) -> Originals:
        name = acquisition.series_uid, str(acquisition.protocol.get("part", "")), acquisition.sha256
        if name not in known:
            known[name] = find_originals(paths, acquisition)
        return known[name]

    def of(comparison: Comparison) -> Callable[[Path], Mapping[str, str]]:
        scans = comparison.prior.acquisition, comparison.current.acquisition
        case = Case(comparison, originals(scans[0]), originals(scans[1]), now)
        return lambda folder: write_evidence(case, folder)

    return of


def write_evidence(case: Case, folder: Path) -> dict[str, str]:
    """The written files, name -> path relative to the folder; a name may stand for a whole series.

    Without findings there is no segmentation, and without a registration that can
    be believed neither a registration nor a resampled prior.
    Raises InputRefused where the PDF cannot be made.
    """
    home = folder / EVIDENCE
    names = {"dicom_report": f"{EVIDENCE}/report.dcm"}
    findings = segmentation(case)
    if findings is not None:
        save(findings, home / "findings.dcm")
        names["dicom_findings"] = f"{EVIDENCE}/findings.dcm"
    registration = spatial_registration(case)
    written: list[Path] = []
    if registration is not None:
        written.append(save(registration, home / "registration.dcm"))
        names["dicom_registration"] = f"{EVIDENCE}/registration.dcm"
        prior = write_prior(case, home / "prior_on_current")
        written += prior
        if prior:
            names["dicom_prior"] = f"{EVIDENCE}/prior_on_current"
    written += write_key_images(case, home / "key_images")
    page = render(case.comparison, to_json(case.comparison, files={}))
    written.append(save(encapsulated(case, pdf_of(page)), home / "document.dcm"))
    names |= {"dicom_key_images": f"{EVIDENCE}/key_images", "dicom_document": f"{EVIDENCE}/document.dcm"}
    # Last, for it names all the others.
    others = [dcmread(path, stop_before_pixels=True) for path in written]
    save(structured_report(case, findings, others), home / "report.dcm")
    return names
