"""What others build on changes on purpose only, and what is written about the project is true."""

from __future__ import annotations

import ast
import difflib
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from nl.cli.main import cli
from nl.config.registry import StoreKinds
from tests.meta.surface import surface

ROOT = Path(__file__).parents[2]
MODULES = sorted(path for path in (ROOT / "nl").rglob("*.py") if "gen" not in path.parts)
README = (ROOT / "README.md").read_text()


def test_what_store_authors_import_is_what_it_was():
    written = (Path(__file__).parent / "plugin_surface.txt").read_text()
    changes = "\n".join(difflib.unified_diff(written.splitlines(), surface().splitlines(), lineterm="", n=0))
    assert not changes, f"on purpose? python -m tests.meta.surface > tests/meta/plugin_surface.txt\n{changes}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_module_says_what_it_is(path):
    docstring = ast.get_docstring(ast.parse(path.read_text()))
    assert docstring
    assert len(docstring) > 20


def test_plugins_see_nothing_but_the_plugin_page():
    for path in sorted((ROOT / "plugins").rglob("*.py")):
        allowed = {"nl.plugin", "nl.testing"} if "tests" in path.parts else {"nl.plugin"}
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            used = {name for name in names if name == "nl" or name.startswith("nl.")}
            assert used <= allowed, f"{path.relative_to(ROOT)} imports {used - allowed}"


def test_the_commands_of_the_readme_exist():
    commands = {
        tuple(re.split(r" (?=[a-z]+\.json5|[#<>|-])", line)[0].split()[1:])
        for line in re.findall(r"^nl .*$", README, re.MULTILINE)
    } | {tuple(span.split()[1:]) for span in re.findall(r"`(nl [a-z]+(?: [a-z]+)?)(?: [^`]*)?`", README)}
    assert ("serve",) in commands
    assert ("config", "check") in commands
    for command in commands:
        shown = CliRunner().invoke(cli, [*command, "--help"])
        assert shown.exit_code == 0, f"nl {' '.join(command)}: {shown.output}"
        assert shown.output.startswith("Usage: "), shown.output


def test_the_commands_of_dev_in_the_documents_exist():
    verbs = re.search(r"^VERBS = .* in \((.*)\)\}$", (ROOT / "dev").read_text(), re.MULTILINE)
    assert verbs
    for document in sorted(ROOT.glob("*.md")):
        named = set(re.findall(r"\./dev ([a-z]+)", document.read_text()))
        assert named <= {"help", *verbs[1].split(", ")}, document.name


@pytest.mark.parametrize("kind", StoreKinds.of_project().names())
def test_every_store_kind_is_in_the_documents(kind):
    for document in ("README.md", "DESIGN.md", "configs/REFERENCE.md"):
        assert f"`{kind}`" in (ROOT / document).read_text(), f"{document} does not mention {kind}"


def test_every_relative_link_in_the_documents_leads_somewhere():
    for document in [*ROOT.glob("*.md"), *(ROOT / "plugins").rglob("*.md"), *(ROOT / "configs").glob("*.md")]:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"


def test_the_decisions_are_numbered_without_gaps():
    decisions = (ROOT / "DESIGN.md").read_text().partition("## Decisions")[2].partition("\n## ")[0]
    numbers = [int(number) for number in re.findall(r"^(\d+)\. \*\*", decisions, re.MULTILINE)]
    assert numbers == list(range(1, len(numbers) + 1))
