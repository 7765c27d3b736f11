"""The encoder keeps its laws, and weights come from a sound file or not at all."""

import json
import pickle
import subprocess
import sys
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.utils.flop_counter import FlopCounterMode

import medsiam
from medsiam.encoding import weights as weights_module
from medsiam.encoding.encoder import (
    LARGEST_SCORE,
    RADIOGRAPH,
    TISSUES,
    Encoder,
    EncoderSettings,
    TwinEncoder,
    log_shares,
    on_circles,
)
from medsiam.encoding.preparation import CT_HU, PreparationSettings, normalised, prepare
from medsiam.encoding.record import settings_from
from medsiam.encoding.weights import KEY, Shipped, load_encoder, save_encoder
from medsiam.errors import ConfigRefused, Unreadable, WeightsRefused
from medsiam.volume import Volume
from medsiam.weightfile import read_weights, tensors_digest, write_weights
from tests.phantoms import ball, box_grid, position, radiograph, small_head

SMALL = EncoderSettings(
    channels=(8, 16, 24), embedding_size=12, preparation=PreparationSettings(size_voxels=24, spacing_mm=9.0)
)
WITH_TISSUES = replace(SMALL, shares=(0.25, 0.75), tissues=True, likeness=2)
SMALL_FLAT = replace(SMALL, spatial_dims=2, preparation=PreparationSettings(size_voxels=64))


def made(settings=SMALL, seed=0):
    """A small encoder whose numbers are drawn: good for laws, not for medicine."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Encoder(TwinEncoder(settings).eval(), "drawn@0")


@pytest.fixture(scope="module")
def heads():
    return small_head().volume, small_head(noise=3.0, seed=1).volume


@pytest.fixture
def stored(tmp_path):
    path = tmp_path / "small.safetensors"
    save_encoder(made(), path, metadata={"name": "small", "steps": 3})
    return path


def test_a_volume_becomes_an_embedding_of_unit_norm_and_a_pyramid(heads):
    """Each level halves the one before, from half the input's size."""
    features = made()(heads[0])
    assert features.embedding.shape == (12,)
    assert np.linalg.norm(features.embedding) == pytest.approx(1.0, abs=1e-6)
    assert [tuple(level.values.shape) for level in features.pyramid] == [
        (8, 12, 12, 12), (16, 6, 6, 6), (24, 3, 3, 3),
    ]  # fmt: skip
    assert not features.embedding.flags.writeable


def test_each_level_tells_where_it_lies(heads):
    """Its first voxel is the input's first, its spacing the stride."""
    prepared = prepare(heads[0], SMALL.preparation)
    for depth, level in enumerate(made()(heads[0]).pyramid, 1):
        assert level.values.shape[1:] == level.grid.shape
        assert np.allclose(level.grid.world([(0, 0, 0)]), prepared.grid.world([(0, 0, 0)]))
        assert np.allclose(level.grid.spacing_mm, 9.0 * 2**depth)


def test_the_truth_of_a_levels_grid_shows_in_its_response():
    """A spot answers most strongly where the level's grid says it lies."""
    encoder = made()
    level = encoder.network.stem
    image = torch.zeros(1, 1, 24, 24, 24)
    image[0, 0, 10, 14, 6] = 1.0
    with torch.no_grad():
        answer = (level(image) - level(torch.zeros_like(image))).abs().sum(dim=1)[0]
        moved = torch.nonzero(answer > answer.max() * 0.999)
    assert moved.tolist() == [[5, 7, 3]]


def test_a_radiograph_goes_through_a_flat_encoder():
    """One slice, and grids of one slice."""
    features = made(SMALL_FLAT)(radiograph())
    assert tuple(features.pyramid[0].values.shape) == (8, 1, 32, 32)
    assert all(level.grid.is_flat for level in features.pyramid)
    assert np.linalg.norm(features.embedding) == pytest.approx(1.0, abs=1e-6)


def test_encoding_again_gives_the_same_bits(heads):
    """A result can be repeated."""
    first, again = made()(heads[0]), made()(heads[0])
    assert np.array_equal(first.embedding, again.embedding)
    assert all(torch.equal(a.values, b.values) for a, b in zip(first.pyramid, again.pyramid, strict=True))


def test_a_volume_and_itself_are_equal_twins(heads):
    """Exactly: a scan against itself has no findings."""
    a, b = made().encode_pair(heads[0], heads[0])
    assert np.array_equal(a.embedding, b.embedding)
    assert all(torch.equal(x.values, y.values) for x, y in zip(a.pyramid, b.pyramid, strict=True))


def test_two_at_once_equal_one_by_one(heads):
    """So that a prior's features can be kept from its own visit."""
    encoder = made()
    together = encoder.encode_pair(*heads)
    for volume, twin in zip(heads, together, strict=True):
        alone = encoder(volume)
        assert np.allclose(alone.embedding, twin.embedding, atol=1e-5)
        assert torch.allclose(alone.pyramid[-1].values, twin.pyramid[-1].values, atol=1e-4)
    assert not np.allclose(together[0].embedding, together[1].embedding, atol=1e-5)


def test_the_gradient_reaches_the_weights():
    """The network that encodes is the one that is trained."""
    network = TwinEncoder(SMALL)
    network(torch.rand(2, 1, 24, 24, 24)).embedding.sum().backward()
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in network.parameters())


def test_an_encoder_with_tissues_tells_them_at_every_voxel():
    """And its embedding keeps the shares of its parts."""
    network = TwinEncoder(WITH_TISSUES)
    encoded = network(torch.rand(2, 1, 24, 24, 24))
    assert encoded.tissues.shape == (2, len(TISSUES), 24, 24, 24)
    halves = encoded.embedding.unflatten(1, (2, -1)).norm(dim=2) ** 2
    assert torch.allclose(halves, torch.tensor([[0.25, 0.75]] * 2), atol=1e-5)
    assert TwinEncoder(SMALL)(torch.rand(1, 1, 24, 24, 24)).tissues is None


def test_nothing_that_an_embedding_is_taught_bends_tissues_or_scores():
    """They are taught by label maps, and fitted."""
    network = TwinEncoder(WITH_TISSUES)
    network(torch.rand(2, 1, 24, 24, 24)).embedding.mul(torch.arange(12.0)).sum().backward()
    assert all(
        p.grad is None
        for p in (*network.reader.parameters(), *network.alike.parameters(), *network.unusual.parameters())
    )
    assert network.project.weight.grad is not None


def test_volumes_are_those_of_the_tissues_wherever_they_lie():
    """Shifted, the same; twice the ventricles are log 2 more; nothing of all is bounded."""

    def shares(ventricle, corner):
        labels = torch.zeros(24, 24, 24, dtype=torch.int64)
        labels[corner : corner + 14, 4:18, 4:18] = TISSUES.index("cortex")
        labels[corner : corner + 7, 4:18, 4:18] = TISSUES.index("white")
        labels[corner + 3 : corner + 3 + ventricle, 8:12, 8:12] = TISSUES.index("ventricle")
        return log_shares(torch.nn.functional.one_hot(labels, len(TISSUES)).movedim(-1, 0)[None].float())[0]

    assert torch.allclose(shares(2, 4), shares(2, 7), atol=1e-6)
    assert float(shares(4, 4)[0] - shares(2, 4)[0]) == pytest.approx(np.log(2.0), rel=0.05)
    nothing = log_shares(torch.eye(len(TISSUES))[0].reshape(1, -1, 1, 1, 1).expand(1, -1, 4, 4, 4))
    assert bool(nothing.isfinite().all())


def test_people_of_like_scores_lie_near():
    """The cosine falls with the distance of each score, and no score counts beyond the largest."""
    rows = on_circles(
        torch.tensor([[0.0, 0.0], [0.5, 0.0], [1.5, 0.0], [1.5, 1.5], [-2.5, 2.5], [-9.0, 9.0]])
    )
    near = torch.nn.functional.normalize(rows) @ torch.nn.functional.normalize(rows)[0]
    assert near[0] == pytest.approx(1.0) and bool((near[:4].diff() < 0.0).all())
    assert torch.equal(rows[4], rows[5]) and near[4] == pytest.approx(0.0, abs=1e-6)
    assert float(on_circles(torch.tensor([[LARGEST_SCORE]]))[0, 0]) == pytest.approx(0.0, abs=1e-6)


def test_volumes_that_no_brain_has_fade_from_the_embedding():
    """What they would have had goes to who it is; the whole keeps its norm."""
    network = made(WITH_TISSUES).network
    image = torch.rand(1, 1, 24, 24, 24, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        told = log_shares(network(image).tissues.softmax(dim=1))[0]
        shares = []
        for away in (0.0, 3.0, 5.0, 40.0):
            network.unusual.weight.copy_(torch.eye(len(told)))
            network.unusual.bias.copy_(-told + away * torch.eye(len(told))[0])
            shares.append(network(image).embedding.unflatten(1, (2, -1)).norm(dim=2)[0] ** 2)
    assert all(float(each.sum()) == pytest.approx(1.0, abs=1e-5) for each in shares)
    assert shares[0].tolist() == shares[1].tolist() == pytest.approx([0.25, 0.75], abs=1e-5)
    assert 0.1 < float(shares[2][1]) < 0.5 and float(shares[3][1]) < 1e-6


def test_a_scan_without_a_brain_has_an_embedding_all_the_same():
    """Volumes of nothing are bounded, not infinite."""
    network = made(WITH_TISSUES).network
    with torch.no_grad():
        network.reader.score.weight.zero_()
        network.reader.score.bias.copy_(torch.eye(len(TISSUES))[0] * 1e4)
        assert bool(network(torch.rand(1, 1, 24, 24, 24)).embedding.isfinite().all())


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"shares": (1.0,)}, "tissues needs volumes and at least 2 parts"),
        ({"spatial_dims": 2}, "tissues needs volumes and at least 2 parts"),
        ({"preparation": PreparationSettings(size_voxels=25, spacing_mm=9.0)}, "divisible by 8; it is 25"),
        ({"likeness": 4}, "a part of 6 numbers has room for half as many"),
        ({"trunk_voxels": 32}, "trunk_voxels is 32; it must be 0 or from 16 to the 24"),
    ],
)
def test_tissues_that_cannot_be_told_are_refused(wrong, reason):
    """Each with what must be otherwise."""
    with pytest.raises(ValueError, match=reason):
        replace(WITH_TISSUES, **wrong)


def test_the_twins_may_see_less_than_the_tissues(heads):
    """The means of what the input's voxels hold, and a pyramid that lies where it lay."""
    fine, coarse = made(SMALL), made(replace(SMALL, trunk_voxels=16))
    seen = coarse.network._seen(torch.ones(1, 1, 24, 24, 24))
    assert seen.shape == (1, 1, 16, 16, 16) and torch.allclose(seen, torch.ones(()))
    ramp = torch.arange(24.0).reshape(1, 1, 24, 1, 1).expand(1, 1, 24, 24, 24)
    assert coarse.network._seen(ramp)[0, 0, :2, 0, 0].tolist() == pytest.approx([1 / 3, 5 / 3])
    before, after = (encoder(heads[0]).pyramid[0].grid for encoder in (fine, coarse))
    assert after.spacing_mm == pytest.approx(before.spacing_mm * 1.5)
    corner = prepare(heads[0], SMALL.preparation).grid.world([[-0.5] * 3])[0]
    # The first value lies on the first voxel's centre, half a voxel of what the twins see inside the box.
    assert after.world([[0.0] * 3])[0] - corner == pytest.approx([0.5 * 13.5] * 3)


def test_an_encoder_with_tissues_is_stored_and_read_back(tmp_path, heads):
    """And a record of earlier versions, which says nothing of tissues, has none."""
    encoder = made(WITH_TISSUES)
    save_encoder(encoder, tmp_path / "tissue.safetensors", metadata={})
    again = load_encoder(tmp_path / "tissue.safetensors")
    assert again.settings == WITH_TISSUES
    assert np.array_equal(again(heads[0]).embedding, encoder(heads[0]).embedding)
    told = asdict(SMALL)
    assert told.pop("tissues") is False and told.pop("trunk_voxels") == 0 and told.pop("likeness") == 4
    assert settings_from(told) == SMALL
    for wrong in ({"tissues": 1}, {"trunk_voxels": 16.0}, {"likeness": True}):
        with pytest.raises(TypeError):
            settings_from(told | wrong)


def test_loading_an_encoder_compiles_nothing():
    """What torch compiles with takes a second to import."""
    code = "import sys; from medsiam.encoding.weights import load_encoder; load_encoder(spatial_dims=3); "
    told = subprocess.run(
        [sys.executable, "-c", code + "print('torch._dynamo' in sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout.strip() == "False"


@pytest.mark.parametrize(("settings", "size"), [(EncoderSettings(), (96,) * 3), (RADIOGRAPH, (256,) * 2)])
def test_the_shipped_architectures_stay_within_their_budget(settings, size):
    """Six GFLOP are a fifth of a second on one old core."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        TwinEncoder(settings)(torch.empty(1, 1, *size))
    assert 0 < counter.get_total_flops() < 6e9


def test_an_encoder_refuses_scans_of_other_dimensions(heads):
    """And says which weights are needed."""
    with pytest.raises(WeightsRefused, match="weights trained on radiographs"):
        made()(radiograph())
    with pytest.raises(WeightsRefused, match="weights trained on volumes"):
        made(SMALL_FLAT)(heads[0])


def test_the_input_is_upright_isotropic_and_holds_the_body():
    """A ball anywhere, on any axes, lies in the middle of the input."""
    turned = position((90.0, 0.0, 0.0), (40.0, -70.0, 15.0))
    grid = box_grid((20, 60, 50), (4.0, 1.5, 2.0), world_from_grid=turned)
    place = grid.world([(12, 20, 30)])[0]
    prepared = prepare(ball(grid, tuple(place), 20.0), PreparationSettings(size_voxels=32, spacing_mm=3.0))
    assert np.allclose(prepared.grid.world_from_index[:3, :3], np.fliplr(np.eye(3)) * 3.0)
    assert np.allclose(prepared.grid.centre_mm, place, atol=0.5)
    values = prepared.values.numpy()
    assert values.sum() * 27.0 == pytest.approx(4 / 3 * np.pi * 20.0**3, rel=0.03)


def test_a_bright_neck_draws_the_middle_no_further_than_a_dark_one():
    """One head in two contrasts lies in one place of the input; noise in the air does not move it."""
    grid = box_grid((80, 40, 40), (4.0, 4.0, 4.0))
    head = ball(grid, (0.0, 0.0, 80.0), 60.0).array
    neck = ball(grid, (0.0, 0.0, -60.0), 50.0).array

    def middle(neck_value, noise=0.0):
        random = np.random.default_rng(0)
        image = 0.7 * head + neck_value * neck + 0.3 * ball(grid, (0.0, 0.0, 80.0), 20.0).array
        image = np.hypot(
            image + noise * random.normal(size=grid.shape), noise * random.normal(size=grid.shape)
        )
        return prepare(Volume(image.astype(np.float32), grid), PreparationSettings(32, 9.0)).grid.centre_mm

    assert np.linalg.norm(middle(1.7) - middle(0.6)) < 6.0
    assert np.linalg.norm(middle(1.0, noise=0.08) - middle(1.0)) < 5.0
    assert np.linalg.norm(middle(0.0) - middle(1.0)) > 20.0


def test_moving_the_scan_in_its_world_changes_nothing(heads):
    """Where a table stood is no property of a patient."""
    moved = Volume(heads[0].array, heads[0].grid.moved(position((0, 0, 0), (31.0, -12.5, 80.0))))
    still = Volume(heads[0].array, heads[0].grid)
    a, b = (prepare(volume, SMALL.preparation).values for volume in (still, moved))
    assert torch.allclose(a, b, atol=1e-5)


def test_gain_and_offset_of_a_scanner_change_nothing(heads):
    """MR has no unit."""
    louder = Volume(heads[0].array * 3.7 + 50.0, heads[0].grid, heads[0].acquisition)
    a, b = (prepare(volume, SMALL.preparation).values for volume in (heads[0], louder))
    assert torch.allclose(a, b, atol=1e-4)


def test_reslicing_changes_the_input_little(heads):
    """The same head in twice as many slices: the tolerance of the law is .03 of the range."""
    grid = heads[0].grid
    matrix = grid.world_from_index.copy()
    matrix[:3, 0] /= 2.0
    matrix[:3, 3] -= matrix[:3, 0] / 2.0
    finer = Volume(
        np.repeat(heads[0].array, 2, axis=0), type(grid)((2 * grid.shape[0], *grid.shape[1:]), matrix)
    )
    a, b = (prepare(volume, SMALL.preparation).values for volume in (Volume(heads[0].array, grid), finer))
    assert float((a - b).abs().mean()) < 0.03


def test_hounsfield_units_are_taken_by_their_meaning():
    """Air is 0 whatever else the scan shows, and a hot implant moves nothing."""
    values = np.array([-2000.0, *CT_HU, 40.0, 30000.0], np.float32)
    assert normalised(values, "CT").tolist() == pytest.approx([0, 0, 0.2, 0.85, 1, 0.512, 1])


def test_a_long_scan_is_taken_at_a_wider_spacing():
    """A trunk does not fit the field of a head."""
    finest = PreparationSettings(size_voxels=16, spacing_mm=2.0)
    for extent_mm, spacing_mm in ((30, 2.0), (48, 2.0), (60, 4.0), (120, 8.0), (900, 8.0)):
        volume = ball(box_grid((10, 10, 10), (extent_mm / 10,) * 3), (0.0, 0.0, 0.0), extent_mm / 4)
        assert prepare(volume, finest).grid.spacing_mm == pytest.approx([spacing_mm] * 3)


def test_a_scan_with_voxels_that_are_no_numbers_is_refused(heads):
    """An embedding of nothing would be stored and compared."""
    array = heads[0].array.copy()
    array[3, 4, 5] = np.nan
    with pytest.raises(Unreadable, match="not finite"):
        prepare(Volume(array, heads[0].grid), SMALL.preparation)


@pytest.mark.parametrize(
    "wrong",
    [{"spatial_dims": 4}, {"channels": (8,)}, {"channels": (8, 12)}, {"channels": (8, 4096)},
     {"embedding_size": 1}, {"norm_groups": 0}],
)  # fmt: skip
def test_an_architecture_that_cannot_be_is_refused(wrong):
    """Before any memory is asked for."""
    with pytest.raises(ValueError, match=next(iter(wrong))):
        replace(SMALL, **wrong)


def test_weights_written_then_read_are_the_same_encoder(stored, heads):
    """And its id holds the digest of its file."""
    loaded = load_encoder(stored, spatial_dims=3)
    assert loaded.settings == SMALL
    assert loaded.encoder_id == f"small@{loaded.weights_sha256[:12]}"
    assert np.array_equal(loaded(heads[0]).embedding, made()(heads[0]).embedding)
    assert loaded(heads[0]).encoder_id == loaded.encoder_id
    assert not any(p.requires_grad for p in loaded.network.parameters())


def test_the_same_encoder_makes_the_same_file(tmp_path):
    """The digest names the weights, not the moment of writing."""
    paths = [tmp_path / name for name in ("a.safetensors", "b.safetensors")]
    ids = {save_encoder(made(), path, metadata={"name": "x", "b": 1, "a": 2}) for path in paths}
    assert len(ids) == 1
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "b.safetensors"]


def test_the_public_name_is_the_loader():
    """medsiam.load_encoder, as the contract says."""
    assert medsiam.load_encoder is load_encoder
    assert "load_encoder" in medsiam.__all__


@pytest.mark.parametrize("name", [None, "head-mr"])
def test_where_no_weights_ship_none_are_made_up(name, tmp_path, monkeypatch):
    """A random network would answer, and mean nothing."""
    monkeypatch.setattr(weights_module, "SHIPPED_FOLDER", tmp_path)
    with pytest.raises(WeightsRefused, match=r"no trained weights ship.*--weights FILE"):
        load_encoder(name)


def test_shipped_weights_are_found_by_name_and_checked(stored, monkeypatch):
    """The way is there for the first that ship; a changed file is refused."""
    sha256 = read_weights(stored).sha256
    monkeypatch.setattr(weights_module, "SHIPPED_FOLDER", stored.parent)
    monkeypatch.setattr(weights_module, "SHIPPED", {"small": Shipped(stored.name, 3)})
    stored.with_suffix(".sha256").write_text(f"{sha256}  {stored.name}\n")
    assert load_encoder().weights_sha256 == load_encoder("small").weights_sha256 == sha256
    with pytest.raises(WeightsRefused, match="no trained weights ship"):
        load_encoder(spatial_dims=2)
    stored.with_suffix(".sha256").write_text("0" * 64)
    with pytest.raises(WeightsRefused, match="expected was 000000000000"):
        load_encoder()


class Trap:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return (pytest.fail, ("a pickle was loaded",))


@pytest.mark.parametrize("name", ["trap.pt", "trap.safetensors"])
def test_a_pickle_is_refused_unread_whatever_its_name(tmp_path, name):
    """Loading one can run any code."""
    path = tmp_path / name
    path.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(WeightsRefused, match=r"pickle.*safetensors"):
        load_encoder(path)
    torch.save({"a": torch.zeros(2)}, path)
    with pytest.raises(WeightsRefused, match="pickle"):
        load_encoder(path)


def rewritten(path, change=lambda tensors, record: None, *, keeps_digest=False):
    """The file with its tensors and record changed, the recorded digests set right unless kept."""
    file = read_weights(path)
    tensors, record = dict(file.tensors), json.loads(file.metadata[KEY])
    change(tensors, record)
    if not keeps_digest:
        record["tensors_sha256"] = tensors_digest(tensors)
        del record["record_sha256"]
    save_file(tensors, path, metadata={KEY: json.dumps(record)})
    return path


def test_rewriting_without_a_change_is_accepted(stored):
    """The refusals below are for their reasons, not for the rewriting."""
    assert load_encoder(rewritten(stored)).settings == SMALL


FIRST = "project.bias"
REFUSED = {
    "lacks 1 tensors": lambda tensors, record: tensors.pop(FIRST),
    "has 1 too many": lambda tensors, record: tensors.update(more=torch.zeros(1)),
    r"needs torch.float32 of \(12,\)": lambda tensors, record: tensors.update({FIRST: torch.zeros(13)}),
    "as torch.bfloat16": lambda tensors, record: tensors.update({FIRST: torch.zeros(12).bfloat16()}),
    "not finite": lambda tensors, record: tensors[FIRST].fill_(torch.nan),
    "this version has": lambda tensors, record: record.update(architecture="other/9"),
    "lacks .* tensors": lambda tensors, record: record["settings"].update(channels=[8, 16, 24, 32]),
    "damaged record": lambda tensors, record: record["settings"].update(channels=[8, 10**9]),
    "a damaged": lambda tensors, record: record["settings"].update(embedding_size="12"),
    "damaged record of": lambda tensors, record: record.pop("settings"),
    "does not match the digest": lambda tensors, record: record.update(name="../x"),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_a_file_that_is_not_exactly_this_encoder_is_refused(stored, reason):
    """Half-fitting weights give numbers that look like answers."""
    rewritten(stored, REFUSED[reason])
    with pytest.raises(WeightsRefused, match=reason):
        load_encoder(stored)


def test_tensors_that_were_changed_behind_their_digest_are_refused(stored):
    """A flipped bit passes every other check."""
    rewritten(stored, lambda tensors, record: tensors[FIRST].add_(1e-3), keeps_digest=True)
    with pytest.raises(WeightsRefused, match="does not match the digest"):
        load_encoder(stored)


def test_a_file_cut_short_or_of_another_kind_is_refused(stored, tmp_path):
    """Each with its own reason."""
    whole = stored.read_bytes()
    for content, reason in ((whole[:-100], "no whole"), (whole[:5], "no whole"), (b"\xff" * 64, "no whole"),
                            (whole[:8] + b"x" + whole[9:], "damaged safetensors header")):  # fmt: skip
        stored.write_bytes(content)
        with pytest.raises(WeightsRefused, match=reason):
            load_encoder(stored)
    with pytest.raises(WeightsRefused, match="no file"):
        load_encoder(tmp_path / "nowhere.safetensors")
    save_file({"a": torch.zeros(1)}, stored)
    with pytest.raises(WeightsRefused, match="does not record an encoder"):
        load_encoder(stored)


def test_a_file_beyond_the_size_of_any_encoder_is_refused(stored, monkeypatch):
    """It would only fill the memory."""
    size = stored.stat().st_size
    monkeypatch.setattr("medsiam.weightfile.LARGEST_FILE_BYTES", size)
    assert load_encoder(stored).settings == SMALL
    monkeypatch.setattr("medsiam.weightfile.LARGEST_FILE_BYTES", size - 1)
    with pytest.raises(WeightsRefused, match="larger than"):
        load_encoder(stored)


def test_every_header_length_is_read_as_what_it_is(tmp_path):
    """A length whose first byte is 128 looks like the start of a pickle."""
    for padding in range(40):
        path = tmp_path / "x.safetensors"
        write_weights(path, {"a": torch.ones(2)}, {"k": "x" * (8 * padding)})
        assert torch.equal(read_weights(path).tensors["a"], torch.ones(2))


def test_dimensions_and_device_are_checked(stored):
    """Before the first scan is read."""
    with pytest.raises(WeightsRefused, match="3 dimensions, 2 are needed"):
        load_encoder(stored, spatial_dims=2)
    with pytest.raises(ConfigRefused, match="no device"):
        load_encoder(stored, device="abacus")
    assert load_encoder(stored, spatial_dims=3, device="cpu").settings == SMALL


def test_weights_that_cannot_be_true_are_not_written(tmp_path):
    """A failed write leaves what was there, and nothing beside it."""
    path = tmp_path / "small.safetensors"
    save_encoder(made(), path, metadata={})
    before = path.read_bytes()
    broken = made()
    with torch.no_grad():
        broken.network.project.bias.fill_(torch.inf)
    with pytest.raises(WeightsRefused, match="not finite"):
        save_encoder(broken, path, metadata={})
    with pytest.raises(WeightsRefused, match="no place for weights"):
        save_encoder(made(), tmp_path / "small.pt", metadata={})
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["small.safetensors"]
