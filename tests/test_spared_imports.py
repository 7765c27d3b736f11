"""What monai need not look for, and that whoever needs it still finds it."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from medsiam import spared_imports

TOLD = "import sys; print(*(name in sys.modules for name in ('sklearn', 'scipy.signal', 'tensorboard')))"


def printed(code: str) -> str:
    """What Python prints of a few lines, in a process of its own."""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return told.stdout.strip()


def test_a_command_does_not_load_what_monai_alone_asks_for():
    """Half a second of each; and without the finder they are loaded."""
    import_all = "import medsiam.compare\n"
    assert printed(f"import medsiam.console\n{import_all}{TOLD}") == "False False False"
    assert "True" in printed(f"{import_all}{TOLD}")


def test_afterwards_each_is_found():
    """Training's losses need one of them."""
    code = "import medsiam.console, medsiam.compare\nimport sklearn.metrics, scipy.signal, nibabel\nprint(1)"
    assert printed(code) == "1"


def test_only_the_thread_that_imports_monai_is_told_that_they_are_missing(monkeypatch):
    """A service's other thread may import one of them in that very moment."""
    finder = spared_imports._Spared()
    monkeypatch.setattr(spared_imports, "_is_loading", lambda name: True)
    finder.find_spec("monai")
    with pytest.raises(ModuleNotFoundError):
        finder.find_spec("sklearn")
    told = []
    other = threading.Thread(target=lambda: told.append(finder.find_spec("sklearn")))
    other.start()
    other.join()
    assert told == [None]
    monkeypatch.setattr(spared_imports, "_is_loading", lambda name: False)
    assert finder.find_spec("sklearn") is None
