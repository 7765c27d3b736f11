"""An encoder from a weight file, and back: no pickle, no other architecture, never by chance.

The file is safetensors. Its one metadata entry records the architecture, the name and
the digest of the tensors; the network is built without numbers and filled from the
file, so that an encoder with random weights cannot come from here.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from medsiam.encoding.encoder import Encoder, EncoderSettings, TwinEncoder
from medsiam.encoding.preparation import PreparationSettings
from medsiam.errors import ConfigRefused, WeightsRefused
from medsiam.weightfile import WeightFile, read_weights, tensors_digest, write_weights

# Changes with every change of the network that old weights would not fit.
ARCHITECTURE = "twin-pyramid/1"

# The only key in the file's metadata: with several, the bytes would differ from run to run.
KEY = "medsiam-encoder"

ID_DIGITS = 12

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


@dataclasses.dataclass(frozen=True)
class Shipped:
    """Weights that come with the package: the file beside this module and its digest."""

    file: str
    sha256: str
    spatial_dims: int


# None yet: an entry here needs a model card and figures on the public scoreboard.
SHIPPED: Mapping[str, Shipped] = {}

_NONE_SHIPPED = (
    "no trained weights ship with this version{which}; train with `medsiam train` or pass --weights FILE"
)


def load_encoder(
    name_or_file: str | Path | None = None,
    *,
    spatial_dims: int | None = None,
    device: str | torch.device = "cpu",
) -> Encoder:
    """The encoder of a weight file, or of a name of shipped weights, or the shipped one.

    spatial_dims  2 for radiographs, 3 for volumes; None takes what the file holds

    Raises WeightsRefused where no weights ship, or the file is no safetensors file,
    of another architecture, incomplete, damaged, or for other dimensions.
    """
    path, expected = _resolved(name_or_file, spatial_dims)
    file = read_weights(path, expected_sha256=expected)
    name, settings = _described(file, path.name)
    if spatial_dims is not None and settings.spatial_dims != spatial_dims:
        raise WeightsRefused(
            f"{path.name} is an encoder of {settings.spatial_dims} dimensions, {spatial_dims} are needed; "
            "give weights trained on scans of this kind"
        )
    network = _filled(settings, file, path.name).to(_device(device)).eval().requires_grad_(False)
    return Encoder(network, f"{name}@{file.sha256[:ID_DIGITS]}", file.sha256)


def save_encoder(encoder: Encoder | TwinEncoder, path: str | Path, *, metadata: Mapping[str, Any]) -> str:
    """The id of the encoder as stored. Written whole or not at all, replacing what was there.

    metadata  what training wants to be remembered, as JSON; "name" becomes the
              encoder's name, the file's own name where it is not given

    Raises WeightsRefused where a number is not finite or the name cannot be one.
    """
    path = Path(path)
    network = encoder.network if isinstance(encoder, Encoder) else encoder
    name = str(metadata.get("name", path.stem))
    if path.suffix != ".safetensors" or not _NAME.fullmatch(name):
        raise WeightsRefused(
            f"{path.name!r} named {name[:64]!r} is no place for weights; "
            "end it in .safetensors, and name it with small letters, digits, dots and dashes"
        )
    tensors = network.state_dict()
    record = {
        "architecture": ARCHITECTURE,
        "name": name,
        "settings": dataclasses.asdict(network.settings),
        "tensors_sha256": tensors_digest(tensors),
        "about": {key: value for key, value in metadata.items() if key != "name"},
    }
    sha256 = write_weights(path, tensors, {KEY: json.dumps(record, sort_keys=True, allow_nan=False)})
    return f"{name}@{sha256[:ID_DIGITS]}"


def _resolved(name_or_file: str | Path | None, spatial_dims: int | None) -> tuple[Path, str | None]:
    """The file that is meant, and its digest where it is a shipped one."""
    if name_or_file is None:
        fitting = [each for each in SHIPPED.values() if spatial_dims in (None, each.spatial_dims)]
        if not fitting:
            raise WeightsRefused(_NONE_SHIPPED.format(which=""))
        return Path(__file__).parent / fitting[0].file, fitting[0].sha256
    if str(name_or_file) in SHIPPED:
        shipped = SHIPPED[str(name_or_file)]
        return Path(__file__).parent / shipped.file, shipped.sha256
    path = Path(name_or_file)
    if _NAME.fullmatch(str(name_or_file)) and not path.suffix and not path.exists():
        raise WeightsRefused(_NONE_SHIPPED.format(which=f" under the name {str(name_or_file)!r}"))
    return path, None


def _described(file: WeightFile, name: str) -> tuple[str, EncoderSettings]:
    """Name and architecture as recorded. Raises WeightsRefused where they are not, or not this one."""
    if KEY not in file.metadata:
        raise WeightsRefused(
            f"{name} does not record an encoder ({KEY!r} is missing); give an encoder's weights"
        )
    try:
        record = json.loads(file.metadata[KEY])
        architecture, called = str(record["architecture"]), str(record["name"])
        digest = str(record["tensors_sha256"])
        settings = _settings(record["settings"]) if architecture == ARCHITECTURE else None
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise WeightsRefused(f"{name} has a damaged record of its architecture; fetch it again") from error
    if settings is None:
        raise WeightsRefused(
            f"{name} holds the architecture {architecture[:40]!r}, this version has {ARCHITECTURE!r}; "
            "train again, or use the version that wrote it"
        )
    if not _NAME.fullmatch(called) or digest != tensors_digest(file.tensors):
        raise WeightsRefused(
            f"{name} does not match the digest recorded in it; it was changed, fetch it again"
        )
    return called, settings


def _settings(told: Mapping[str, Any]) -> EncoderSettings:
    """The recorded settings. Raises ValueError, TypeError or KeyError where they are not plain."""
    size, spacing = told["preparation"]["size_voxels"], told["preparation"]["spacing_mm"]
    whole = (told["spatial_dims"], *told["channels"], told["embedding_size"], told["norm_groups"], size)
    if any(type(number) is not int for number in whole) or type(spacing) not in (int, float):
        raise TypeError("a setting is no plain number")
    return EncoderSettings(
        spatial_dims=told["spatial_dims"],
        channels=tuple(told["channels"]),
        embedding_size=told["embedding_size"],
        norm_groups=told["norm_groups"],
        preparation=PreparationSettings(size_voxels=size, spacing_mm=float(spacing)),
    )


def _filled(settings: EncoderSettings, file: WeightFile, name: str) -> TwinEncoder:
    """The network with the file's tensors. Raises WeightsRefused where they are not exactly its own."""
    # On "meta" a network has shapes but no numbers: what the file lacks cannot be made up.
    with torch.device("meta"):
        network = TwinEncoder(settings)
    wanted = network.state_dict()
    missing, extra = sorted(set(wanted) - set(file.tensors)), sorted(set(file.tensors) - set(wanted))
    if missing or extra:
        raise WeightsRefused(
            f"{name} lacks {len(missing)} tensors and has {len(extra)} too many "
            f"(first: {(missing + extra)[0][:64]!r}); give the whole weights of one encoder"
        )
    for key, tensor in wanted.items():
        found = file.tensors[key]
        if found.shape != tensor.shape or found.dtype != tensor.dtype:
            raise WeightsRefused(
                f"{name} holds {key!r} as {found.dtype} of {tuple(found.shape)}, the architecture needs "
                f"{tensor.dtype} of {tuple(tensor.shape)}; give weights of this architecture"
            )
    network.load_state_dict(dict(file.tensors), assign=True)
    return network


def _device(device: str | torch.device) -> torch.device:
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise ConfigRefused(f"there is no device {str(device)[:40]!r}; use cpu, cuda or cuda:N") from error
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise ConfigRefused(f"device {found} is not there ({torch.cuda.device_count()} GPUs); use cpu")
    return found
