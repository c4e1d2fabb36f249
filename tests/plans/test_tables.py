from __future__ import annotations

import io
import os
import re
import sys
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from tiny import batches, conv, images

import convfactor
from convfactor import Plan, terminal
from convfactor.latency import Timing
from convfactor.model.reasons import Reason
from convfactor.plans import tables
from convfactor.plans.decisions import Cost, Entry, Kept, Swapped, WholeModel

WIDTHS = (60, 80, 120, 160, 200)
LONG = "groupvit.vision_model.encoder.stages.0.downsample.proj.conv_1"
REASON = "tolerance: 3x3 3x3@2 (5), the closest of those fast enough, has an error of 3.15%"
TIME = Timing(0.0427, 0.04, 0.045)


@pytest.fixture(scope="module")
def plan() -> Plan:
    """A plan with every kind of decision, long names and long reasons."""
    plan = convfactor.plan(conv(), images(), 1e-3, calibration=batches(), objective="macs")
    (entry,) = plan.entries
    (kept,) = plan.keeping(0, Reason("tolerance", "tolerance", REASON)).entries
    cost = Cost(TIME, replace(TIME, median=0.011), 100, 36)
    first = replace(entry, decision=replace(entry.decision, cost=cost))
    subject = replace(entry.subject, kind="transform", kernel_size=(), geometry=None)
    swapped = Entry(subject, Swapped(cost, 2e-7, "cpp"))
    names = (LONG, LONG[:-1] + "2", "conv", "wavelets.inverse")
    entries = map(renamed, (first, entry, kept, swapped), names)
    whole = WholeModel((0.04,), TIME, TIME, "channels_last")
    return replace(plan, entries=tuple(entries), whole=whole)


def renamed(entry: Entry, name: str) -> Entry:
    return replace(entry, subject=replace(entry.subject, name=name))


def table(text: str) -> list[str]:
    """The lines below the rule."""
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(" ─"))
    return lines[start - 1 : start] + lines[start + 1 : lines.index("", start)]


def column(text: str, name: str) -> list[str]:
    """What stands below a heading up to the next one."""
    heading, *rows = table(text)
    start = heading.index(name)
    end = start + re.match(r"\S+( \S+)*\s*", heading[start:]).end()
    return [row[start:end].strip() for row in rows]


@pytest.mark.parametrize("width", WIDTHS)
def test_a_table_is_as_wide_as_it_may_be(plan, width):
    text = tables.to_text(plan, width)
    assert max(map(len, text.splitlines())) <= width
    assert "".join(column(text, "layer")) == "".join(entry.name for entry in plan.entries)
    labels = [entry.decision.label for entry in plan.entries]
    assert [cell for cell in column(text, "decision") if cell] == labels
    assert all(line == line.rstrip() for line in text.splitlines())


def test_what_there_is_no_room_for_is_named(plan):
    note = "not shown for want of room: "
    shown = [re.sub(r"\s+", " ", tables.to_text(plan, width)) for width in WIDTHS]
    hidden = [text.partition(note)[2].partition(" 3 of 4")[0].split(", ") for text in shown]
    assert hidden[-1] == [""]
    assert hidden[2] == ["border"]
    assert hidden[1] == [
        "kernel",
        "stages (hidden widths)",
        "worst batch",
        "worst channel",
        "border",
    ]
    assert hidden[0] == [*hidden[1], "before (ms)", "after (ms)"]
    least = tables.to_text(plan, 1)
    assert max(map(len, least.splitlines())) <= tables.LEAST
    assert table(least)[0].split() == ["layer", "decision"]
    assert "".join(column(least, "layer")) == "".join(entry.name for entry in plan.entries)


def test_columns_without_content_are_left_out(plan):
    (kept,) = (e for e in plan.entries if isinstance(e.decision, Kept))
    bare = replace(
        plan, entries=(replace(kept, decision=Kept(Reason.brief("shared", "is shared"))),)
    )
    assert table(tables.to_text(bare, 80))[0].split() == ["layer", "kernel", "decision", "reason"]
    assert "want of room" not in tables.to_text(bare, 80)


def test_names_are_broken_after_their_dots(plan):
    text = tables.to_text(plan, 120)
    assert column(text, "layer")[:3] == ["groupvit.", "vision_model.", "encoder."]
    assert LONG in tables.to_text(plan, 200)


@given(
    st.lists(
        st.tuples(
            st.text("ab._-0é\u5377\t\r\n\x1b[/", min_size=1, max_size=90),
            st.text("ab .,:[]\u5377\x1b\n", max_size=300),
        ),
        min_size=1,
        max_size=3,
    ),
    st.sampled_from(WIDTHS),
)
def test_no_name_and_no_reason_is_too_wide(plan, texts, width):
    kept = plan.entries[2]
    entries = [
        renamed(replace(kept, decision=Kept(Reason.brief("shared", reason))), name)
        for name, reason in texts
    ]
    text = tables.to_text(replace(plan, entries=tuple(entries)), width)
    assert max(map(cell_len, text.splitlines())) <= width
    assert text.replace("\n", "").isprintable()
    if all(name.isascii() and name.isprintable() for name, _ in texts):
        names = "".join(name for name, _ in texts)
        assert "".join(column(text, "layer")).replace(" ", "") == names


def test_decisions_have_colours_where_they_are_asked_for(plan):
    plain, coloured = (tables.to_text(plan, 80, colours) for colours in (False, True))
    assert "\x1b" not in plain
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured).split() == plain.split()
    assert len(re.findall(r"\x1b\[32mreplaced", coloured)) == 3
    assert len(re.findall(r"\x1b\[33mkept", coloured)) == 1
    left_out = tables.to_text(plan.without(LONG), 80, True)
    assert len(re.findall(r"(?<!m)kept", left_out)) == 1


@pytest.fixture
def on_terminal(monkeypatch):
    """Show a plan on a pseudo-terminal of a width, and give back what was written."""
    pty, fcntl, termios = (pytest.importorskip(name) for name in ("pty", "fcntl", "termios"))
    for name in ("COLUMNS", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")

    def show(plan: Plan, columns: int, say=tables.show) -> str:
        reader, writer = pty.openpty()
        size = (24).to_bytes(2, sys.byteorder) + columns.to_bytes(2, sys.byteorder) + bytes(4)
        fcntl.ioctl(writer, termios.TIOCSWINSZ, size)
        with open(writer, "w") as stdout, monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", stdout)
            assert terminal.width() == (columns or terminal.WIDTH)
            print(say(plan) or "", end="\0", flush=True)
            written = b""
            while not written.endswith(b"\0"):
                written += os.read(reader, 1 << 16)
        os.close(reader)
        return written.decode().replace("\r\n", "\n").rstrip("\n\0")

    return show


@pytest.mark.parametrize("columns", [80, 160])
def test_a_terminal_shows_colours_and_is_filled(plan, on_terminal, monkeypatch, columns):
    assert on_terminal(plan, columns) == tables.to_text(plan, columns, True)
    assert on_terminal(plan, columns, str) == tables.to_text(plan, columns)
    monkeypatch.setenv("NO_COLOR", "1")
    assert on_terminal(plan, columns) == tables.to_text(plan, columns)


def test_a_terminal_without_a_size_is_taken_for_a_usual_one(plan, on_terminal):
    assert on_terminal(plan, 0, str) == tables.to_text(plan, terminal.WIDTH)


def test_elsewhere_a_table_is_plain_and_of_one_width(plan, capsys, monkeypatch):
    tables.show(plan)
    assert capsys.readouterr().out == f"{plan}\n" == f"{tables.to_text(plan, 120)}\n"
    for columns, width in (("80", 80), ("", terminal.WIDTH), ("0", 120), ("wide", 120)):
        monkeypatch.setenv("COLUMNS", columns)
        assert str(plan) == tables.to_text(plan, width)
    closed = io.StringIO()
    closed.close()
    for stdout in (None, closed):
        monkeypatch.setattr(sys, "stdout", stdout)
        assert terminal.width() == terminal.WIDTH
