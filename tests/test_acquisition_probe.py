"""The shipped encoder hides how a scan was made: a reader that finds it elsewhere finds it not here."""

import numpy as np
import pytest
import torch

from medsiam.bench import baselines, retrieval
from medsiam.bench.encoder import seen, viewer_of
from medsiam.bench.rescan import Technique, rescan
from medsiam.encoding.weights import SHIPPED, load_encoder
from medsiam.phantom import Scan, head_phantom

pytestmark = pytest.mark.slow

PEOPLE = 24
# One scan of each person, without noise or bias: what is added is the rescan's.
SCAN = Scan(spacing_mm=(3.0, 3.0, 3.0), field_mm=(200.0, 220.0, 180.0), noise=0.0, bias=0.0)
THIN, THICK = Technique(slice_mm=3.0, pixel_mm=3.0), Technique(slice_mm=6.0, pixel_mm=3.0)

# Balanced accuracy, chance .5. Of 48 answers by chance one in fifty trials has more than .65;
# to be set from what the shipped weights reach.
MOST_READ_FROM_EMBEDDING = 0.65
LEAST_READ_FROM_INTENSITIES = 0.85

NONE_SHIPS = not any(each.spatial_dims == 3 and each.path.is_file() for each in SHIPPED.values())


@pytest.fixture(scope="module")
def rescans():
    """Everybody in thin slices, then everybody in thick ones."""
    random = torch.Generator().manual_seed(0)
    heads = [head_phantom(scan=SCAN, head_seed=seed).volume for seed in range(PEOPLE)]
    return [rescan(head, technique, random).volume for technique in (THIN, THICK) for head in heads]


def thickness_read(rescans, viewer):
    """How well slice thickness is read, from what the viewer tells of each rescan."""
    rows = seen(rescans, {"": viewer})[""]
    people = [str(n) for n in range(PEOPLE)] * 2
    return retrieval.probe(rows, np.repeat([0, 1], PEOPLE), people, 0)


def test_slice_thickness_is_read_from_raw_intensities(rescans):
    """The test of the test: it is there to be found, by this very reader."""
    found = thickness_read(rescans, baselines.raw_brain)
    assert found.value >= LEAST_READ_FROM_INTENSITIES


@pytest.mark.skipif(NONE_SHIPS, reason="no trained weights for volumes ship yet")
def test_slice_thickness_is_not_read_from_the_shipped_embedding(rescans):
    """Else two hospitals would be told apart before two patients."""
    found = thickness_read(rescans, viewer_of(load_encoder(spatial_dims=3)))
    print(f"thickness read from the embedding: {found.value:.3f} {found.interval}")
    assert found.value <= MOST_READ_FROM_EMBEDDING
