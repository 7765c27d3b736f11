"""What a trajectory needs of a comparison that was made in an earlier run, as plain JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from medsiam.change.comparison import Change, Finding
from medsiam.change.trajectory import FoundPlace, PairChange
from medsiam.pairing.values import Comparability, Difference, Registration

# A hundredth of a millimetre, far below any voxel.
PLACES_MM = 2


def pair_to_json(pair: PairChange) -> dict[str, Any]:
    """A pair as plain values; the voxels of its findings to PLACES_MM."""
    told = asdict(replace(pair, places=(), registration=_bare(pair.registration)))
    told["registration"]["prior_from_current"] = pair.registration.prior_from_current.tolist()
    told["places"] = [
        {
            "label": place.finding.label,
            "points_mm": np.round(place.points_mm, PLACES_MM).tolist(),
            "voxel_mm": float(place.voxel_mm),
        }
        for place in pair.places
    ]
    return told


def pair_from_json(told: Mapping[str, Any], prior: int, current: int) -> PairChange:
    """The pair again, under the numbers that its scans have in a trajectory."""
    findings = tuple(
        Finding(**{**each, "centre_lps_mm": tuple(each["centre_lps_mm"])}) for each in told["findings"]
    )
    by_label = {finding.label: finding for finding in findings}
    registration = {
        **told["registration"],
        "prior_from_current": np.array(told["registration"]["prior_from_current"], dtype=np.float64),
        "reasons": tuple(told["registration"]["reasons"]),
    }
    comparability = told["comparability"]
    return PairChange(
        prior=prior,
        current=current,
        interval_days=told["interval_days"],
        verdict=told["verdict"],
        summary=told["summary"],
        comparability=Comparability(
            comparability["category"], tuple(Difference(**each) for each in comparability["differences"])
        ),
        registration=Registration(**registration),
        change=Change(**told["change"]),
        findings=findings,
        places=tuple(
            FoundPlace(by_label[each["label"]], np.array(each["points_mm"]).reshape(-1, 3), each["voxel_mm"])
            for each in told["places"]
        ),
    )


def _bare(registration: Registration) -> Registration:
    # asdict copies arrays as they are, which JSON cannot hold.
    return replace(registration, prior_from_current=np.zeros((0, 0)))
