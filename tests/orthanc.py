"""A real Orthanc on loopback, with DICOMweb and a password, started and ended by the test."""

import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest

USER, PASSWORD = "reader", "a-password-of-the-test"
DICOMWEB = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
PYTHON = DICOMWEB.with_name("libOrthancPython.so")


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


@contextmanager
def orthanc(folder, move_port=11199, ports=None, more=None):
    """Yields (http port, dicom port); skips where Orthanc or its DICOMweb plugin is missing.

    ports  those of an earlier one in the same folder, which so starts again
    more   further settings
    """
    program = shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin")
    if program is None or not DICOMWEB.exists():
        pytest.skip("Orthanc is not installed (Debian: orthanc, orthanc-dicomweb)")
    http, dicom = ports or (free_port(), free_port())
    settings = {
        "StorageDirectory": str(folder / "store"), "IndexDirectory": str(folder / "store"),
        "HttpPort": http, "DicomPort": dicom, "DicomAet": "ORTHANC", "RemoteAccessAllowed": False,
        "AuthenticationEnabled": True, "RegisteredUsers": {USER: PASSWORD}, "OverwriteInstances": True,
        "DicomCheckCalledAet": True, "DicomAlwaysAllowFind": True, "DicomAlwaysAllowGet": True,
        "DicomAlwaysAllowMove": True, "Plugins": [str(DICOMWEB)],
        "DicomModalities": {"medsiam": ["MEDSIAM", "127.0.0.1", move_port]},
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"}, **(more or {}),
    }  # fmt: skip
    (folder / "orthanc.json").write_text(json.dumps(settings))
    with (folder / "orthanc.log").open("ab") as log:
        process = subprocess.Popen([program, str(folder / "orthanc.json")], stdout=log, stderr=log)
    try:
        _wait(process, http, folder / "orthanc.log")
        yield http, dicom
    finally:
        process.terminate()
        process.wait(timeout=20)


def _wait(process, port, log):
    for _ in range(200):
        if process.poll() is not None:
            pytest.fail(log.read_text(errors="replace")[-800:])
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/system", timeout=2)
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.1)
    pytest.fail("Orthanc did not start")
