"""The compiled loops give what torch gives, and nothing hangs on how the work is shared."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as functional
from numpy.typing import NDArray

from medsiam import kernels, sampling
from medsiam.pairing import alignment
from medsiam.volume import Grid

SHAPE, TARGET = (19, 41, 37), (23, 38, 44)


def turned(shape: tuple[int, int, int], seed: int) -> Grid:
    """A grid of some rotation, spacing and place."""
    random = np.random.default_rng(seed)
    axes, _ = np.linalg.qr(random.normal(size=(3, 3)))
    matrix = np.eye(4)
    matrix[:3, :3] = axes * [2.0, 0.9, 1.1]
    matrix[:3, 3] = -matrix[:3, :3] @ ((np.array(shape) - 1) / 2.0) + random.normal(size=3)
    return Grid(shape, matrix)


@pytest.fixture
def threads() -> Iterator[None]:
    """Puts torch's number of threads back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("outside", ["zeros", "border"])
@pytest.mark.parametrize("shape", [SHAPE, (1, 41, 37)])
def test_resampling_agrees_with_torch_inside_and_outside(outside: str, shape: tuple[int, int, int]) -> None:
    """A GPU takes torch's way: both devices must see the same scan, beyond its rim too."""
    field = torch.rand(2, *shape, generator=torch.Generator().manual_seed(1))
    grid, target = turned(shape, 1), turned(TARGET, 2)
    ours = sampling.sample(field, grid, target, np.eye(4), outside=outside)
    matrix = grid.index_from_world @ target.world_from_index
    theirs = sampling._by_torch(field, grid, matrix, TARGET, outside)
    assert (ours - theirs).abs().max() < 1e-4
    assert theirs.std() > 0.1


def test_a_linear_field_is_reproduced_exactly() -> None:
    """Values that are a linear function of place tell each mistake of geometry."""
    grid, target = turned((60, 60, 60), 3), turned((9, 8, 7), 4)

    def values(where: Grid) -> NDArray[np.float64]:
        return where.world(np.argwhere(np.ones(where.shape))) @ np.array([1.0, -2.0, 0.5])

    field = torch.tensor(values(grid).reshape(grid.shape), dtype=torch.float32)
    read = sampling.sample(field, grid, target, np.eye(4)).numpy().ravel()
    assert np.abs(read - values(target)).max() < 1e-3


def test_the_mean_over_grids_is_the_mean_of_their_samples() -> None:
    """A thick slice is the mean of its planes."""
    field = torch.rand(*SHAPE, generator=torch.Generator().manual_seed(2))
    grid, targets = turned(SHAPE, 1), [turned(TARGET, seed) for seed in (2, 3, 4)]
    mean = sampling.sample_mean(field, grid, targets, np.eye(4))
    each = torch.stack([sampling.sample(field, grid, target, np.eye(4)) for target in targets])
    assert torch.allclose(mean, each.mean(dim=0), atol=1e-6)


@pytest.mark.parametrize("shape", [SHAPE, (1, 41, 37)])
def test_a_bent_look_up_agrees_with_torch(shape: tuple[int, int, int]) -> None:
    """Places that differ from voxel to voxel, some beyond the rim, where the edge is repeated."""
    generator = torch.Generator().manual_seed(5)
    field, way = torch.rand(shape, generator=generator), 3.0 * torch.randn(3, *shape, generator=generator)
    ours = kernels.looked_up(field.numpy(), way.numpy())
    points = torch.stack(
        [
            (torch.arange(size).view([-1 if n == axis else 1 for n in range(3)]) + way[axis])
            * (2.0 / max(size - 1, 1))
            - 1.0
            for axis, size in enumerate(shape)
        ][::-1],
        dim=-1,
    )
    theirs = functional.grid_sample(
        field[None, None], points[None], mode="bilinear", padding_mode="border", align_corners=True
    )[0, 0]
    assert np.abs(ours - theirs.numpy()).max() < 1e-4
    assert theirs.std() > 0.1


@pytest.mark.parametrize("count", [1, 2, 64])
def test_a_curve_is_read_as_numpy_reads_it(count: int) -> None:
    """Beyond both ends, on equal places, and where a value is no number, which must not be an index."""
    random = np.random.default_rng(6)
    field = random.normal(size=(5, 60, 70)).astype(np.float32)
    places = np.sort(random.normal(size=count)).astype(np.float32)
    values = random.normal(size=count).astype(np.float32)
    read = kernels.interpolated(field, places, values)
    assert np.abs(read - np.interp(field, places, values)).max() < 1e-5
    field[0, 0, 0] = np.nan
    again = kernels.interpolated(field, places, values)
    assert np.isnan(again[0, 0, 0]) and np.array_equal(again.ravel()[1:], read.ravel()[1:])


@pytest.mark.parametrize("sigma", [(0.8, 0.0, 0.0), (0.0, 2.5, 0.0), (0.0, 0.0, 1.3), (3.0, 1.0, 2.0)])
def test_a_narrow_blur_is_the_product_with_its_matrix(sigma: tuple[float, float, float]) -> None:
    """Wide blurs and GPUs take the matrix: at its edges too both must be one filter."""
    field = torch.rand(3, *SHAPE, generator=torch.Generator().manual_seed(3))
    product = field
    for axis, width in enumerate(sigma):
        if width:
            kernel = torch.as_tensor(sampling._kernel(SHAPE[axis], width), dtype=torch.float32)
            product = sampling._along(product, kernel, axis)
    assert torch.allclose(sampling.smooth(field, sigma), product, atol=1e-5)


@pytest.mark.parametrize("with_rim", [False, True])
def test_means_of_blocks_lie_where_their_voxels_do(with_rim: bool) -> None:
    """A linear function of place is its own mean: half a voxel off, and every finding lies off."""
    grid = turned((7, 20, 21), 7)
    field = grid.world(np.argwhere(np.ones(grid.shape))) @ np.array([1.0, -2.0, 0.5])
    means, coarse = sampling.block_means(
        torch.tensor(field.reshape(grid.shape)), grid, (1, 2, 3), with_rim=with_rim
    )
    assert coarse.shape == tuple(means.shape) == (7, 10, 7)
    truth = coarse.world(np.argwhere(np.ones(coarse.shape))) @ np.array([1.0, -2.0, 0.5])
    assert np.abs(means.numpy().ravel() - truth).max() < 1e-6


@pytest.mark.usefixtures("threads")
def test_the_number_of_threads_changes_no_bit() -> None:
    """A report says the same on every machine of one kind."""
    field = torch.rand(60, 80, 90, generator=torch.Generator().manual_seed(4))
    grid, target = turned((60, 80, 90), 1), turned((70, 80, 90), 2)
    made = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        made.append(
            (sampling.sample(field, grid, target, np.eye(4)), sampling.smooth(field, (1.0, 2.0, 1.0)))
        )
    for sampled, blurred in made[1:]:
        assert torch.equal(sampled, made[0][0]) and torch.equal(blurred, made[0][1])


def test_a_loop_without_a_place_to_keep_it_is_compiled_all_the_same() -> None:
    """Containers are often read-only."""
    space: dict[str, object] = {}
    exec("def fill(out):\n    for n in range(len(out)):\n        out[n] = n", space)  # it has no file
    out = np.zeros(4)
    kernels.compiled(space["fill"])(out)  # type: ignore[arg-type]
    assert out.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("shape", [SHAPE, (1, 41, 37)])
@pytest.mark.parametrize("parts", [1, 2, 5])
def test_the_sums_of_a_step_of_alignment_agree_with_torch(
    shape: tuple[int, int, int], parts: int, threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU takes torch's way: both must move a scan alike, however the planes are shared."""
    monkeypatch.setattr(kernels, "WORTH_THREADS", 0)
    torch.set_num_threads(parts)
    generator = torch.Generator().manual_seed(6)
    one, other, residual = torch.randn(3, *shape, generator=generator)
    weight = torch.rand(shape, generator=generator) - 0.2
    signs = torch.sign(torch.randn(shape, generator=generator))
    grid = turned(shape, 7)
    told = (residual, weight.clamp_min(0.0), 2.0)
    world_from_step, lever = np.linalg.inv(grid.world_from_index[:3, :3]).T, grid.world_from_index[:3] / 80.0
    ours = kernels.normal_sums(
        (one.numpy(), other.numpy()),
        signs.numpy(),
        told[0].numpy(),
        told[1].numpy(),
        2.0,
        world_from_step,
        lever,
    )
    theirs = alignment._sums_by_torch((one, other), signs, *told, world_from_step, lever)
    assert np.allclose(ours, theirs, rtol=1e-4, atol=1e-4 * np.abs(theirs).max())
    assert np.abs(theirs).min() > 0.0 or shape[0] == 1


@pytest.mark.parametrize("corners", [True, False])
@pytest.mark.parametrize("few", [(5, 7, 4), (1, 7, 4)])
def test_stretching_agrees_with_torch(corners: bool, few: tuple[int, int, int]) -> None:
    """First and last voxels on each other, or walls on each other with edges repeated."""
    field = torch.rand(2, *few, generator=torch.Generator().manual_seed(8))
    shape = tuple(3 * size if size > 1 else 1 for size in few)
    ours = sampling.stretched(field, shape, corners=corners)
    theirs = functional.interpolate(field[None], size=shape, mode="trilinear", align_corners=corners)[0]
    assert ours.shape == theirs.shape and torch.allclose(ours, theirs, atol=1e-5)
    assert theirs.std() > 0.1


@pytest.mark.parametrize("block", [1, 2, 3])
def test_the_sums_of_a_fit_are_those_of_products_one_by_one(
    block: int, threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In blocks of two axes, the last ones shorter, whoever shares the work."""
    monkeypatch.setattr(kernels, "WORTH_THREADS", 0)
    random = np.random.default_rng(9)
    features = random.normal(size=(3, 7, 10, 33)).astype(np.float32)
    target, weight = (random.random((7, 10, 33)).astype(np.float32) for _ in range(2))
    found = []
    for count in (1, 2):
        torch.set_num_threads(count)
        found.append(kernels.product_sums(features, target, weight, block))
    products = []
    for row, feature in enumerate(features):
        products += [weight * feature * other for other in (target, *features[row:])]
    expected = np.stack(products)
    for axis in (1, 2):
        expected = np.add.reduceat(expected, np.arange(0, expected.shape[axis], block), axis=axis)
    assert found[0].shape == expected.shape == (9, -(-7 // block), -(-10 // block), 33)
    assert np.allclose(found[0], expected, atol=1e-4) and np.array_equal(*found)
