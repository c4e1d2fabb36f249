"""Writes that are interrupted at one step after another."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from convfactor.plans import storage


@contextmanager
def interrupted(monkeypatch: pytest.MonkeyPatch, stop: int) -> Iterator[None]:
    """Let so many steps of a write happen inside, and interrupt it at the next."""
    done = []

    def step(original):
        def run(*args, **kwargs):
            if len(done) >= stop:
                raise KeyboardInterrupt
            done.append(args)
            return original(*args, **kwargs)

        return run

    with monkeypatch.context() as patch, suppress(KeyboardInterrupt):
        patch.setattr(os, "replace", step(os.replace))
        patch.setattr("convfactor.plans.storage.save", step(storage.save))
        yield
