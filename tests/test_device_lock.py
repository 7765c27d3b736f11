"""One device, one job: whoever dies frees it, whoever lives keeps it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flows.device_lock import DeviceBusy, held
from flows.settings import LockSettings

ROOT = Path(__file__).parents[1]
HOLD = """
import sys, time
from flows.device_lock import held
from flows.settings import LockSettings
with held("gpu-0", LockSettings(folder=sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def settings(tmp_path):
    return LockSettings(folder=str(tmp_path), lease_s=1.5, beat_s=0.2)


@pytest.fixture
def holder(settings):
    """Another process that holds gpu-0."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, settings.folder], cwd=ROOT, stdout=subprocess.PIPE
    )
    assert process.stdout.readline() == b"held\n"
    yield process
    process.kill()
    process.wait()


def is_free(settings, name="gpu-0"):
    try:
        with held(name, settings, patience_s=0.0):
            return True
    except DeviceBusy:
        return False


def lease_of_another_host(settings):
    """As a container of the same machine would leave it, whose flock does not reach us."""
    told = {"token": "theirs", "pid": 1, "started": "1", "host": "elsewhere", "boot": ""}
    (Path(settings.folder) / "gpu-0.lease").write_text(json.dumps(told))


def test_a_device_that_is_held_is_not_given_and_another_is(holder, settings):
    assert not is_free(settings) and is_free(settings, "gpu-1")


def test_a_device_is_free_as_soon_as_its_holder_is_killed(holder, settings):
    """Within a minute, the issue asks; the kernel does it at once."""
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    began = time.monotonic()
    assert is_free(settings) and time.monotonic() - began < 5.0


def test_a_holder_that_stands_still_keeps_its_device(holder, settings):
    """Its memory is still on the GPU, however long it says nothing."""
    os.kill(holder.pid, signal.SIGSTOP)
    time.sleep(2 * settings.lease_s)
    assert not is_free(settings)


def test_a_lease_of_another_host_is_respected_until_it_is_old(settings):
    """Where flock reaches nobody else, the lease is what holds."""
    lease_of_another_host(settings)
    assert not is_free(settings)
    time.sleep(1.2 * settings.lease_s)
    assert is_free(settings)


def test_whoever_waits_is_told_who_holds_it_and_gets_it(holder, settings):
    heard = []
    holder.send_signal(signal.SIGCONT)
    with (
        pytest.raises(DeviceBusy, match=str(holder.pid)),
        held("gpu-0", settings, patience_s=0.7, waiting=heard.append),
    ):
        pass
    assert len(heard) == 1 and str(holder.pid) in heard[0]


def test_a_lease_is_renewed_while_the_block_runs_and_gone_after_it(settings):
    lease = Path(settings.folder) / "gpu-0.lease"
    with held("gpu-0", settings):
        first = lease.stat().st_mtime_ns
        time.sleep(3 * settings.beat_s)
        assert lease.stat().st_mtime_ns > first
    assert not lease.exists()
