"""An encoder as a MONAI bundle, and back: MONAI may run what is written here, nothing read here is run.

    Encoder -> configs/metadata.json, configs/inference.json, models/model.safetensors,
               models/model.pt, docs/README.md, LICENSE
    folder or zip -> configs read as plain data -> weights and record checked -> Encoder

A bundle's configuration is a program: MONAI's ConfigParser evaluates every text that
begins with "$" and calls every "_target_". A bundle from outside is therefore never
given to it, and one that holds more than ours is refused with the key.

Layout and fields: MONAI Bundle Specification, docs.monai.io/en/stable/mb_specification.html
"""

from __future__ import annotations

import dataclasses
import errno
import json
import secrets
import shutil
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml

from medsiam import __version__
from medsiam.encoding.checkpoint import read_checkpoint, with_digest
from medsiam.encoding.encoder import Encoder, EncoderSettings
from medsiam.encoding.record import ID_DIGITS, KEY, encoder_from, is_name, recorded
from medsiam.errors import MedsiamError, ResourceExhausted, WeightsRefused
from medsiam.weightfile import LARGEST_FILE_BYTES, WeightFile, read_weights, tensors_digest, write_weights

METADATA = "configs/metadata.json"
INFERENCE = "configs/inference.json"
WEIGHTS = "models/model.safetensors"
CHECKPOINT = "models/model.pt"
README = "docs/README.md"
LICENSE = "LICENSE"

# All that is ever read of a bundle; an inference config may be any one of its three.
CONFIGS = (METADATA, INFERENCE, "configs/inference.yaml", "configs/inference.yml")
READ = (*CONFIGS, WEIGHTS, CHECKPOINT)

# The key of our record in metadata.json, where MONAI lets anyone add keys.
SECTION = "medsiam"

# The only calls that a bundle of ours asks MONAI for, and where they stand.
TARGETS = {
    "network_def._target_": "medsiam.encoding.encoder.TwinEncoder",
    "network_def.settings._target_": "medsiam.encoding.record.settings_from",
}

# MONAI evaluates what begins with the first, and puts another file in place of the second.
EXPRESSION_SIGNS = ("$", "%")

# Configs of the model zoo have some twenty kilobytes.
LARGEST_CONFIG_BYTES = 256 * 2**10
DEEPEST_NESTING = 32
MOST_MEMBERS = 1000

SCHEMA = (
    "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
)
RESEARCH_ONLY = "Research use only. Not a medical device."

# The disk, or the share of it that one may use.
FULL = (errno.ENOSPC, errno.EDQUOT)

# What zipfile raises on a damaged, locked or foreign archive.
ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError, ValueError)


def export_bundle(encoder: Encoder, folder: str | Path) -> str:
    """The id of the encoder as stored in a new MONAI bundle. The folder is written whole or not at all.

    MONAI's users load it by `monai.bundle.load`, ours by `load_encoder(folder)`.

    Raises WeightsRefused where the folder holds something or cannot be written, or
    a number is not finite; ResourceExhausted where the disk is full.
    """
    folder = Path(folder).absolute()
    name = encoder.encoder_id.partition("@")[0]
    if not is_name(name):
        raise WeightsRefused(
            f"an encoder named {name[:64]!r} cannot be stored; name it with small letters, digits and dashes"
        )
    stage = folder.parent / f".{folder.name}.{secrets.token_hex(8)}.new"
    try:
        _refuse_taken(folder)
        stage.mkdir(parents=True)
        sha256 = _write(encoder, name, stage)
        if folder.is_dir():
            # Not every system renames onto an empty folder; one that was filled meanwhile stays.
            folder.rmdir()
        stage.rename(folder)
    except OSError as error:
        raise _named(error, f"write the bundle to {folder}") from error
    finally:
        shutil.rmtree(stage, ignore_errors=True)
    return f"{name}@{sha256[:ID_DIGITS]}"


def load_bundle(folder_or_zip: str | Path) -> Encoder:
    """The encoder of a MONAI bundle that records one of ours. Runs nothing of the bundle.

    Weights are models/model.safetensors, whose own record counts; else models/model.pt
    with the record in the "medsiam" section of configs/metadata.json.

    Raises WeightsRefused where a config holds an expression or a foreign target, the
    two weight files differ, a zip is unsafe, and all that `load_encoder` refuses.
    """
    path = Path(folder_or_zip)
    if path.is_dir():
        return _loaded(path, path.name)
    with tempfile.TemporaryDirectory(prefix="medsiam-") as place:
        _unpack(path, Path(place))
        return _loaded(Path(place), path.name)


def _write(encoder: Encoder, name: str, stage: Path) -> str:
    """Writes the bundle's files; the SHA-256 of its safetensors file."""
    for file in (METADATA, WEIGHTS, README):
        (stage / file).parent.mkdir()
    tensors, record = recorded(encoder.network, name, {})
    sha256 = write_weights(stage / WEIGHTS, tensors, {KEY: json.dumps(record, sort_keys=True)})
    torch.save(tensors, stage / CHECKPOINT)
    # Without the digest: who trains on with MONAI writes another model.pt.
    section = {key: value for key, value in record.items() if key != "tensors_sha256"}
    _write_json(stage / METADATA, _metadata(encoder.settings) | {SECTION: section})
    _write_json(stage / INFERENCE, _inference(record["settings"]))
    texts = {README: _README.format(name=name, version=__version__), LICENSE: _LICENSE}
    for file, text in texts.items():
        (stage / file).write_text(text, encoding="utf-8", newline="\n")
    return sha256


def _metadata(settings: EncoderSettings) -> dict[str, Any]:
    """What MONAI's schema asks for."""
    kind = {2: "radiographs", 3: "CT and MR volumes"}[settings.spatial_dims]
    return {
        "schema": SCHEMA,
        "version": __version__,
        "changelog": {__version__: "exported by medsiam"},
        "monai_version": _version("monai"),
        "pytorch_version": _version("torch"),
        "numpy_version": _version("numpy"),
        "required_packages_version": {"medsiam": __version__, "safetensors": _version("safetensors")},
        "task": f"Embedding of {kind} by a twin network",
        "description": f"One network for both of two scans: an embedding of unit norm and a pyramid of "
        f"features, by which {kind} are compared and similar cases found. {RESEARCH_ONLY}",
        "authors": "the contributors of medsiam",
        "copyright": "Copyright (c) the contributors of medsiam, Apache-2.0",
        "intended_use": RESEARCH_ONLY,
        "network_data_format": _data_format(settings),
    }


def _data_format(settings: EncoderSettings) -> dict[str, Any]:
    shape = [settings.preparation.size_voxels] * settings.spatial_dims
    image = {
        "type": "image",
        "format": "magnitude",
        "modality": {2: "CR, DX", 3: "CT, MR"}[settings.spatial_dims],
        "num_channels": 1,
        "spatial_shape": shape,
        "dtype": "float32",
        "value_range": [0, 1],
        "is_patch_data": False,
        "channel_def": {"0": "the scan as medsiam.encoding.preparation.prepare gives it"},
    }
    embedding = {
        "type": "tuples",
        "format": "latent",
        "modality": "n/a",
        "num_channels": settings.embedding_size,
        "spatial_shape": [],
        "dtype": "float32",
        "value_range": [-1, 1],
        "is_patch_data": False,
        "channel_def": {"0": "the first of the numbers of an embedding, whose norm is 1"},
    }
    return {"inputs": {"image": image}, "outputs": {"pred": embedding}}


def _inference(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The network for MONAI's ConfigParser, without a single expression."""
    return {
        "network_def": {
            "_target_": TARGETS["network_def._target_"],
            "settings": {"_target_": TARGETS["network_def.settings._target_"], "told": settings},
        }
    }


def _version(package: str) -> str:
    # Without what follows "+", which names a build.
    return version(package).partition("+")[0]


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=False) + "\n", encoding="utf-8", newline="\n")


def _refuse_taken(folder: Path) -> None:
    if folder.is_symlink() or (folder.exists() and not (folder.is_dir() and not any(folder.iterdir()))):
        raise WeightsRefused(f"{folder} is there and not empty; choose a new folder, or move it away first")


def _named(error: OSError, doing: str) -> MedsiamError:
    what = error.strerror or str(error)
    if error.errno in FULL:
        return ResourceExhausted(f"cannot {doing}: {what}; free some space")
    return WeightsRefused(f"cannot {doing}: {what}; check the rights, or choose another place")


def _loaded(folder: Path, shown: str) -> Encoder:
    """The encoder of an unpacked bundle."""
    if not (folder / METADATA).is_file():
        raise WeightsRefused(f"{shown} is no MONAI bundle ({METADATA} is missing); give a bundle or a file")
    configs = {name: _plain(folder / name, shown) for name in CONFIGS if (folder / name).is_file()}
    section = configs[METADATA].get(SECTION)
    if section is None and not (folder / WEIGHTS).is_file():
        raise WeightsRefused(
            f"{shown} is a bundle of another architecture (no {SECTION!r} section in {METADATA}, "
            f"no {WEIGHTS}); give a bundle that medsiam exported"
        )
    for name, config in configs.items():
        _refuse_code(config, f"{shown}/{name}")
    return encoder_from(_weights(folder, section, shown), shown)


def _weights(folder: Path, section: Any, shown: str) -> WeightFile:
    """The bundle's tensors with their record."""
    safe = read_weights(folder / WEIGHTS) if (folder / WEIGHTS).is_file() else None
    if safe is not None and not (folder / CHECKPOINT).is_file():
        return safe
    pickled = read_checkpoint(folder / CHECKPOINT)
    if safe is None:
        return dataclasses.replace(pickled, metadata={KEY: with_digest(section, pickled.tensors)})
    if tensors_digest(safe.tensors) != tensors_digest(pickled.tensors):
        raise WeightsRefused(
            f"{shown} holds other numbers in {CHECKPOINT} than in {WEIGHTS}; "
            "remove the one that is out of date"
        )
    return safe


def _plain(path: Path, shown: str) -> dict[str, Any]:
    """A config as data. Raises WeightsRefused where it is too large or holds more than data."""
    try:
        with path.open("rb") as file:
            raw = file.read(LARGEST_CONFIG_BYTES + 1)
        if len(raw) > LARGEST_CONFIG_BYTES:
            raise WeightsRefused(f"{shown}: {path.name} is larger than {LARGEST_CONFIG_BYTES} bytes")
        text = raw.decode("utf-8")
        content = json.loads(text) if path.suffix == ".json" else _plain_yaml(text)
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise WeightsRefused(
            f"{shown}: {path.name} is no plain JSON or YAML ({type(error).__name__}); fetch the bundle again"
        ) from error
    except OSError as error:
        raise WeightsRefused(f"{shown}: {path.name} cannot be read; check its rights") from error
    if not isinstance(content, dict):
        raise WeightsRefused(f"{shown}: {path.name} is no mapping; fetch the bundle again")
    return content


def _plain_yaml(text: str) -> Any:
    # An alias lets a small file grow without bound when it is walked, and the parser's
    # time grows with the square of the depth.
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST_NESTING or isinstance(event, yaml.AliasEvent):
            raise ValueError("the file nests too deep or uses aliases")
    return yaml.safe_load(text)


def _refuse_code(config: Mapping[Any, Any], shown: str) -> None:
    """Raises WeightsRefused at the first expression, or target that is not one of TARGETS."""
    for place, value in _leaves(config):
        is_target = place.endswith("_target_")
        is_expression = isinstance(value, str) and value.lstrip().startswith(EXPRESSION_SIGNS)
        if is_expression or (is_target and value != TARGETS.get(place)):
            what = "an expression" if is_expression else "a foreign target"
            raise WeightsRefused(
                f"{shown} holds {what} at {place[:80]!r}, which MONAI would run; nothing was run: "
                "remove it, or give the .safetensors file alone"
            )


def _leaves(config: Mapping[Any, Any]) -> Iterator[tuple[str, Any]]:
    """Every value that is no mapping or list, with the keys that lead to it, joined by dots."""
    waiting: list[tuple[str, Any]] = [("", config)]
    while waiting:
        place, value = waiting.pop()
        if isinstance(value, Mapping):
            waiting += [(f"{place}.{key}".lstrip("."), each) for key, each in value.items()]
        elif isinstance(value, list):
            waiting += [(f"{place}.{n}", each) for n, each in enumerate(value)]
        else:
            yield place, value


def _unpack(path: Path, place: Path) -> None:
    """Writes the files that are read of a zipped bundle, under names of our own."""
    if not path.is_file():
        raise WeightsRefused(f"there is no file or folder {path.name!r} with a bundle; check the path")
    try:
        with zipfile.ZipFile(path) as archive:
            for name, info in _wanted(archive.infolist(), path.name).items():
                with archive.open(info) as file:
                    # One byte more than the header tells would be a header that lies.
                    data = file.read(info.file_size + 1)
                if len(data) != info.file_size:
                    raise WeightsRefused(f"{path.name} is a damaged zip archive; pack it again")
                (place / name).parent.mkdir(exist_ok=True)
                (place / name).write_bytes(data)
    except ZIP_ERRORS as error:
        raise WeightsRefused(
            f"{path.name} is a damaged or locked zip archive ({type(error).__name__}); pack it again"
        ) from error
    except OSError as error:
        raise _named(error, f"unpack {path.name}") from error


def _wanted(infos: list[zipfile.ZipInfo], shown: str) -> dict[str, zipfile.ZipInfo]:
    """The members that are read, by their names in a bundle, which may lie in one folder.

    Raises WeightsRefused where a name leads out of the archive, a member is a link, two
    have one name, or they are too many or too large.
    """
    for info in infos:
        parts = info.filename.replace("\\", "/").split("/")
        if ".." in parts or parts[0] == "" or ":" in parts[0] or stat.S_ISLNK(info.external_attr >> 16):
            raise WeightsRefused(f"{shown} holds a name or link that leads out of it; do not unpack it")
    names = [info.filename for info in infos]
    roots = {name.removesuffix(METADATA) for name in names if f"/{name}".endswith(f"/{METADATA}")}
    if len(set(names)) != len(names) or len(names) > MOST_MEMBERS or len(roots) != 1:
        raise WeightsRefused(
            f"{shown} holds {len(names)} files and {len(roots)} bundles ({METADATA}); zip the folder of one"
        )
    root = roots.pop()
    wanted = {info.filename[len(root) :]: info for info in infos if info.filename.startswith(root)}
    wanted = {name: wanted[name] for name in READ if name in wanted}
    if sum(info.file_size for info in wanted.values()) > 2 * LARGEST_FILE_BYTES:
        raise WeightsRefused(f"{shown} unpacks to more than any encoder has; do not unpack it")
    return wanted


_README = f"""# {{name}}

{RESEARCH_ONLY}

An encoder of medsiam {{version}}: a scan to an embedding of unit norm, by which two scans are
compared and similar cases found. How it was trained and what it can do is told by medsiam's model card.

With medsiam, which prepares the scan and runs nothing of this bundle:

    from medsiam import load_encoder, read_volume
    features = load_encoder("{{name}}")(read_volume("scan/"))

With MONAI (medsiam must be installed); `images` are (batch, 1, ...) and prepared by
`medsiam.encoding.preparation.prepare`:

    import monai.bundle
    network = monai.bundle.load("{{name}}", bundle_dir=".", workflow_type="inference").eval()
    embedding = network(images).embedding

`models/model.pt` and `models/model.safetensors` hold the same numbers.
License: Apache-2.0, see LICENSE.
"""

_LICENSE = """Copyright (c) the contributors of medsiam

Licensed under the Apache License, Version 2.0 (the "License");
you may not use this file except in compliance with the License.
You may obtain a copy of the License at

    http://www.apache.org/licenses/LICENSE-2.0

Unless required by applicable law or agreed to in writing, software
distributed under the License is distributed on an "AS IS" BASIS,
WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
See the License for the specific language governing permissions and
limitations under the License.
"""
