"""Weights from a safetensors file: data that cannot run code, checked before it is believed.

    bytes, once -> size and header looked at -> SHA-256 -> tensors, all of them finite

The file is read once, so that what was checked is what is used.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from medsiam.errors import WeightsRefused

# The largest encoder planned has some ten million numbers; a file beyond this is no encoder.
LARGEST_FILE_BYTES = 512 * 2**20

# Names and shapes of a thousand tensors fit in a tenth of this.
LARGEST_HEADER_BYTES = 2**20
MOST_TENSORS = 10_000

PICKLE_ENDINGS = (".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".bin", ".joblib")
# A zip, torch's own format since 1.6, and the first byte of a bare pickle. A header
# length may begin with that byte too; then the ninth byte opens the header.
_ZIP_START, _PICKLE_START, _HEADER_START = b"PK\x03\x04", b"\x80", b"{"


@dataclass(frozen=True, eq=False)
class WeightFile:
    """What a safetensors file holds.

    metadata  text to text, as written
    sha256    digest of the whole file
    """

    tensors: Mapping[str, torch.Tensor]
    metadata: Mapping[str, str]
    sha256: str


def read_weights(path: str | Path, *, expected_sha256: str | None = None) -> WeightFile:
    """The tensors of a file, on the CPU, with its digest.

    Raises WeightsRefused where it is missing, a pickle, too large, malformed,
    of another digest than expected, or holds a number that is not finite.
    """
    path = Path(path)
    data = file_bytes(path)
    _check_no_pickle(data, path)
    check_size(data, path.name)
    sha256 = hashlib.sha256(data).hexdigest()
    if expected_sha256 is not None and sha256 != expected_sha256.lower():
        raise WeightsRefused(
            f"{path.name} has the SHA-256 {sha256[:12]}…, expected was {expected_sha256[:12]}…; "
            "it was changed or damaged; reinstall medsiam, or fetch it again"
        )
    metadata = _metadata(data, path.name)
    try:
        tensors = load(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise WeightsRefused(
            f"{path.name} is no whole safetensors file ({_short(error)}); fetch it again"
        ) from error
    check_finite(tensors, path.name)
    return WeightFile(tensors, metadata, sha256)


def write_weights(path: str | Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> str:
    """The SHA-256 of the file written: all of it, or nothing where writing fails.

    The same tensors give the same bytes where metadata holds one entry: safetensors
    writes several in any order.
    """
    path = Path(path)
    check_finite(tensors, path.name)
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    data = save(whole, metadata=dict(metadata))
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(8)}.new")
    try:
        with fresh.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)
    return hashlib.sha256(data).hexdigest()


def tensors_digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of names, kinds, shapes and values, whatever their order."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        found.update(f"{name}\n{tensor.dtype}\n{tuple(tensor.shape)}\n".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def check_finite(tensors: Mapping[str, torch.Tensor], name: str) -> None:
    """Raises WeightsRefused where a tensor holds a number that is not finite."""
    for key, tensor in tensors.items():
        if not bool(torch.isfinite(tensor.float()).all()):
            raise WeightsRefused(
                f"{name} holds numbers in {key[:64]!r} that are not finite; training failed, train again"
            )


def file_bytes(path: Path) -> bytes:
    """The file's bytes, read once; one more than may be where it is too large, see `check_size`.

    Raises WeightsRefused where it is missing or cannot be read.
    """
    if not path.is_file():
        raise WeightsRefused(f"there is no file {path.name!r} with weights; check the path")
    try:
        with path.open("rb") as file:
            return file.read(LARGEST_FILE_BYTES + 1)
    except OSError as error:
        raise WeightsRefused(f"{path.name} cannot be read ({error.strerror}); check its rights") from error


def check_size(data: bytes, name: str) -> None:
    """Raises WeightsRefused where what was read is larger than any encoder."""
    if len(data) > LARGEST_FILE_BYTES:
        raise WeightsRefused(f"{name} is larger than {LARGEST_FILE_BYTES} bytes; no encoder is")


def _check_no_pickle(data: bytes, path: Path) -> None:
    if path.suffix.lower() in PICKLE_ENDINGS or _looks_pickled(data):
        raise WeightsRefused(
            f"{path.name} is a pickle, which can run code when it is loaded; only safetensors files are "
            "read: write the weights anew as .safetensors on a machine where the file is trusted"
        )


def _looks_pickled(data: bytes) -> bool:
    return data.startswith(_ZIP_START) or (data.startswith(_PICKLE_START) and data[8:9] != _HEADER_START)


def _metadata(data: bytes, name: str) -> dict[str, str]:
    """The text in the header. Raises WeightsRefused where the header cannot be one."""
    header = _header(data, name)
    metadata = header.pop("__metadata__", {})
    is_text = isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values())
    if not is_text or not 1 <= len(header) <= MOST_TENSORS:
        raise WeightsRefused(
            f"{name} holds {len(header)} tensors or metadata that are no text; give an encoder's weights"
        )
    return dict(metadata)


def _header(data: bytes, name: str) -> dict[str, Any]:
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or not 2 <= length <= min(LARGEST_HEADER_BYTES, len(data) - 8):
        raise WeightsRefused(f"{name} is no whole safetensors file ({len(data)} bytes); fetch it again")
    try:
        header = json.loads(data[8 : 8 + length])
    except (ValueError, RecursionError) as error:
        raise WeightsRefused(f"{name} has a damaged safetensors header; fetch it again") from error
    if not isinstance(header, dict):
        raise WeightsRefused(f"{name} has a safetensors header that is no mapping; fetch it again")
    return header


def _short(error: Exception) -> str:
    return re.sub(r"\s+", " ", str(error))[:80]
