"""Help, and what the command line says of names that are not there."""

from __future__ import annotations

import argparse
import inspect
import re
import shlex
import sys
import types

import pytest

from convfactor import filters
from convfactor.cli.arguments import parsers
from convfactor.cli.checks import check
from convfactor.cli.examples import EXAMPLES
from convfactor.cli.parsing import parse

PROGRAM, COMMANDS = parsers()


def actions(command: str) -> list[argparse.Action]:
    """The arguments of a command."""
    return COMMANDS[command]._actions


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_has_help_with_its_default_and_unit(command, run, monkeypatch):
    for action in actions(command):
        assert action.help, action.dest
        if action.option_strings and not action.required and action.dest != "help":
            budget = command == "optimize" and action.dest in (
                "tolerance", "model_tolerance", "evaluate", "max_drop"
            )  # fmt: skip
            asked = command == "factorize" and action.dest in ("tolerance", "stages", "widths")
            assert "default: " in action.help or budget or asked, action.dest
    monkeypatch.setenv("COLUMNS", "80")
    ran = run(command, "--help")
    assert ran.status == 0
    assert max(map(len, ran.out.splitlines())) <= 80


@pytest.mark.parametrize("command", COMMANDS)
def test_there_are_two_examples_of_every_command_and_they_can_be_given(command, folder):
    for name in ("net.safetensors", "batches.npz", "model.pt2"):
        (folder / name).touch()
    text = EXAMPLES[command].split("\n\n")[0].replace("\\\n", " ")
    lines = [re.split(r" [|>] ", line)[0] for line in text.splitlines()]
    assert len(lines) >= 2
    for line in lines:
        program, *arguments = shlex.split(line)
        assert (program, arguments[0]) == ("convfactor", command)
        check(parse(PROGRAM, COMMANDS, arguments))


def test_help_tells_the_filters_as_they_are_by_default():
    told = EXAMPLES["factorize"].split("degrees:\n")[1]
    for name, make in filters.FILTERS.items():
        (line,) = re.findall(rf"^  {name}:(.*)$", told, re.MULTILINE)
        given = {k: float(v) for k, v in (part.split("=") for part in line.split(","))}
        assert list(given) == list(inspect.signature(make).parameters)
        assert (make(**{**given, "size": int(given["size"])}) == make()).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["optimise"], "got 'optimise'; did you mean optimize?; see convfactor --help"),
        ([], "COMMAND must be one of demo, optimize, show, factorize, bench, env"),
        (["--verson"], "there is no option --verson; did you mean --version?"),
        (["optimize", "--ouput", "x"], "there is no option --ouput; did you mean --output"),
        (["optimize", "--ouput=x"], "see convfactor optimize --help"),
        (
            ["optimize", "theirs:net", "--objective", "mac"],
            "'mac' is none of latency, macs; did you mean macs?",
        ),
        (["factorize", "gausian"], "got 'gausian'; did you mean gaussian?"),
        (["factorize", "gaussian:sgima=2"], "only size, sigma; did you mean sigma?"),
        (["factorize", "kernal.npy"], "got 'kernal.npy'; did you mean kernel.npy?"),
        (["factorize", "gaussian:size=big"], "must be numbers, as in size=9, got 'size=big'"),
        (["factorize", "gaussian", "--tensor", "a"], "--tensor is for a file"),
        (["show", "pln"], "FOLDER must hold a plan, pln: no such folder; did you mean plan?"),
        (["show", "."], "FOLDER must hold a plan, .: no plan; there are plans in plan"),
        (
            ["optimize", "theirs:nett", "--input", "1x2x12x12", "--output", "o"],
            "there is no nett in theirs; did you mean net",
        ),
        (
            ["optimize", "thiers:net", "--input", "1x2x12x12", "--output", "o"],
            "No module named 'thiers'; did you mean theirs",
        ),
        (
            ["optimize", "torch.nm:Conv2d", "--input", "1x2x12x12", "--output", "o"],
            "or torch.nn",
        ),
        (["optimize", "modle.pt2", "--output", "o"], "got modle.pt2; did you mean model.pt2?"),
        (
            ["optimize", "theirs:net", "--input", "1x2x12x12", "--output", "o", "--select", "1"],
            "--select '1' matches none of the layers with a kernel of 5 or more, which are 0",
        ),
    ],
)
def test_a_name_that_is_not_there_is_told_with_those_that_are_alike(
    folder, run, arguments, message
):
    (folder / "kernel.npy").touch()
    (folder / "model.pt2").touch()
    (folder / "plan").mkdir()
    (folder / "plan" / "plan.json").touch()
    ran = run(*arguments)
    assert (ran.status, ran.out) == (2, "")
    assert message in ran.err
    assert ran.err.startswith("convfactor: error: ")
    assert ran.err.count("\n") == 1
    assert not (folder / "o").exists()


def test_what_a_model_misses_is_no_reason_to_doubt_its_name(folder, run):
    (folder / "lacking.py").write_text("import no_such_package")
    ran = run("optimize", "lacking:net", "--input", "1x2x12x12", "--output", "o")
    assert "No module named 'no_such_package'" in ran.err
    assert "did you mean" not in ran.err


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--max-drop", "1"], "--evaluate and --max-drop belong together: evaluate(model) says"),
        (["--tolerance", "0.1", "--model-tolerance", "0.1"], "got --tolerance and --model-tol"),
        (
            ["--refine"],
            "--refine needs a budget for the model, which it keeps to: give --model-tol",
        ),
    ],
)
def test_what_is_said_of_budgets_names_options(folder, run, given, message):
    ran = run("optimize", "theirs:net", "--input", "1x2x12x12", "--output", "o", *given)
    assert (ran.status, ran.out) == (2, "")
    assert message in ran.err


def test_completion_is_written_by_shtab(run, monkeypatch):
    stand_in = types.ModuleType("shtab")
    stand_in.complete = lambda parser, shell: f"{parser.prog} in {shell}"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "shtab", stand_in)
    assert run("--print-completion", "zsh") == (0, "convfactor in zsh\n", "")
    monkeypatch.setitem(sys.modules, "shtab", None)
    ran = run("--print-completion", "bash")
    assert ran.status == 2
    assert "pip install 'convfactor[completion]'" in ran.err


def test_completion_knows_commands_and_options(run):
    pytest.importorskip("shtab")
    ran = run("--print-completion", "bash")
    assert ran.status == 0
    assert "--model-tolerance" in ran.out
    assert "factorize" in ran.out
