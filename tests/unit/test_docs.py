"""The documentation: links lead somewhere, and every command in it exists as written."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main
from typer.core import TyperGroup

from ares_stream.cli.main import COMMANDS, app

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
PLACEHOLDER = re.compile(r"^(\.\.\.|…|\[.*\])$")


def code_lines(page: Path) -> Iterator[str]:
    """Lines of code blocks, fenced or indented, with continuations joined."""
    fenced, held = False, ""
    for line in page.read_text().splitlines():
        if line.lstrip().startswith("```"):
            fenced = not fenced
            continue
        if not fenced and not line.startswith("    "):
            continue
        text = held + line.strip().removeprefix("$ ")
        if text.endswith("\\"):
            held = text[:-1]
            continue
        held = ""
        yield text


def commands(word: str) -> list[tuple[str, str]]:
    found = []
    for page in PAGES:
        for line in code_lines(page):
            # `VARIABLE=value ares ...` is a command as well.
            if re.match(rf"^([A-Z_]+=\S+ )*{word} ", line):
                found.append((page.name, line))
    return found


@pytest.mark.parametrize(("page", "line"), commands("ares"))
def test_every_ares_command_in_the_docs_parses(page: str, line: str) -> None:
    words = shlex.split(re.split(r"\s[|>]|\s2>", line)[0], comments=True)
    words = [word for word in words[words.index("ares") + 1 :] if not PLACEHOLDER.match(word)]
    command = typer.main.get_command(app)
    context = command.make_context("ares", [], resilient_parsing=True)
    while isinstance(command, TyperGroup) and words and not words[0].startswith("-"):
        found = command.get_command(context, words[0])
        assert found is not None, f"{page}: ares has no command {words[0]!r}"
        command = found
        context = command.make_context(words[0], [], parent=context, resilient_parsing=True)
        words = words[1:]
    known = {name for option in command.params for name in (*option.opts, *option.secondary_opts)}
    used = {word.split("=")[0] for word in words if word.startswith("--")}
    assert used <= known | {"--help"}, f"{page}: {line}"
    if "--help" not in used:
        command.make_parser(context).parse_args(list(words))


@pytest.mark.parametrize(("page", "line"), commands("make"))
def test_every_make_command_in_the_docs_is_a_target(page: str, line: str) -> None:
    words = shlex.split(line, comments=True)
    for word in words[words.index("make") + 1 :]:
        assert word in TARGETS or "=" in word, f"{page}: {line}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_to_a_file_leads_there(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", [*PAGES, ROOT / "SECURITY.md"], ids=lambda page: page.name)
def test_every_test_that_a_page_names_exists(page: Path) -> None:
    for name in re.findall(r"`(?:tests/\w+/)?(test_\w+\.py)`", page.read_text()):
        assert list((ROOT / "tests").rglob(name)), name


def test_the_readme_leads_to_every_page() -> None:
    readme = (ROOT / "README.md").read_text()
    missing = [
        page.name for page in (ROOT / "docs").glob("*.md") if f"docs/{page.name}" not in readme
    ]
    assert not missing


def test_the_readme_names_every_room() -> None:
    readme = (ROOT / "README.md").read_text()
    rooms = {path.parent.name for path in (ROOT / "ares_stream").glob("*/__init__.py")}
    assert not {room for room in rooms if f"`{room}/`" not in readme}


def test_the_page_of_commands_names_every_command() -> None:
    page = (ROOT / "docs/commands.md").read_text()
    assert not [name for name, _ in COMMANDS if f"| `ares {name}` |" not in page]
