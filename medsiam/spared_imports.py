"""Imports that monai tries and no command here uses, spared: they were half of the time it needs to load.

monai looks for dozens of packages as it is imported and gets along without each. Only while it
is, and only in the thread that imports it, these are said to be missing; afterwards everything
that asks for them finds them.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from threading import get_ident
from types import ModuleType

SPARED = frozenset(
    {
        "jsonschema",
        "matplotlib",
        "nibabel",
        "pandas",
        "requests",
        "scipy.integrate",
        "scipy.interpolate",
        "scipy.optimize",
        "scipy.signal",
        "scipy.sparse",
        "scipy.spatial",
        "scipy.stats",
        "skimage",
        "sklearn",
        "tensorboard",
        "tensorboardX",
    }
)


class _Spared(MetaPathFinder):
    """Says that the spared are missing, to the thread that imports monai and until it has."""

    def __init__(self) -> None:
        self._thread: int | None = None

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name == "monai":
            self._thread = get_ident()
        elif name in SPARED and self._thread == get_ident():
            if _is_loading("monai"):
                raise ModuleNotFoundError(f"{name} is not needed by medsiam's part of monai", name=name)
            self._thread = None
        return None


def spare_imports() -> None:
    """To be called once, before anything imports monai."""
    if not any(isinstance(finder, _Spared) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Spared())


def _is_loading(name: str) -> bool:
    return bool(getattr(getattr(sys.modules.get(name), "__spec__", None), "_initializing", False))
