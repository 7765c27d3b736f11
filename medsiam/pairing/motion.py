"""Motions of space as 4 x 4 matrices: exponentials, halves, and distances between them."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
from scipy.linalg import expm, logm

from medsiam.volume import Matrix, transform

# Denman and Beavers' iteration doubles its digits each step; a head's motion needs six.
MOST_SQUARE_ROOT_STEPS = 40


def exponential(twist: Matrix) -> Matrix:
    """The motion (4 x 4) whose generator is `twist` (4 x 4, last row zero).

    Taylor's series after halving until the twist is small: scipy's general
    method took most of a registration's time on matrices of this size.
    """
    halvings = max(0, int(np.ceil(np.log2(max(float(np.abs(twist).max()), 1e-9)))) + 4)
    small = twist / 2.0**halvings
    term = motion = np.eye(4)
    for order in range(1, 13):
        term = term @ small / order
        motion = motion + term
    for _ in range(halvings):
        motion = motion @ motion
    return motion


def half_of(motion: Matrix) -> Matrix:
    """The motion (4 x 4) that, done twice, is `motion`: its principal square root.

    The half of the inverse is the inverse of the half (Denman and Beavers, 1976).
    At a half turn, where the axis' sign is a choice, the turn is taken a little less.
    """
    half = _square_root(motion)
    if half is not None:
        return half
    nudge = np.eye(4)
    nudge[:3, :3] = expm(1e-5 * np.array([[0.0, -1.0, 0.5], [1.0, 0.0, -0.3], [-0.5, 0.3, 0.0]]))
    turned = _square_root(motion @ nudge)
    return turned if turned is not None else np.real(expm(logm(motion @ nudge) / 2.0))


def _square_root(motion: Matrix) -> Matrix | None:
    """The principal square root; None where the iteration does not reach it."""
    root, inverse = np.array(motion, dtype=np.float64), np.eye(4)
    for _ in range(MOST_SQUARE_ROOT_STEPS):
        if min(abs(np.linalg.det(root)), abs(np.linalg.det(inverse))) < 1e-12:
            return None
        following = 0.5 * (root + np.linalg.inv(inverse))
        inverse = 0.5 * (inverse + np.linalg.inv(root))
        settled = np.abs(following - root).max() < 1e-12 * max(1.0, np.abs(following).max())
        root = following
        if settled:
            break
    close = np.abs(root @ root - motion).max() < 1e-7 * max(1.0, np.abs(motion).max())
    return root if close else None


def about(centre_mm: Matrix, linear: Matrix) -> Matrix:
    """The motion (4 x 4) that applies a 3 x 3 matrix about a point (3,) in mm."""
    motion = np.eye(4)
    motion[:3, :3] = linear
    motion[:3, 3] = centre_mm - linear @ centre_mm
    return motion


def translation(shift_mm: Matrix) -> Matrix:
    """The motion (4 x 4) by a shift (3,) in mm."""
    motion = np.eye(4)
    motion[:3, 3] = shift_mm
    return motion


def axis_rotations() -> tuple[Matrix, ...]:
    """The 24 rotations (3 x 3) that map axes to axes, identity and half turns first."""
    turns = []
    for order in permutations(range(3)):
        for signs in product((1.0, -1.0), repeat=3):
            matrix = np.zeros((3, 3))
            matrix[range(3), order] = signs
            if np.linalg.det(matrix) > 0:
                turns.append(matrix)
    return tuple(sorted(turns, key=lambda turn: -abs(np.diag(turn)).sum() - np.trace(turn) / 10))


def mean_distance_mm(one: Matrix, other: Matrix, points_mm: Matrix) -> float:
    """Mean distance in mm between the images of points (n, 3) under two motions."""
    gap = transform(one, points_mm) - transform(other, points_mm)
    return float(np.linalg.norm(gap, axis=1).mean())


def rotation_degrees(motion: Matrix) -> float:
    """The angle in degrees of the rotation nearest to the linear part of a motion."""
    left, _, right = np.linalg.svd(motion[:3, :3])
    return float(np.degrees(np.arccos(np.clip((np.trace(left @ right) - 1.0) / 2.0, -1.0, 1.0))))
