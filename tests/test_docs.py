"""Documentation runs: commands, code blocks, links and settings are checked."""

import ast
import dataclasses
import re
import shlex
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

import medsiam
from medsiam import cli
from medsiam.cases.settings import IndexSettings
from medsiam.config import CompareSettings, load_settings, settings_as_dict

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "bench").glob("*.md")])
SETTINGS = ROOT / "configs" / "compare.yaml"


def blocks(language):
    """Every fenced block of a language: (page and number, text)."""
    for page in PAGES:
        found = re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)
        yield from ((f"{page.name}-{n}", text) for n, text in enumerate(found))


def spoken_commands(tool):
    """Every command line of a tool in the documentation, split into words."""
    for _, text in blocks("sh"):
        for line in text.splitlines():
            words = shlex.split(line, comments=True)
            if words and words[0].removeprefix(".venv/bin/") == tool:
                yield words[1:]
    for page in PAGES:
        for line in re.findall(rf"`{tool} ([^`]+)`", page.read_text(encoding="utf-8")):
            yield shlex.split(line)


def help_of(*command):
    return CliRunner().invoke(cli.app, [*command, "--help"]).stdout


def commands():
    """The names of the commands, as the help lists them."""
    listed = CliRunner().invoke(cli.app, ["--help"]).stdout.split("Commands:")[1]
    return set(re.findall(r"^  (\w+) ", listed, re.M))


@pytest.mark.parametrize("words", list(spoken_commands("medsiam")), ids=" ".join)
def test_a_command_in_the_documentation_exists_with_its_options(words):
    """Readers paste them."""
    if words[0].startswith("-"):
        return
    assert words[0] in commands()
    told = help_of(*words[:2] if words[0] == "index" else words[:1])
    assert told, f"there is no command {words[:2]}"
    for word in words[1:]:
        if word.startswith("-"):
            assert re.search(rf"(^|[\s,]){re.escape(word)}\b", told), f"{words[0]} has no option {word}"


@pytest.mark.parametrize("words", list(spoken_commands("make")), ids=" ".join)
def test_a_make_target_in_the_documentation_exists(words):
    """The two commands of the README above all."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in words:
        assert re.search(rf"^{target}:", makefile, re.M)


@pytest.mark.parametrize("text", [t for _, t in blocks("python")], ids=[n for n, _ in blocks("python")])
def test_python_in_the_documentation_uses_public_names_only(text):
    """It parses, and each medsiam.name is one that the package offers."""
    used = {
        node.attr
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "medsiam"
    }
    assert used <= set(medsiam.__all__)


@pytest.mark.parametrize(
    "name",
    [
        "compare",
        "trajectory",
        "batch",
        "verify",
        "doctor",
        "search",
        "demo",
        "bench",
        "send",
        "serve",
        "deidentify",
    ],
)
def test_the_example_in_a_help_text_is_a_valid_call(name):
    """Each word that begins with a dash is an option of that very command."""
    told = help_of(name)
    example = re.search(r"Example: medsiam (.+)", told)
    assert example is not None
    words = shlex.split(example.group(1))
    assert words[0] == name
    assert all(word in told.split("Options:")[1] for word in words if word.startswith("-"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_within_the_repository_lead_somewhere(page):
    """A dead link in a README is the first thing seen."""
    targets = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    dead = [t for t in targets if "://" not in t and not (page.parent / t).exists()]
    assert dead == []


def test_every_exit_code_is_in_the_readme():
    """The codes are a promise."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for code in (0, cli.BUG, 2, 3, 4, cli.INTERRUPTED):
        assert f"| {code} | " in readme


def test_the_settings_file_tells_the_defaults():
    """What stands in configs/compare.yaml is what happens without it."""
    assert load_settings(SETTINGS, CompareSettings) == CompareSettings()


def test_every_setting_is_in_the_settings_file():
    """A key that nobody can find is no setting."""
    written = yaml.safe_load(SETTINGS.read_text(encoding="utf-8"))
    known = settings_as_dict(CompareSettings())
    assert {s: set(keys) for s, keys in written.items()} == {s: set(keys) for s, keys in known.items()}


def test_the_index_settings_file_tells_the_defaults_and_every_key():
    """Likewise configs/index.yaml."""
    path = ROOT / "configs" / "index.yaml"
    assert load_settings(path, IndexSettings) == IndexSettings()
    assert set(yaml.safe_load(path.read_text(encoding="utf-8"))) == set(settings_as_dict(IndexSettings()))


def test_every_section_of_the_settings_file_is_commented():
    """Each group of keys has a sentence above it: no key follows its section's name directly."""
    lines = SETTINGS.read_text(encoding="utf-8").splitlines()
    for section in (field.name for field in dataclasses.fields(CompareSettings)):
        after = lines[lines.index(f"{section}:") + 1]
        assert after.strip().startswith("#"), f"{section} begins without a comment"


def test_the_documentation_says_that_this_is_for_research():
    """Whoever lands on the README or a help text must see it."""
    assert "Research use only" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert "Research use only" in CliRunner().invoke(cli.app, ["--help"]).stdout
