"""The doctor tells what is there, what is missing, and what to do."""

import json

import pytest
from typer.testing import CliRunner

from medsiam import cli
from medsiam.doctor import examine
from tests import case_maker as maker


def run(*arguments):
    return CliRunner().invoke(cli.app, ["doctor", "--device", "cpu", *map(str, arguments)])


def test_a_sound_installation_ends_with_0_and_names_every_check(tmp_path, monkeypatch):
    """What is optional is a warning at most."""
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    index = maker.index_in(tmp_path)
    index.add([maker.case(1)])
    result = run("--index", index.folder, "--json")
    checks = {each["name"]: each for each in json.loads(result.stdout)}
    assert result.exit_code == 0
    assert {
        "installation",
        "device",
        "weights brain",
        "weights mr-ct-3d",
        "temporary",
        "tools",
        "prefect",
    } < set(checks)
    assert checks["index"]["state"] == "ok" and "1 cases" in checks["index"]["found"]
    assert all(each["remedy"] for each in checks.values() if each["state"] != "ok")


@pytest.mark.parametrize(
    ("arguments", "name"),
    [(("--index", "nowhere"), "index"), (("--from", "http://127.0.0.1:1/x"), "archive")],
)
def test_what_does_not_work_is_told_with_its_remedy_and_ends_with_1(arguments, name):
    result = run(*arguments)
    (line,) = [line for line in result.stdout.splitlines() if line.split()[1:2] == [name]]
    assert result.exit_code == 1 and line.startswith("fail") and ";" in line


def test_a_prefect_server_that_does_not_answer_is_a_failure(monkeypatch):
    """Flows would hang on it."""
    pytest.importorskip("prefect")
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:1/api")
    assert examine(device="cpu")[-1].state == "fail"


def test_a_temporary_folder_that_cannot_be_written_is_a_failure(monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", "/nowhere/at/all")
    (check,) = [each for each in examine(device="cpu") if each.name == "temporary"]
    assert check.state == "fail" and "TMPDIR" in check.remedy
