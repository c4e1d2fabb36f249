"""What a notebook shows of plans and of factorizations."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from markup import Markup
from tiny import Functional, batches, conv, images
from torch import nn

import convfactor
from convfactor import Moments, factorize
from convfactor.latency import Timing
from convfactor.model.reasons import Reason
from convfactor.pictures.colours import ABOVE, BELOW, hexadecimal
from convfactor.plans.decisions import Cost, Entry, Kept, WholeModel


class Piece(Markup):
    """A piece of a page with the kernels in it."""

    @property
    def tags(self) -> list[str]:
        return [tag for tag, _ in self.elements]

    def kernel(self, title: str) -> np.ndarray:
        """What the picture of that title shows, from -1 to 1."""
        ((label, parts),) = (svg for svg in self.svgs if svg[0].startswith(title + ","))
        (given,) = (g for tag, g in self.elements if tag == "svg" and g["aria-label"] == label)
        strokes = [stroke for tag, stroke in parts if tag == "path"]
        cols, rows = map(int, given["viewbox"].split()[2:])
        values = np.zeros((rows, cols))
        for stroke in strokes:
            sign = {hexadecimal(ABOVE): 1, hexadecimal(BELOW): -1}[stroke["stroke"]]
            for x, y, length in re.findall(r"M(\d+) (\d+)\.5h(\d+)", stroke["d"]):
                run = slice(int(x), int(x) + int(length))
                values[int(y), run] = sign * float(stroke["stroke-opacity"])
        return values


@pytest.fixture(scope="module")
def plan():
    model = nn.Sequential(conv(), Functional())
    return convfactor.plan(
        model, images(), 1e-2, calibration=batches(4), objective="macs", select="0"
    )


def test_a_plan_shows_its_layers_and_the_whole(plan):
    cost = Cost(Timing(4e-3, 3e-3, 5e-3), Timing(1e-3, 1e-3, 1e-3), 100, 36)
    first = replace(plan.entries[0], decision=replace(plan.entries[0].decision, cost=cost))
    whole = WholeModel((0.012,), cost.before, cost.after, "channels_last")
    settings = replace(plan.settings, objective="latency")
    shown = replace(plan, entries=(first, *plan.entries[1:]), whole=whole, settings=settings)
    text = Piece(shown._repr_html_()).text
    assert text.startswith(
        "1 of 2 large-kernel layers replaced tolerance 0.01; errors of the output"
    )
    assert f"0 5x5 2->2 replaced {first.error:.0e} 4.00x {first.decision.structure}" in text
    assert "kept not selected" in text
    assert "whole model: output error 1.20%; 4 ms [3..5] -> 1 ms [1..1] (4.00x" in text
    counted = Piece(plan._repr_html_()).text
    assert "error fewer multiplies stages" in counted
    assert f"{100 / 36:.2f}x" in counted


def test_what_was_not_taken_is_in_parentheses(plan):
    tried = replace(plan.entries[0].decision.tried, error=0.07)
    decision = Kept(Reason("tolerance", "tolerance", "nothing near enough"), tried)
    shown = replace(plan, entries=(replace(plan.entries[0], decision=decision),))
    assert "kept (7.00%) (2.78x) nothing near enough" in Piece(shown._repr_html_()).text


def test_names_stay_text(plan):
    names = "<script>alert('x')</script>&", "x" * 300, ""
    entries = [
        Entry(replace(plan.entries[0].subject, name=name), plan.entries[0].decision)
        for name in names
    ]
    source = replace(plan, entries=tuple(entries))._repr_html_()
    piece = Piece(source)
    assert "script" not in piece.tags
    assert "<script>alert('x')</script>&" in piece.text
    assert "(the model itself)" in piece.text


def test_its_name_tells_no_weights(plan):
    assert repr(plan) == "Plan(tolerance 0.01: 1 of 2 large-kernel layers replaced)"


def test_nothing_to_do_is_one_line():
    empty = convfactor.plan(nn.ReLU(), images(), objective="macs")
    assert repr(empty) == f"Plan(tolerance 0.01: {empty})"
    piece = Piece(empty._repr_html_())
    assert piece.text == str(empty)
    assert "table" not in piece.tags


def luminance(colour):
    value = np.array(colour) / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize("page", [(255, 255, 255), (17, 17, 17), (30, 30, 30)])
@pytest.mark.parametrize("colour", [ABOVE, BELOW])
def test_colours_show_on_light_and_on_dark_pages(page, colour):
    low, high = sorted((luminance(page), luminance(colour)))
    assert (high + 0.05) / (low + 0.05) >= 3


def test_nothing_asks_for_the_colour_of_the_page(plan):
    for source in (plan._repr_html_(), factorize(torch.ones(7, 7), stages=3)._repr_html_()):
        assert not re.search(r"<style|<link|url\(|https?:|class=", source)
        given = {hexadecimal(BELOW), hexadecimal(ABOVE), "transparent", "none"}
        for colour in re.findall(r"(?:color|background|stroke|fill)[:=]\"?([^;\"]+)", source):
            assert colour in given


def test_a_kernel_is_shown_with_its_stages_and_its_error():
    kernel = torch.rand(5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 0.5
    found = factorize(kernel, widths=(1,), tolerance=0.9)
    piece = Piece(found._repr_html_())
    composed = torch.zeros(5, 7, dtype=torch.float64)
    (top, left), made = found.offset, found.compose()[0, 0]
    composed[top : top + made.shape[0], left : left + made.shape[1]] = made
    scale = max(float(kernel.abs().max()), float(made.abs().max()))
    half = 0.5 / 16 + 0.006
    for title, values in (("original", kernel), ("composed", composed)):
        np.testing.assert_allclose(piece.kernel(title), values / scale, atol=half)
    for i, stage in enumerate(found.kernels):
        values = stage[0, 0] / stage.abs().max()
        np.testing.assert_allclose(piece.kernel(f"stage {i + 1}"), values, atol=half)
    (name,) = re.findall(r"(error(?: x[\d.e+]+)?),", found._repr_html_())
    factor = float(name.removeprefix("error").strip(" x") or 1)
    error = factor * (composed - kernel) / scale
    np.testing.assert_allclose(piece.kernel(name), error, atol=half)
    assert f"relative error {found.error:.2g} (of the weights, white noise)" in piece.text
    assert f"· {found.macs} multiplies per output pixel of 35 · tolerance met" in piece.text


def test_of_many_channels_the_strongest_pair_is_shown():
    layer = conv(4, 6, dilation=2, padding=4)
    moments = Moments.from_inputs(layer, batches(2, channels=4))
    found = factorize(layer.weight, widths=(1,), dilation=2, moments=moments)
    piece = Piece(found._repr_html_())
    index = layer.weight.flatten(2).norm(dim=2).argmax()
    target, source = divmod(int(index), 4)
    kernel = layer.weight[target, source].detach().double()
    assert f"output channel {target}, input channel {source}" in piece.text
    assert "(of the output, calibrated)" in piece.text
    scale = max(float(kernel.abs().max()), float(found.compose()[target, source].abs().max()))
    np.testing.assert_allclose(piece.kernel("original"), kernel / scale, atol=0.5 / 16 + 0.006)


def test_what_was_missed_is_said():
    noise = torch.rand(5, 5, generator=torch.Generator().manual_seed(0))
    found = factorize(noise, 1e-6)
    text = Piece(found._repr_html_()).text
    assert "tolerance missed" in text
    assert found.message in text


def test_large_kernels_have_no_pictures():
    found = factorize(torch.ones(5, 5), widths=(1,))
    large = replace(found, residual=found.residual.expand(600, 600, 5, 5))
    assert len(Piece(found._repr_html_()).svgs) == 5
    assert not Piece(large._repr_html_()).svgs
