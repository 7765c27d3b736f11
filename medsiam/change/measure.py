"""Everything that is measured between a Pair and its verdict, in one place.

difference -> candidates -> noise floor -> findings -> erase test, order reversal, brain volume
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from medsiam.change.brain_volume import (
    BrainVolumeChange,
    BrainVolumeSettings,
    measure_brain_volume_change,
)
from medsiam.change.certificate import Measured, erase_test, order_reversal, reversal_doubt, searched
from medsiam.change.comparison import EraseTest, NoiseFloor, OrderReversal
from medsiam.change.dense import agreement, dense_change, why_no_dense
from medsiam.change.difference import measure_difference
from medsiam.change.findings import find_changes
from medsiam.change.noise_floor import (
    MeasuredFloor,
    NoiseFloorSettings,
    StepSettings,
    measure_noise_floor,
)
from medsiam.pairing.side_by_side import side_by_side
from medsiam.pairing.values import Pair

# Findings that are erased one by one: each costs as much as a measurement.
MOST_ERASED, MOST_ERASED_FAST = 10, 0


@dataclass(frozen=True)
class ChangeSettings:
    """The settings of all steps, and how much is spent."""

    steps: StepSettings
    floor: NoiseFloorSettings
    brain_volume: BrainVolumeSettings = field(default_factory=BrainVolumeSettings)
    fast: bool = False


@dataclass(frozen=True, eq=False)
class MeasuredChange:
    """What was measured of a pair.

    shown  (K, J, I) float32 on the halfway grid: the evidence as the map shows it, which is
           the difference's alone or weighted by the dense head
    brain_volume  None where the pair shows no brain in MR
    doubt  why the result should not be believed, "" where it may
    note   why the dense head was not asked, "" where it was
    """

    measured: Measured
    shown: NDArray[np.float32]
    floor: NoiseFloor
    order_reversal: OrderReversal
    erase_test: EraseTest
    brain_volume: BrainVolumeChange | None
    doubt: str
    note: str


def measure_change(
    pair: Pair,
    reversed_pair: Callable[[], Pair],
    settings: ChangeSettings,
    *,
    seed: int,
    device: torch.device,
    told: Callable[[str], None],
) -> MeasuredChange:
    """The change of a pair with its noise floor, its certificates and its brain's volume.

    reversed_pair  gives the pair made anew with prior and current exchanged, once it is there
    told           hears what is being done
    """
    steps = settings.steps
    told("measuring change")
    most = MOST_ERASED_FAST if settings.fast else MOST_ERASED
    with side_by_side(2) as pool:
        # What needs no noise floor begins first, so that no core waits at the end.
        volume = pool.submit(
            measure_brain_volume_change, pair, settings.brain_volume, seed=seed, device=device
        )
        turned = pool.submit(lambda: searched(reversed_pair(), steps, device))
        difference = measure_difference(pair, steps.difference, device)
        floor = measure_noise_floor(
            pair,
            difference,
            steps,
            settings.floor.faster() if settings.fast else settings.floor,
            seed=seed,
            device=device,
            told=lambda done, total: told(f"noise floor: rescan {done} of {total}"),
            pool=pool,
        )
        found = find_changes(pair, floor.candidates, floor.rate, steps.findings)
        forward = Measured(pair, difference, found)
        told("comparing from current to prior, erasing what was found, measuring brain volume")
        erasing = pool.submit(erase_test, forward, floor.rate, steps, device, most=most)
        backward = turned.result().at(floor.rate, steps.findings)
        reversal = order_reversal(forward, backward, steps.findings.threshold)
        erased, brain_volume = erasing.result(), volume.result()
    shown, note = _shown(forward, device, fast=settings.fast)
    doubt = reversal_doubt(reversal) or ("" if found.findings else _blind(floor))
    return MeasuredChange(forward, shown, floor.told, reversal, erased, brain_volume, doubt, note)


def _shown(told: Measured, device: torch.device, *, fast: bool) -> tuple[NDArray[np.float32], str]:
    """The evidence as the map shows it, and why the dense head was not asked."""
    evidence = told.difference.evidence
    reason = "the dense change head is not asked in the fast mode" if fast else why_no_dense(told.pair)
    if reason:
        return evidence, f"the map shows the difference alone: {reason}"
    found = dense_change(told.pair, device)
    return evidence * agreement(found, evidence, told.pair.tissue), ""


def _blind(floor: MeasuredFloor) -> str:
    """Why the absence of findings would mean nothing, "" where it means something."""
    told = floor.told
    if told.injected and told.half_ml is None:
        return "the noise of this pair hides even the largest lesions that were put in to test it"
    return ""
