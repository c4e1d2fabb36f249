"""``convfactor env``: what a report of a bug needs, and nothing private."""

from __future__ import annotations

import json
import os
import platform
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import torch

import convfactor


def test_versions_are_those_that_run(run):
    found = json.loads(run("env", "--json").out)
    assert found["convfactor"] == convfactor.__version__
    assert found["python"].startswith(platform.python_version())
    assert (found["torch"], found["numpy"]) == (torch.__version__, np.__version__)
    assert found["threads"].startswith(f"{torch.get_num_threads()},")
    assert f"matplotlib {metadata.version('matplotlib')}" in found["extra plots"]
    assert found["MKL"] == torch.backends.mkl.is_available()


def test_the_text_has_a_line_for_each_and_no_folder(run, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    ran = run("env")
    names = json.loads(run("env", "--json").out)
    lines = ran.out.splitlines()
    assert [line.split("  ")[0].strip() for line in lines] == list(names)
    assert "OMP_NUM_THREADS=1" in lines[-1]
    for private in (str(Path.home()), sys.prefix, str(Path.cwd())):
        assert private not in ran.out
    assert not [line for line in lines if "/" in line and not line.startswith("processor")]
    assert not {platform.node(), os.environ.get("USER", "-")} & set(ran.out.split())


def test_a_torch_that_can_not_be_loaded_is_told(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    ran = run("env")
    assert ran.status == 0
    assert "torch can't be imported  ModuleNotFoundError" in ran.out
