"""The report as PDF, and that PDF as a DICOM object beside the scans."""

from __future__ import annotations

import logging
import re
from typing import Any

from PIL import ImageFile
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import EncapsulatedPDFStorage

from medsiam.errors import InputRefused
from medsiam.evidence.case import Case, coded, references

# What only a browser uses; without it a page is laid out several times faster.
SCRIPTS = re.compile(r"<script\b.*?</script>", re.S | re.I)

# What this layout engine does otherwise than a browser: a picture across all columns of
# a grid vanishes, and a table that may not break its lines runs over the edge of the page.
FOR_PAPER = """
.findings td, .findings th { white-space: normal !important; }
.tiles:has(> img:only-child) { display: block !important; }
.tiles > img:only-child { width: 60% !important; }
"""


def pdf_of(page: str) -> bytes:
    """A report page as PDF, by its print style; nothing is fetched, the same bytes for the same page.

    Raises InputRefused where the system's text layout library is missing.
    """
    weasyprint = layout_engine()
    logging.getLogger("weasyprint").setLevel(logging.CRITICAL)
    # Pictures inside of the page alone: a report never asks the network or the disk.
    fetcher = weasyprint.urls.URLFetcher(allowed_protocols=("data",))
    document = weasyprint.HTML(string=SCRIPTS.sub("", page), url_fetcher=fetcher)
    made: bytes = document.write_pdf(
        pdf_identifier=b"medsiam", stylesheets=[weasyprint.CSS(string=FOR_PAPER)]
    )
    return made


def layout_engine() -> Any:
    """weasyprint. Raises InputRefused where the system's text layout library is missing."""
    # weasyprint makes Pillow take pictures that are cut short, for the whole process:
    # a damaged radiograph would then be read as a whole one.
    strictness = ImageFile.LOAD_TRUNCATED_IMAGES
    try:
        # Loads Pango through the system, which may not be there; no other command needs it.
        import weasyprint
    except OSError as error:
        raise InputRefused(
            "the PDF needs the Pango library, which is not on this machine; install it "
            "(Debian: libpango-1.0-0 libpangoft2-1.0-0), or leave dicom out of --formats"
        ) from error
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = strictness
    return weasyprint


def encapsulated(case: Case, pdf: bytes) -> Dataset:
    """The PDF as an Encapsulated PDF that names the series it speaks of."""
    ds = case.new_object("document", EncapsulatedPDFStorage, "DOC")
    ds.SeriesDescription = "medsiam report (research use)"
    ds.ConversionType = "WSD"
    ds.BurnedInAnnotation = "NO"
    ds.AcquisitionDateTime = ""
    ds.DocumentTitle = "Comparison with the prior scan (research use)"
    ds.ConceptNameCodeSequence = coded("126000", "DCM", "Imaging Measurement Report")
    ds.VerificationFlag = "UNVERIFIED"
    ds.SourceInstanceSequence = DicomSequence(
        [*references(case.current_headers), *references(case.prior_headers)]
    )
    ds.MIMETypeOfEncapsulatedDocument = "application/pdf"
    ds.EncapsulatedDocumentLength = len(pdf)
    ds.EncapsulatedDocument = pdf + b"\0" * (len(pdf) % 2)
    return ds
