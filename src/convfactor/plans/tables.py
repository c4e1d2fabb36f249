"""A plan as a table that fits the terminal."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import TextIO

from rich import box
from rich.cells import cell_len, chop_cells
from rich.console import Console
from rich.table import Table
from rich.text import Text

from convfactor import terminal
from convfactor.plans import report
from convfactor.plans.decisions import Decisions, Entry
from convfactor.plans.report import FIGURES, HEADINGS, Row

# Nothing is narrower: what identifies a layer, and what became of it.
LEAST = 30
# What is left out where there is no room, the first of these first; layer and decision stay.
DISPENSABLE = (
    ("border",),
    ("worst_channel",),
    ("worst_batch",),
    ("structure",),
    ("kernel",),
    ("before", "after"),
    ("error",),
    ("reason",),
)
# Widths to which columns of words are folded before anything is left out.
FOLDED = {"layer": 14, "kernel": 12, "structure": 15, "reason": 20}
# Which of them take the room that is left, in turn, and up to which width.
WIDER = (
    ("kernel", 14),
    ("reason", 28),
    ("layer", 24),
    ("structure", 24),
    ("kernel", 24),
    ("reason", 40),
    ("layer", 80),
    ("structure", 40),
    ("kernel", 40),
    ("reason", 60),
)
EDGES, GAP = 2, 2  # columns beside the table, and between two of its own


def to_text(plan: Decisions, width: int | None = None, colours: bool = False) -> str:
    """Table of the decisions, what they were measured on, and the whole model.

    Args:
        plan: What to show.
        width: Columns of the longest line; None for as many as the terminal has.
        colours: Whether decisions are coloured, by escape sequences of a terminal.
    """
    buffer = io.StringIO()
    console = Console(
        file=buffer,
        width=max(LEAST, terminal.width() if width is None else width),
        color_system="standard" if colours else None,
        force_terminal=colours,
        no_color=not colours,
        legacy_windows=False,
        highlight=False,
        markup=False,
        emoji=False,
        force_jupyter=False,  # there the table would be shown, not written
    )
    if not plan.entries:
        return "\n".join(_folded([report.nothing(plan)], console))
    rows = [Row(*map(_printable, report.row(entry))) for entry in plan.entries]
    widths = fitted(rows, console.width)
    console.print(_table(plan.entries, rows, widths))
    lines = [line.rstrip() for line in buffer.getvalue().splitlines()]
    hidden = [name for name in _used(rows) if name not in widths]
    if hidden:
        names = ", ".join(" ".join(getattr(HEADINGS, name).split()) for name in hidden)
        note = f"not shown for want of room: {names}"
        lines += _folded([note], console)
    return "\n".join(
        [*_folded(report.header(plan), console), *lines, *_folded(report.footer(plan), console)]
    )


def show(plan: Decisions, file: TextIO | None = None) -> None:
    """Print a plan, in colours where it goes to a terminal that has them.

    Args:
        plan: What to show.
        file: Where it goes; None for stdout.
    """
    print(to_text(plan, terminal.width(file), terminal.has_colours(file)), file=file)


def fitted(rows: Sequence[Row], width: int) -> dict[str, int]:
    """Choose columns that fit side by side, and how wide each is.

    Args:
        rows: Cells.
        width: Of all columns together.

    Returns:
        Widths by the names of the columns that are shown, in their order.
    """
    whole = {name: _longest(rows, name) for name in _used(rows)}
    widths = {name: min(size, FOLDED.get(name, size)) for name, size in whole.items()}
    for names in DISPENSABLE:
        if _room(widths, width) >= 0:
            break
        widths = {name: size for name, size in widths.items() if name not in names}
    for name, most in WIDER:
        if name in widths:
            wanted = min(whole[name], most) - widths[name]
            widths[name] += max(0, min(wanted, _room(widths, width)))
    widths["layer"] += min(0, _room(widths, width))
    return widths


def _used(rows: Sequence[Row]) -> list[str]:
    """The columns in which something stands."""
    always = ("layer", "decision")
    return [n for n in Row._fields if n in always or any(getattr(row, n) for row in rows)]


def _room(widths: Mapping[str, int], width: int) -> int:
    """What is left of a line beside columns, or is missing."""
    return width - EDGES - sum(widths.values()) - GAP * (len(widths) - 1)


def _longest(rows: Sequence[Row], name: str) -> int:
    """Width of a column in which nothing is folded."""
    cells = (getattr(row, name) for row in (HEADINGS, *rows))
    return max(cell_len(line) for cell in cells for line in cell.split("\n"))


def _table(entries: Sequence[Entry], rows: Sequence[Row], widths: Mapping[str, int]) -> Table:
    """Lay cells out."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for name, size in widths.items():
        table.add_column(
            getattr(HEADINGS, name),
            justify="right" if name in FIGURES else "left",
            width=size,
            overflow="fold",
        )
    for entry, row in zip(entries, rows, strict=True):
        cells = row._replace(layer=_broken(row.layer, widths["layer"]))
        style = _style(entry)
        table.add_row(
            *(Text(getattr(cells, name), style if name == "decision" else "") for name in widths)
        )
    return table


def _style(entry: Entry) -> str:
    """Colour of a decision: what was gained and what was missed; none for the rest."""
    if entry.replaced:
        return "green"
    return "yellow" if entry.missed or entry.budgeted else ""


def _broken(name: str, width: int, marks: str = "._") -> str:
    """Break a name after its dots; a part that is too long after underscores, or anywhere."""
    lines = [""]
    for part in re.split(rf"(?<={re.escape(marks[0])})(?=.)", name):
        if cell_len(part) > width:
            part = (
                _broken(part, width, marks[1:]) if marks[1:] else "\n".join(chop_cells(part, width))
            )
        first, *more = part.split("\n")
        if lines[-1] and cell_len(lines[-1]) + cell_len(first) > width:
            lines.append(first)
        else:
            lines[-1] += first
        lines += more
    return "\n".join(lines)


def _printable(text: str) -> str:
    """A user's text, on one line, with nothing in it that a terminal obeys."""
    return "".join(
        c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in " ".join(text.split())
    )


def _folded(lines: Sequence[str], console: Console) -> list[str]:
    """Fold lines of prose, the rest of each indented."""
    found = []
    for line in lines:
        parts = Text(_printable(line)).wrap(console, console.width - GAP, overflow="fold")
        found.append(f"\n{' ' * GAP}".join(part.plain.rstrip() for part in parts))
    return found
