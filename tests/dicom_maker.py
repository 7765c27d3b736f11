"""DICOM series whose right answer is geometry: each voxel's value tells where it lies.

Made with pydicom alone, so that neither the reader nor the writer of the
package has a say in what is right.
"""

import struct

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from medsiam.volume import Grid

CT, MR = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4"
CR, DX = "1.2.840.10008.5.1.4.1.1.1", "1.2.840.10008.5.1.4.1.1.1.1"
ENHANCED_CT, ENHANCED_MR = "1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.4.1"
CLASS = {"CT": CT, "MR": MR, "CR": CR, "DX": DX}
KEY = b"a key of thirty-two bytes in all"

# Stored units per mm along x, y, z: no two directions look alike, and one
# unit is less than .1 mm.
GRADIENT = np.array([11.0, 23.0, 37.0])

# In-plane axes (along a row, down a column) as LPS unit vectors.
PLANES = {
    "axial": ((1, 0, 0), (0, 1, 0)),
    "sagittal": ((0, 1, 0), (0, 0, -1)),
    "coronal": ((1, 0, 0), (0, 0, -1)),
    "oblique": ((0.9396926, 0.3420201, 0.0), (-0.2961981, 0.8137977, 0.5)),
}


def grid_of(
    plane="axial", shape=(5, 8, 10), spacing=(3.0, 1.5, 0.75), origin=(-4.0, 6.0, 11.0), shear_mm=(0.0, 0.0)
):
    """The grid of a stack; shear_mm moves each slice (down a column, along a row) against the one before."""
    row, column = (np.array(axis) / np.linalg.norm(axis) for axis in PLANES[plane])
    matrix = np.eye(4)
    matrix[:3, 0] = np.cross(row, column) * spacing[0] + column * shear_mm[0] + row * shear_mm[1]
    matrix[:3, 1], matrix[:3, 2], matrix[:3, 3] = column * spacing[1], row * spacing[2], origin
    return Grid(shape, matrix)


def encoded(grid):
    """What the voxels of a grid hold: a linear function of their place in the patient."""
    index = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), axis=-1).reshape(-1, 3)
    return (grid.world(index) @ GRADIENT).reshape(grid.shape)


def pixels_of(grid, slope=1.0, intercept=0.0, floor=None):
    """Stored integers of a grid, and the real value that voxel (0, 0, 0)'s world origin has."""
    values = encoded(grid)
    shift = 0.0 if floor is None else floor - ((values - intercept) / slope).min()
    return np.rint((values - intercept) / slope + shift).astype(np.int64), shift * slope


def identity(modality="MR", **changes):
    """What all files of one series share."""
    ds = Dataset()
    ds.SOPClassUID = CLASS.get(modality, MR)
    ds.Modality = modality
    ds.PatientName, ds.PatientID, ds.PatientBirthDate, ds.PatientSex = (
        "Phantom^Paula",
        "4711",
        "19500203",
        "F",
    )
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = "1.2.3", "1.2.3.4", "1.2.3.5"
    ds.StudyDate, ds.StudyTime = "20240102", "100000"
    ds.AcquisitionDate, ds.AcquisitionTime = "20240102", "101500.5"
    ds.SeriesDescription, ds.Manufacturer = "T1 axial", "MAKER"
    ds.ImageType = ["ORIGINAL", "PRIMARY", "M" if modality == "MR" else "AXIAL"]
    return changed(ds, **changes)


def changed(ds, **changes):
    """The same dataset with other values; None takes an attribute away."""
    for keyword, value in changes.items():
        if value is not None:
            setattr(ds, keyword, value)
        elif keyword in ds:
            delattr(ds, keyword)
    return ds


def put_pixels(ds, cells, allocated=16, stored=None, high_bit=None, signed=False):
    """Writes integers as pixel data of so many bits, negative ones in two's complement."""
    stored = stored or allocated
    high_bit = stored - 1 if high_bit is None else high_bit
    masked = (np.asarray(cells) & ((1 << stored) - 1)) << (high_bit + 1 - stored)
    ds.Rows, ds.Columns = cells.shape[-2:]
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = (
        allocated,
        stored,
        high_bit,
        int(signed),
    )
    ds.PixelData = masked.astype(f"<u{allocated // 8}").tobytes()
    ds["PixelData"].VR = "OW" if allocated > 8 else "OB"
    return ds


def classic(grid=None, modality="MR", cells=None, slope=None, intercept=None, bits=None, **changes):
    """One dataset a slice, in order of k; `changes` apply to each."""
    grid = grid or grid_of()
    if cells is None:
        cells, _ = pixels_of(
            grid, slope or 1.0, intercept or 0.0, floor=10 if not (bits or {}).get("signed") else None
        )
    row, column = (
        grid.world_from_index[:3, 2] / grid.spacing_mm[2],
        grid.world_from_index[:3, 1] / grid.spacing_mm[1],
    )
    slices = []
    for k in range(grid.shape[0]):
        ds = put_pixels(identity(modality), cells[k], **(bits or {}))
        ds.SOPInstanceUID, ds.InstanceNumber = f"1.2.3.4.{k + 1}", k + 1
        ds.ImagePositionPatient = [float(f"{v:.8g}") for v in grid.world([(k, 0, 0)])[0]]
        ds.ImageOrientationPatient = [float(f"{v:.8g}") for v in (*row, *column)]
        ds.PixelSpacing = [float(f"{v:.8g}") for v in grid.spacing_mm[1:]]
        changed(ds, RescaleSlope=slope, RescaleIntercept=intercept)
        slices.append(changed(ds, **changes))
    return slices


def enhanced(grid=None, order=None, modality="MR", extra=None, **changes):
    """One multi-frame dataset; `order` is the slice that each frame shows, `extra(n)` a trait of frame n."""
    grid = grid or grid_of()
    order = list(range(grid.shape[0])) if order is None else list(order)
    cells, _ = pixels_of(grid, floor=10)
    row, column = (
        grid.world_from_index[:3, 2] / grid.spacing_mm[2],
        grid.world_from_index[:3, 1] / grid.spacing_mm[1],
    )
    ds = put_pixels(identity(modality), cells[order])
    ds.SOPClassUID = ENHANCED_CT if modality == "CT" else ENHANCED_MR
    ds.SOPInstanceUID, ds.InstanceNumber, ds.NumberOfFrames = "1.2.3.4.1", 1, len(order)
    shared, per_frame = Dataset(), []
    shared.PlaneOrientationSequence = item(
        ImageOrientationPatient=[float(f"{v:.8g}") for v in (*row, *column)]
    )
    shared.PixelMeasuresSequence = item(PixelSpacing=[float(v) for v in grid.spacing_mm[1:]])
    for n, k in enumerate(order):
        frame = Dataset()
        frame.PlanePositionSequence = item(
            ImagePositionPatient=[float(f"{v:.8g}") for v in grid.world([(k, 0, 0)])[0]]
        )
        frame.PixelValueTransformationSequence = item(RescaleSlope=1, RescaleIntercept=0)
        frame.FrameContentSequence = item(StackID="1")
        if extra:
            extra(frame, n)
        per_frame.append(frame)
    ds.SharedFunctionalGroupsSequence = Sequence([shared])
    ds.PerFrameFunctionalGroupsSequence = Sequence(per_frame)
    return changed(ds, **changes)


def item(**values):
    """A sequence of one item."""
    return Sequence([changed(Dataset(), **values)])


def radiograph(modality="CR", cells=None, **changes):
    """A plain radiograph of 40 x 30 pixels."""
    cells = np.add.outer(np.arange(40) * 7, np.arange(30) * 3) if cells is None else cells
    ds = put_pixels(identity(modality), cells, stored=12)
    ds.SOPInstanceUID, ds.InstanceNumber, ds.ImagerPixelSpacing = "1.2.3.4.1", 1, [0.2, 0.1]
    del ds.FrameOfReferenceUID
    ds.ImageType = ["ORIGINAL", "PRIMARY"]
    return changed(ds, **changes)


def jpeg_lossless(cells, bits):
    """Unsigned integers (rows, columns) of so many bits as a JPEG lossless codestream (ITU-T T.81, H.1.2).

    Each pixel by its left neighbour, the first of a row by the one above. A difference is its
    number of bits, as a code of five, and those bits.
    """
    cells = np.asarray(cells, dtype=np.int64)
    guess = np.full_like(cells, 1 << (bits - 1))
    guess[:, 1:], guess[1:, 0] = cells[:, :-1], cells[:-1, 0]
    difference = ((cells - guess + 32767) & 0xFFFF).ravel() - 32767
    size = np.frexp(np.abs(difference).astype(float))[1].astype(np.int64)
    following = np.where(size == 16, 0, size)
    tail = np.where(difference > 0, difference, difference + (1 << size) - 1) & ((1 << following) - 1)
    lengths, codes = following + 5, (size << following) | tail
    ends = np.cumsum(lengths)
    place = np.repeat(ends, lengths) - np.arange(ends[-1]) - 1
    stream = (np.repeat(codes, lengths) >> place) & 1
    packed = np.packbits(np.append(stream, np.ones(-len(stream) % 8, int)).astype(np.uint8)).tobytes()
    heading = b"\xff\xd8\xff\xc3" + struct.pack(">HBHHBBBB", 11, bits, *cells.shape, 1, 1, 0x11, 0)
    table = b"\xff\xc4" + struct.pack(">HB", 36, 0) + bytes([0, 0, 0, 0, 17, *[0] * 11]) + bytes(range(17))
    scan = b"\xff\xda" + struct.pack(">H6B", 8, 1, 1, 0, 1, 0, 0)
    return heading + table + scan + packed.replace(b"\xff", b"\xff\x00") + b"\xff\xd9"


def save(datasets, folder, syntax=ExplicitVRLittleEndian, names=None):
    """Writes the datasets as files, by default with names in no telling order; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    datasets = [datasets] if isinstance(datasets, Dataset) else datasets
    for n, ds in enumerate(datasets):
        name = names[n] if names else f"{(n * 7919 + 13) % 10007:05d}_{n}.dcm"
        save_file(ds, folder / name, syntax)
    return folder


def save_file(ds, path, syntax=ExplicitVRLittleEndian):
    """Writes one dataset as a DICOM file; pixels must already be in that syntax."""
    ds.file_meta = FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
    ds.file_meta.MediaStorageSOPInstanceUID = ds.get("SOPInstanceUID") or generate_uid()
    ds.file_meta.TransferSyntaxUID = syntax
    ds.save_as(path, enforce_file_format=True)
    return path
