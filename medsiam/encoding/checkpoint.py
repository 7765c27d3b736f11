"""Tensors from a torch checkpoint: numbers only, no code, and no more of them than an encoder has.

    bytes, once -> size and archive looked at -> weights_only load -> plain dense tensors

A pickle is a program. torch.load(weights_only=True) runs none of it but the making of
tensors; what that still lets through (views larger than their numbers, other layouts,
compressed members) is refused here.
"""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from medsiam.encoding.record import KEY, STORED_KINDS
from medsiam.errors import WeightsRefused
from medsiam.weightfile import (
    LARGEST_FILE_BYTES,
    MOST_TENSORS,
    WeightFile,
    check_finite,
    check_size,
    file_bytes,
    tensors_digest,
)

ENDINGS = (".pt", ".pth")

# Where the tensors stand in a checkpoint that also holds a record.
STATE = "state_dict"

# Names and shapes of a thousand tensors take a tenth of this; the numbers stand apart.
LARGEST_PROGRAM_BYTES = 2**20

# What the restricted unpickler was seen to raise, or may by its opcodes, on a damaged or
# hostile file. Its own refusal is the first.
UNPICKLING_ERRORS = (
    pickle.UnpicklingError, RuntimeError, ValueError, TypeError, KeyError, IndexError,
    AttributeError, EOFError, OverflowError, AssertionError,
)  # fmt: skip


def read_checkpoint(path: str | Path) -> WeightFile:
    """The tensors of a .pt or .pth file, on the CPU, its record and its digest.

    A state_dict has no record, so `metadata` is empty; a checkpoint has one:
    {"medsiam-encoder": record, "state_dict": tensors}. Where the record names no
    digest of the tensors, theirs is put in.

    Raises WeightsRefused where the file is missing, too large, damaged, holds
    anything but tensors, or a number that is not finite.
    """
    path = Path(path)
    data = file_bytes(path)
    check_size(data, path.name)
    _check_archive(data, path.name)
    try:
        content = torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
    except UNPICKLING_ERRORS as error:
        raise WeightsRefused(
            f"{path.name} is a pickle that holds more than tensors, or a damaged one ({_short(error)}); it "
            "was not run: write the weights anew as .safetensors on a machine where the file is trusted"
        ) from error
    tensors, record = _parts(content)
    _check_tensors(tensors, path.name)
    metadata = {} if record is None else {KEY: with_digest(record, tensors)}
    return WeightFile(tensors, metadata, hashlib.sha256(data).hexdigest())


def with_digest(record: Any, tensors: Mapping[str, torch.Tensor]) -> str:
    """The record as JSON, with the digest of these tensors where it names none."""
    if isinstance(record, str):
        return record
    try:
        return json.dumps({"tensors_sha256": tensors_digest(tensors)} | dict(record))
    except (TypeError, ValueError, RecursionError):
        # No record of ours: an empty one is refused by its reader, with the file's name.
        return "{}"


def _check_archive(data: bytes, shown: str) -> None:
    """Raises WeightsRefused unless this is torch's own archive, unpacked as it stands."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            infos = archive.infolist()
    except (zipfile.BadZipFile, ValueError, EOFError, OSError) as error:
        raise WeightsRefused(
            f"{shown} is a bare pickle or a damaged file, which can run code when it is loaded; write the "
            "weights anew as .safetensors on a machine where the file is trusted"
        ) from error
    programs = [info.file_size for info in infos if info.filename.endswith(".pkl")]
    # torch never compresses; what is compressed may grow a thousandfold.
    if sum(info.file_size for info in infos) > len(data) or sum(programs) > LARGEST_PROGRAM_BYTES:
        raise WeightsRefused(
            f"{shown} is a pickle that unpacks to more than it holds; write the weights anew as .safetensors"
        )


def _parts(content: Any) -> tuple[Mapping[str, Any], Any]:
    """Tensors and record of what a checkpoint held; no tensors where it is something else."""
    if not isinstance(content, Mapping):
        return {}, None
    if KEY not in content:
        return content, None
    tensors = content.get(STATE)
    return (tensors if isinstance(tensors, Mapping) else {}), content[KEY]


def _check_tensors(tensors: Mapping[str, Any], shown: str) -> None:
    """Raises WeightsRefused unless all are plain tensors, together no larger than a file may be."""
    if not 1 <= len(tensors) <= MOST_TENSORS:
        raise WeightsRefused(f"{shown} holds {len(tensors)} tensors; give the state_dict of one encoder")
    for key, tensor in tensors.items():
        if type(key) is not str or not _is_plain(tensor):
            raise WeightsRefused(
                f"{shown} holds {str(key)[:64]!r}, which is no plain float32 or float16 tensor; "
                "give the state_dict of one encoder"
            )
    # A view of one number can have any shape: the checks that follow would fill the memory.
    if sum(tensor.nbytes for tensor in tensors.values()) > LARGEST_FILE_BYTES:
        raise WeightsRefused(f"{shown} holds the same numbers many times over; give one encoder's state_dict")
    check_finite(tensors, shown)


def _is_plain(tensor: Any) -> bool:
    # A Parameter is a tensor as well.
    return (
        type(tensor) in (torch.Tensor, torch.nn.Parameter)
        and tensor.layout == torch.strided
        and tensor.device.type == "cpu"
        and tensor.dtype in STORED_KINDS
    )


def _short(error: Exception) -> str:
    return re.sub(r"\s+", " ", str(error))[:80]
