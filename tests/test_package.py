"""What importing the package loads, and what it offers."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import inspect
import pickle
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch

import convfactor

ROOT = Path(__file__).parent.parent
STUB = Path(convfactor.__file__).with_suffix(".pyi")
SLOW = {"torch", "numpy", "rich", "cattrs", "jinja2", "safetensors", "matplotlib"}
PUBLIC = [
    "Bounds", "Cascade", "CascadeConv2d", "CascadeConvNd", "ConvGeometry", "Factorization",
    "Inputs", "Moments", "Plan", "PlanMismatchError", "Stage", "StageShape", "Structure",
    "ToleranceError", "bench", "factorize", "filters", "fx", "load", "optimize", "plan", "save",
    "wavelets",
]  # fmt: skip


def run(code: str) -> str:
    """What a new process prints, where a warning is an error."""
    command = [sys.executable, "-W", "error", "-c", code]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def loaded(code: str) -> set[str]:
    """Modules that a new process has loaded after some code."""
    return set(run(f"{code}; import sys; print(*sys.modules, sep='\\n')").splitlines())


def test_importing_the_package_loads_nothing_that_is_slow():
    assert not loaded("import convfactor") & SLOW


def test_what_a_name_does_not_need_is_not_loaded():
    found = loaded("import convfactor; convfactor.optimize")
    assert {"torch", "convfactor.planning.optimization"} <= found
    assert not found & {"jinja2", "matplotlib", "pytorch_wavelets"}
    assert not found & {"convfactor.fx", "convfactor.plots", "convfactor.wavelets"}


def test_the_public_names():
    assert convfactor.__all__ == PUBLIC
    assert {*PUBLIC, "__version__", "plots"} <= set(dir(convfactor))
    names: dict[str, object] = {}
    exec("from convfactor import *", names)
    assert {name for name in names if name != "__builtins__"} == set(PUBLIC)
    with pytest.raises(AttributeError, match="module 'convfactor' has no attribute 'factorise'"):
        convfactor.factorise  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'factorise'"):
        exec("from convfactor import factorise")


def test_type_checkers_find_the_names_where_they_are():
    """The stub imports all that there is, each from where it is at run time."""
    imports = [
        node for node in ast.parse(STUB.read_text()).body if isinstance(node, ast.ImportFrom)
    ]
    stated = {alias.asname: node.module for node in imports for alias in node.names}
    assert set(stated) == {*PUBLIC, "plots"}
    for name, home in stated.items():
        value = getattr(convfactor, name)
        assert value is getattr(importlib.import_module(str(home)), name)
        if isinstance(value, type):
            assert value.__module__ == home


def test_what_is_found_late_is_the_same():
    stage = convfactor.Stage(torch.ones(1, 1, 3, 3))
    assert convfactor.Stage is importlib.import_module("convfactor.conv.cascade").Stage
    back = pickle.loads(pickle.dumps(stage))
    assert isinstance(back, convfactor.Stage)
    assert torch.equal(back.weight, stage.weight)


def test_without_matplotlib_the_rest_can_be_inspected():
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "import convfactor, inspect\n"
        "assert 'optimize' in dict(inspect.getmembers(convfactor))\n"
        "try: convfactor.plots\n"
        "except ImportError as error: print(error)"
    )
    assert "pip install 'convfactor[plots]'" in run(code)


def test_one_version():
    assert importlib.metadata.version("convfactor") == convfactor.__version__
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert 'dynamic = ["readme", "version"]' in project
    assert not re.search(r"^version\s*=", project, re.MULTILINE)
    log = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    first, second = re.findall(r"^## (.*)$", log, re.MULTILINE)[:2]
    assert first == "Unreleased"
    version, date = second.split(" - ")
    assert version == convfactor.__version__
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {version}\ndate-released: {date}\n" in citation


MODULES = [f"convfactor.{name}" for name in ("filters", "fx", "wavelets", "plots")]


def documented():
    """Public classes and functions, by the names that users write."""
    found = {}
    for module in (convfactor, *map(import_module, MODULES)):
        for name in module.__all__:
            value = getattr(module, name)
            if inspect.isclass(value) or inspect.isfunction(value):
                found[f"{module.__name__}.{name}"] = value
    return found


@pytest.mark.parametrize(("name", "value"), documented().items(), ids=documented())
def test_every_public_name_has_an_example(name, value):
    assert re.search(r"^Example:\n    >>> ", inspect.getdoc(value), re.MULTILINE), name


@pytest.mark.parametrize("function", [convfactor.factorize, convfactor.optimize, convfactor.plan])
def test_help_documents_every_argument_and_what_comes_back(function):
    text = inspect.getdoc(function)
    args = text.split("\nArgs:\n")[1].split("\nReturns:\n")[0]
    assert re.findall(r"^    (\w+): ", args, re.MULTILINE) == [
        *inspect.signature(function).parameters
    ]
    assert "\nRaises:\n" in text


def test_plan_and_optimize_document_the_same_arguments():
    parts = [
        re.findall(r"^(?:Args|Raises):\n(?:    .*\n|\n)+", inspect.getdoc(f), re.MULTILINE)
        for f in (convfactor.plan, convfactor.optimize)
    ]
    assert parts[0] == parts[1]
    assert len(parts[0]) == 2
