"""The made-up head as implicit surfaces: what tissue lies at a place, and how bright.

Distances are in mm, negative inside. Axes are the head's own LPS: x to the left,
y to the back, z up, origin between the thalami. Brightness is FLAIR-like with white
matter at 100. The shapes are ellipsoids and their unions; sulci are the zero set of
a random sum of plane waves, cut off at a depth.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from medsiam.volume import Matrix

Plane = NDArray[np.floating]

AIR, BONE, MARROW, FAT, MUSCLE = 0.0, 8.0, 70.0, 150.0, 52.0
CSF, VENTRICLE, VITREOUS = 14.0, 10.0, 12.0
GREY, WHITE, DEEP_GREY, STEM, CALLOSUM = 132.0, 100.0, 122.0, 106.0, 96.0

# Human sulci are about 15 mm deep and the cortex 2.5 to 3 mm thick.
SULCUS_DEPTH_MM = 15.0
CORTEX_MM = 3.0
GYRUS_WAVELENGTH_MM = (15.0, 25.0)
FOLIUM_WAVELENGTH_MM = (6.0, 9.0)
TEXTURE_WAVELENGTH_MM = (5.0, 24.0)


@dataclass(frozen=True, eq=False)
class Slab:
    """One plane of sample places in the head's frame.

    x, y, z   (J, I) float32, LPS mm
    pixel_mm  the width over which edges are averaged
    """

    x: Plane
    y: Plane
    z: Plane
    pixel_mm: float
    head_seed: int

    @classmethod
    def at(
        cls, head_from_index: Matrix, k: float, shape_ji: tuple[int, ...], pixel_mm: float, head_seed: int
    ) -> Slab:
        """The plane of voxel centres at slice k, which may lie between slices."""
        j, i = np.meshgrid(*(np.arange(n, dtype=np.float32) for n in shape_ji), indexing="ij")
        m = head_from_index.astype(np.float32)
        x, y, z = (m[row, 0] * np.float32(k) + m[row, 1] * j + m[row, 2] * i + m[row, 3] for row in range(3))
        return cls(x, y, z, pixel_mm, head_seed)

    def ellipsoid(self, centre_mm: tuple[float, ...], radii_mm: tuple[float, ...]) -> Plane:
        """Distance along the ray from the centre to the ellipsoid's surface."""
        d = [axis - np.float32(c) for axis, c in zip((self.x, self.y, self.z), centre_mm, strict=True)]
        length = np.sqrt(d[0] ** 2 + d[1] ** 2 + d[2] ** 2) + np.float32(1e-3)
        scaled = np.sqrt(sum((d[n] / np.float32(radii_mm[n])) ** 2 for n in range(3))) + np.float32(1e-6)
        return length - length / scaled

    def mirrored(self, centre_mm: tuple[float, ...], radii_mm: tuple[float, ...]) -> Plane:
        """Distance to the nearer of two ellipsoids, right and left."""
        folded = Slab(np.abs(self.x), self.y, self.z, self.pixel_mm, self.head_seed)
        return folded.ellipsoid(centre_mm, radii_mm)

    def cover(self, distance_mm: Plane) -> Plane:
        """Share 0..1 of each pixel that lies inside a surface."""
        return np.clip(0.5 - distance_mm / np.float32(self.pixel_mm), 0.0, 1.0)

    def paint(self, signal: Plane, distance_mm: Plane, value: float | Plane) -> Plane:
        """Signal with one more tissue laid over it, mixed at the edge."""
        return signal + self.cover(distance_mm) * (value - signal)


def tissue_signal(slab: Slab) -> Plane:
    """FLAIR-like brightness (J, I) without lesions, noise and bias."""
    cavity = cavity_distance(slab)
    signal = _outside_the_cavity(slab, cavity)
    signal = slab.paint(signal, cavity, CSF)
    signal = _cerebrum(slab, signal, cavity)
    signal = _cerebellum_and_stem(slab, signal, cavity)
    return signal


def brain_coverage(slab: Slab) -> Plane:
    """Share (J, I) of brain: cerebrum with its ventricles, cerebellum and stem."""
    cavity = cavity_distance(slab)
    return slab.cover(np.minimum(cerebrum_distance(slab, cavity), _hindbrain_distance(slab, cavity)))


def cavity_distance(slab: Slab) -> Plane:
    """Distance to the inner table of the skull, with the three fossae of its floor."""
    vault = slab.ellipsoid((0.0, 2.0, 14.0), (68.0, 87.0, 67.0))
    # The floor steps down from the brow to the back of the head.
    floor = -23.0 - 0.16 * slab.y + 0.004 * slab.x**2 - slab.z
    vault = _smooth_max(vault, floor, 10.0)
    posterior = slab.ellipsoid((0.0, 44.0, -28.0), (54.0, 38.0, 30.0))
    temporal = slab.mirrored((40.0, -14.0, -20.0), (24.0, 36.0, 22.0))
    canal = np.maximum(np.hypot(slab.x, slab.y - 34.0) - 14.0, slab.z + 30.0)
    return np.minimum(np.minimum(vault, posterior), np.minimum(temporal, canal))


def cerebrum_distance(slab: Slab, cavity: Plane) -> Plane:
    """Distance to the smooth hull of the cerebrum, above the tentorium."""
    roof_of_cerebellum = -6.0 - 0.005 * slab.x**2 - 0.10 * (slab.y - 20.0) - slab.z
    # The tent is open in front, where the stem passes.
    opening = 1.4 * np.maximum(22.0 + 0.25 * np.abs(slab.x) - slab.y, 0.0)
    return _smooth_max(cavity + 2.6, roof_of_cerebellum - opening, 6.0)


def _outside_the_cavity(slab: Slab, cavity: Plane) -> Plane:
    """Scalp, skull, face and neck; bone is dark, its marrow and fat are bright."""
    face = slab.ellipsoid((0.0, -22.0, -52.0), (60.0, 68.0, 66.0))
    nose = slab.ellipsoid((0.0, -84.0, -44.0), (13.0, 20.0, 22.0))
    neck = np.hypot(slab.x, slab.y - 16.0) - 54.0 + 0.05 * (slab.z + 60.0)
    neck = np.maximum(neck, slab.z + 20.0)
    head = _smooth_min(_smooth_min(cavity - 13.0, _smooth_min(face, nose, 8.0), 14.0), neck, 14.0)
    grain = 1.0 + 0.10 * waves(slab, "muscle", TEXTURE_WAVELENGTH_MM)
    signal = slab.paint(np.zeros_like(head), head, 95.0)
    signal = slab.paint(signal, head + 2.2, FAT * grain)
    signal = slab.paint(signal, np.maximum(head + 6.5, 7.0 - cavity), MUSCLE * grain)
    signal = _face(slab, signal)
    # Skull only around the vault; below the base the muscles of the neck follow.
    base = -40.0 - slab.z
    signal = slab.paint(signal, _smooth_max(cavity - 7.0, base, 6.0), BONE)
    signal = slab.paint(signal, np.maximum(np.abs(cavity - 3.6) - 1.3, base + 12.0), MARROW * grain)
    return signal


def _face(slab: Slab, signal: Plane) -> Plane:
    """Orbits with eyes, and the air of nose and sinuses."""
    signal = slab.paint(signal, slab.mirrored((31.0, -62.0, -30.0), (17.0, 24.0, 16.0)), 0.8 * FAT)
    signal = slab.paint(signal, slab.mirrored((31.0, -69.0, -30.0), (13.0, 13.0, 13.0)), 80.0)
    signal = slab.paint(signal, slab.mirrored((31.0, -69.0, -30.0), (11.5, 11.5, 11.5)), VITREOUS)
    signal = slab.paint(signal, slab.mirrored((31.0, -77.5, -30.0), (4.5, 2.5, 4.5)), 45.0)
    nerve = np.hypot(np.abs(slab.x) - 31.0 - 0.45 * (slab.y + 60.0) * -1.0, slab.z + 29.0) - 2.2
    signal = slab.paint(signal, np.maximum(nerve, np.abs(slab.y + 48.0) - 11.0), 90.0)
    septum = 1.6 - np.abs(slab.x)
    nasal = np.maximum(slab.ellipsoid((0.0, -62.0, -46.0), (12.0, 24.0, 20.0)), septum)
    signal = slab.paint(signal, nasal, AIR)
    return slab.paint(signal, slab.mirrored((27.0, -58.0, -58.0), (12.0, 16.0, 14.0)), AIR)


def _cerebrum(slab: Slab, signal: Plane, cavity: Plane) -> Plane:
    """Folded cortex, white matter, basal ganglia and ventricles."""
    hull = cerebrum_distance(slab, cavity)
    pial = np.maximum(hull, -_from_sulci(slab, hull))
    thickness = CORTEX_MM * (1.0 + 0.25 * waves(slab, "thickness", (25.0, 50.0)))
    grain = 1.0 + 0.02 * waves(slab, "texture", TEXTURE_WAVELENGTH_MM)
    signal = slab.paint(signal, pial, GREY * grain)
    signal = slab.paint(signal, pial + thickness, WHITE * grain)
    return _deep_structures(slab, signal, grain)


def _deep_structures(slab: Slab, signal: Plane, grain: Plane) -> Plane:
    """Callosum, caudate, putamen, thalamus, insula, then the ventricles on top."""
    arch = np.abs(np.hypot(slab.y * 0.72, (slab.z - 2.0) * 1.05) - 25.5) - 3.2
    callosum = np.maximum(np.maximum(arch, np.abs(slab.x) - 14.0), 8.0 - slab.z)
    signal = slab.paint(signal, callosum, CALLOSUM * grain)
    signal = slab.paint(signal, slab.mirrored((13.5, -14.0, 12.0), (5.0, 15.0, 10.0)), DEEP_GREY * grain)
    signal = slab.paint(signal, slab.mirrored((25.0, -3.0, 2.0), (6.5, 17.0, 11.0)), DEEP_GREY * grain)
    signal = slab.paint(signal, slab.mirrored((11.0, 12.0, 4.0), (9.0, 14.0, 9.0)), DEEP_GREY * grain)
    rim = _ventricle_distance(slab)
    # FLAIR shows a thin bright lining around the lateral ventricles.
    signal = slab.paint(signal, rim - 0.9, 116.0)
    return slab.paint(signal, rim, VENTRICLE)


def _ventricle_distance(slab: Slab) -> Plane:
    """Lateral ventricles with frontal, occipital and temporal horns, and the third."""
    x, y, z = np.abs(slab.x), slab.y, slab.z
    # The body runs back in an arch; its floor is pushed up by thalamus and caudate.
    centre_x = 6.5 + 0.006 * (y - 2.0) ** 2 * np.where(y > 2.0, 1.0, 0.55)
    centre_z = 19.0 - 0.0075 * (y - 2.0) ** 2
    body = np.hypot((x - centre_x) / 1.0, (z - centre_z) / 0.95) - (5.2 + 0.028 * np.abs(y))
    body = np.maximum(body, np.abs(y - 6.0) - 40.0)
    horn = slab.mirrored((27.0, 38.0, -4.0), (6.0, 13.0, 12.0))
    temporal = slab.mirrored((31.0, 6.0, -16.0), (3.2, 18.0, 4.0))
    third = slab.ellipsoid((0.0, 6.0, 0.0), (2.4, 14.0, 11.0))
    lateral = np.maximum(_smooth_min(body, horn, 5.0), 1.2 - x)
    return np.minimum(np.minimum(lateral, temporal), third).astype(np.float32)


def _from_sulci(slab: Slab, hull: Plane) -> Plane:
    """Distance (mm) outside the folds: to sulci, the midline and the Sylvian fissure."""
    value, slope = waves_and_slope(slab, "gyri", GYRUS_WAVELENGTH_MM)
    folds = np.abs(value) / np.maximum(slope, 0.35 * float(np.median(slope))) - 0.75
    bottom = -hull - SULCUS_DEPTH_MM * (1.0 + 0.3 * waves(slab, "thickness", (25.0, 50.0)))
    sulci = _smooth_max(folds, bottom, 3.0)
    under_callosum = np.hypot(slab.y * 0.72, (slab.z - 2.0) * 1.05) - 30.0
    midline = np.maximum(np.abs(slab.x) - 1.1, -under_callosum)
    # The Sylvian fissure rises to the back and wavers; it starts beside the insula.
    waver = 2.5 * waves(slab, "sylvian", (30.0, 60.0))
    sylvian = np.abs(slab.z + 4.0 - 0.45 * (slab.y + 6.0) - waver) - 0.9
    sylvian = np.maximum(np.maximum(sylvian, 36.0 - np.abs(slab.x)), np.abs(slab.y + 2.0) - 32.0)
    return np.minimum(np.minimum(sulci, midline), sylvian)


def _hindbrain_distance(slab: Slab, cavity: Plane) -> Plane:
    """Distance to cerebellum and brain stem together."""
    return np.minimum(_cerebellum_distance(slab, cavity), _stem_distance(slab))


def _cerebellum_distance(slab: Slab, cavity: Plane) -> Plane:
    halves = slab.mirrored((20.0, 48.0, -30.0), (29.0, 28.0, 21.0))
    vermis = slab.ellipsoid((0.0, 46.0, -26.0), (12.0, 22.0, 20.0))
    return np.maximum(_smooth_min(halves, vermis, 6.0), cavity + 2.0)


def _stem_distance(slab: Slab) -> Plane:
    midbrain = slab.ellipsoid((0.0, 14.0, -12.0), (15.0, 11.0, 14.0))
    pons = slab.ellipsoid((0.0, 12.0, -26.0), (16.0, 13.0, 14.0))
    axis_y = 16.0 - 0.28 * (slab.z + 30.0)
    cord = np.hypot(slab.x, slab.y - axis_y) - np.clip(9.5 + 0.08 * (slab.z + 40.0), 6.0, 9.5)
    cord = np.maximum(cord, slab.z + 26.0)
    return _smooth_min(_smooth_min(midbrain, pons, 5.0), cord, 5.0)


def _cerebellum_and_stem(slab: Slab, signal: Plane, cavity: Plane) -> Plane:
    """Cerebellum with folia, stem, and the fourth ventricle between them."""
    hull = _cerebellum_distance(slab, cavity)
    folia = 0.5 + 0.5 * np.tanh(2.5 * waves(slab, "folia", FOLIUM_WAVELENGTH_MM))
    grain = 1.0 + 0.02 * waves(slab, "texture", TEXTURE_WAVELENGTH_MM)
    core = slab.cover(hull + 9.0)
    signal = slab.paint(signal, hull, grain * ((1.0 - core) * (88.0 + 42.0 * folia) + core * WHITE))
    signal = slab.paint(signal, _stem_distance(slab), STEM * grain)
    return slab.paint(signal, slab.ellipsoid((0.0, 28.5, -27.0), (6.5, 3.8, 9.0)), VENTRICLE)


def waves(slab: Slab, name: str, wavelength_mm: tuple[float, float]) -> Plane:
    """A random smooth field (J, I) of unit variance, fixed to the head."""
    field = np.zeros_like(slab.x)
    vectors, phases = _wave_table(name, wavelength_mm, slab.head_seed)
    for (kx, ky, kz), phase in zip(vectors, phases, strict=True):
        field += np.sin(kx * slab.x + ky * slab.y + kz * slab.z + phase)
    return field * np.float32(np.sqrt(2.0 / len(phases)))


def waves_and_slope(slab: Slab, name: str, wavelength_mm: tuple[float, float]) -> tuple[Plane, Plane]:
    """The field of `waves` and the length of its gradient per mm."""
    field = np.zeros_like(slab.x)
    gradient = [np.zeros_like(slab.x) for _ in range(3)]
    vectors, phases = _wave_table(name, wavelength_mm, slab.head_seed)
    for vector, phase in zip(vectors, phases, strict=True):
        angle = vector[0] * slab.x + vector[1] * slab.y + vector[2] * slab.z + phase
        field += np.sin(angle)
        cosine = np.cos(angle)
        for n in range(3):
            gradient[n] += vector[n] * cosine
    scale = np.float32(np.sqrt(2.0 / len(phases)))
    return field * scale, np.sqrt(sum(g**2 for g in gradient)) * scale


@lru_cache(maxsize=64)
def _wave_table(
    name: str, wavelength_mm: tuple[float, float], head_seed: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Wave vectors (n, 3) in rad/mm and phases (n,), drawn by name and head."""
    rng = np.random.default_rng([head_seed, *name.encode()])
    count = 14
    directions = rng.standard_normal((count, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    lengths = rng.uniform(*wavelength_mm, count)
    vectors = directions * (2.0 * np.pi / lengths)[:, None]
    return vectors.astype(np.float32), rng.uniform(0.0, 2.0 * np.pi, count).astype(np.float32)


def _smooth_min(a: Plane, b: Plane, width_mm: float) -> Plane:
    """Union of two surfaces with a fillet of the given width (polynomial blend)."""
    h = np.clip(0.5 + 0.5 * (b - a) / width_mm, 0.0, 1.0)
    return b + (a - b) * h - width_mm * h * (1.0 - h)


def _smooth_max(a: Plane, b: Plane, width_mm: float) -> Plane:
    """Intersection of two surfaces with a fillet of the given width."""
    return -_smooth_min(-a, -b, width_mm)
