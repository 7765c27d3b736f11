"""What a weight file says of its encoder, and the encoder made of it: all of it fits, or nothing is made.

    network -> tensors and record;   tensors and record -> checked -> network

The record holds the architecture, the name and the digest of the tensors. The network
is built without numbers and filled from the file, so that an encoder with random
weights cannot come from here.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Mapping
from typing import Any

import torch

from medsiam.encoding.encoder import Encoder, EncoderSettings, SamePatient, TwinEncoder
from medsiam.encoding.preparation import PreparationSettings
from medsiam.errors import WeightsRefused
from medsiam.weightfile import WeightFile, tensors_digest

# Changes with every change of the network that old weights would not fit.
ARCHITECTURE = "twin-pyramid/2"

# The only key in a file's metadata: with several, the bytes would differ from run to run.
KEY = "medsiam-encoder"

ID_DIGITS = 12

# Of the record's other entries; files of earlier versions, and those that people write, lack it.
OWN_DIGEST = "record_sha256"
ENTRIES = {"architecture", "name", "settings", "tensors_sha256", "about", OWN_DIGEST}

# What the record tells "about" the curve from distance to probability.
SAME_PATIENT = "same_patient"

# Half of the bytes, and an embedding that is the same to four digits; bfloat16 would
# keep two, and whole numbers none.
STORED_KINDS = (torch.float32, torch.float16)

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


def is_name(text: str) -> bool:
    """Whether an encoder may be called this."""
    return _NAME.fullmatch(text) is not None


def recorded(
    network: TwinEncoder, name: str, about: Mapping[str, Any], *, half: bool = False
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The tensors as they are stored, and the record that goes with them.

    half  stores float16; the record's digest is of what is stored
    """
    kind = torch.float16 if half else torch.float32
    tensors = {key: tensor.detach().cpu().to(kind) for key, tensor in network.state_dict().items()}
    record = {
        "architecture": ARCHITECTURE,
        "name": name,
        "settings": dataclasses.asdict(network.settings),
        "tensors_sha256": tensors_digest(tensors),
        "about": dict(about),
    }
    return tensors, record


def sealed(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record with the digest of all its entries."""
    return {**record, OWN_DIGEST: _digest_of(record)}


def encoder_from(file: WeightFile, shown: str) -> Encoder:
    """The encoder that a file holds, float32 and ready to encode, on the CPU.

    shown  what to call the file in a refusal

    Raises WeightsRefused where the record is missing or damaged, of another
    architecture, or does not fit the tensors.
    """
    name, settings, same_patient = _described(file, shown)
    network = _filled(settings, file, shown).eval().requires_grad_(False)
    return Encoder(network, f"{name}@{file.sha256[:ID_DIGITS]}", file.sha256, same_patient)


def settings_from(told: Mapping[str, Any]) -> EncoderSettings:
    """The settings of a record. Raises ValueError, TypeError or KeyError where they are not plain."""
    size, spacing = told["preparation"]["size_voxels"], told["preparation"]["spacing_mm"]
    names = ("spatial_dims", "embedding_size", "norm_groups", "summary_cells")
    # Files of earlier versions lack the last ones.
    fresh = {name: told.get(name, default) for name, default in (("trunk_voxels", 0), ("likeness", 4))}
    whole = {name: told[name] for name in names} | fresh
    if any(type(number) is not int for number in (*whole.values(), *told["channels"], size)):
        raise TypeError("a setting is no whole number")
    if any(type(number) not in (int, float) for number in (spacing, *told["shares"])):
        raise TypeError("the spacing or a share is no number")
    by_lungs = told["preparation"].get("by_lungs", False)
    switches = {name: told.get(name, False) for name in ("tissues", "edges")}
    if any(type(switch) is not bool for switch in (*switches.values(), by_lungs)):
        raise TypeError("a switch is neither true nor false")
    return EncoderSettings(
        **whole,
        channels=tuple(told["channels"]),
        shares=tuple(map(float, told["shares"])),
        **switches,
        preparation=PreparationSettings(size_voxels=size, spacing_mm=float(spacing), by_lungs=by_lungs),
    )


def _same_patient(about: Mapping[str, Any]) -> SamePatient | None:
    """What was measured after training. Raises ValueError, TypeError or KeyError where it is not plain."""
    told = about.get(SAME_PATIENT)
    if told is None:
        return None
    numbers = float(told["even_at"]), float(told["steepness"])
    if not all(map(math.isfinite, numbers)) or numbers[1] <= 0.0:
        raise ValueError("the curve does not fall")
    return SamePatient(*numbers, str(told["region"]))


def _described(file: WeightFile, shown: str) -> tuple[str, EncoderSettings, SamePatient | None]:
    """Name and architecture as recorded. Raises WeightsRefused where they are not, or not this one."""
    if KEY not in file.metadata:
        raise WeightsRefused(
            f"{shown} does not record an encoder ({KEY!r} is missing), so its architecture is not known; "
            "give an encoder's weights"
        )
    try:
        record = json.loads(file.metadata[KEY])
        architecture, called = str(record["architecture"]), str(record["name"])
        digest = str(record["tensors_sha256"])
        _check_record(record)
        settings = settings_from(record["settings"]) if architecture == ARCHITECTURE else None
        same_patient = _same_patient(record.get("about", {}))
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise WeightsRefused(f"{shown} has a damaged record of its architecture; fetch it again") from error
    if settings is None:
        raise WeightsRefused(
            f"{shown} holds the architecture {architecture[:40]!r}, this version has {ARCHITECTURE!r}; "
            "train again, or use the version that wrote it"
        )
    if not is_name(called) or digest != tensors_digest(file.tensors):
        raise WeightsRefused(
            f"{shown} does not match the digest recorded in it; it was changed, fetch it again"
        )
    return called, settings, same_patient


def _check_record(record: Mapping[str, Any]) -> None:
    """Raises ValueError where an entry is not as it was written, or none that is written."""
    others = {key: value for key, value in record.items() if key != OWN_DIGEST}
    if not set(record) <= ENTRIES or record.get(OWN_DIGEST) not in (None, _digest_of(others)):
        raise ValueError("the record was changed")


def _digest_of(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _filled(settings: EncoderSettings, file: WeightFile, shown: str) -> TwinEncoder:
    """The network with the file's tensors. Raises WeightsRefused where they are not exactly its own."""
    # On "meta" a network has shapes but no numbers: what the file lacks cannot be made up.
    with torch.device("meta"):
        network = TwinEncoder(settings)
    wanted = network.state_dict()
    missing, extra = sorted(set(wanted) - set(file.tensors)), sorted(set(file.tensors) - set(wanted))
    if missing or extra:
        raise WeightsRefused(
            f"{shown} lacks {len(missing)} tensors and has {len(extra)} too many "
            f"(first: {(missing + extra)[0][:64]!r}); give the whole weights of one encoder"
        )
    for key, tensor in wanted.items():
        found = file.tensors[key]
        if found.shape != tensor.shape or found.dtype not in STORED_KINDS:
            raise WeightsRefused(
                f"{shown} holds {key!r} as {found.dtype} of {tuple(found.shape)}, the architecture needs "
                f"{tensor.dtype} of {tuple(tensor.shape)}, or its half; give weights of this architecture"
            )
    network.load_state_dict({key: tensor.float() for key, tensor in file.tensors.items()}, assign=True)
    return network
