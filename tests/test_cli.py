"""The command line keeps the contract's exit codes, and its one line on standard error."""

import errno
import json
import logging
import os
import subprocess
import sys
import types
import warnings
from unittest.mock import Mock

import pytest
from typer.testing import CliRunner

import medsiam
from medsiam import cli, console
from medsiam.bench import registry
from medsiam.bench.scores import Score, Scores
from medsiam.errors import GeometryRefused, NotComparable, ResourceExhausted
from medsiam.report import placing
from tests.comparison_maker import comparison


@pytest.fixture
def compares(monkeypatch):
    """Lets a function stand in for compare_series, and keeps what it was called with."""

    def stand_in(answer):
        calls = []

        def compare_series(*scans, **options):
            calls.append((scans, options))
            if isinstance(answer, BaseException):
                raise answer
            return answer

        monkeypatch.setitem(
            sys.modules, "medsiam.compare", types.SimpleNamespace(compare_series=compare_series)
        )
        return calls

    return stand_in


def run(*arguments):
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def run_compare(out, *more):
    return run("compare", "prior", "current", "--out", out, *more)


def files_in(folder):
    return sorted(path.name for path in folder.rglob("*")) if folder.exists() else None


def test_a_comparison_ends_with_0_whatever_the_verdict(tmp_path, compares):
    """Progression is an answer, not a failure."""
    compares(comparison(verdict="progressed"))
    result = run_compare(tmp_path / "out")
    assert result.exit_code == 0
    assert result.stdout.startswith("progressed: ")
    assert str(tmp_path / "out" / "report.html") in result.stdout
    assert "report.json" in files_in(tmp_path / "out")


def test_every_option_reaches_the_comparison(tmp_path, compares):
    """An option that is accepted and dropped is worse than none."""
    calls = compares(comparison())
    run_compare(
        tmp_path, "--prior-series", "1.2", "--current-series", "1.3", "--device", "cpu", "--weights", "w",
        "--seed", "5", "--fast", "--allow-different-patients", "--keep-order", "--config", "c.yaml",
    )  # fmt: skip
    options = {name: str(value) for name, value in calls[0][1].items() if name != "progress"}
    assert options == {
        "prior_series": "1.2", "current_series": "1.3", "device": "cpu", "weights": "w", "seed": "5",
        "allow_different_patients": "True", "keep_order": "True", "config": "c.yaml", "fast": "True",
    }  # fmt: skip


def test_json_prints_the_report_and_nothing_else(tmp_path, compares):
    """So that it can be piped."""
    compares(comparison())
    result = run_compare(tmp_path, "--json")
    assert json.loads(result.stdout) == json.loads((tmp_path / "report.json").read_text())
    assert result.stderr == ""


@pytest.mark.parametrize("error", [GeometryRefused("two\nlines"), NotComparable("a head and a foot; no")])
def test_a_refusal_ends_with_3_one_line_and_a_refused_report(tmp_path, compares, error):
    """What a batch relies on."""
    compares(error)
    result = run_compare(tmp_path / "out")
    assert result.exit_code == 3
    assert result.stderr.count("\n") == 1
    assert files_in(tmp_path / "out") == ["report.json"]
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["status"] == "refused"
    assert report["refusal"]["code"] == error.code


def test_a_refusal_still_ends_with_3_where_its_folder_cannot_be_made(tmp_path, compares, monkeypatch):
    """The line on standard error tells all the same."""
    compares(GeometryRefused("no positions"))
    monkeypatch.setattr(placing, "_first_missing", Mock(side_effect=PermissionError(errno.EACCES, "closed")))
    result = run_compare(tmp_path / "out")
    assert (result.exit_code, result.stderr.count("\n")) == (3, 1)
    assert "no positions" in result.stderr and files_in(tmp_path / "out") is None


@pytest.mark.parametrize(
    ("name", "reason"),
    [("file", "there is a file of that name"), ("file/in/it", "'file' on the way is a file")],
)
def test_a_folder_that_cannot_be_made_is_a_refusal_before_any_work(tmp_path, compares, name, reason):
    """A comparison takes a minute."""
    (tmp_path / "file").write_text("mine")
    calls = compares(comparison())
    result = run_compare(tmp_path / name)
    assert (result.exit_code, result.stderr.count("\n"), calls) == (3, 1, [])
    assert reason in result.stderr and (tmp_path / "file").read_text() == "mine"


def test_an_empty_name_of_a_folder_is_wrong_usage(compares):
    """It is a script's variable that was never set, and would mean the present folder."""
    calls = compares(comparison())
    result = run_compare("")
    assert (result.exit_code, calls) == (2, []) and "--out" in result.stderr


@pytest.mark.parametrize(
    ("name", "formats", "is_free"),
    [("report.json", "json", False), ("dicom", "json,dicom", False), ("dicom", "json", True)],
)
def test_what_is_not_ours_stands_in_the_way_before_any_work(tmp_path, compares, name, formats, is_free):
    """Only where it would be written."""
    (tmp_path / name).mkdir() if name == "dicom" else (tmp_path / name).write_text("{}")
    calls = compares(comparison())
    result = run_compare(tmp_path, "--formats", formats)
    if is_free:
        assert result.exit_code == 0 and len(calls) == 1
    else:
        assert (result.exit_code, calls) == (3, []) and "was not written by medsiam" in result.stderr


def test_an_index_that_is_not_there_is_refused_before_any_work(tmp_path, compares):
    """And the remedy is told."""
    calls = compares(comparison())
    result = run_compare(tmp_path / "out", "--index", tmp_path / "cases")
    assert (result.exit_code, calls) == (3, []) and "index add" in result.stderr


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        ResourceExhausted("the disk is full"),
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "x"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 1 PB"),
        type("OutOfMemoryError", (RuntimeError,), {})("CUDA"),
    ],
)
def test_exhausted_memory_or_disk_ends_with_4_and_leaves_nothing(tmp_path, compares, error):
    """A queue may try again elsewhere; it must not find half a result."""
    compares(error)
    result = run_compare(tmp_path / "out")
    assert (result.exit_code, result.stderr.count("\n")) == (4, 1)
    assert files_in(tmp_path / "out") is None


def test_a_bug_ends_with_1_and_shows_its_traceback_only_when_asked(tmp_path, compares):
    """Users get a line; who debugs asks for more."""
    compares(KeyError("slope"))
    quiet, loud = run_compare(tmp_path / "out"), run_compare(tmp_path / "out", "-v")
    assert (quiet.exit_code, quiet.stderr.count("\n")) == (1, 1)
    assert "Traceback" in loud.stderr
    assert files_in(tmp_path / "out") is None


def test_a_warning_of_a_library_stays_off_standard_error(tmp_path, compares, monkeypatch):
    """One line is promised there, and a warning would be a second."""
    compares(comparison())

    def warns(*_, **__):
        warnings.warn("an odd header", stacklevel=1)
        logging.getLogger("pydicom").error("an odd header")
        raise GeometryRefused("no positions")

    monkeypatch.setattr(sys.modules["medsiam.compare"], "compare_series", warns)
    assert run_compare(tmp_path / "out").stderr == "medsiam: no positions\n"


def test_ctrl_c_ends_with_130(tmp_path, compares):
    """As shells expect of an interrupted program."""
    compares(KeyboardInterrupt())
    result = run_compare(tmp_path / "out")
    assert (result.exit_code, result.stderr) == (130, "")


@pytest.mark.parametrize(
    "arguments",
    [
        ("compare", "prior", "--out", "x"),
        ("compare", "prior", "current"),
        ("compare", "prior", "current", "--out", "x", "--formats", "jpeg"),
        ("compare", "prior", "current", "--out", "x", "--formats", ","),
        ("compare", "prior", "current", "--out", "x", "--device", "cuda:first"),
        ("compare", "prior", "current", "--out", "x", "--seed", "one"),
        ("bench", "none-such"),
        ("explain",),
        ("--colour",),
    ],
)
def test_wrong_usage_ends_with_2(arguments):
    """Before anything is loaded or written."""
    assert run(*arguments).exit_code == 2


def test_the_formats_of_the_command_are_those_that_the_writer_knows():
    """Told twice, since the writer takes seconds to import."""
    from medsiam.report.writer import FORMATS

    assert (*FORMATS, "dicom") == console.FORMATS
    assert cli.USUAL_FORMATS.split(",") == list(FORMATS)


def test_the_version_is_told():
    """And is the package's."""
    assert run("--version").stdout.strip() == medsiam.__version__


@pytest.mark.parametrize(
    "command", ["compare", "trajectory", "search", "index", "demo", "bench", "send", "deidentify"]
)
def test_every_command_has_help_with_an_example(command):
    """The contract says so."""
    result = run(command, "--help")
    assert result.exit_code == 0
    assert f"Example: medsiam {command}" in result.stdout


def test_help_loads_no_heavy_library():
    """It must answer at once; torch alone takes seconds."""
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom medsiam.cli import app\n"
        "CliRunner().invoke(app, ['compare', '--help'])\n"
        "print(sorted({'torch', 'monai', 'pydicom', 'numpy', 'nibabel', 'scipy'} & set(sys.modules)))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"


def test_python_dash_m_is_the_same_command_line():
    """For where the script is not on the path."""
    said = subprocess.run(
        [sys.executable, "-m", "medsiam", "--version"], capture_output=True, text=True, check=True
    )
    assert said.stdout.strip() == medsiam.__version__


def test_the_public_names_are_there_and_no_others():
    """`medsiam.x` for a name that does not exist is an AttributeError, as everywhere."""
    assert set(medsiam.__all__) == {*medsiam._HOMES, "__version__"}
    assert medsiam.MedsiamError.exit_code == 3
    with pytest.raises(AttributeError, match="no attribute 'magic'"):
        _ = medsiam.magic


def test_a_benchmark_prints_measured_reference_and_target(monkeypatch):
    """One table for all of them, with data and seed."""
    scores = Scores("trial", "made-up", 7, (Score("error (mm)", 0.125, "0.31 (SimpleITK)", "< 0.2"),))
    module = types.SimpleNamespace(measure=lambda data, seed: scores)
    monkeypatch.setitem(sys.modules, "medsiam.bench.trial", module)
    monkeypatch.setitem(registry.BENCHMARKS, "trial", registry.Benchmark("A trial.", "medsiam.bench.trial"))
    assert "trial" in run("bench").stdout
    lines = run("bench", "trial").stdout.splitlines()
    assert lines[0] == "trial: data made-up, seed 7"
    cells = [cell.strip() for cell in lines[4].split("|")]
    assert cells == ["error (mm)", "0.125", "0.31 (SimpleITK)", "< 0.2"]
