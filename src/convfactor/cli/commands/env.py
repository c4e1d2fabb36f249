"""Describe this machine."""

from __future__ import annotations

import contextlib
import importlib
import json
from argparse import Namespace

from convfactor.environment import describe

with contextlib.suppress(Exception):  # which is told; halfway it can't be interrupted
    importlib.import_module("torch")


def run(options: Namespace) -> None:
    """Print versions, processor and threads."""
    found = describe()
    if options.json:
        print(json.dumps(found, indent=2))
        return
    width = max(map(len, found))
    for name, value in found.items():
        print(f"{name:{width}}  {_words(value)}")


def _words(value: object) -> str:
    """Say yes or no, or what there is."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return (", ".join(value) or "none") if isinstance(value, list) else str(value)
