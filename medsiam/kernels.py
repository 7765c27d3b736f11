"""The loops that most of a comparison's time goes into, compiled: resampling, narrow blurs, curves.

Torch samples one field on one core only, by way of a list of all points, and blurs by
products far wider than a narrow Gaussian. Arrays here are C-contiguous float32 on the CPU.
What a voxel becomes hangs on no other and not on how many threads share the work.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import numpy as np
import torch
from numpy.typing import NDArray

from medsiam.volume import Matrix

Array = NDArray[np.float32]

# Less work than this (voxels times reads) is done before threads have started.
WORTH_THREADS = 200_000
# Weights up to this are left out of a step of alignment.
HARDLY = 1e-3
# Starts of a look-up among places in rising order.
STARTS = 1024
# Columns that are blurred together along an axis above them: their rows stay in the nearest cache.
COLUMNS = 2048


def compiled(function: Callable[..., None]) -> Any:
    """A loop as machine code, kept beside its source or, where that is read-only, in the user's cache.

    A product and the sum it goes into may be rounded once together, as the processor does fastest.
    """
    how: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": {"contract"}}
    try:
        return numba.njit(function, **how, cache=True)
    except RuntimeError:  # nowhere to keep it
        return numba.njit(function, **how)


def resampled(
    fields: Array, index_from_target: Matrix, shape: tuple[int, int, int], *, border: bool
) -> Array:
    """Fields (C, K, J, I) at the voxels of a grid of another shape, linear: (C, *shape).

    index_from_target  (P, 3, 4): the fields' index of each target index; the mean over P is taken
    border             outside, the nearest voxel is repeated; otherwise it is zero there
    """
    # A flat axis has no extent: its only voxel stands for all of it.
    matrices = np.where(np.array(fields.shape[1:])[None, :, None] > 1, index_from_target, 0.0)
    out = np.empty((fields.shape[0], *shape), dtype=np.float32)
    _shared(shape[0], out.size * len(matrices), lambda a, b: _resample(fields, matrices, out, a, b, border))
    return out


def looked_up(field: Array, way: Array) -> Array:
    """A field (K, J, I) at each voxel's place plus a way (3, K, J, I) in voxels, linear, edges repeated."""
    out = np.empty_like(field)
    _shared(field.shape[0], 2 * field.size, lambda a, b: _look_up(field, way, out, a, b))
    return out


def blurred(field: Array, weights: Array, axis: int) -> Array:
    """A field (..., K, J, I) after an odd filter along its axis 0, 1 or 2 of (K, J, I), edges repeated."""
    *lead, depth, rows, columns = field.shape
    out = np.empty_like(field)
    work = field.size * len(weights)
    if axis == 2:
        flat, made = field.reshape(-1, columns), out.reshape(-1, columns)
        _shared(len(flat), work, lambda a, b: _blur_rows(flat, weights, made, a, b))
    else:
        stack = (math.prod(lead) * (depth if axis == 1 else 1), rows if axis == 1 else depth, -1)
        box, made = field.reshape(stack), out.reshape(stack)
        pieces = len(box) * -(-box.shape[2] // COLUMNS)
        _shared(pieces, work, lambda a, b: _blur_columns(box, weights, made, a, b, COLUMNS))
    return out


def normal_sums(
    pair: tuple[Array, Array],
    signs: Array,
    residual: Array,
    weight: Array,
    cutoff: float,
    world_from_step: Matrix,
    lever: Matrix,
) -> Matrix:
    """The normal equations of a step of alignment (12, 13), their right side last.

    pair     images (K, J, I), the second times `signs`: the mean of their slopes is the residual's
    weight   times Tukey's biweight of the residual at `cutoff` is each voxel's; HARDLY is nothing
    world_from_step  (3, 3) slope per mm along x, y, z of one per voxel;  lever  (3, 4) place of an index

    Unknown 4 r + c moves along axis r in proportion to (x, y, z, 1)[c] of the place.
    """
    depth = len(weight)
    sums = np.zeros((depth, 12, 13))
    around, at = np.ascontiguousarray(world_from_step), np.ascontiguousarray(lever)
    _shared(
        depth,
        50 * weight.size,
        lambda a, b: _normal_sums(*pair, signs, residual, weight, cutoff, around, at, sums, a, b),
    )
    # Plane by plane, so that the sum does not hang on how they were shared.
    return sums.sum(axis=0)


def product_sums(features: Array, target: Array, weight: Array, block: int) -> Array:
    """What a weighted least-squares fit of a target (K, J, I) to features (C, K, J, I) adds up.

    For each feature its product with the target, then with itself and each later one, all times
    the weight, summed over blocks of voxels along K and J: (C (C + 3) / 2, K / block, J / block, I),
    the last blocks shorter.
    """
    count, depth, height, width = features.shape
    out = np.zeros((count * (count + 3) // 2, -(-depth // block), -(-height // block), width), np.float32)
    _shared(
        out.shape[1],
        len(out) * weight.size,
        lambda a, b: _product_sums(features, target, weight, block, out, a, b),
    )
    return out


def interpolated(field: Array, places: Array, values: Array) -> Array:
    """values(places), places rising, read at each element of a field, constant beyond both ends."""
    flat, out = field.reshape(-1), np.empty(field.size, dtype=np.float32)
    # From which place on to look, for equal steps between the first and the last.
    starts = np.searchsorted(places, np.linspace(places[0], places[-1], STARTS, dtype=np.float32)) - 2
    starts = np.clip(starts, 0, max(0, len(places) - 2))
    _shared(field.size, 4 * field.size, lambda a, b: _interpolate(flat, places, values, starts, out, a, b))
    return out.reshape(field.shape)


def _shared(count: int, work: int, do: Callable[[int, int], None]) -> None:
    """Does 0..count in as many runs as torch has threads."""
    threads = min(torch.get_num_threads(), count)
    if threads < 2 or work < WORTH_THREADS:
        do(0, count)
        return
    ends = [count * n // threads for n in range(threads + 1)]
    try:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(do, ends[:-1], ends[1:]))
    except RuntimeError:  # no more threads are to be had
        do(0, count)


@compiled
def _resample(fields, matrices, out, first, last, border):  # type: ignore[no-untyped-def]
    channels, depth, height, width = fields.shape
    rows, columns = out.shape[2:]
    flat = fields.reshape(channels, depth * height * width)
    row, plane = np.int32(width), np.int32(height * width)
    zero, top, bottom, end = (
        np.float32(0),
        np.float32(depth - 1),
        np.float32(height - 1),
        np.float32(width - 1),
    )
    share = np.float32(1.0 / len(matrices))
    zs, ys, xs = np.empty(columns, np.float32), np.empty(columns, np.float32), np.empty(columns, np.float32)
    corners = np.empty(columns, np.uint32)
    for k in range(first, last):
        for j in range(rows):
            out[:, k, j] = zero
            for p in range(len(matrices)):
                m = matrices[p]
                z0, y0, x0 = m[:, 0] * k + m[:, 1] * j + m[:, 3]
                for i in range(columns):
                    z = np.float32(z0 + m[0, 2] * i)
                    y = np.float32(y0 + m[1, 2] * i)
                    x = np.float32(x0 + m[2, 2] * i)
                    if border:
                        z, y, x = min(max(z, zero), top), min(max(y, zero), bottom), min(max(x, zero), end)
                    zs[i], ys[i], xs[i] = z, y, x
                low, high = _inner(zs, ys, xs, top, bottom, end)
                for c in range(channels):
                    made = out[c, k, j]
                    for i in range(low):
                        made[i] += _at_rim(fields[c], zs[i], ys[i], xs[i]) * share
                    for i in range(high, columns):
                        made[i] += _at_rim(fields[c], zs[i], ys[i], xs[i]) * share
                # Loops without a branch, which the compiler makes into few instructions.
                for i in range(low, high):
                    kz, jy, ix = np.int32(zs[i]), np.int32(ys[i]), np.int32(xs[i])
                    corners[i] = np.uint32(kz * plane + jy * row + ix)
                    zs[i] -= np.float32(kz)
                    ys[i] -= np.float32(jy)
                    xs[i] -= np.float32(ix)
                for c in range(channels):
                    made, f = out[c, k, j], flat[c]
                    f1, fy, fy1 = f[1:], f[row:], f[row + 1 :]
                    fz, fz1, fzy, fzy1 = f[plane:], f[plane + 1 :], f[plane + row :], f[plane + row + 1 :]
                    for i in range(low, high):
                        # Unsigned: a signed index would be tested for counting from the end.
                        n, z, y, x = np.uint64(corners[i]), zs[i], ys[i], xs[i]
                        p00 = f[n] + x * (f1[n] - f[n])
                        p01 = fy[n] + x * (fy1[n] - fy[n])
                        p10 = fz[n] + x * (fz1[n] - fz[n])
                        p11 = fzy[n] + x * (fzy1[n] - fzy[n])
                        p0, p1 = p00 + y * (p01 - p00), p10 + y * (p11 - p10)
                        made[i] += (p0 + z * (p1 - p0)) * share


@compiled
def _look_up(field, way, out, first, last):  # type: ignore[no-untyped-def]
    depth, height, width = field.shape
    f = field.reshape(-1)
    row, plane, one = np.uint64(width), np.uint64(height * width), np.uint64(1)
    zero, top, bottom, end = (
        np.float32(0),
        np.float32(depth - 1),
        np.float32(height - 1),
        np.float32(width - 1),
    )
    for k in range(first, last):
        for j in range(height):
            for i in range(width):
                z = min(max(np.float32(k) + way[0, k, j, i], zero), top)
                y = min(max(np.float32(j) + way[1, k, j, i], zero), bottom)
                x = min(max(np.float32(i) + way[2, k, j, i], zero), end)
                if z < top and y < bottom and x < end:
                    c, b, a = np.uint32(z), np.uint32(y), np.uint32(x)
                    z, y, x = z - np.float32(c), y - np.float32(b), x - np.float32(a)
                    n = np.uint64(c) * plane + np.uint64(b) * row + np.uint64(a)
                    m = n + plane
                    p = f[n] + x * (f[n + one] - f[n])
                    q = f[n + row] + x * (f[n + row + one] - f[n + row])
                    r = f[m] + x * (f[m + one] - f[m])
                    s = f[m + row] + x * (f[m + row + one] - f[m + row])
                    p, r = p + y * (q - p), r + y * (s - r)
                    out[k, j, i] = p + z * (r - p)
                else:
                    out[k, j, i] = _at_rim(field, z, y, x)


@compiled
def _inner(zs, ys, xs, top, bottom, end):  # type: ignore[no-untyped-def]
    """The run of a straight line's places at which all eight neighbours are there."""
    low, high = 0, len(zs)
    while low < high and not _is_inner(zs[low], ys[low], xs[low], top, bottom, end):
        low += 1
    while high > low and not _is_inner(zs[high - 1], ys[high - 1], xs[high - 1], top, bottom, end):
        high -= 1
    return low, high


@compiled
def _is_inner(z, y, x, top, bottom, end):  # type: ignore[no-untyped-def]
    return z >= 0 and y >= 0 and x >= 0 and z < top and y < bottom and x < end


@compiled
def _at_rim(field, z, y, x):  # type: ignore[no-untyped-def]
    depth, height, width = field.shape
    total = np.float32(0)
    if not (z > -1 and y > -1 and x > -1 and z < depth and y < height and x < width):
        return total
    k, j, i = int(np.floor(z)), int(np.floor(y)), int(np.floor(x))
    for dk in range(2):
        for dj in range(2):
            for di in range(2):
                if 0 <= k + dk < depth and 0 <= j + dj < height and 0 <= i + di < width:
                    near = (1 - abs(z - (k + dk))) * (1 - abs(y - (j + dj))) * (1 - abs(x - (i + di)))
                    total += np.float32(near) * field[k + dk, j + dj, i + di]
    return total


@compiled
def _normal_sums(  # type: ignore[no-untyped-def]
    one, other, signs, residual, weight, cutoff, around, lever, sums, first, last
):
    depth, height, width = weight.shape
    slopes, places = np.zeros(3), np.ones((4, 2))
    # Over one row, of slope times slope and slope times residual, times 1, i and i squared.
    squares, rights = np.zeros((3, 3, 3)), np.zeros((3, 2))
    for k in range(first, last):
        for j in range(height):
            squares[:], rights[:] = 0.0, 0.0
            for i in range(width):
                share = residual[k, j, i] / cutoff
                share = 1.0 - share * share
                w = weight[k, j, i] * share * share
                if share <= 0.0 or w <= HARDLY:
                    continue
                s, z, y, x = signs[k, j, i], 0.0, 0.0, 0.0
                if 0 < k < depth - 1:
                    z = one[k + 1, j, i] - one[k - 1, j, i] + s * (other[k + 1, j, i] - other[k - 1, j, i])
                if 0 < j < height - 1:
                    y = one[k, j + 1, i] - one[k, j - 1, i] + s * (other[k, j + 1, i] - other[k, j - 1, i])
                if 0 < i < width - 1:
                    x = one[k, j, i + 1] - one[k, j, i - 1] + s * (other[k, j, i + 1] - other[k, j, i - 1])
                for r in range(3):
                    slopes[r] = 0.25 * (around[r, 0] * z + around[r, 1] * y + around[r, 2] * x)
                for r in range(3):
                    weighted = w * slopes[r]
                    for q in range(r, 3):
                        square = weighted * slopes[q]
                        squares[r, q, 0] += square
                        squares[r, q, 1] += square * i
                        squares[r, q, 2] += square * i * i
                    rights[r, 0] += weighted * residual[k, j, i]
                    rights[r, 1] += weighted * residual[k, j, i] * i
            for c in range(3):
                places[c, 0] = lever[c, 0] * k + lever[c, 1] * j + lever[c, 3]
                places[c, 1] = lever[c, 2]
            places[3, 1] = 0.0
            for r in range(3):
                for c in range(4):
                    p = places[c]
                    sums[k, 4 * r + c, 12] += p[0] * rights[r, 0] + p[1] * rights[r, 1]
                    for q in range(3):
                        t = squares[min(r, q), max(r, q)]
                        for d in range(4):
                            o = places[d]
                            sums[k, 4 * r + c, 4 * q + d] += (
                                p[0] * o[0] * t[0] + (p[0] * o[1] + p[1] * o[0]) * t[1] + p[1] * o[1] * t[2]
                            )


@compiled
def _product_sums(features, target, weight, block, out, first, last):  # type: ignore[no-untyped-def]
    count, depth, height, width = features.shape
    weighted = np.empty(width, np.float32)
    for k in range(first * block, min(last * block, depth)):
        for j in range(height):
            sums, wanted, trust = out[:, k // block, j // block], target[k, j], weight[k, j]
            n = 0
            for r in range(count):
                one = features[r, k, j]
                for i in range(width):
                    weighted[i] = trust[i] * one[i]
                made = sums[n]
                for i in range(width):
                    made[i] += weighted[i] * wanted[i]
                for c in range(r, count):
                    n += 1
                    made, other = sums[n], features[c, k, j]
                    for i in range(width):
                        made[i] += weighted[i] * other[i]
                n += 1


@compiled
def _interpolate(flat, places, values, starts, out, first, last):  # type: ignore[no-untyped-def]
    most = len(places) - 1
    steps = np.float32(len(starts) - 1)
    scale = steps / max(places[most] - places[0], np.float32(1e-9))
    for n in range(first, last):
        value = flat[n]
        step = (value - places[0]) * scale
        # What is not a number is above nothing: it must not become an index.
        low = starts[np.uint32(min(step, steps))] if step > 0 else starts[0]
        while low < most - 1 and places[low + 1] < value:
            low += 1
        high = min(low + 1, most)
        share = (value - places[low]) / max(places[high] - places[low], np.float32(1e-9))
        share = min(max(share, np.float32(0)), np.float32(1))
        out[n] = values[low] * (1 - share) + values[high] * share


@compiled
def _blur_rows(field, weights, out, first, last):  # type: ignore[no-untyped-def]
    columns, reach = field.shape[1], len(weights) // 2
    padded = np.empty(columns + 2 * reach, np.float32)
    for j in range(first, last):
        padded[:reach] = field[j, 0]
        padded[reach : reach + columns] = field[j]
        padded[reach + columns :] = field[j, columns - 1]
        made = out[j]
        for i in range(columns):
            made[i] = weights[0] * padded[i]
        for n in range(1, len(weights)):
            for i in range(columns):
                made[i] += weights[n] * padded[i + n]


@compiled
def _blur_columns(box, weights, out, first, last, most):  # type: ignore[no-untyped-def]
    rows, columns = box.shape[1:]
    reach, blocks = len(weights) // 2, -(-columns // most)
    for piece in range(first, last):
        n, low = piece // blocks, (piece % blocks) * most
        high = min(columns, low + most)
        for j in range(rows):
            made = out[n, j, low:high]
            read = box[n, max(0, j - reach), low:high]
            for i in range(high - low):
                made[i] = weights[0] * read[i]
            for t in range(1, len(weights)):
                read = box[n, min(max(j - reach + t, 0), rows - 1), low:high]
                for i in range(high - low):
                    made[i] += weights[t] * read[i]
