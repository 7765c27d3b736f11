"""What an outside reader of the contract found to end as a bug, each with its refusal."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import medsiam
from medsiam.cases.labels import read_labels
from medsiam.cases.region import MOST_POINTS, ball_region
from medsiam.choices import is_device
from medsiam.encoding.weights import load_encoder
from medsiam.errors import ArchiveRefused, IndexRefused, InputRefused, NotComparable, WeightsRefused
from medsiam.pacs.exchange import send_folder
from medsiam.pacs.opening import open_archive
from medsiam.pacs.settings import PacsSettings
from medsiam.report.digests import verify
from medsiam.trajectory import follow
from medsiam.volume import Acquisition, Grid, Volume
from medsiam.voxel_net import VoxelNet, _box_mean, local_contrast

KEY = b"0" * 32


def blank(shape, digest="a"):
    acquisition = Acquisition(modality="MR", sha256=digest * 64)
    values = np.random.default_rng(0).random(shape, dtype=np.float32)
    return Volume(values, Grid(shape, np.eye(4)), acquisition)


@pytest.mark.parametrize("size", [7, 15])
def test_a_mean_over_a_short_axis_is_over_what_there_is(size):
    """Torch does not pool an axis shorter than the window."""
    line = torch.arange(5.0)
    got = _box_mean(line.view(1, 1, 5, 1, 1).expand(1, 1, 5, 20, 20).contiguous(), size)[0, 0, :, 10, 10]
    reach = size // 2
    expected = [float(line[max(0, k - reach) : k + reach + 1].mean()) for k in range(5)]
    assert got.tolist() == pytest.approx(expected)
    assert torch.isfinite(local_contrast(torch.rand(1, 1, 1, 20, 20))).all()


def test_the_network_learns_after_it_was_used_and_is_as_exact_in_half_precision():
    """What inference keeps must serve a training; in bfloat16 a variance is otherwise noise."""
    image = torch.rand(1, 1, 24, 24, 24)
    with torch.inference_mode():
        local_contrast(image.clone())
    asked = image.clone().requires_grad_()
    local_contrast(asked).sum().backward()
    assert bool(torch.isfinite(asked.grad).all())
    net = VoxelNet(2)
    seen = []
    net.stem.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        net(image)
        with torch.autocast("cpu", torch.bfloat16):
            net(image)
    assert torch.equal(seen[0], seen[1])


@pytest.mark.parametrize("shape", [(3, 128, 128), (2, 2, 2), (40, 50, 60)])
def test_a_scan_of_few_slices_is_embedded(shape):
    """One of them ended a whole `index add`."""
    features = load_encoder(spatial_dims=3)(blank(shape))
    assert np.isfinite(features.embedding).all()


@pytest.mark.parametrize("thing", [None, 5, "path", np.zeros((4, 4, 4))])
def test_what_is_no_volume_is_a_type_error_of_the_encoder(thing):
    """And not an attribute that some inner thing lacks."""
    with pytest.raises(TypeError, match="Volume"):
        load_encoder(spatial_dims=3)(thing)


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", "\ud800"])
def test_weights_of_a_name_that_no_file_can_have_are_refused(name):
    """The longest was an error of the operating system."""
    with pytest.raises(WeightsRefused, match="check the path"):
        load_encoder(name)


def test_a_folder_that_is_not_there_is_told_as_such(tmp_path):
    """And not as one that holds nothing; an empty one is."""
    archive = object()
    for use in (verify, lambda folder: send_folder(archive, folder)):
        with pytest.raises(InputRefused, match="there is no folder"):
            use(tmp_path / "gone")
        with pytest.raises(InputRefused, match="holds n"):
            use(tmp_path)


@pytest.mark.parametrize("path", ["", "  ", "a\0b"])
def test_a_path_that_cannot_be_one_is_refused(path):
    """An empty one would be the present folder."""
    with pytest.raises(InputRefused):
        medsiam.read_volume(path)


@pytest.mark.parametrize("device", [None, 5, True])
def test_a_device_is_a_name(device):
    assert not is_device(device) and is_device("cpu")


@pytest.mark.parametrize(
    "address",
    [
        "http://127.0.0.1:abc/",
        "http://127.0.0.1:99999/x",
        "http://[::1",
        "dimse://X@127.0.0.1:99999",
        "dimse://X@h:0",
    ],
)
def test_a_malformed_address_is_refused(address):
    """A port too large ended in a thread's traceback."""
    with pytest.raises(ArchiveRefused):
        open_archive(address, PacsSettings())


@pytest.mark.parametrize("radius_mm", [6.0, 30.0, 100.0])
def test_a_large_ball_has_no_more_places_than_a_mask(radius_mm):
    """4 million places were read in each channel of each level."""
    region = ball_region((1.0, 2.0, 3.0), radius_mm)
    assert 0.2 * min(MOST_POINTS, 900) < len(region.places_mm) < 1.3 * MOST_POINTS
    assert np.allclose(region.places_mm.mean(axis=0), (1.0, 2.0, 3.0))


@pytest.mark.parametrize(
    "text",
    ["series_uid,grade,grade\n1.2,1,2\n", "series_uid,grade\n1.2,1,x,y\n", "path,grade\na\0b,1\n"],
    ids=["a heading twice", "more cells than headings", "a path that is none"],
)
def test_a_label_table_that_would_lose_a_cell_is_refused(tmp_path, text):
    """Silently one of two values was kept."""
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(IndexRefused):
        read_labels(tmp_path / "labels.csv", KEY)
    (tmp_path / "good.csv").write_text("series_uid,grade\n1.2,1\n")
    assert len(read_labels(tmp_path / "good.csv", KEY).rows) == 1


def test_scans_of_two_kinds_are_refused_before_any_pair_is_compared():
    """The first pair took a minute and a half."""
    scans = [blank((8, 8, 8), "a"), blank((8, 8, 8), "b"), blank((1, 8, 8), "c")]
    with pytest.raises(NotComparable, match="one kind"):
        follow(scans)
