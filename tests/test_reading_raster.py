"""Pictures of radiographs: grey values and nothing claimed about millimetres."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from medsiam.errors import Unreadable
from medsiam.reading import find_series, raster, read_volume
from tests.dicom_maker import KEY

GREY = (np.add.outer(np.arange(40) * 3, np.arange(30) * 4)).astype(np.uint8)


def read(path):
    return read_volume(path, key=KEY)


def saved(array, path, **options):
    Image.fromarray(array).save(path, **options)
    return path


@pytest.mark.parametrize("ending", ["png", "tif", "jpg"])
def test_grey_values_are_the_pictures(tmp_path, ending):
    """JPEG to within its loss."""
    volume = read(saved(GREY, tmp_path / f"a.{ending}"))
    assert volume.grid.shape == (1, 40, 30)
    assert np.abs(volume.array[0] - GREY).max() <= (4 if ending == "jpg" else 0)
    assert volume.acquisition.protocol["pixel_size_known"] is False


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_sixteen_bits_are_kept(tmp_path, ending):
    """A radiograph has twelve of them or more."""
    deep = GREY.astype(np.uint16) * 250
    assert np.array_equal(read(saved(deep, tmp_path / f"a.{ending}")).array[0], deep)


def test_print_resolution_is_no_detector_spacing(tmp_path):
    """300 dots per inch says how it was to be printed."""
    volume = read(saved(GREY, tmp_path / "a.png", dpi=(300, 300)))
    assert volume.grid.spacing_mm.tolist() == [1.0, 1.0, 1.0]
    assert any("not to be trusted" in note for note in volume.acquisition.assumptions)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "LA"])
def test_grey_in_a_colour_file_is_grey(tmp_path, mode):
    """Three equal channels are one."""
    Image.fromarray(GREY).convert(mode).save(tmp_path / "a.png")
    assert np.array_equal(read(tmp_path / "a.png").array[0], GREY)


def test_true_colour_is_refused(tmp_path):
    """A photograph of a light box is no measurement."""
    colour = np.stack([GREY, GREY, GREY + 1], axis=-1)
    with pytest.raises(Unreadable, match="in colour"):
        read(saved(colour, tmp_path / "a.png"))


def test_several_pages_are_refused(tmp_path):
    """Which one was meant is not told."""
    pages = [Image.fromarray(GREY), Image.fromarray(GREY)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(Unreadable, match="2 pages"):
        read(tmp_path / "a.tif")


def test_a_picture_lying_on_its_side_is_set_upright(tmp_path):
    """As its orientation tag asks, and that is told."""
    exif = Image.Exif()
    exif[0x0112] = 6
    path = saved(GREY, tmp_path / "a.jpg", exif=exif, quality=98)
    volume = read(path)
    assert volume.grid.shape == find_series(path, key=KEY)[0].shape_kji == (1, 30, 40)
    assert any("upright" in note for note in volume.acquisition.assumptions)


def test_a_tiff_whose_zero_is_white_is_turned_over(tmp_path):
    """Brighter stays denser, in 8 and in 16 bits."""
    deep = GREY.astype(np.uint16) * 250
    # Pillow turns 8 bits over by itself when it writes, and leaves 16 bits as they are.
    for array, stored in ((GREY, GREY), (deep, 65535 - deep)):
        path = saved(stored, tmp_path / "negative.tif", tiffinfo={262: 0})
        assert np.array_equal(read(path).array[0], array)


def test_a_picture_that_declares_too_many_pixels_is_refused(tmp_path):
    """A kilobyte can ask for ten gigabytes."""

    def chunk(kind, data):
        return struct.pack(">L", len(data)) + kind + data + struct.pack(">L", zlib.crc32(kind + data))

    header = struct.pack(">LLBBBBB", 100_000, 100_000, 8, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    with pytest.raises(Unreadable):
        read(tmp_path / "a.png")


@pytest.mark.parametrize("keep", [0, 20, 200])
def test_a_damaged_picture_is_refused(tmp_path, keep):
    """Half a radiograph is grey below, and no tumour."""
    noise = np.random.default_rng(0).integers(0, 255, (40, 30)).astype(np.uint8)
    path = saved(noise, tmp_path / "a.png")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(Unreadable):
        read(path)


def test_an_icon_and_an_empty_picture_are_refused(tmp_path):
    """Thumbnails lie in every archive."""
    with pytest.raises(Unreadable, match="no radiograph"):
        read(saved(GREY[:8, :8], tmp_path / "a.png"))
    with pytest.raises(Unreadable, match="one value"):
        read(saved(np.full_like(GREY, 9), tmp_path / "b.png"))


def test_the_largest_picture_is_stated():
    """Mammograms pass, slides do not."""
    assert 24_000_000 < raster.MOST_FRAME_PIXELS < 100_000_000
