"""Series whose files contradict each other, and unusual ones that are legal and must be read right."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from tests.dicom_maker import (
    changed,
    classic,
    encoded,
    enhanced,
    grid_of,
    pixels_of,
    put_pixels,
    save,
    save_file,
)
from tests.hostile.case import EITHER, GRID, VOLUME, Case
from tests.hostile.headers import frames

SAGITTAL = grid_of("sagittal", shape=(5, 8, 10))
TILTED = grid_of("axial", shape=(5, 24, 10), shear_mm=(0.6, 0.0))
NORMAL = GRID.world_from_index[:3, 0]
TOP = 4095


def stack(change=None, *, grid=GRID, modality="MR", syntax=ExplicitVRLittleEndian, names=None, **options):
    """A maker of a series after `change` was done to its list of slices; it may return another list."""

    def make(folder: Path) -> Path:
        slices = classic(grid, modality, **options)
        slices = (change(slices) or slices) if change else slices
        return save(slices, folder, syntax, names)

    return make


def each(**values):
    """Changes to the last slice alone."""
    return lambda slices: changed(slices[-1], **values) and None


def later(slices, **values):
    """The slices as further instances."""
    for n, ds in enumerate(slices):
        changed(ds, SOPInstanceUID=f"1.2.9.{n}", InstanceNumber=100 + n, **values)
    return slices


def moved(n, along_mm=0.0, aside_mm=0.0):
    """A change that moves one slice without its pixels."""

    def change(slices):
        step = NORMAL / np.linalg.norm(NORMAL) * along_mm + GRID.world_from_index[:3, 2] * aside_mm
        slices[n].ImagePositionPatient = [
            float(v) + d for v, d in zip(slices[n].ImagePositionPatient, step, strict=True)
        ]

    return change


def without(*gone):
    return lambda slices: [ds for n, ds in enumerate(slices) if n not in gone]


def with_localiser(slices):
    return slices + later(classic(SAGITTAL)[:1])


def with_localiser_series(slices):
    scout = later(classic(SAGITTAL), SeriesInstanceUID="1.2.3.5", SeriesDescription="localizer")
    return slices + scout


def turned_last(slices):
    slices[-1].ImageOrientationPatient = (
        slices[-1].ImageOrientationPatient[3:] + slices[-1].ImageOrientationPatient[:3]
    )


def flipped_last(slices):
    slices[-1].ImageOrientationPatient = [-float(v) for v in slices[-1].ImageOrientationPatient]


def smaller_last(slices):
    put_pixels(slices[-1], np.arange(70).reshape(7, 10))


def numbers_backwards(slices):
    for n, ds in enumerate(reversed(slices), 1):
        ds.InstanceNumber = n
    return slices[::-1]


def slope_of_each_slice(slices):
    cells, _ = pixels_of(GRID, floor=10)
    for n, ds in enumerate(slices):
        put_pixels(ds, np.rint((cells[n] + 100 * n) / 0.25).astype(np.int64))
        changed(ds, RescaleSlope=0.25, RescaleIntercept=-100.0 * n)


def meant_to_be_inverted(slices):
    """Stored upside down within 12 bits, as MONOCHROME1 asks of an MR image."""
    cells = np.stack([np.frombuffer(ds.PixelData, "<u2").reshape(8, 10) for ds in slices]).astype(np.int64)
    for ds, cell in zip(slices, cells, strict=True):
        put_pixels(ds, TOP - cell, stored=12)
        ds.PhotometricInterpretation = "MONOCHROME1"


def half_inverted(slices):
    meant_to_be_inverted(slices[:2])
    for ds in slices[2:]:
        ds.BitsStored, ds.HighBit = 12, 11


def swapped_bytes(slices):
    for ds in slices:
        ds.PixelData = np.frombuffer(ds.PixelData, "<u2").astype(">u2").tobytes()


def in_subfolders(folder: Path) -> Path:
    for n, ds in enumerate(classic(GRID)):
        (folder / f"{n}" / "DICOM").mkdir(parents=True)
        save_file(ds, folder / f"{n}" / "DICOM" / "IM0")
    return folder


def _cut_preamble(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[data.index(b"\x08\x00\x08\x00", 132) :])


def without_preamble(folder: Path) -> Path:
    for n, ds in enumerate(classic(GRID)):
        _cut_preamble(save_file(ds, folder / f"{n}", ImplicitVRLittleEndian))
    return folder


def one_without_preamble(folder: Path) -> Path:
    stack()(folder)
    _cut_preamble(sorted(folder.iterdir())[0])
    return folder


def two_links_to_one_file(folder: Path) -> Path:
    stack()(folder)
    path = sorted(folder.iterdir())[0]
    (folder / "again.dcm").hardlink_to(path)
    return folder


def enhanced_file(order, **options):
    return lambda folder: save(enhanced(GRID, order=order, **options), folder)


def root_places_only(ds):
    """Frames told by a classic file's tags at the root, which cannot tell each its place."""
    del ds.PerFrameFunctionalGroupsSequence
    ds.ImagePositionPatient = [0, 0, 0]


MIXED_IDENTITIES = {
    "another patient's number": {"PatientID": "4712"},
    "another patient's name": {"PatientName": "Other^Otto"},
    "another birth date": {"PatientBirthDate": "19600101"},
    "another study": {"StudyInstanceUID": "1.2.99"},
    "another day": {"AcquisitionDate": "20250102"},
    "another half of the day": {"AcquisitionTime": "221500"},
}
CONTRADICTIONS = {
    "another frame of reference": (each(FrameOfReferenceUID="1.2.99"), "geometry"),
    "another pixel spacing": (each(PixelSpacing=[1.6, 0.8]), "geometry"),
    "another size": (smaller_last, "geometry"),
    "axes exchanged": (turned_last, "geometry"),
    "turned by half a circle": (flipped_last, "geometry"),
    "another echo time": (each(EchoTime=90.0), "geometry"),
    "another b-value": (each(DiffusionBValue=1000.0), "geometry"),
    "another phase": (each(TemporalPositionIdentifier=2), "geometry"),
    "fewer stored bits": (each(BitsStored=4, HighBit=3), "unreadable"),
    "another slope": (each(RescaleSlope=9, RescaleIntercept=0), "unreadable"),
    "another intercept": (each(RescaleSlope=1, RescaleIntercept=-1024), "unreadable"),
    "another kind of object": (each(SOPClassUID="1.2.840.10008.5.1.4.1.1.7"), "unreadable"),
    "inverted polarity": (half_inverted, EITHER),
    "another pixel layout": (each(HighBit=15, BitsStored=12), "unreadable"),
}
MISPLACED = {
    "a slice missing in the middle": (without(2), "geometry"),
    "two slices missing in the middle": (without(2, 3), "geometry"),
    "a slice moved 0.4 mm along": (moved(2, along_mm=0.4), "geometry"),
    "a slice moved a whole step": (moved(2, along_mm=3.0), "geometry"),
    "a slice moved aside": (moved(2, aside_mm=2.0), "geometry"),
    "the last slice far away": (moved(4, along_mm=500.0), "geometry"),
    "a slice twice": (lambda slices: slices + later(slices[2:3] and classic(GRID)[2:3]), "geometry"),
    "all slices twice": (lambda slices: slices + later(classic(GRID)), "geometry"),
    "a localiser inside": (with_localiser, "geometry"),
    "two slices only": (without(2, 3, 4), "geometry"),
    "one slice only": (without(1, 2, 3, 4), "unreadable"),
}
LEGAL = {
    "a localiser series beside": stack(with_localiser_series),
    "instance numbers backwards": stack(numbers_backwards),
    "instance numbers missing": stack(InstanceNumber=None),
    "instance number one for all": stack(InstanceNumber=1),
    "names that say nothing": stack(names=["z", "A b", "ü.ima", "0", "-.dcm"]),
    "a rescale of each slice's own": stack(slope_of_each_slice),
    "MONOCHROME1": stack(meant_to_be_inverted),
    "implicit value types": stack(syntax=ImplicitVRLittleEndian),
    "deflated": stack(syntax=DeflatedExplicitVRLittleEndian),
    "big endian": stack(swapped_bytes, syntax=ExplicitVRBigEndian),
    "no preamble": without_preamble,
    "one file of five without preamble": one_without_preamble,
    "each slice in a folder of its own": in_subfolders,
    "enhanced": enhanced_file(range(5)),
    "enhanced, frames shuffled": enhanced_file((3, 0, 4, 2, 1)),
    "enhanced, frames backwards": enhanced_file((4, 3, 2, 1, 0)),
    "a slice location that is no number": stack(SliceLocation=None),
    "slice locations that restart": stack(
        lambda slices: [changed(ds, SliceLocation=float(n % 2)) for n, ds in enumerate(slices)]
    ),
    "slice thickness that lies": stack(SliceThickness=99, SpacingBetweenSlices=-1),
}

CASES = {
    **{
        f"last slice of {name}": Case(stack(each(**what)), "identity")
        for name, what in MIXED_IDENTITIES.items()
    },
    **{f"last slice with {name}": Case(stack(do), code) for name, (do, code) in CONTRADICTIONS.items()},
    **{name: Case(stack(do), code) for name, (do, code) in MISPLACED.items()},
    **{f"legal: {name}": Case(make, VOLUME) for name, make in LEGAL.items()},
    "legal: a tilted gantry": Case(
        stack(grid=TILTED, modality="CT"), EITHER, grid=TILTED, shift=pixels_of(TILTED, floor=10)[1]
    ),
    "legal: signed CT numbers": Case(
        stack(modality="CT", cells=np.rint(encoded(GRID) - 300).astype(np.int64), bits={"signed": True}),
        VOLUME,
        shift=-300.0,
    ),
    "a tilt told and not shown": Case(
        stack(grid=grid_of("axial"), modality="CT", GantryDetectorTilt=20.0), "geometry", "tilt"
    ),
    "one file under two names": Case(two_links_to_one_file, "geometry"),
    "an enhanced file whose frames have no place": Case(frames(root_places_only), "unreadable"),
    "two time points under one series UID": Case(
        stack(lambda slices: slices + later(classic(GRID), AcquisitionDate="20250102")), "identity"
    ),
    "two series": Case(
        stack(lambda slices: slices + later(classic(GRID), SeriesInstanceUID="1.2.3.9")),
        "series",
        "--prior-series",
    ),
    "thirteen echoes, one rescaled otherwise": Case(
        stack(
            lambda slices: [
                *later(slices, EchoTime=10.0, RescaleSlope=2, RescaleIntercept=0),
                *(
                    changed(ds, SOPInstanceUID=f"1.2.8.{n}.{k}", EchoTime=10.0 * n)
                    for n in range(2, 14)
                    for k, ds in enumerate(classic(GRID, slope=1, intercept=0))
                ),
            ]
        ),
        "series",
    ),
    "two echoes": Case(
        stack(
            lambda slices: [changed(ds, EchoTime=10.0) for ds in slices] + later(classic(GRID), EchoTime=90.0)
        ),
        "series",
    ),
}
