"""The shipped encoder hides how thick slices were: a reader that finds it elsewhere finds it not here."""

import os
from pathlib import Path

import numpy as np
import pytest

from medsiam.bench import baselines, retrieval
from medsiam.bench.encoder import SCANNED_AS_USUAL, TECHNIQUES, person_of, scanned_again, seen, viewer_of
from medsiam.encoding.weights import load_encoder
from medsiam.training.public_manifests import brain_rows

DATA = Path(os.environ.get("MEDSIAM_DATA") or Path(__file__).parents[2] / "shared" / "data")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (DATA / "brains-t1").is_dir(), reason="real scans are not here; set MEDSIAM_DATA"),
]

# Balanced accuracy over 60 scans, chance .5: by chance alone one in forty trials has more.
MOST_READ_FROM_EMBEDDING = 0.63
LEAST_READ_FROM_INTENSITIES = 0.85


@pytest.fixture(scope="module")
def told():
    """What the encoder and raw intensities tell of held-out people's rescans, thick slices then thin ones."""
    people = [person_of(DATA, row) for row in brain_rows(DATA) if row["split"] == "test"]
    viewers = {"embedding": viewer_of(load_encoder(spatial_dims=3)), "raw": baselines.raw_brain}
    thick_and_thin = (SCANNED_AS_USUAL, TECHNIQUES["isotropic"])
    scans = [seen(scanned_again(people, each, n), viewers) for n, each in enumerate(thick_and_thin)]
    classes, names = np.repeat([0, 1], len(people)), [person.name for person in people] * 2
    return {
        name: retrieval.probe(np.concatenate([each[name] for each in scans]), classes, names, 0).value
        for name in viewers
    }


def test_slice_thickness_is_read_from_raw_intensities(told):
    """The test of the test: it is there to be found, by this very reader."""
    assert told["raw"] >= LEAST_READ_FROM_INTENSITIES


def test_slice_thickness_is_not_read_from_the_shipped_embedding(told):
    """Else two hospitals would be told apart before two patients."""
    assert told["embedding"] <= MOST_READ_FROM_EMBEDDING
