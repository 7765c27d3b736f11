"""The dense change head on a pair: what appears and what resolves, voxel by voxel.

    Pair -> halves in typical tissue values -> windows over the tissue -> one network for both
    -> Gaussian blending -> probabilities on the halfway grid

The network was trained on made-up follow-ups alone (docs/training.md) and is antisymmetric
by construction: exchanging the scans exchanges the maps, to the bit.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from medsiam.change.head import ChangeHead, ChangeLogits
from medsiam.change.volumes import box_around
from medsiam.encoding.encoder import EncoderSettings, TwinEncoder
from medsiam.encoding.record import settings_from
from medsiam.errors import WeightsRefused
from medsiam.pairing.values import Pair
from medsiam.weightfile import WeightFile, read_weights, write_weights

WEIGHTS = Path(__file__).with_name("change-3d.safetensors")

# The only key of the file's metadata, and what the network is called in it.
KEY, ARCHITECTURE = "medsiam-change", "twin-dense/1"

# In typical tissue values: no tissue of a brain is brighter, fat and contrast agent may be.
BRIGHTEST = 6.0

# Windows as large as the cubes of the training, since groups are normalised over a window.
WINDOW_VOXELS = 56
# Share of a window that lies in its neighbour; the Gaussian makes little of its border.
OVERLAP = 0.25
# Windows that go through the network at once: more need memory and save no time.
WINDOWS_AT_ONCE = 2

# What surrounds the tissue helps to tell an edge of the brain from a change.
MARGIN_VOXELS = 8

# The network saw voxels of 1.0 to 1.5 mm; lesions look alike in a little more or less.
SPACING_MM = (0.8, 2.0)


# The quantile of a pair's probabilities that counts as certain, and the least it may be:
# where nothing changed the largest probability is no certainty.
HIGHEST, LEAST_PROBABILITY = 0.999, 0.05


@dataclass(frozen=True, eq=False)
class DenseChange:
    """Probabilities 0..1, (K, J, I) float32 on the halfway grid; 0 outside the pair's tissue.

    appearing  that this voxel shows in the current scan what the prior does not
    resolving  that it shows in the prior what the current scan does not
    """

    appearing: NDArray[np.float32]
    resolving: NDArray[np.float32]


class DenseNet(nn.Module):
    """A trunk of its own and the change head. in (B, 2, K, J, I): prior and current, `centred`."""

    def __init__(self, settings: EncoderSettings) -> None:
        super().__init__()
        self.settings = settings
        self.encoder = TwinEncoder(settings)
        self.head = ChangeHead(settings.spatial_dims, settings.channels)

    def forward(self, both: torch.Tensor) -> ChangeLogits:
        """The logits of what appears and of what resolves, (B, 1, K, J, I) each."""
        prior, current = both[:, :1], both[:, 1:]
        pyramid = self.encoder(torch.cat([prior, current])).pyramid
        before, after = zip(*(level.chunk(2) for level in pyramid), strict=True)
        logits: ChangeLogits = self.head((prior, current), (before, after))
        return logits


def centred(values: torch.Tensor) -> torch.Tensor:
    """What the network sees of values in units of typical tissue: 0 is tissue, and what pads."""
    return values.clamp(0.0, BRIGHTEST) - 1.0


def save_dense(network: DenseNet, path: Path, about: Mapping[str, Any]) -> str:
    """The SHA-256 of the file written in half precision, which also goes into its .sha256 neighbour.

    about  what training wants to be remembered, as JSON
    """
    record = {"architecture": ARCHITECTURE, "settings": asdict(network.settings), "about": dict(about)}
    tensors = {name: tensor.half() for name, tensor in network.state_dict().items()}
    sha256 = write_weights(path, tensors, {KEY: json.dumps(record, sort_keys=True, allow_nan=False)})
    path.with_suffix(".sha256").write_text(f"{sha256}  {path.name}\n", encoding="ascii")
    return sha256


def why_no_dense(pair: Pair) -> str:
    """Why the dense change head can tell nothing of this pair, a plain sentence; empty where it can.

    It knows MR of a brain on voxels of SPACING_MM. CT, whose units it never saw, bodies and
    radiographs mean nothing to it.
    """
    if pair.region != "brain":
        return "the dense change head knows brains alone, and none is seen in both scans"
    kinds = sorted({each.acquisition.modality for each in (pair.prior, pair.current)} - {"", "MR"})
    if kinds:
        return f"the dense change head knows MR alone, and this is {', '.join(kinds)}"
    spacing_mm = float(pair.grid.spacing_mm.max())
    if not SPACING_MM[0] <= spacing_mm <= SPACING_MM[1]:
        return (
            f"the pair lies on voxels of {spacing_mm:.1f} mm, the dense change head knows "
            f"{SPACING_MM[0]} to {SPACING_MM[1]} mm"
        )
    return ""


def dense_change(pair: Pair, device: torch.device, *, network: DenseNet | None = None) -> DenseChange:
    """What appears and what resolves in a pair, by the shipped network.

    network  another one, as in a test

    Raises WeightsRefused where the shipped weights are damaged, ValueError where
    `why_no_dense` has a reason.
    """
    reason = why_no_dense(pair)
    if reason:
        raise ValueError(reason)
    maps = np.zeros((2, *pair.grid.shape), dtype=np.float32)
    if pair.tissue.any():
        box = box_around(pair.tissue, MARGIN_VOXELS, flat=False)
        found = _blended((network or load_dense()).to(device), _input(pair, box).to(device))
        maps[(slice(None), *box)] = found.cpu().numpy() * pair.tissue[box]
    maps.flags.writeable = False
    return DenseChange(appearing=maps[0], resolving=maps[1])


def agreement(
    found: DenseChange, evidence: NDArray[np.float32], tissue: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """What the evidence of a pair is multiplied by where the head is asked too: (K, J, I), 0..1.

    The square root of the head's probability for the evidence's own direction, over the highest
    that it gives this pair. Its probabilities rank well and are too low on real lesions, so only
    their order is used. Exchanging the scans changes nothing here.
    """
    if not tissue.any():
        return np.ones_like(evidence)
    strongest = float(np.quantile(np.maximum(found.appearing, found.resolving)[tissue], HIGHEST))
    told = np.where(evidence > 0.0, found.appearing, found.resolving)
    return np.sqrt(np.clip(told / max(strongest, LEAST_PROBABILITY), 0.0, 1.0)).astype(np.float32)


def _input(pair: Pair, box: tuple[slice, ...]) -> torch.Tensor:
    """(1, 3, k, j, i): both halves as the network sees them, and where the tissue is."""
    halves = [centred(torch.tensor(half[box])) for half in (pair.prior_half, pair.current_half)]
    return torch.stack([*halves, torch.tensor(pair.tissue[box], dtype=torch.float32)])[None]


def _blended(network: DenseNet, images: torch.Tensor) -> torch.Tensor:
    """Probabilities (2, k, j, i), window by window."""
    # monai takes seconds to import, which a refusal or a help text need not wait for.
    from monai.inferers import sliding_window_inference

    def probabilities(windows: torch.Tensor) -> torch.Tensor:
        out = torch.zeros_like(windows[:, :2])
        # A window without tissue has nothing to tell.
        held = windows[:, 2].flatten(1).any(dim=1)
        if bool(held.any()):
            out[held] = torch.cat(network(windows[held, :2]), dim=1).float().sigmoid()
        return out

    with torch.inference_mode():
        told = sliding_window_inference(
            images, (WINDOW_VOXELS,) * 3, WINDOWS_AT_ONCE, probabilities, overlap=OVERLAP, mode="gaussian"
        )
    assert isinstance(told, torch.Tensor)
    return told[0]


@lru_cache(maxsize=1)
def load_dense(path: Path = WEIGHTS) -> DenseNet:
    """The network of a file, ready to run, float32 on the CPU; the shipped one where none is named.

    Raises WeightsRefused where the file is missing, damaged, of another architecture, or not
    of the digest recorded beside it.
    """
    file = read_weights(path, expected_sha256=_recorded_digest(path))
    network = DenseNet(_settings_of(file, path.name))
    try:
        network.load_state_dict({name: tensor.float() for name, tensor in file.tensors.items()})
    except RuntimeError as error:
        raise WeightsRefused(
            f"{path.name} does not fit the network that it records; reinstall medsiam"
        ) from error
    return network.eval().requires_grad_(False)


def _recorded_digest(path: Path) -> str:
    try:
        return path.with_suffix(".sha256").read_text(encoding="ascii").split()[0]
    except (OSError, IndexError, UnicodeDecodeError) as error:
        raise WeightsRefused(f"the digest of {path.name} cannot be read; reinstall medsiam") from error


def _settings_of(file: WeightFile, shown: str) -> EncoderSettings:
    try:
        record = json.loads(file.metadata[KEY])
        if record["architecture"] != ARCHITECTURE:
            raise ValueError("another architecture")
        return settings_from(record["settings"])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise WeightsRefused(
            f"{shown} records no network of the architecture {ARCHITECTURE!r}; reinstall medsiam"
        ) from error


def dense_weights_sha256() -> str:
    """The digest of the shipped network, as its loader checks it."""
    return WEIGHTS.with_suffix(".sha256").read_text(encoding="ascii").split()[0]
