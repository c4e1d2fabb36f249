"""The README and the pages of docs/: Python runs, commands parse, links lead on."""

from __future__ import annotations

import argparse
import importlib
import re
import shlex
from pathlib import Path
from types import FunctionType

import pytest
import torch

import convfactor
from convfactor.cli import main
from convfactor.cli.arguments import parsers

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
MODULES = ["convfactor", *(f"convfactor.{name}" for name in ("filters", "fx", "wavelets", "plots"))]


def blocks(page: Path, language: str) -> list[str]:
    """Code of one language, indented or not; what is called ``py`` is not run."""
    found = re.findall(
        rf"^( *)```{language}\n(.*?)^\1```$", page.read_text(encoding="utf-8"), re.M | re.S
    )
    return [re.sub(rf"^{indent}", "", code, flags=re.M) for indent, code in found]


LANGUAGES = {"python", "py", "sh", "text", "json"}  # and no more words, which a page would show


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def with_python() -> list[object]:
    """Pages, those of which no warning comes and those that show exporters with their own."""
    exporters = pytest.mark.filterwarnings("ignore")
    return [
        pytest.param(page, id=name(page), marks=[exporters] if page.stem == "deployment" else [])
        for page in PAGES
        if blocks(page, "python")
    ]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_blocks_name_a_language_and_nothing_else(page):
    opened = re.findall(r"^ *```(.*)$", page.read_text(encoding="utf-8"), re.M)[::2]
    assert set(opened) <= LANGUAGES


@pytest.mark.parametrize("page", with_python())
def test_the_python_of_a_page_runs_in_order(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for i, block in enumerate(blocks(page, "python")):
        exec(compile(block, f"{name(page)}, block {i}", "exec"), names)
    assert "Traceback" not in capsys.readouterr().err
    torch._dynamo.reset()


class UnderstoodError(BaseException):
    """Ends a command before it does anything; no handler of errors takes it."""


@pytest.fixture
def understand(monkeypatch):
    """Have the command line read its arguments, and stop there."""
    parse = argparse.ArgumentParser.parse_args

    def parse_and_stop(self, *arguments):
        parse(self, *arguments)
        raise UnderstoodError

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
    return main


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "sh")], ids=name)
def test_the_commands_of_a_page_are_those_that_there_are(page, understand):
    lines = "\n".join(blocks(page, "sh")).replace("\\\n", " ").splitlines()
    for command in (part.strip() for line in lines for part in line.split("&&")):
        first, *arguments = shlex.split(command, comments=True) or [""]
        if first == "convfactor":
            with pytest.raises(UnderstoodError):
                understand(arguments)
        elif first == "python" and arguments[0].endswith(".py"):
            assert (ROOT / arguments[0]).is_file(), command


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=name)
def test_links_lead_to_files(page):
    text = re.sub(r"^ *```.*?^ *```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    for link in re.findall(r"\]\(([^)#]+)", text):
        assert "://" in link or (page.parent / link).is_file(), link


def test_every_option_is_on_the_page_of_the_command_line():
    page = (ROOT / "docs" / "commands.md").read_text()
    program, commands = parsers()
    for parser in (program, *commands.values()):
        for action in parser._actions:
            assert not action.option_strings or any(o in page for o in action.option_strings), (
                action
            )


def test_every_public_name_is_in_the_reference():
    text = "".join(page.read_text() for page in (ROOT / "docs" / "api").glob("*.md"))
    described = set(re.findall(r"^::: (\S+)$", text, re.M))
    for module in map(importlib.import_module, MODULES):
        public = [n for n in module.__all__ if isinstance(getattr(module, n), (type, FunctionType))]
        assert not {f"{module.__name__}.{n}" for n in public} - described
    assert "convfactor.lightning.OptimizeAfterFit" in described
    assert {"fx", "wavelets"} <= set(convfactor.__all__)
