"""How a run ends before its end: Ctrl-C, and a pipe that nobody reads."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from convfactor.cli import interrupts
from convfactor.cli.streams import writing
from convfactor.cli.workers import workers

COMMAND = [sys.executable, "-m", "convfactor"]
INTERRUPT = "import os, signal, time; os.kill(os.getpid(), signal.SIGINT); time.sleep(60)"


def start(*arguments: str, **options: object) -> subprocess.Popen[str]:
    """Start a command."""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **options}
    return subprocess.Popen([*COMMAND, *arguments], **options)


@pytest.mark.parametrize(
    "arguments",
    [
        ["env"],
        ["optimize", "ctrl_c:net", "--input", "1x2", "--output", "new/out"],
        ["factorize", "gaussian"],
    ],
)
def test_an_interruption_while_modules_are_loaded_ends_without_a_traceback(
    folder, arguments, monkeypatch
):
    """A module of Python's that every command loads late is one that interrupts."""
    (folder / "ctrl_c.py").write_text(INTERRUPT)
    if arguments[0] != "optimize":
        (folder / "torch.py").write_text(INTERRUPT)
    done = start(*arguments, env={**os.environ, "PYTHONPATH": os.pathsep.join(
        [str(folder), os.environ.get("PYTHONPATH", "")])})  # fmt: skip
    out, err = done.communicate()
    assert (done.returncode, out) == (130, "")
    assert err == "convfactor: interrupted; nothing was written\n"
    assert not (folder / "new").exists()


def test_a_closed_pipe_is_silent(folder):
    read, write = os.pipe()
    os.close(read)
    done = start("optimize", "--help", stdout=write)
    os.close(write)
    assert done.communicate()[1] == ""
    assert done.returncode == 141


def test_a_full_disk_is_told(folder):
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full")
    with open("/dev/full", "w") as full:
        done = start("--help", stdout=full)
        assert "No space left on device" in done.communicate()[1]
    assert done.returncode == 2


def asleep() -> None:
    time.sleep(600)


def interrupted() -> int:
    os.kill(os.getpid(), signal.SIGINT)
    return 7


def test_workers_do_not_hear_of_an_interruption_and_end_with_the_run(capfd):
    def solve():
        with workers(2, {"max_drop"}) as executor:
            assert executor.submit(interrupted).result() == 7
            executor.submit(asleep)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        solve()
    assert capfd.readouterr().err == ""


def test_without_a_budget_for_the_model_there_are_no_workers():
    for count, wanted in ((1, {"max_drop"}), (2, {"tolerance"})):
        with workers(count, wanted) as executor:
            assert executor is None


def test_what_python_does_at_an_interruption_comes_back():
    before = signal.getsignal(signal.SIGINT)
    with interrupts.at_once():
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # as the shell does for a job in the background
    try:
        with interrupts.at_once():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    ("names", "told"), [(["a.csv"], "a.csv is all that was written"), ([], "nothing was written")]
)
def test_files_that_are_written_are_named(folder, names, told):
    def stopped():
        with writing() as write:
            for name in names:
                write("--csv", name, "1,2")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as stop:
        stopped()
    assert str(stop.value) == told


def test_what_is_said_is_found_out_when_it_happens():
    with (
        pytest.raises(KeyboardInterrupt, match="two lines"),
        interrupts.saying(lambda: "three lines"),
        interrupts.saying(lambda: "two lines"),
    ):
        raise KeyboardInterrupt
