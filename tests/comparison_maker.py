"""Comparisons built by hand, small, with findings whose place is known."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsiam.change.comparison import (
    Change,
    Comparison,
    EmbeddingDistance,
    Finding,
    Provenance,
)
from medsiam.pairing.values import Comparability, Difference, Registration
from medsiam.volume import Acquisition, Grid, Volume

SHA256_OF_PRIOR = "a" * 64
SHA256_OF_CURRENT = "b" * 64

HEAD_MM = 40.0
LESION_MM = 6.0
# Places in LPS mm: the first appears, the second resolves.
PLACE_OF_NEW = (14.0, -8.0, 4.0)
PLACE_OF_RESOLVED = (-12.0, 10.0, -6.0)


def grid_of(
    directions_kji: tuple[tuple[float, float, float], ...] = ((0, 0, 1), (0, 1, 0), (1, 0, 0)),
    spacing_kji_mm: tuple[float, float, float] = (4.0, 2.0, 2.0),
    shape_kji: tuple[int, int, int] = (24, 48, 48),
) -> Grid:
    """A grid centred on the world's origin, whose axes k, j, i run along given LPS directions."""
    matrix = np.eye(4)
    matrix[:3, :3] = np.array(directions_kji, dtype=float).T * spacing_kji_mm
    matrix[:3, 3] = -matrix[:3, :3] @ ((np.array(shape_kji) - 1) / 2)
    return Grid(shape_kji, matrix)


def world_positions(grid: Grid) -> NDArray[np.float64]:
    """LPS mm (K, J, I, 3) of every voxel."""
    indices = np.stack(np.indices(grid.shape), axis=-1).reshape(-1, 3)
    return grid.world(indices).reshape(*grid.shape, 3)


def ball(grid: Grid, centre_mm: tuple[float, ...], radius_mm: float) -> NDArray[np.bool_]:
    """Voxels (K, J, I) whose centre lies in a ball."""
    return np.linalg.norm(world_positions(grid) - np.array(centre_mm), axis=-1) <= radius_mm


def finding(label: int = 1, **changes: Any) -> Finding:
    """A new finding at PLACE_OF_NEW unless told otherwise."""
    made = Finding(
        label=label,
        tracking_uid=f"2.25.{label}",
        kind="new",
        centre_lps_mm=PLACE_OF_NEW,
        volume_prior_ml=0.0,
        volume_current_ml=0.904,
        delta_ml=0.904,
        p_value=0.00012345,
    )
    return replace(made, **changes)


def comparison(grid: Grid | None = None, *, modality: str = "MR", **changes: Any) -> Comparison:
    """A mixed comparison of two balls of tissue: one bright spot new, one gone."""
    grid = grid or grid_of()
    head = ball(grid, (0, 0, 0), HEAD_MM)
    new, gone = ball(grid, PLACE_OF_NEW, LESION_MM), ball(grid, PLACE_OF_RESOLVED, LESION_MM)
    tissue = np.where(head, 500.0, 5.0).astype(np.float32)
    prior = np.where(gone, 900.0, tissue).astype(np.float32)
    current = np.where(new, 900.0, tissue).astype(np.float32)
    outside = world_positions(grid)[..., 2] > 38.0
    labels = np.where(new, 1, np.where(gone, 2, 0)).astype(np.uint16)
    resolved = finding(
        2, kind="resolved", centre_lps_mm=PLACE_OF_RESOLVED, volume_prior_ml=0.9, volume_current_ml=0.0,
        delta_ml=-0.9, p_value=0.004,
    )  # fmt: skip
    made = Comparison(
        prior=Volume(prior, grid, acquisition(1, modality)),
        current=Volume(current, grid, acquisition(2, modality)),
        verdict="mixed",
        summary="One new and one resolved place.",
        comparability=Comparability(
            "protocol-changed", (Difference("echo time", "90 ms", "95 ms", "little"),)
        ),
        registration=registration(),
        change=Change(0.02, 0.11, 0.0004, 0.05, 0.904, 0.9, 3.2e-7),
        findings=(finding(1), resolved),
        change_map=(new * 0.9 - gone * 0.8).astype(np.float32),
        labels=labels,
        prior_on_current=np.where(outside, np.nan, prior).astype(np.float32),
        provenance=provenance(),
        notes=("The patient's name is not read.",),
    )
    return replace(made, **changes)


def radiograph(**changes: Any) -> Comparison:
    """A comparison of two radiographs, one slice each."""
    grid = grid_of(spacing_kji_mm=(1.0, 2.0, 2.0), shape_kji=(1, 64, 48))
    made = comparison(grid, modality="DX")
    label = np.zeros(grid.shape, np.uint16)
    label[0, 20:30, 10:18] = 1
    image = np.indices(grid.shape).sum(axis=0).astype(np.float32)
    centre = tuple(float(mm) for mm in grid.world([(0, 25, 14)])[0])
    made = replace(
        made,
        prior=Volume(image, grid, made.prior.acquisition),
        current=Volume(image + label * 40, grid, made.current.acquisition),
        prior_on_current=image,
        change_map=label.astype(np.float32) * 0.7,
        labels=label,
        findings=(finding(1, centre_lps_mm=centre),),
        verdict="progressed",
    )
    return replace(made, **changes)


def stable(**changes: Any) -> Comparison:
    """A comparison without findings."""
    made = comparison()
    nothing = np.zeros(made.labels.shape, np.float32)
    return replace(
        made, verdict="stable", summary="Nothing changed.", findings=(), change_map=nothing,
        labels=nothing.astype(np.uint16), **changes,
    )  # fmt: skip


def acquisition(visit: int, modality: str = "MR", **changes: Any) -> Acquisition:
    """What the header of the first or second visit tells."""
    made = Acquisition(
        modality=modality,
        body_part="HEAD",
        description="FLAIR",
        patient_key="k" * 32,
        study_uid=f"1.2.{visit}",
        series_uid=f"1.2.{visit}.1",
        acquired=datetime(2020 + visit, 3, 4, 10, 30),
        sha256=SHA256_OF_PRIOR if visit == 1 else SHA256_OF_CURRENT,
    )
    return replace(made, **changes)


def registration(**changes: Any) -> Registration:
    """A good registration with a small shift."""
    matrix = np.eye(4)
    matrix[:3, 3] = (1.5, -2.25, 0.123456789)
    made = Registration(matrix, 0.97, 0.08, 1.0, 0.02, "good", "rigid")
    return replace(made, **changes)


def provenance(**changes: Any) -> Provenance:
    """A provenance with all that can be told."""
    made = Provenance(
        medsiam="0.1.0", config={"head": {"threshold": 0.5}}, device="cpu", seed=7, encoder="twin-1",
        weights_sha256={"twin-1": "c" * 64}, seconds={"read": 0.61234}, peak_memory_mb=812.04,
    )  # fmt: skip
    return replace(made, **changes)


def embedding(**changes: Any) -> EmbeddingDistance:
    """A small distance between the scans of one patient."""
    return replace(EmbeddingDistance("twin-1", 0.0312, 0.98), **changes)


def with_header_text(made: Comparison, text: str) -> Comparison:
    """The comparison with a text in every place that a header or a file can reach."""
    hostile = {"body_part": text, "description": text, "patient_key": text, "study_uid": text}
    both = {
        name: Volume(
            scan.array, scan.grid, replace(scan.acquisition, **hostile, series_uid=text, assumptions=(text,))
        )
        for name, scan in (("prior", made.prior), ("current", made.current))
    }
    difference = Difference(text, text, text, text)
    return replace(
        made,
        **both,
        summary=text,
        notes=(text,),
        comparability=Comparability("protocol-changed", (difference,)),
        registration=registration(quality="doubtful", reasons=(text,)),
        provenance=provenance(config={text: text}, device=text, encoder=text, weights_sha256={text: text}),
        embedding=embedding(encoder=text),
    )
