"""Where the brain is, in a head scan of any contrast: a small network and its gate.

    Volume -> 3 mm LPS grid around the head -> normalised -> network -> five classes
    -> largest piece, holes filled -> BrainTissue, with whether it can be believed

The network was trained on synthetic images only (docs/model-card-brain.md), so it
knows no contrast, and none is foreign to it.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import monai.networks.blocks  # noqa: F401 - VoxelNet's: what is imported amid a comparison may find no memory
import numpy as np
import torch
import torch.nn.functional as functional
from numpy.typing import NDArray
from safetensors.torch import load
from scipy import ndimage

from medsiam.errors import WeightsRefused
from medsiam.sampling import block_means, covering, sample
from medsiam.volume import Grid, Volume
from medsiam.voxel_net import MULTIPLE, VoxelNet

WEIGHTS = Path(__file__).with_name("brain.safetensors")

SPACING_MM = 3.0

CLASSES = ("not brain", "csf", "grey", "white", "cerebellum and stem")

# A normalised voxel above this is something; the margin is in voxels.
CONTENT_LEVEL = 0.08
CONTENT_MARGIN = 2

# Sizes of the network's input: three halvings, and no axis that vanishes in them.
SMALLEST = 32
LARGEST = 96

# Brain of CT differs by 20 HU in a range of 4000; bone and air may saturate.
CT_WINDOW_HU = (-100.0, 200.0)


@dataclass(frozen=True, eq=False)
class BrainTissue:
    """Which tissue of the brain each voxel holds, and whether to believe it.

    probability  (5, K, J, I) float32 on `grid`, in the order of CLASSES, sums to 1
    grid         3 mm, axes towards Superior, Posterior, Left
    plausible    whether this looks like a head scan with a brain in it
    reason       why not, a plain sentence; empty where plausible
    """

    probability: NDArray[np.float32]
    grid: Grid
    plausible: bool
    reason: str

    @property
    def brain(self) -> NDArray[np.float32]:
        """Probability (K, J, I) of brain: fluid inside it, grey, white, cerebellum and stem."""
        return np.asarray(self.probability[1:].sum(axis=0))

    @property
    def volume_ml(self) -> float:
        """Volume in ml of the voxels that are brain more likely than not."""
        return float((self.brain > 0.5).sum()) * self.grid.voxel_ml


@dataclass(frozen=True)
class GateSettings:
    """What a found brain may look like before it is refused.

    The limits lie between what real heads and what lungs, boxes, balls and noise gave;
    docs/model-card-brain.md has the figures of both.

    volume_ml   a part of a brain, and a whole large one
    one_piece   least share of what was found that hangs together
    confidence  least mean probability of brain within the mask
    fringe      most voxels of probability 0.2 to 0.8, in units of the mask
    grey        least share of the mask that is grey matter more than anything else
    fluid       likewise of fluid: a ball has none
    """

    volume_ml: tuple[float, float] = (150.0, 2400.0)
    one_piece: float = 0.9
    confidence: float = 0.82
    fringe: float = 0.62
    grey: float = 0.22
    fluid: float = 0.001


@dataclass(frozen=True)
class _Signs:
    """The figures that the gate looks at, named as in GateSettings."""

    volume_ml: float
    one_piece: float
    confidence: float
    fringe: float
    grey: float
    fluid: float


def segment_brain(volume: Volume, gate: GateSettings | None = None) -> BrainTissue:
    """Where the brain is in a head scan; not plausible where there seems to be none.

    Any contrast, position and slice thickness. The same scan gives the same answer.
    Raises WeightsRefused where the shipped weights are damaged.
    """
    image, grid = prepared(volume)
    found = _classified(image)
    probability = _tidied(found)
    reason = _doubt(_signs(found, probability, grid), gate or GateSettings())
    probability.flags.writeable = False
    return BrainTissue(probability, grid, not reason, reason)


@lru_cache(maxsize=1)
def load_brain_net() -> BrainNet:
    """The shipped network, ready to run.

    Raises WeightsRefused where the file does not have the digest recorded beside it.
    """
    try:
        data = WEIGHTS.read_bytes()
        recorded = WEIGHTS.with_suffix(".sha256").read_text(encoding="ascii").split()[0]
    except (OSError, IndexError) as error:
        raise WeightsRefused(
            f"the brain network's weights cannot be read ({error}); reinstall medsiam"
        ) from error
    digest = hashlib.sha256(data).hexdigest()
    if digest != recorded:
        raise WeightsRefused(
            f"{WEIGHTS.name} has SHA-256 {digest[:12]}…, recorded is {recorded[:12]}…; reinstall medsiam"
        )
    net = BrainNet()
    try:
        net.load_state_dict({name: value.float() for name, value in load(data).items()})
    except RuntimeError as error:
        raise WeightsRefused(f"{WEIGHTS.name} does not fit this network; reinstall medsiam") from error
    return net.eval()


def prepared(volume: Volume) -> tuple[torch.Tensor, Grid]:
    """The network's input (K, J, I) 0..1 at 3 mm, cut to what is not background, and its grid."""
    field, grid = _coarse(volume)
    low = float(np.percentile(field.numpy(), 1.0))
    field = (field - low).clamp(min=0.0)
    target = _padded(covering([(grid, np.eye(4))], (SPACING_MM,) * 3))
    image = normalised(sample(field, grid, target, np.eye(4)))
    box = content_box(image)
    return image[box].contiguous(), target.part(box)


def _coarse(volume: Volume) -> tuple[torch.Tensor, Grid]:
    """The image averaged over blocks of at most 3 mm, so that sampling does not alias."""
    array = np.nan_to_num(volume.array, nan=0.0, posinf=0.0, neginf=0.0)
    if volume.acquisition.modality == "CT":
        array = array.clip(*CT_WINDOW_HU)
    block = np.maximum(1, np.floor(SPACING_MM / volume.grid.spacing_mm + 0.01).astype(int))
    block = np.minimum(block, volume.grid.shape)
    return block_means(torch.from_numpy(array), volume.grid, block.tolist(), with_rim=True)


def _padded(grid: Grid) -> Grid:
    """The grid widened on both sides until the network can take it."""
    shape = np.maximum(SMALLEST, np.ceil(np.array(grid.shape) / MULTIPLE).astype(int) * MULTIPLE)
    matrix = grid.world_from_index.copy()
    matrix[:3, 3] = grid.world([-(shape - grid.shape) // 2])[0]
    return Grid((int(shape[0]), int(shape[1]), int(shape[2])), matrix)


def _classified(image: torch.Tensor) -> NDArray[np.float32]:
    """Class probabilities (5, K, J, I), the mean of the image's and of its mirror image's."""
    net = load_brain_net()
    with torch.inference_mode():
        own = net(image[None, None]).softmax(1)
        mirrored = net(image.flip(2)[None, None]).softmax(1).flip(4)
    return np.asarray(((own + mirrored) / 2.0)[0].numpy())


def _tidied(probability: NDArray[np.float32]) -> NDArray[np.float32]:
    """The probabilities with one piece of brain and no holes in it; its soft edge is kept."""
    piece = largest_piece(probability[0] < 0.5)
    filled = ndimage.binary_fill_holes(piece)
    tidy = probability * ndimage.binary_dilation(piece, iterations=2)
    inside = probability[1:].sum(axis=0)
    # What surrounds a hole on all sides is brain: fluid, unless the network says which.
    lift = np.where(filled & (inside <= 0.5), 1.0 - inside, 0.0)
    tidy[1] += lift
    tidy[0] = 1.0 - tidy[1:].sum(axis=0)
    return tidy.clip(0.0, 1.0).astype(np.float32)


def largest_piece(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The largest connected piece of a mask; the mask itself where it is empty."""
    pieces, count = ndimage.label(mask)
    if count == 0:
        return mask
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    return np.asarray(pieces == sizes.argmax())


def _signs(found: NDArray[np.float32], tidy: NDArray[np.float32], grid: Grid) -> _Signs:
    """What the gate looks at, of the classes as found and as tidied."""
    mask, claimed = tidy[0] < 0.5, found[0] < 0.5
    size = max(int(mask.sum()), 1)
    unsure = (found[0] > 0.2) & (found[0] < 0.8)
    likeliest = tidy.argmax(axis=0)[mask]
    return _Signs(
        volume_ml=float(mask.sum()) * grid.voxel_ml,
        one_piece=float((mask & claimed).sum() / max(int(claimed.sum()), 1)),
        confidence=float((1.0 - tidy[0])[mask].sum() / size),
        fringe=float(unsure.sum() / size),
        grey=float((likeliest == 2).sum() / size),
        fluid=float((likeliest == 1).sum() / size),
    )


def _doubt(signs: _Signs, gate: GateSettings) -> str:
    """Why this is no head scan with a brain, or an empty text."""
    low, high = gate.volume_ml
    if not low <= signs.volume_ml <= high:
        return f"{signs.volume_ml:.0f} ml look like brain; {low:.0f} to {high:.0f} ml are expected"
    if signs.one_piece < gate.one_piece:
        return f"what looks like brain lies in pieces: {signs.one_piece:.0%} hang together"
    if signs.confidence < gate.confidence:
        return f"where the brain is stays unsure: mean probability {signs.confidence:.2f}"
    if signs.fringe > gate.fringe:
        return f"the brain has no clear border: unsure voxels are {signs.fringe:.0%} of it"
    if signs.grey < gate.grey:
        return f"{signs.grey:.0%} of the brain would be grey matter; at least {gate.grey:.0%} are expected"
    if signs.fluid < gate.fluid:
        return "no fluid is seen in or around the brain"
    return ""


class BrainNet(VoxelNet):
    """Scores of the five CLASSES for each voxel of a 3 mm image."""

    def __init__(self) -> None:
        super().__init__(len(CLASSES))


def normalised(image: torch.Tensor) -> torch.Tensor:
    """The image with its 1st to 99th percentile taken to 0..1 and clipped there."""
    values = image.reshape(-1)
    ranks = [max(1, round(share * values.numel())) for share in (0.01, 0.99)]
    low, high = (float(values.kthvalue(rank).values) for rank in ranks)
    return ((image - low) / max(high - low, 1e-6)).clamp(0.0, 1.0)


def content_box(image: torch.Tensor, largest: int = LARGEST) -> tuple[slice, slice, slice]:
    """The box (k, j, i) of a normalised image that holds what is not background.

    Sizes are divisible by 8, as the network needs, and between SMALLEST and `largest`;
    so must the image's own sizes be, but for the upper limit.
    """
    soft = functional.avg_pool3d(image[None, None], 3, 1, 1)[0, 0]
    held = (soft > CONTENT_LEVEL).float()
    box = []
    for axis in range(3):
        count = held.sum(dim=[other for other in range(3) if other != axis])
        share = count.cumsum(0) / count.sum().clamp(min=1.0)
        # Single bright voxels in the air, ghosts and frames must not widen the box.
        low, high = int((share < 0.001).sum()), int((share < 0.999).sum())
        size = MULTIPLE * math.ceil((high - low + 1 + 2 * CONTENT_MARGIN) / MULTIPLE)
        size = min(max(size, SMALLEST), largest, image.shape[axis])
        # Of a scan that goes on down to the chest, the upper end has the head.
        middle = (
            high + 1 + CONTENT_MARGIN - size
            if axis == 0 and high - low >= size
            else (low + high + 1 - size) // 2
        )
        start = min(max(0, middle), image.shape[axis] - size)
        box.append(slice(start, start + size))
    return box[0], box[1], box[2]
