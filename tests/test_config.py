"""A settings file means what it says, or is refused with file, key and remedy."""

import contextlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medsiam.config import LARGEST_FILE_BYTES, CompareSettings, load_settings, settings_as_dict, settings_from
from medsiam.errors import ConfigRefused


@dataclass(frozen=True)
class Smoothing:
    width_mm: float = field(default=2.0, metadata={"range": (0.5, 10.0)})
    rounds: int = 3
    kind: Literal["box", "gauss"] = "gauss"
    levels_mm: tuple[float, ...] = (8.0, 4.0)
    window: tuple[float, float] | None = None
    folder: Path | None = None
    is_on: bool = True

    def __post_init__(self):
        if self.rounds < 0:
            raise ValueError(f"rounds is {self.rounds}; it must not be negative")


@dataclass(frozen=True)
class Everything:
    smoothing: Smoothing = field(default_factory=Smoothing)
    name: str = ""


def written(folder, text):
    path = folder / "settings.yaml"
    path.write_text(text)
    return path


def load(folder, text):
    return load_settings(written(folder, text), Everything)


def test_what_a_file_leaves_out_keeps_its_default(tmp_path):
    """A file may hold only what differs."""
    settings = load(tmp_path, "smoothing:\n  width_mm: 3\n  levels_mm: [6, 3.5]\n  window: [0, 80]\n")
    assert settings == Everything(Smoothing(width_mm=3.0, levels_mm=(6.0, 3.5), window=(0.0, 80.0)))


@pytest.mark.parametrize(
    "text",
    [
        "registration: {levels_mm: []}",
        "registration: {levels_mm: [8.0, 4.0]}",
        "registration: {iterations: [0, 1, 1]}",
        "findings: {threshold: -1}",
        "findings: {significance: 5}",
        "findings: {scales_mm: []}",
        "difference: {smoothing_mm: 0}",
        "intensity: {curve_bins: 0}",
        "brain_volume: {deformation: {node_mm: 0}}",
    ],
)
def test_a_comparison_refuses_numbers_with_which_it_would_break(tmp_path, text):
    """Before anything is read, and not as a bug in the middle."""
    with pytest.raises(ConfigRefused):
        load_settings(written(tmp_path, text), CompareSettings)
    shipped = Path(__file__).parents[1] / "configs" / "compare.yaml"
    assert load_settings(shipped, CompareSettings) == CompareSettings()


@pytest.mark.parametrize("text", ["", "# nothing but a comment\n", "smoothing:\n"])
def test_an_empty_file_or_section_is_all_defaults(tmp_path, text):
    """Deleting the last line of a section must not break it."""
    assert load(tmp_path, text) == Everything()


def test_an_unknown_key_names_the_file_the_key_and_the_nearest(tmp_path):
    """A misspelt key that is silently ignored is the worst setting of all."""
    with pytest.raises(ConfigRefused) as refusal:
        load(tmp_path, "smoothing:\n  widht_mm: 3\n")
    message = str(refusal.value)
    assert "settings.yaml" in message
    assert "'smoothing.widht_mm'" in message
    assert "did you mean width_mm?" in message
    assert "rounds" in message


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("width_mm: wide", "a finite number"),
        ("width_mm: true", "a finite number"),
        ("width_mm: .nan", "a finite number"),
        ("width_mm: .inf", "a finite number"),
        ("width_mm: 11", "between 0.5 and 10.0"),
        ("rounds: 2.5", "a whole number"),
        ("rounds: true", "a whole number"),
        ("rounds: -1", "must not be negative"),
        ("kind: round", "one of box, gauss"),
        ("levels_mm: 8", "a list"),
        ("levels_mm: [8, x]", "a finite number"),
        ("window: [1, 2, 3]", "a list of 2"),
        ("is_on: 1", "true or false"),
        ("folder: 7", "a path"),
    ],
)
def test_a_value_that_cannot_hold_is_refused_with_what_would(tmp_path, line, wanted):
    """The remedy stands in the message."""
    with pytest.raises(ConfigRefused, match="smoothing") as refusal:
        load(tmp_path, f"smoothing:\n  {line}\n")
    assert wanted in str(refusal.value)


def test_a_number_with_an_exponent_but_no_point_is_a_number(tmp_path):
    """YAML 1.1 reads 1e0 as text; nobody means that."""
    assert load(tmp_path, "smoothing:\n  width_mm: 1e0\n").smoothing.width_mm == 1.0


@pytest.mark.parametrize(
    "text",
    [
        "smoothing: &a\n  rounds: 1\nname: *a\n",
        "name: !!python/object/apply:os.system ['true']\n",
        "name: !!str 5\n",
        "smoothing:\n  rounds: 1\n  rounds: 2\n",
        "[" * 3000,
        "{" * 12 + "}" * 12,
        "smoothing: [1, 2]\n",
        "- a list\n",
        "5: five\n",
        "name: 'unfinished\n",
        "name: 2024-13-45\n",
        "#" * (LARGEST_FILE_BYTES + 1),
    ],
)
def test_what_is_more_than_plain_settings_is_refused(tmp_path, text):
    """Anchors grow without bound, tags run code, depth overflows: none is needed."""
    with pytest.raises(ConfigRefused, match=r"settings\.yaml"):
        load(tmp_path, text)


def test_a_missing_file_and_a_folder_and_bytes_that_are_no_text_are_refused(tmp_path):
    """Each is a plain refusal, not a bug."""
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00name")
    for path in (tmp_path / "none.yaml", tmp_path, binary):
        with pytest.raises(ConfigRefused, match=path.name):
            load_settings(path, Everything)


@given(st.text(max_size=200))
def test_no_text_at_all_makes_anything_but_settings_or_a_refusal(tmp_path_factory, text):
    """Whatever a user writes, the answer has a name."""
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(text, encoding="utf-8", errors="replace")
    with contextlib.suppress(ConfigRefused):
        assert isinstance(load_settings(path, Everything), Everything)


def test_settings_written_out_and_read_again_are_the_same():
    """Provenance holds every default, and is itself a valid settings file."""
    settings = Everything(Smoothing(window=(1.0, 2.0), folder=Path("a")))
    assert settings_from(settings_as_dict(settings), Everything, source="provenance") == settings
