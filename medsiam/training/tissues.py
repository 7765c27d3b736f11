"""Label maps as a few tissues that scanners tell apart, whatever numbers a map uses.

A map of the brain alone knows nothing of the scalp: outside its labels the image
itself says what is air or bone, what is soft and what is fat.
"""

from __future__ import annotations

from typing import Literal

import torch

from medsiam.encoding.encoder import TISSUES as TOLD
from medsiam.errors import TrainingRefused

Scheme = Literal["muse", "synthseg"]

TISSUES = (
    "air",
    "ventricle",
    "csf",
    "cortex",
    "white",
    "deep grey",
    "cerebellar grey",
    "cerebellar white",
    "stem",
    "dark",
    "soft",
    "fat",
    "vessel",
    "eye",
    "marrow",
    "outer csf",
)
NUMBER = {name: number for number, name in enumerate(TISSUES)}

# From the ventricles to the stem: the brain.
BRAIN = range(NUMBER["ventricle"], NUMBER["stem"] + 1)
# Where lesions are put.
PARENCHYMA = tuple(NUMBER[name] for name in ("white", "deep grey", "cortex", "cerebellar white"))

# MUSE numbers (Doshi et al. 2016, NeuroImage 127), as NiChart writes them.
_MUSE = {
    "ventricle": (4, 11, 49, 50, 51, 52),
    "csf": (1, 46),
    "cortex": (31, 32, 47, 48, *range(100, 208)),
    "white": tuple(range(81, 96)),
    "deep grey": (23, 30, 36, 37, 55, 56, 57, 58, 59, 60, 75, 76),
    "cerebellar grey": (38, 39, 71, 72, 73),
    "cerebellar white": (40, 41),
    "stem": (35, 61, 62),
}

# FreeSurfer numbers, those above 500 as SynthSeg extends them (Billot et al. 2023).
_SYNTHSEG = {
    "ventricle": (4, 5, 14, 15, 43, 44, 72),
    # One number for all of it: how much lies in the sulci cannot be told.
    "outer csf": (24,),
    "cortex": (3, 42, 17, 18, 53, 54, 136, 137, 163, 164),
    "white": (2, 41, 25, 57, 85, 530),
    "deep grey": (10, 49, 11, 12, 13, 26, 50, 51, 52, 58),
    "cerebellar grey": (8, 47),
    "cerebellar white": (7, 46),
    "stem": (16, 28, 60),
    "dark": (515,),
    "soft": (507, 508, 509, 511, 512),
    "marrow": (516,),
    "vessel": (30, 62, 502, 514),
    "eye": (506,),
}
SCHEMES = {"muse": _MUSE, "synthseg": _SYNTHSEG}

# Shares of the image's range: below the first bone and air, above the second fat and
# marrow in T1. Coarse, since only the brain's contrast is taught exactly.
DARK, BRIGHT = 0.14, 0.62
# Fainter than this is the air around the head.
AIR = 0.05


# What the encoder is asked to tell apart at every voxel, each with its tissues.
CLASSES = {
    "outside": ("air", "dark", "soft", "fat", "vessel", "eye", "marrow"),
    "ventricle": ("ventricle",),
    "csf": ("csf",),
    "cortex": ("cortex",),
    "white": ("white",),
    "deep grey": ("deep grey",),
    "hind brain": ("cerebellar grey", "cerebellar white", "stem"),
}
UNKNOWN = len(TOLD)


def class_map(tissue: torch.Tensor) -> torch.Tensor:
    """uint8 of any shape, index into the encoder's TISSUES; UNKNOWN where it cannot be told."""
    table = torch.full((len(TISSUES),), UNKNOWN, dtype=torch.uint8)
    for number, told in enumerate(TOLD):
        table[[NUMBER[name] for name in CLASSES[told]]] = number
    return table[tissue.long()]


def tissue_map(labels: torch.Tensor, scheme: str, image: torch.Tensor | None = None) -> torch.Tensor:
    """uint8 (K, J, I), index into TISSUES.

    labels  integers (K, J, I), numbers of the scheme; an unknown number counts as none
    image   (K, J, I), 0..1, T1-weighted: tells the tissues outside the labels

    Raises TrainingRefused where the scheme is not known.
    """
    if scheme not in SCHEMES:
        raise TrainingRefused(
            f"there is no label scheme {scheme[:40]!r}; write one of {', '.join(SCHEMES)} "
            "in the column label_scheme"
        )
    table = torch.zeros(1024, dtype=torch.uint8)
    for name, numbers in SCHEMES[scheme].items():
        table[list(numbers)] = NUMBER[name]
    tissue = table[labels.long().clamp(0, len(table) - 1)]
    return tissue if image is None else torch.where(tissue > 0, tissue, _outside(image))


def share_of_brain(tissue: torch.Tensor, name: str) -> float:
    """A tissue's volume over that of the brain's own tissue and ventricles; nan without a brain.

    Fluid outside is not counted below the line: maps differ in how far it reaches.
    """
    counts = torch.bincount(tissue.flatten().int(), minlength=len(TISSUES)).double()
    brain = float(counts[list(BRAIN)].sum() - counts[NUMBER["csf"]])
    return float(counts[NUMBER[name]]) / brain if brain else float("nan")


def _outside(image: torch.Tensor) -> torch.Tensor:
    steps = torch.tensor([AIR, DARK, BRIGHT], dtype=image.dtype)
    names = torch.tensor([NUMBER[name] for name in ("air", "dark", "soft", "fat")], dtype=torch.uint8)
    return names[torch.bucketize(image, steps)]
