"""The dense change head on a pair: exchanging the scans exchanges the maps, and a new lesion lights up."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from medsiam.change.dense import (
    WEIGHTS,
    DenseChange,
    DenseNet,
    agreement,
    dense_change,
    load_dense,
    save_dense,
    why_no_dense,
)
from medsiam.encoding.encoder import EncoderSettings
from medsiam.encoding.preparation import PreparationSettings
from medsiam.errors import WeightsRefused
from medsiam.pairing.values import Comparability, Pair, Registration
from medsiam.phantom import Lesion, Scan, head_phantom
from medsiam.volume import Acquisition, Volume

CPU = torch.device("cpu")
# In deep white matter, in the middle of the field.
CENTRE_MM = (26.0, -4.0, 26.0)
FIELD = Scan(
    spacing_mm=(1.25, 1.25, 1.25), field_mm=(75.0, 75.0, 75.0), centre_mm=CENTRE_MM, noise=3.0, bias=0.05
)
SPOT = Lesion(CENTRE_MM, (3.5, 3.5, 3.5), 180.0)
OLD = Lesion((26.0, 14.0, 26.0), (3.0, 3.0, 3.0), 170.0)
shipped = pytest.mark.skipif(not WEIGHTS.is_file(), reason="the change head's weights are not there")


def pair_of(prior_lesions, current_lesions, *, modality="MR"):
    """Two visits of a made-up head on one grid, in units of the typical tissue value, and its truth."""
    visits = [
        head_phantom(lesions, scan=replace(FIELD, seed=seed))
        for seed, lesions in enumerate((prior_lesions, current_lesions))
    ]
    volumes = [Volume(each.volume.array, each.volume.grid, Acquisition(modality)) for each in visits]
    tissue = visits[0].brain
    halves = [each.array / np.median(each.array[tissue]) for each in volumes]
    still = Registration(np.eye(4), 1.0, 0.0, 1.0, 0.0, "good", "rigid")
    places = {"tissue_kinds": None, "prior_from_half": np.eye(4), "current_from_half": np.eye(4)}
    made = Pair(
        *volumes, Comparability("same-protocol"), still, "brain", volumes[0].grid, *halves, tissue, **places
    )
    return made, visits[1].lesion_labels > 0


def drawn(seed=0):
    """A small network that nobody trained, with maps that differ from place to place."""
    told = EncoderSettings(
        channels=(8, 16), embedding_size=8, summary_cells=1, preparation=PreparationSettings(16)
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return DenseNet(told).eval()


def exchanged(pair):
    """The same pair with prior and current exchanged."""
    return replace(
        pair,
        prior=pair.current,
        current=pair.prior,
        prior_half=pair.current_half,
        current_half=pair.prior_half,
    )


@pytest.fixture(scope="module")
def with_new_lesion():
    """One lesion came, one stayed."""
    return pair_of((OLD,), (OLD, SPOT))


def test_exchanging_the_scans_exchanges_the_maps(with_new_lesion):
    """Through windows and blending, to the last digit that matters."""
    pair, network = with_new_lesion[0], drawn()
    there, back = (dense_change(each, CPU, network=network) for each in (pair, exchanged(pair)))
    assert there.appearing.shape == pair.grid.shape and there.appearing.dtype == np.float32
    np.testing.assert_allclose(there.appearing, back.resolving, rtol=0.0, atol=1e-6)
    np.testing.assert_allclose(there.resolving, back.appearing, rtol=0.0, atol=1e-6)
    assert np.abs(there.appearing - there.resolving).max() > 1e-3


def test_nothing_is_told_outside_the_tissue(with_new_lesion):
    """Scalp and skull move as they like."""
    pair = with_new_lesion[0]
    found = dense_change(pair, CPU, network=drawn())
    assert (found.appearing[~pair.tissue] == 0.0).all() and (found.appearing[pair.tissue] > 0.0).all()
    nowhere = dense_change(replace(pair, tissue=np.zeros_like(pair.tissue)), CPU, network=drawn())
    assert nowhere.appearing.max() == 0.0


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"region": "field"}, "brains"),
        ({"region": "body"}, "brains"),
        (
            {
                "prior": Volume(
                    np.zeros((2, 2, 2)), FIELD.grid.__class__((2, 2, 2), np.eye(4)), Acquisition("CT")
                )
            },
            "CT",
        ),
        ({"grid": replace(FIELD, spacing_mm=(4.0, 4.0, 4.0)).grid}, "4.0 mm"),
    ],
)
def test_what_it_never_saw_is_refused_with_the_reason(with_new_lesion, change, word):
    """Radiographs, bodies, CT and coarse voxels; an MR of a brain is welcome."""
    pair = with_new_lesion[0]
    assert why_no_dense(pair) == ""
    other = replace(pair, **change)
    assert word in why_no_dense(other)
    with pytest.raises(ValueError, match=word):
        dense_change(other, CPU, network=drawn())


def test_weights_come_back_as_they_were_written_and_changed_ones_are_refused(tmp_path):
    """Half precision both ways; one bit of another digest is enough."""
    path = tmp_path / "some.safetensors"
    network = drawn()
    save_dense(network, path, {"step": 1})
    for name, tensor in load_dense(path).state_dict().items():
        torch.testing.assert_close(tensor, network.state_dict()[name].half().float())
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    load_dense.cache_clear()
    with pytest.raises(WeightsRefused, match="SHA-256"):
        load_dense(path)


@shipped
def test_the_shipped_network_lights_up_at_a_new_lesion_and_nowhere_else(with_new_lesion):
    """A lesion that stayed is none of its business."""
    pair, lesions = with_new_lesion
    found = dense_change(pair, CPU)
    near = np.linalg.norm(pair.grid.world(np.argwhere(lesions)) - CENTRE_MM, axis=1) < 5.0
    new = tuple(np.argwhere(lesions)[near].T)
    assert np.median(found.appearing[new]) > 0.5
    index = np.indices(pair.grid.shape).reshape(3, -1).T
    away = (np.linalg.norm(pair.grid.world(index) - CENTRE_MM, axis=1) > 8.0).reshape(pair.grid.shape)
    assert (found.appearing[away] > 0.5).sum() == 0
    assert (found.resolving > 0.5).sum() == 0


@shipped
def test_the_shipped_network_is_quiet_where_only_the_noise_is_new():
    """Two visits with the same lesion, another noise and another coil."""
    found = dense_change(pair_of((SPOT, OLD), (SPOT, OLD))[0], CPU)
    assert max(found.appearing.max(), found.resolving.max()) < 0.5


def test_the_head_weighs_the_evidence_by_its_own_direction_and_alike_either_way():
    """A place the head sees as resolving lends nothing to evidence of appearing."""
    appearing, resolving = np.zeros((2, 4, 4, 4), np.float32)
    appearing[0], resolving[1] = 0.8, 0.8
    evidence = np.ones((4, 4, 4), np.float32)
    tissue = np.ones((4, 4, 4), bool)
    there = agreement(DenseChange(appearing, resolving), evidence, tissue)
    assert there[0].min() == pytest.approx(1.0) and there[1].max() == 0.0
    back = agreement(DenseChange(resolving, appearing), -evidence, tissue)
    assert np.array_equal(there, back)


def test_a_head_that_sees_nothing_is_not_made_sure_of_itself():
    """Where its largest probability is tiny the map fades rather than being stretched."""
    faint = np.full((4, 4, 4), 1e-4, np.float32)
    weight = agreement(DenseChange(faint, faint), np.ones((4, 4, 4), np.float32), faint > 0)
    assert weight.max() < 0.1
