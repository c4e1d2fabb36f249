"""A plan as tables, for notebooks, for Markdown and for other programs."""

from __future__ import annotations

import os

from convfactor.plans import notebook, outcome, report, storage
from convfactor.plans.decisions import Decisions


class Views(Decisions):
    """What a plan shows of itself without the model."""

    def __repr__(self) -> str:
        """What was asked for and done, without the weights."""
        done = report.replaced(self) if self.entries else report.nothing(self)
        return f"{type(self).__name__}({outcome.budget(self.settings)}: {done})"

    def _repr_html_(self) -> str:
        """What a notebook shows: the layers and the whole model, in short."""
        return notebook.to_html(self)

    def to_markdown(self, path: str | os.PathLike[str] | None = None) -> str:
        """Make a table of GitHub's Markdown with what ``print`` shows, and write it to a file."""
        return storage.written(report.to_markdown(self), path)

    def to_csv(self, path: str | os.PathLike[str] | None = None) -> str:
        """Make a table for other programs, one line per decision, and write it to a file.

        Numbers have full precision, times are in seconds, and what is unknown is empty.
        """
        return storage.written(report.to_csv(self), path)
