"""A series that was found: what is known of it before its pixels are read."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from medsiam.errors import MedsiamError
from medsiam.volume import Acquisition

Kind = Literal["dicom", "nifti", "raster"]
Role = Literal["image", "localiser", "derived", "not-an-image-volume"]


@dataclass(frozen=True, eq=False)
class SeriesEntry:
    """One series of a folder, file or archive.

    name             what tells it from the others: the series UID, with "#part" where
                     one series was split; the file's base name where there is no UID
    paths            the files it comes from, on disk
    acquisition      from the headers alone; sha256 is "" until it is read
    shape_kji        voxels, as far as known before the pixels
    spacing_kji_mm   likewise
    kind             "dicom", "nifti" or "raster"
    role             "image", or why it is no candidate for comparison
    reason           why the role is not "image", "" where it is
    refusal          the error that reading it raises, None where nothing is wrong so far
    content          what the reader of its kind needs, for read_series alone
    place            "file 3 of 12" where the name is a file's, "" where it is a UID
    """

    name: str
    paths: tuple[Path, ...]
    acquisition: Acquisition
    shape_kji: tuple[int, int, int]
    spacing_kji_mm: tuple[float, float, float]
    kind: Kind
    role: Role = "image"
    reason: str = ""
    refusal: MedsiamError | None = None
    content: Any = field(default=None, repr=False)
    place: str = ""

    @property
    def is_usable(self) -> bool:
        """Whether it is an image that can be read, as far as the headers tell."""
        return self.role == "image" and self.refusal is None

    @property
    def title(self) -> str:
        """What it is called wherever that is kept: a file's own name may be a patient's."""
        return self.place or self.name

    @property
    def whose_name(self) -> str:
        """Which file the title means, for the terminal alone; "" where the title says all."""
        return f"{self.place} is {self.name!r}" if self.place else ""

    def __str__(self) -> str:
        description = f" {self.acquisition.description!r}" if self.acquisition.description else ""
        return f"{self.title}{description} {' x '.join(map(str, self.shape_kji))}"
