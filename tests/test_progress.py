from __future__ import annotations

import io
import logging
import re
import sys
import time
from dataclasses import replace

import pytest
from rich.progress import Progress
from tiny import conv, images

import convfactor
from convfactor import progress
from convfactor.cli import main
from convfactor.planning.prepared import Environment

SECONDS = 20.0  # to wait at most for what takes milliseconds


@pytest.fixture(autouse=True)
def package_logger():
    """The package's logger as it is before anyone looks at it; a command adds a handler."""
    logger = logging.getLogger("convfactor")
    level, handlers = logger.level, logger.handlers
    logger.level, logger.handlers = logging.NOTSET, []
    logger.manager._clear_cache()
    yield logger
    logger.level, logger.handlers = level, handlers
    logger.manager._clear_cache()


@pytest.fixture
def quick(monkeypatch):
    """Lines come hundreds of times a second."""
    monkeypatch.setattr(progress, "EVERY", 0.002)


def work(show, done) -> None:
    """Solve two layers, the second one until something is done."""
    end = time.monotonic() + SECONDS
    with progress.reporting(show) as display:
        for name, tell in zip("ab", progress.steps(display, "solving", "ab"), strict=True):
            tell("3x3 3x3 (8)", 0.45, 0.032)
            while name == "b" and not done() and time.monotonic() < end:
                time.sleep(0.001)


def test_lines_come_at_the_interval_and_say_where_work_is():
    now, told, waits = 100.0, [], []
    display = Progress(disable=True, get_time=lambda: now)
    names = ["features.0", "features.2"]

    def working():
        yield display
        with progress.step(display, "finding layers"):
            yield
        for tell in progress.steps(display, "solving", names):
            yield
            tell("3x3 3x3 (8)", 0.45, 0.032)
            yield
        yield

    course = working()

    def wait() -> bool:
        nonlocal now
        now += 1234.5
        waits.append(now)
        return next(course, "over") == "over"

    progress.tell_regularly(display, told.append, wait)
    assert len(waits) == len(told) + 1
    assert told == [
        "0:20:34",
        "0:41:09 finding layers",
        "1:01:43 solving 0/2, features.0",
        "1:22:18 solving 0/2, features.0: 3x3 3x3 (8), 45% done, error 3.20%",
        "1:42:52 solving 1/2, features.2",
        "2:03:27 solving 1/2, features.2: 3x3 3x3 (8), 45% done, error 3.20%",
        "2:24:01 solving 2/2",
    ]


@pytest.mark.parametrize("show", [True, "lines"])
def test_lines_are_written_where_there_is_no_terminal(quick, monkeypatch, show):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    work(show, lambda: sys.stderr.getvalue().count("solving 1/2, b: 3x3 3x3 (8)") > 2)
    lines = sys.stderr.getvalue().splitlines()
    assert len(lines) > 2
    assert all(line.startswith("convfactor: 0:00:") for line in lines)
    assert "\x1b" not in sys.stderr.getvalue()


def test_none_is_for_those_who_listen(quick, monkeypatch, caplog):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    start = time.monotonic()
    work(None, lambda: time.monotonic() > start + 0.05)
    assert caplog.records == []
    caplog.set_level(logging.INFO, "convfactor")
    work(None, lambda: len(caplog.records) > 2)
    assert {record.name for record in caplog.records} == {"convfactor.progress"}
    assert {record.levelname for record in caplog.records} == {"INFO"}
    assert any("solving 1/2, b" in record.getMessage() for record in caplog.records)
    assert sys.stderr.getvalue() == ""


def test_nothing_is_told_where_nobody_wants_it(quick, monkeypatch, caplog):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    caplog.set_level(logging.INFO, "convfactor")
    start = time.monotonic()
    work(False, lambda: time.monotonic() > start + 0.05)
    assert caplog.records == []
    assert sys.stderr.getvalue() == ""


def test_a_bar_may_be_had_in_a_pipe(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    work("bar", lambda: True)
    (line,) = sys.stderr.getvalue().splitlines()
    assert line.startswith("solving ")
    assert "2/2" in line


class Terminal(io.StringIO):
    """A terminal as far as a stream can tell."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("show", [None, True, "bar"])
def test_a_terminal_shows_bars_and_their_colours_where_they_are_wanted(quick, monkeypatch, show):
    monkeypatch.setenv("TERM", "xterm-256color")
    for plain in (False, True):
        monkeypatch.setattr(sys, "stderr", Terminal())
        if plain:
            monkeypatch.setenv("NO_COLOR", "1")
        work(show, lambda: "b: 3x3 3x3 (8)" in sys.stderr.getvalue())
        written = sys.stderr.getvalue()
        assert "1/2" in written
        assert "convfactor: " not in written
        assert (re.search(r"\x1b\[[0-9;]*m", written) is None) == plain


@pytest.mark.parametrize(("name", "value"), [("TERM", "dumb"), ("FORCE_COLOR", "1")])
def test_where_bars_can_not_move_there_are_lines(quick, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "stderr", Terminal() if name == "TERM" else io.StringIO())
    work(True, lambda: sys.stderr.getvalue().count("solving 1/2, b") > 2)
    assert set(re.findall(r"^\w+: ", sys.stderr.getvalue(), re.MULTILINE)) == {"convfactor: "}
    assert "\x1b" not in sys.stderr.getvalue()


class Closed(io.StringIO):
    """A pipe that nobody reads any more."""

    def write(self, text: str) -> int:
        self.asked = True
        raise BrokenPipeError


def test_a_closed_pipe_ends_the_lines_and_not_the_work(quick, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Closed())
    work("lines", lambda: getattr(sys.stderr, "asked", False))
    assert sys.stderr.asked


@pytest.mark.parametrize("show", ["loud", 1, ""])
def test_what_progress_takes(show):
    message = "progress must be True, False, None, 'bar' or 'lines', got "
    for call in (
        lambda: convfactor.plan(conv(), images(), progress=show),
        lambda: convfactor.optimize(conv(), images(), progress=show),
        lambda: convfactor.factorize(conv().weight, 0.1, progress=show),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_the_package_is_silent_but_for_warnings(capfd, caplog, monkeypatch, package_logger):
    options = {"tolerance": 1e-3, "objective": "macs", "structures": "cascade"}
    convfactor.plan(conv(), images(), **options)
    assert capfd.readouterr().err == ""
    busy = replace(Environment.current(images().device, False), load=99.0)
    monkeypatch.setattr(Environment, "current", lambda *_: busy)
    package_logger.setLevel(logging.DEBUG)
    plan = convfactor.plan(conv(), images(), **options)
    assert all(record.name.startswith("convfactor.") for record in caplog.records)
    told = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert ("DEBUG", f"Conv2d: replaced, {plan.entries[0].reason}") in told
    (warning,) = (text for level, text in told if level == "WARNING")
    assert warning.startswith("the machine is busy, with a load of 99.0 for 1 thread: ")


MODULE = """
import time
from torch import nn

def net():
    return nn.ReLU()

def score(model):
    time.sleep(0.02)
    return 0.0
"""


@pytest.mark.parametrize(
    ("more", "lines", "notes"),
    [
        ([], True, True),
        (["--progress", "lines"], True, True),
        (["--quiet"], False, False),
        (["--quiet", "--progress", "lines"], True, False),
    ],
)
def test_the_command_tells_on_stderr(quick, tmp_path, monkeypatch, capsys, more, lines, notes):
    (tmp_path / "slow.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "slow", raising=False)
    given = ["--input", "1x2x12x12", "--output", "out", "--objective", "macs", "--workers", "1"]
    judged = ["--evaluate", "slow:score", "--max-drop", "1"]
    assert main(["optimize", "slow:net", *given, *judged, *more]) == 0
    out, err = capsys.readouterr()
    assert "the model is unchanged" in out
    assert ("convfactor: 0:00:00 running the model\n" in err) == lines
    assert ("convfactor: wrote plan.json" in err) == notes
    assert all(line.startswith("convfactor: ") for line in err.splitlines())
