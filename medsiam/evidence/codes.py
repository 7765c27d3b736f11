"""The codes that objects are written with, each from PS3.16 or its source terminology.

Response criteria (RECIST, RANO) have codes of their own. They are not used: none of
those rules was applied.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydicom.sr.coding import Code

from medsiam.change.comparison import Kind

# Where no public code says what is meant. The Coding Scheme Identification names its owner.
OWN_SCHEME = "99MEDSIAM"

MORPHOLOGY = Code("49755003", "SCT", "Morphologically Abnormal Structure")
LESION = Code("52988006", "SCT", "Lesion")
ALGORITHM_FAMILY = Code("123110", "DCM", "Artificial Intelligence")

QUALITATIVE_DIFFERENCE = Code("111049", "DCM", "Qualitative Difference")
UNCHANGED = Code("129723006", "SCT", "Unchanged")
# CID 6134 has no term for what is gone.
DIFFERENCES: Mapping[Kind, Code] = {
    "new": Code("129721008", "SCT", "New"),
    "enlarged": Code("15454001", "SCT", "Increase in size"),
    "shrunk": Code("19776001", "SCT", "Decrease in size"),
    "resolved": Code("413322009", "SCT", "Problem resolved"),
}

VERDICT = Code("verdict", OWN_SCHEME, "Verdict of the comparison")
VERDICTS = {
    name: Code(name, OWN_SCHEME, meaning)
    for name, meaning in (
        ("stable", "No change beyond the noise"),
        ("progressed", "Appearing or enlarging findings"),
        ("improved", "Only resolving or shrinking findings"),
        ("mixed", "Appearing and resolving findings"),
        ("indeterminate", "No verdict"),
    )
}

VOLUME = Code("118565006", "SCT", "Volume")
LUNG_SHARE = Code("lung-share", OWN_SCHEME, "Opaque share of the area of both lungs")
PRIOR_SIZE = Code("size-prior", OWN_SCHEME, "Size in the prior scan")
DIFFERENCE = Code("size-difference", OWN_SCHEME, "Size, current less prior")
P_VALUE = Code("C44185", "NCIt", "P-Value")
APPEARING = Code("appearing", OWN_SCHEME, "Appearing or growing in all")
RESOLVING = Code("resolving", OWN_SCHEME, "Resolving or shrinking in all")
SMALLEST_DETECTABLE = Code("smallest-detectable", OWN_SCHEME, "Smallest detectable change")

MILLILITRE = Code("ml", "UCUM", "milliliter")
PERCENT = Code("%", "UCUM", "percent")
NO_UNIT = Code("1", "UCUM", "no units")
DAY = Code("d", "UCUM", "day")

BASELINE = Code("121079", "DCM", "Baseline")
COMMENT = Code("121106", "DCM", "Comment")
# CID 100 holds no procedure of comparing; these say what kind of image was read.
PROCEDURES = {
    "MR": Code("113091000", "SCT", "Magnetic resonance imaging"),
    "CT": Code("77477000", "SCT", "Computed tomography"),
    "PT": Code("82918005", "SCT", "Positron emission tomography"),
}
RADIOGRAPHY = Code("168537006", "SCT", "Plain radiography")
