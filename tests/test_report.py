from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny import batches, conv, images
from torch import nn

import convfactor
from convfactor import Plan
from convfactor.latency import Timing
from convfactor.plans import WholeModel


@pytest.fixture(scope="module")
def plan() -> Plan:
    model = nn.Sequential(conv(), conv(stride=(2, 1), dilation=2), nn.ConvTranspose2d(2, 2, 6))
    return convfactor.plan(
        model, images(size=24), 1e-3, calibration=batches(4, size=24), objective="macs"
    )


def line(plan: Plan, name: str) -> str:
    (found,) = [text for text in str(plan).splitlines() if text.startswith(f" {name} ")]
    return " ".join(found.split())


def test_every_layer_has_a_line(plan):
    assert line(plan, "0").startswith("0 5x5 2->2 replaced 3x3 3x3 (1)")
    assert "2.78x fewer multiplies" in line(plan, "0")
    assert line(plan, "1").startswith("1 5x5 2->2 /2x1 @2 replaced 3x3@2 3x3/2x1@2 (1)")
    assert line(plan, "2") == "2 6x6 kept transposed convolution"


def test_the_header_says_what_the_errors_are(plan):
    first, second, third, *_ = str(plan).splitlines()
    assert first.startswith("tolerance 0.001 (relative output error; 3 calibration batches")
    assert second == "objective: multiplies, nothing was timed"
    assert torch.__version__ in third
    white = replace(plan, metric="white noise")
    assert str(white).startswith("tolerance 0.001 (weight error; white noise)")


def test_errors_and_times_are_shown(plan):
    time = Timing(0.0123, 0.01, 0.02)
    errors = replace(
        plan.entries[0].errors, pooled=0.01, worst_batch=0.02, worst_channel=0.025, border=0.03
    )
    entry = replace(plan.entries[0], error=0.01, errors=errors, before=time, after=time)
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
    entry = replace(plan.entries[2], name="[red]x", reason="raised [/b] and :smile: [bold]")
    text = " ".join(str(replace(plan, entries=(entry,))).split())
    for part in ("[red]x", "[/b]", ":smile:", "[bold]"):
        assert part in text


def test_nothing_to_do():
    plan = convfactor.plan(nn.ReLU(), images(), objective="macs", min_kernel_size=7)
    assert str(plan) == (
        "no convolution with a kernel of 7 or more taps on a side; the model is unchanged"
    )


def test_no_word_of_a_long_reason_is_lost(plan):
    reason = "tolerance: 3x3, the closest of those fast enough, has an error of 81.00%"
    wide = replace(plan.entries[0], name="features.12.depthwise.conv", reason=reason)
    text = str(replace(plan, entries=(wide,)))
    assert set(reason.split()) <= set(text.split())
    assert max(map(len, text.splitlines())) <= 150
