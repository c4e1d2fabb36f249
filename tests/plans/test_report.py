from __future__ import annotations

import csv
import io
import json
import math
import re
from dataclasses import replace

import pytest
import torch
from tiny import batches, conv, images
from torch import nn

import convfactor
from convfactor import Bounds, Plan
from convfactor.latency import Timing
from convfactor.model.reasons import Reason
from convfactor.plans.circumstances import HeldOut, WhiteNoise
from convfactor.plans.decisions import Cost, Entry, Kept, Swapped, WholeModel
from convfactor.plans.storage import PLAN_FILE


@pytest.fixture(scope="module")
def plan() -> Plan:
    model = nn.Sequential(
        conv(), conv(stride=(2, 1), dilation=2), nn.ConvTranspose2d(2, 2, 6, 2, dilation=2)
    )
    return convfactor.plan(
        model, images(size=24), 1e-3, calibration=batches(4, size=24), objective="macs"
    )


def renamed(entry: Entry, name: str) -> Entry:
    return replace(entry, subject=replace(entry.subject, name=name))


def line(plan: Plan, name: str) -> str:
    (found,) = [text for text in str(plan).splitlines() if text.startswith(f" {name} ")]
    return " ".join(found.split())


def test_every_layer_has_a_line(plan):
    assert line(plan, "0").startswith("0 5x5 2->2 replaced 3x3 3x3 (1)")
    assert "2.78x fewer multiplies" in line(plan, "0")
    assert line(plan, "1").startswith("1 5x5 2->2 /2x1 @2 replaced 3x3@2 3x3/2x1@2 (1)")
    assert line(plan, "2") == "2 6x6 kept a transposed convolution with"


def test_the_header_says_what_the_errors_are(plan):
    first, second, third, *_ = str(plan).splitlines()
    assert first.startswith("tolerance 0.001 (relative output error; 3 calibration batches")
    assert second == "objective: multiplies, nothing was timed"
    assert torch.__version__ in third
    assert plan.calibration == HeldOut(3, 1, plan.calibration.sha256)
    assert first.endswith("errors on 1 other)")
    assert third.endswith(", 1 thread")
    threads = replace(plan, environment=replace(plan.environment, threads=2))
    assert str(threads).splitlines()[2].endswith(", 2 threads")
    assert len(plan.calibration.sha256) == 64
    white = replace(plan, calibration=WhiteNoise())
    assert str(white).startswith("tolerance 0.001 (weight error; white noise)")
    more = replace(plan, calibration=HeldOut(1, 2, "0123456789abcdef"))
    assert str(more).startswith(
        "tolerance 0.001 (relative output error; 1 calibration batch, errors on 2 others)\n"
    )
    assert str(replace(more.calibration, measured=1)).endswith("errors on 1 of 2 others")


def test_errors_and_times_are_shown(plan):
    time = Timing(0.0123, 0.01, 0.02)
    decision = plan.entries[0].decision
    errors = replace(
        decision.errors, pooled=0.01, worst_batch=0.02, worst_channel=0.025, border=0.03
    )
    decision = replace(decision, error=0.01, errors=errors, cost=Cost(time, time))
    entry = replace(plan.entries[0], decision=decision)
    shown = replace(plan, entries=(entry,), whole=WholeModel((0.04,), time, time, "channels_last"))
    assert "1.00% 2.00% 2.50% 3.00% 12.3 12.3" in line(shown, "0")
    assert str(shown).splitlines()[-1] == (
        "whole model: output error 4.00%; "
        "12.3 ms [10..20] -> 12.3 ms [10..20] (1.00x, in channels_last)"
    )


def test_the_footer_without_times(plan):
    assert str(plan).splitlines()[-1] == "2 of 3 large-kernel layers replaced"
    whole = replace(plan, whole=WholeModel((), None, None, "as given"))
    assert str(whole).endswith("whole model: output error no floating-point output")


def test_names_and_reasons_are_not_markup(plan):
    reason = Reason.brief("unsupported", "raised [/b] and :smile: [bold]")
    entry = renamed(replace(plan.entries[2], decision=Kept(reason)), "[red]x")
    text = " ".join(str(replace(plan, entries=(entry,))).split())
    for part in ("[red]x", "[/b]", ":smile:", "[bold]"):
        assert part in text


def test_nothing_to_do():
    plan = convfactor.plan(nn.ReLU(), images(), objective="macs", min_kernel_size=7)
    assert str(plan) == (
        "no convolution with a kernel of 7 or more taps on a side; the model is unchanged"
    )


@pytest.mark.parametrize(
    ("cost", "reason"),
    [
        (Cost(None, None, 100, 36), "2.78x fewer multiplies"),
        (Cost(None, None, 100, 200), "2.00x the multiplies"),
        (Cost(Timing(3.0, 1.0, 9.0), Timing(1.5, 0.5, 5.0)), "2.00x faster"),
        (Cost(Timing(3.0, 1.0, 9.0), Timing(1.5, 0.5, 5.0), 100, 400), "2.00x faster"),
        (Cost(Timing(3.0, 1.0, 9.0), Timing(6.0, 0.5, 9.0), 100, 50), "2.00x slower"),
    ],
)
def test_the_reason_of_what_is_replaced_is_what_is_gained(plan, cost, reason):
    entry = replace(plan.entries[0], decision=replace(plan.entries[0].decision, cost=cost))
    assert line(replace(plan, entries=(entry,)), "0").endswith(f" {reason}")
    assert entry.reason == entry.decision.why == reason


def test_a_swapped_transform_is_replaced_without_stages(plan):
    subject = replace(plan.entries[2].subject, kind="transform", kernel_size=(), weight_name="")
    time = Timing(0.0123, 0.01, 0.02)
    entry = Entry(subject, Swapped(Cost(time, replace(time, median=0.0041)), 0.02, "cpp"))
    shown = replace(plan, entries=(entry,))
    assert line(shown, "2").startswith("2 transform replaced 2.00% 12.3 4.1 3.00x faster, by")
    assert entry.reason == "3.00x faster, by convfactor.wavelets with compiled kernels"
    assert str(shown).splitlines()[-1] == "1 of 1 wavelet transform replaced"
    (row,) = csv.DictReader(io.StringIO(shown.to_csv()))
    assert (row["kind"], row["decision"], row["structure"]) == ("transform", "replaced", "")
    assert float(row["after_median_s"]) == 0.0041
    assert row["multiplies_per_output_pixel_before"] == row["bound_l_inf"] == ""


def test_no_word_of_a_long_reason_is_lost(plan):
    reason = "tolerance: 3x3, the closest of those fast enough, has an error of 81.00%"
    kept = plan.keeping(0, Reason("tolerance", "tolerance", reason)).entries[0]
    wide = renamed(kept, "features.12.depthwise.conv")
    text = str(replace(plan, entries=(wide,)))
    assert set(reason.split()) <= set(text.split())


def hostile(plan: Plan) -> Plan:
    """The plan with what is special in Markdown, CSV and JSON in its names and reasons."""
    first = plan.entries[0]
    macs = first.decision.cost
    decision = replace(
        first.decision,
        error=0.1 + 0.2,
        cost=replace(macs, before=Timing(1 / 3, 1e-9, 0.4), after=Timing(0.2, 0.1, 0.3)),
        bounds=Bounds(2 / 3, math.inf),
    )
    first = renamed(replace(first, decision=decision), 'a|b\n`c` *d* <e> "f", \\ [g](h) \u00e9')
    third = replace(
        plan.entries[2], decision=Kept(Reason.brief("unsupported", "one\r\ntwo | three"))
    )
    return replace(plan, entries=(first, plan.entries[1], third))


def test_the_markdown_has_the_cells_of_the_text(plan, tmp_path):
    text = plan.to_markdown(tmp_path / "new" / "plan.md")
    assert (tmp_path / "new" / "plan.md").read_bytes().decode() == text
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("|"))
    table = [[c.strip(" `") for c in line.strip("|").split("|")] for line in lines[start:][:5]]
    assert {len(cells) for cells in table} == {11}
    assert all(re.fullmatch("---:?", rule) for rule in table[1])
    shown = {name: line(plan, name) for name in "012"}
    for cells in table[2:]:
        assert " ".join(" ".join(cells).split()).startswith(shown[cells[0]])
    written = str(plan).splitlines()
    assert [part.replace("\\", "") for part in lines[:start] if part] == written[:3]
    assert text.endswith(f"\n\n{written[-1]}\n")


def test_markdown_takes_names_literally(plan):
    lines = hostile(plan).to_markdown().splitlines()
    first, second = ([t for t in lines if t.startswith(start)] for start in ("| a", "| 2 "))
    rows = [re.split(r" (?<!\\)\| ", row[2:].removesuffix(" |")) for row in (*first, *second)]
    (name, *_), (*_, reason) = rows
    assert name == r'a\|b \`c\` \*d\* \<e\> "f", \\ \[g\](h) é'
    assert reason == r"one two \| three"
    for row in (*first, *second):
        assert len(re.findall(r"(?<!\\)\|", row)) == 12


def test_the_csv_keeps_every_figure(plan, tmp_path):
    shown = hostile(plan)
    text = shown.to_csv(tmp_path / "plan.csv")
    assert (tmp_path / "plan.csv").read_bytes().decode() == text
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert len(rows) == 3
    for row, entry in zip(rows, shown.entries, strict=True):
        assert None not in row
        assert row["layer"] == entry.name
        decision = entry.decision
        assert (row["decision"], row["reason"]) == (decision.label, entry.reason)
        assert row["structure"] == ("" if decision.structure is None else str(decision.structure))
        assert row["weight_sha256"] == entry.subject.fingerprint
        assert row["missed_tolerance"] == str(entry.missed)
    first, second, third = rows
    assert float(first["relative_error"]) == 0.1 + 0.2
    assert float(first["before_median_s"]) == 1 / 3
    assert float(first["before_lower_quartile_s"]) == 1e-9
    assert float(first["bound_spectral"]) == math.inf
    errors = shown.entries[0].decision.errors
    assert float(first["relative_error_worst_batch"]) == errors.worst_batch
    assert float(first["relative_weight_error"]) == shown.entries[0].decision.weight_error
    assert first["memory_format"] == "as given"
    assert int(first["multiplies_per_output_pixel_before"]) == 100
    assert float(first["after_upper_quartile_s"]) == 0.3
    assert int(first["multiplies_per_output_pixel_after"]) == 36
    assert second["before_median_s"] == second["after_median_s"] == ""
    assert third["reason"] == "one\r\ntwo | three"
    assert third["multiplies_per_output_pixel_before"] == third["memory_format"] == ""
    assert (second["stride"], second["dilation"], second["kernel_size"]) == ("2x1", "2x2", "5x5")
    assert (third["kernel_size"], third["in_channels"], third["relative_error"]) == ("6x6", "", "")


def test_the_json_is_what_save_writes(plan, tmp_path):
    shown = hostile(plan)
    shown.save(tmp_path)
    text = shown.to_json(tmp_path / "again.json")
    assert text == (tmp_path / PLAN_FILE).read_text() == (tmp_path / "again.json").read_text()
    assert json.loads(text)["entries"][0]["subject"]["name"] == shown.entries[0].name
    (tmp_path / "again.json").replace(tmp_path / PLAN_FILE)
    assert str(Plan.load(tmp_path)) == str(shown)


def test_a_file_is_replaced_only_by_a_whole_one(plan, tmp_path):
    path = tmp_path / "plan.csv"
    path.write_text("older")
    with pytest.raises(UnicodeEncodeError):
        replace(plan, entries=(renamed(plan.entries[0], "\ud800"),)).to_csv(path)
    assert path.read_text() == "older"
    assert plan.to_csv(path) == path.read_text()
    assert [file.name for file in tmp_path.iterdir()] == ["plan.csv"]


def test_nothing_to_do_in_other_forms():
    plan = convfactor.plan(nn.ReLU(), images(), objective="macs", min_kernel_size=7)
    assert plan.to_markdown() == f"{plan}\n"
    assert len(plan.to_csv().splitlines()) == 1
    assert json.loads(plan.to_json())["entries"] == []
