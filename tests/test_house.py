"""The house is in order: packaging, make, CI and container say the same things."""

import importlib.util
import re
import subprocess
import tomllib
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import medsiam
from medsiam import cli

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")


def requirements(*groups):
    """Every direct dependency, of the package and of the extras named."""
    extras = PROJECT["optional-dependencies"]
    lines = [*PROJECT["dependencies"], *(line for group in groups for line in extras[group])]
    return [Requirement(line) for line in lines]


def pinned():
    """Name to version, as constraints.txt pins them."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {name.lower(): Version(number) for name, number in pairs}


def recipe(target):
    """Prerequisites and recipe lines of a make target."""
    found = re.search(rf"^{re.escape(target)}:(.*)\n((?:\t.*\n)*)", MAKEFILE, re.M)
    assert found is not None, f"no target {target}"
    return found.group(1).split(), found.group(2)


@pytest.mark.parametrize("requirement", requirements("dev"), ids=lambda r: r.name)
def test_every_direct_dependency_is_pinned_within_its_range(requirement):
    """So that make setup gives the versions that the suite passed with."""
    assert requirement.specifier.contains(pinned()[requirement.name.lower()])


@pytest.mark.parametrize("requirement", requirements("dev"), ids=lambda r: r.name)
def test_every_dependency_has_a_lower_and_an_upper_bound(requirement):
    """Below it was never tried, above it will break one day."""
    assert {spec.operator for spec in requirement.specifier} == {">=", "<"}


@pytest.mark.parametrize("requirement", requirements("dev"), ids=lambda r: r.name)
def test_every_dependency_has_its_reason_in_writing(requirement):
    """What has no reason goes."""
    reasons = (ROOT / "docs/decisions/0002-dependencies.md").read_text(encoding="utf-8")
    assert re.search(rf"\b{re.escape(requirement.name)}\b", reasons, re.I)


def test_nothing_is_pinned_that_is_no_direct_dependency():
    """A stale pin keeps an unused library in mind."""
    extras = PROJECT["optional-dependencies"]
    assert set(pinned()) == {requirement.name.lower() for requirement in requirements(*extras)}


def locked():
    """Name to version and number of digests, as requirements.lock has them."""
    blocks = re.split(r"^(?=[a-z0-9])", (ROOT / "requirements.lock").read_text(encoding="utf-8"), flags=re.M)
    found = (re.match(r"([\w.-]+)(?:\[[\w,-]+\])?==(\S+)", block) for block in blocks)
    return {
        canonicalize_name(match[1]): (Version(match[2]), block.count("--hash=sha256:"))
        for match, block in zip(found, blocks, strict=True)
        if match
    }


def test_every_package_in_the_lock_has_its_digests():
    """One without would be taken from anybody."""
    assert len(locked()) > 100 and all(count for _, count in locked().values())


@pytest.mark.parametrize("requirement", requirements("dev"), ids=lambda r: r.name)
def test_the_lock_holds_what_the_constraints_pin(requirement):
    """Two truths about a version are none; `make lock` brings them together."""
    assert locked()[canonicalize_name(requirement.name)][0] == pinned()[requirement.name.lower()]


def test_an_audit_that_could_ask_nobody_is_no_good_news():
    """Known and well, known and bad, and not known at all are three answers."""
    spec = importlib.util.spec_from_file_location("audit", ROOT / ".ci" / "audit.py")
    audit = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(audit)
    well = {"name": "a", "version": "1", "vulns": []}
    bad = {"name": "b", "version": "2", "vulns": [{"id": "CVE-1"}]}
    unknown = {"name": "c", "skip_reason": "not found"}
    assert audit.verdict({"dependencies": [well, unknown]})[0] == 0
    assert audit.verdict({"dependencies": [well, bad]}) == (
        1,
        "audit: 1 known vulnerabilities: b 2 (CVE-1); raise the versions, `make lock`",
    )
    assert "skipped" in audit.verdict({"dependencies": [unknown]})[1]


def test_the_command_medsiam_is_the_command_line():
    """And its target exists."""
    assert PROJECT["scripts"] == {"medsiam": "medsiam.cli:main"}
    assert callable(cli.main)


def test_the_version_is_told_once():
    """pyproject takes it from the package; an installed copy agrees."""
    assert PROJECT["dynamic"] == ["version"]
    try:
        installed = version("medsiam")
    except PackageNotFoundError:
        pytest.skip("medsiam runs from its checkout without being installed")
    assert installed == medsiam.__version__


def test_the_wheel_holds_the_package_only():
    """Flows, tests and settings stay outside."""
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    assert tool["hatch"]["build"]["targets"]["wheel"]["packages"] == ["medsiam"]


@pytest.mark.parametrize("target", ["demo", "test", "check", "bench"])
def test_every_make_target_sets_up_first(target):
    """Two commands from a fresh checkout, not three."""
    assert recipe(target)[0] == ["setup"]


@pytest.mark.parametrize("script", sorted((ROOT / "bench").glob("*.py")), ids=lambda script: script.name)
def test_what_a_benchmark_takes_of_the_package_is_there(script):
    """Also in the programs that it writes for its children: nobody runs them in a suite."""
    wanted = re.findall(r"^\s*from (medsiam[\w.]*) import ([\w, ]+)$", script.read_text("utf-8"), re.M)
    for module, names in wanted:
        for name in re.findall(r"(\w+)(?: as \w+)?", names):
            assert hasattr(import_module(module), name) or import_module(f"{module}.{name}")


def test_setup_is_not_done_again_when_nothing_changed():
    """It waits on a stamp that depends on what it installs."""
    assert recipe("setup")[0] == [".venv/.ready"]
    needs, does = recipe(".venv/.ready")
    assert needs == ["pyproject.toml", "constraints.txt"]
    assert "-c constraints.txt -e '.[dev]'" in does
    assert "touch $@" in does


def test_ci_runs_make_check_and_make_check_runs_lint_types_and_tests():
    """One way to check, at home and in CI."""
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert re.search(r"^exec timeout .* make check$", ci, re.M)
    does = recipe("check")[1]
    assert all(tool in does for tool in ("ruff check", "mypy", "pytest"))


def test_ci_is_an_executable_script_that_stops_at_the_first_error():
    """An exit code that lies is worse than no CI."""
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    assert "set -euo pipefail" in script.read_text(encoding="utf-8")
    assert subprocess.run(["bash", "-n", str(script)]).returncode == 0


def test_the_container_is_built_in_stages_and_runs_without_root():
    """No compiler and no root in what runs."""
    stages = re.findall(r"^FROM .+$", DOCKERFILE, re.M)
    assert len(stages) == 2
    last = DOCKERFILE.rsplit(stages[-1], 1)[1]
    assert re.search(r"^USER medsiam$", last, re.M)
    assert "COPY --from=build" in last
    assert 'ENTRYPOINT ["medsiam"]' in last


def test_the_container_calls_nobody_and_can_be_built_for_cpu():
    """Telemetry off; the CUDA build of torch by default."""
    assert "DO_NOT_TRACK=1" in DOCKERFILE
    assert re.search(r"^ARG TORCH_INDEX=default$", DOCKERFILE, re.M)
    assert "download.pytorch.org/whl/$TORCH_INDEX" in DOCKERFILE


def test_what_the_container_copies_is_let_through_and_exists():
    """The ignore file shuts everything out that is not named."""
    let_through = re.findall(r"^!(\S+)$", (ROOT / ".dockerignore").read_text(encoding="utf-8"), re.M)
    copied = {
        name for line in re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.M) for name in line.split()
    }
    assert copied == set(let_through)
    assert all((ROOT / name).exists() for name in copied)


def test_the_licence_is_the_one_that_is_declared():
    """In full, as the licence itself asks."""
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert PROJECT["license"] == "Apache-2.0"
    assert "Apache License" in text and "END OF TERMS AND CONDITIONS" in text


def test_no_secret_and_no_scan_is_tracked_by_accident():
    """What demos, runs and environments leave behind is ignored."""
    ignored = (ROOT / ".gitignore").read_text(encoding="utf-8").split()
    assert {".venv/", "demo-report/", "runs/", "dist/"} <= set(ignored)
