"""An encoder from a weight file, a bundle or a name, and back to a file.

    safetensors file | MONAI bundle | checkpoint of tensors | shipped name -> Encoder

No code that a file holds is run, no other architecture is taken, and no number is made up.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from medsiam.encoding.bundle import load_bundle
from medsiam.encoding.checkpoint import ENDINGS, read_checkpoint
from medsiam.encoding.encoder import Encoder, TwinEncoder
from medsiam.encoding.record import ID_DIGITS, KEY, encoder_from, is_name, recorded, sealed
from medsiam.errors import ConfigRefused, WeightsRefused
from medsiam.weightfile import read_weights, write_weights

# The files of SHIPPED lie here, each beside its digest.
SHIPPED_FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Shipped:
    """Weights that come with the package: a file, and its digest in a neighbour that ends in .sha256."""

    file: str
    spatial_dims: int

    @property
    def path(self) -> Path:
        """Where the file lies."""
        return SHIPPED_FOLDER / self.file

    @property
    def sha256(self) -> str:
        """The digest recorded beside the file. Raises WeightsRefused where there is none."""
        try:
            return self.path.with_suffix(".sha256").read_text(encoding="ascii").split()[0]
        except (OSError, IndexError, UnicodeDecodeError) as error:
            raise WeightsRefused(
                f"the digest of the shipped {self.file} cannot be read; reinstall medsiam"
            ) from error


# The first that fits is taken where no name is given. A name whose file is not there is
# not shipped: a file here needs a model card and figures on the public scoreboard.
SHIPPED: Mapping[str, Shipped] = {
    "mr-ct-3d": Shipped("mr-ct-3d.safetensors", 3),
    "radiograph-2d": Shipped("radiograph-2d.safetensors", 2),
}

_NONE_SHIPPED = (
    "no trained weights ship with this version{which}; train with `medsiam train` or pass --weights FILE"
)


def load_encoder(
    name_or_file: str | Path | None = None,
    *,
    spatial_dims: int | None = None,
    device: str | torch.device = "cpu",
) -> Encoder:
    """The encoder of a file or bundle, or of a name of shipped weights, or the shipped one.

    A file is .safetensors as `save_encoder` writes it, a folder or .zip that is a MONAI
    bundle of this encoder (see `load_bundle`), or a .pt or .pth checkpoint that holds
    {"medsiam-encoder": record, "state_dict": tensors} (see `read_checkpoint`).

    spatial_dims  2 for radiographs, 3 for volumes; None takes what the file holds

    Raises WeightsRefused where no weights ship, or the file holds code, is of another
    architecture, incomplete, damaged, or for other dimensions.
    """
    path, expected = _resolved(name_or_file, spatial_dims)
    encoder = _read(path, expected)
    if spatial_dims is not None and encoder.settings.spatial_dims != spatial_dims:
        raise WeightsRefused(
            f"{path.name} is an encoder of {encoder.settings.spatial_dims} dimensions, {spatial_dims} are "
            "needed; give weights trained on scans of this kind"
        )
    encoder.network.to(device_of(device))
    return encoder


@lru_cache(maxsize=4)
def warm_encoder(weights: str | None, spatial_dims: int, device: str) -> Encoder:
    """One encoder for many scans of a process, as load_encoder gives it the first time."""
    return load_encoder(weights, spatial_dims=spatial_dims, device=device)


def save_encoder(
    encoder: Encoder | TwinEncoder, path: str | Path, *, metadata: Mapping[str, Any], half: bool = False
) -> str:
    """The id of the encoder as stored. Written whole or not at all, replacing what was there.

    metadata  what training wants to be remembered, as JSON; "name" becomes the
              encoder's name, the file's own name where it is not given
    half      stores float16, half the bytes; what is loaded is float32 again

    Raises WeightsRefused where a number is not finite or the name cannot be one.
    """
    path = Path(path)
    network = encoder.network if isinstance(encoder, Encoder) else encoder
    name = str(metadata.get("name", path.stem))
    if path.suffix != ".safetensors" or not is_name(name):
        raise WeightsRefused(
            f"{path.name!r} named {name[:64]!r} is no place for weights; "
            "end it in .safetensors, and name it with small letters, digits, dots and dashes"
        )
    about = {key: value for key, value in metadata.items() if key != "name"}
    tensors, record = recorded(network, name, about, half=half)
    sha256 = write_weights(path, tensors, {KEY: json.dumps(sealed(record), sort_keys=True, allow_nan=False)})
    return f"{name}@{sha256[:ID_DIGITS]}"


def _resolved(name_or_file: str | Path | None, spatial_dims: int | None) -> tuple[Path, str | None]:
    """The file that is meant, and its digest where it is a shipped one."""
    there = {name: each for name, each in SHIPPED.items() if each.path.is_file()}
    if name_or_file is None:
        fitting = [each for each in there.values() if spatial_dims in (None, each.spatial_dims)]
        if not fitting:
            raise WeightsRefused(_NONE_SHIPPED.format(which=""))
        return fitting[0].path, fitting[0].sha256
    if str(name_or_file) in there:
        shipped = there[str(name_or_file)]
        return shipped.path, shipped.sha256
    path = Path(name_or_file)
    if is_name(str(name_or_file)) and not path.suffix and not path.exists():
        raise WeightsRefused(_NONE_SHIPPED.format(which=f" under the name {str(name_or_file)!r}"))
    return path, None


def _read(path: Path, expected_sha256: str | None) -> Encoder:
    try:
        is_bundle = path.is_dir() or path.suffix.lower() == ".zip"
    except OSError as error:
        raise WeightsRefused(
            f"{path.name[:80]!r} is no name of a file with weights; check the path"
        ) from error
    if is_bundle:
        return load_bundle(path)
    if path.suffix.lower() in ENDINGS:
        return encoder_from(read_checkpoint(path), f"{path.name} (a pickle)")
    return encoder_from(read_weights(path, expected_sha256=expected_sha256), path.name)


def device_of(device: str | torch.device) -> torch.device:
    """The device of a name. Raises ConfigRefused where there is none, or that GPU is not there."""
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise ConfigRefused(f"there is no device {str(device)[:40]!r}; use cpu, cuda or cuda:N") from error
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise ConfigRefused(f"device {found} is not there ({torch.cuda.device_count()} GPUs); use cpu")
    return found
