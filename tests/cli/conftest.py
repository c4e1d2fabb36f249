"""A working folder with a user's module, and the command line run in this process."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NamedTuple

import pytest

from convfactor.cli import main

MODULE = """
import torch
from tiny import batches, conv
from torch import nn

net = nn.Sequential(conv())
small = nn.Sequential(nn.Conv2d(2, 2, 3))
data = batches(4)

class inner:
    net = net

class Net(nn.Sequential):
    def __init__(self):
        super().__init__(conv())

def make():
    print("a word of the user's own")
    return nn.Sequential(conv())

def empty():
    return nn.Sequential(nn.Conv2d(2, 2, 5, padding=2))
"""


class Ran(NamedTuple):
    """What a command said."""

    status: int
    out: str
    err: str


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with a module ``theirs`` in it."""
    (tmp_path / "theirs.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    sys.modules.pop("theirs", None)


@pytest.fixture
def run(capsys, monkeypatch) -> Callable[..., Ran]:
    """Run a command in this process."""
    monkeypatch.setattr("convfactor.progress.EVERY", 1e6)  # no lines on a slow machine

    def run(*arguments: object) -> Ran:
        capsys.readouterr()
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as stop:  # argparse
            status = int(stop.code or 0)
        out, err = capsys.readouterr()
        return Ran(status, out, err)

    return run
