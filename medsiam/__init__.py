"""medsiam: has this scan changed since the last one, and which earlier cases look alike?

The public names, nothing else. Each is imported when it is first asked for, so
that `medsiam --help` does not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medsiam.cases.index import CaseIndex
    from medsiam.change.comparison import Comparison, Finding
    from medsiam.compare import compare_series
    from medsiam.encoding.weights import load_encoder
    from medsiam.errors import MedsiamError
    from medsiam.reading import read_volume
    from medsiam.volume import Grid, Volume

__version__ = "0.1.0"

_HOMES = {
    "CaseIndex": "medsiam.cases.index",
    "Comparison": "medsiam.change.comparison",
    "Finding": "medsiam.change.comparison",
    "Grid": "medsiam.volume",
    "MedsiamError": "medsiam.errors",
    "Volume": "medsiam.volume",
    "compare_series": "medsiam.compare",
    "load_encoder": "medsiam.encoding.weights",
    "read_volume": "medsiam.reading",
}

__all__ = [
    "CaseIndex",
    "Comparison",
    "Finding",
    "Grid",
    "MedsiamError",
    "Volume",
    "__version__",
    "compare_series",
    "load_encoder",
    "read_volume",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'medsiam' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
