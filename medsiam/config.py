"""Settings from YAML: each section becomes the settings dataclass of one module.

The keys of a file are the fields of the dataclasses, nothing else. A key that does
not exist, a value of another type or out of range is refused with the file, the key
and what would do. A file holds data only: no tags, no anchors, no class paths.

A field states its range as metadata: field(default=3.0, metadata={"range": (1.0, 10.0)}).
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import types
import typing
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import yaml

from medsiam.change.brain_volume import BrainVolumeSettings
from medsiam.change.difference import DifferenceSettings
from medsiam.change.findings import FindingSettings
from medsiam.change.measure import ChangeSettings
from medsiam.change.noise_floor import NoiseFloorSettings, StepSettings
from medsiam.errors import ConfigRefused
from medsiam.pairing.intensity import IntensitySettings
from medsiam.pairing.pair_up import HalfwaySettings, PairSettings
from medsiam.pairing.registration import RegistrationSettings

T = TypeVar("T")

# A settings file is some kilobytes; more is a mistake or an attack.
LARGEST_FILE_BYTES = 65_536
# Sections within the file, and lists within sections.
DEEPEST_NESTING = 8

IN_WORDS = {
    float: "a finite number",
    int: "a whole number",
    bool: "true or false",
    str: "text",
    Path: "a path",
}


@dataclasses.dataclass(frozen=True)
class CompareSettings:
    """Everything a comparison can be told, one section per module; the keys of configs/compare.yaml."""

    registration: RegistrationSettings = dataclasses.field(default_factory=RegistrationSettings)
    halfway: HalfwaySettings = dataclasses.field(default_factory=HalfwaySettings)
    intensity: IntensitySettings = dataclasses.field(default_factory=IntensitySettings)
    difference: DifferenceSettings = dataclasses.field(default_factory=DifferenceSettings)
    findings: FindingSettings = dataclasses.field(default_factory=FindingSettings)
    noise_floor: NoiseFloorSettings = dataclasses.field(default_factory=NoiseFloorSettings)
    brain_volume: BrainVolumeSettings = dataclasses.field(default_factory=BrainVolumeSettings)

    def pairing(self, *, fast: bool = False) -> PairSettings:
        """What bringing two scans together needs of them."""
        finest_mm = self.halfway.fast_finest_mm if fast else self.halfway.finest_mm
        return PairSettings(self.registration, self.intensity, finest_mm)

    def change(self, *, fast: bool = False) -> ChangeSettings:
        """What measuring a pair's change needs of them."""
        steps = StepSettings(self.intensity, self.difference, self.findings)
        return ChangeSettings(steps, self.noise_floor, self.brain_volume, fast)


def load_settings(path: str | Path | None, kind: type[T]) -> T:
    """The settings of a YAML file as the dataclass `kind`; what the file leaves out keeps its default.

    path  None for the defaults alone

    Raises ConfigRefused, naming file, key and remedy.
    """
    if path is None:
        return kind()
    return settings_from(read_yaml(path), kind, source=str(path))


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping a YAML file holds; empty for an empty file.

    Raises ConfigRefused where the file is missing, too large, or holds more than plain data.
    """
    try:
        with Path(path).open("rb") as file:
            raw = file.read(LARGEST_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigRefused(f"{path} cannot be read ({error.strerror}); name a YAML file") from error
    if len(raw) > LARGEST_FILE_BYTES:
        raise ConfigRefused(f"{path} is larger than {LARGEST_FILE_BYTES} bytes; settings need far less")
    try:
        text = raw.decode("utf-8")
        _refuse_more_than_plain_data(text, path)
        data = yaml.load(text, Loader=_PlainLoader)
    except (yaml.YAMLError, UnicodeDecodeError, ValueError) as error:
        raise ConfigRefused(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigRefused(f"{path} holds a {type(data).__name__}; write sections of `key: value`")
    return data


def settings_from(data: dict[str, Any], kind: type[T], *, source: str, above: str = "") -> T:
    """The dataclass `kind` with the values of a mapping, each checked.

    source, above  what to name in a refusal: the file, and the key that the mapping stands under
    """
    hints = typing.get_type_hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind) if f.init}  # type: ignore[arg-type]
    values = {}
    for key, value in data.items():
        name = f"{above}{key}"
        if key not in fields:
            raise ConfigRefused(_unknown(name, str(key), list(fields), source))
        values[key] = _checked(value, hints[key], name, source)
        _check_range(values[key], fields[key].metadata.get("range"), name, source)
    try:
        return kind(**values)
    except (TypeError, ValueError) as error:
        where = above.rstrip(".") or "the file"
        raise ConfigRefused(f"{source}: {where}: {error}") from error


def settings_as_dict(settings: Any) -> dict[str, Any]:
    """Settings as plain JSON values, every default written out; for provenance."""
    plain = dataclasses.asdict(settings)
    return {key: _plain(value) for key, value in plain.items()}


def _checked(value: Any, kind: Any, name: str, source: str) -> Any:
    """The value as the type that the field declares, or a refusal."""
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        return _checked_union(value, kind, name, source)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        if value is None:
            value = {}
        if not isinstance(value, dict):
            raise ConfigRefused(_wrong(name, value, "a section of `key: value`", source))
        return settings_from(value, kind, source=source, above=f"{name}.")
    if origin is Literal:
        if value not in get_args(kind) or isinstance(value, bool):
            allowed = ", ".join(map(str, get_args(kind)))
            raise ConfigRefused(_wrong(name, value, f"one of {allowed}", source))
        return value
    if origin is tuple:
        return _checked_tuple(value, get_args(kind), name, source)
    if origin is dict or kind is dict:
        if not isinstance(value, dict):
            raise ConfigRefused(_wrong(name, value, "a mapping", source))
        return value
    return _checked_scalar(value, kind, name, source)


def _checked_union(value: Any, kind: Any, name: str, source: str) -> Any:
    if value is None and type(None) in get_args(kind):
        return None
    choices = [k for k in get_args(kind) if k is not type(None)]
    for choice in choices[:-1]:
        try:
            return _checked(value, choice, name, source)
        except ConfigRefused:
            continue
    return _checked(value, choices[-1], name, source)


def _checked_tuple(value: Any, kinds: tuple[Any, ...], name: str, source: str) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise ConfigRefused(_wrong(name, value, "a list", source))
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        kinds = (kinds[0],) * len(value)
    if len(value) != len(kinds):
        raise ConfigRefused(_wrong(name, value, f"a list of {len(kinds)}", source))
    return tuple(
        _checked(item, kind, f"{name}[{n}]", source)
        for n, (item, kind) in enumerate(zip(value, kinds, strict=True))
    )


def _checked_scalar(value: Any, kind: Any, name: str, source: str) -> Any:
    if kind is float and type(value) in (int, float) and _is_finite(value):
        return float(value)
    if kind is Path and type(value) is str:
        return Path(value)
    if kind in (int, bool, str) and type(value) is kind:
        return value
    raise ConfigRefused(_wrong(name, value, IN_WORDS.get(kind, str(kind)), source))


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number of hundreds of digits
        return False


def _check_range(value: Any, limits: tuple[float, float] | None, name: str, source: str) -> None:
    if limits is None or value is None:
        return
    for number in value if isinstance(value, tuple) else (value,):
        if not limits[0] <= number <= limits[1]:
            raise ConfigRefused(_wrong(name, number, f"between {limits[0]} and {limits[1]}", source))


def _unknown(name: str, key: str, known: list[str], source: str) -> str:
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}? " if near else ""
    return f"{source}: there is no setting {name!r}; {hint}known here: {', '.join(known)}"


def _wrong(name: str, value: Any, wanted: str, source: str) -> str:
    shown = repr(value) if len(repr(value)) <= 40 else repr(value)[:37] + "..."
    return f"{source}: {name} is {shown}; it must be {wanted}"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(v) for key, v in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(v) for v in value]
    return str(value) if isinstance(value, Path) else value


def _refuse_more_than_plain_data(text: str, path: str | Path) -> None:
    """Refuses anchors and tags, which let a small file grow without bound, and deep nesting."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if getattr(event, "anchor", None):
            raise ConfigRefused(f"{path} uses YAML anchors or aliases; write the values out")
        if getattr(event, "tag", None):
            raise ConfigRefused(f"{path} uses the YAML tag {event.tag!r}; write plain values")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        if isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > DEEPEST_NESTING:
            raise ConfigRefused(f"{path} nests deeper than {DEEPEST_NESTING}; write sections of values")


class _PlainLoader(yaml.SafeLoader):
    """Safe YAML that refuses a key written twice and reads 1e-3 as a number."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(k, deep=True) for k, _ in node.value]
        for key in keys:
            if not isinstance(key, str):
                raise yaml.YAMLError(f"key {key!r} is not text")
            if keys.count(key) > 1:
                raise yaml.YAMLError(f"key {key!r} is written twice")
        return super().construct_mapping(node, deep=deep)


# YAML 1.1 takes 1e-3 for text because it has no point; nobody means that.
_PlainLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+[eE][-+]?[0-9]+$"), list("-+0123456789")
)
