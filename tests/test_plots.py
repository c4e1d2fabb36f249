from __future__ import annotations

import subprocess
import sys
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.patches import Rectangle
from numpy.testing import assert_allclose
from scipy.signal import convolve2d
from tiny import Functional, batches, conv, images
from torch import nn

import convfactor
from convfactor import Cascade, Moments, Plan, Stage, StageShape, Structure, factorize, plots
from convfactor.latency import Timing
from convfactor.model.reasons import Reason
from convfactor.plans.decisions import Cost, Entry, Kept, Swapped, Tried, WholeModel
from convfactor.plans.words import percent


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def panel(figure, name):
    """Data of the image under a title's first line."""
    (found,) = (a for a in figure.axes if a.get_title().split("\n")[0] == name)
    (image,) = found.images
    return image.get_array()


def limits(figure, name):
    (found,) = (a for a in figure.axes if a.get_title().split("\n")[0] == name)
    return found.images[0].get_clim()


def drawn(figure):
    """Force the layout and the drawing; both may warn."""
    figure.canvas.draw()
    return figure


def chain() -> Cascade:
    return Cascade.random(Structure((StageShape(1, 1, (3, 3)), StageShape(1, 1, (3, 3)))), 1)


def texts(figure):
    return [t.get_text() for t in figure.findobj(matplotlib.text.Text) if t.get_text()]


@pytest.mark.parametrize("as_array", [True, False])
def test_kernel_panels_hold_target_factors_composed_and_error(as_array):
    first, second = (stage.weight[0, 0].numpy() for stage in chain().stages)
    composed = convolve2d(first, second)
    target = composed + 0.01 * noise(5, 5).numpy()
    figure = drawn(
        plots.plot_kernels(
            target if as_array else torch.from_numpy(target), chain(), error_scale=10, title="mine"
        )
    )
    assert_allclose(panel(figure, "original"), target)
    assert_allclose(panel(figure, "stage 1"), first)
    assert_allclose(panel(figure, "stage 2"), second)
    assert_allclose(panel(figure, "composed"), composed, atol=1e-15)
    assert_allclose(panel(figure, "error x10"), 10 * (composed - target), atol=1e-14)
    top = max(np.abs(target).max(), np.abs(composed).max())
    for name in ("original", "composed", "error x10"):
        assert limits(figure, name) == pytest.approx((-top, top))
    assert figure.get_suptitle() == "mine"


def test_kernels_are_extended_to_one_window():
    composed = chain().compose()[0, 0].numpy()
    shifted = replace(chain(), offset=(1, -1))
    target = noise(7, 4).numpy()
    figure = drawn(plots.plot_kernels(target, shifted, error_scale=1))
    assert_allclose(panel(figure, "original"), np.pad(target, ((0, 0), (1, 0))))
    assert_allclose(panel(figure, "composed"), np.pad(composed, ((1, 1), (0, 0))))
    error = np.linalg.norm(panel(figure, "error")) / np.linalg.norm(target)
    assert figure.get_suptitle() == f"relative error {error:.2g}"


def test_a_dilated_kernel_is_spread():
    weight = noise(2, 1, 5, 5)
    found = factorize(weight, stages=2, groups=2, dilation=2)
    for source, dilation in ((found, None), (found.cascade, 2)):
        figure = drawn(
            plots.plot_kernels(weight, source, channel=(1, 0), dilation=dilation, error_scale=1)
        )
        assert_allclose(panel(figure, "original")[::2, ::2], weight[1, 0])
        assert_allclose(panel(figure, "composed"), found.compose()[1, 0], atol=1e-15)
        assert panel(figure, "error").shape == (9, 9)


@pytest.mark.parametrize("groups", [1, 2])
def test_a_dense_cascade_shows_the_kernels_between_one_pair(groups):
    shapes = (
        StageShape(4, 6, (3, 3), groups=groups),
        StageShape(6, 8, (3, 1), groups=groups),
        StageShape(8, 4, (3, 3), groups=groups),
    )
    cascade = Cascade.random(Structure(shapes), 3)
    out, into = 3, 1
    figure = drawn(plots.plot_kernels(cascade.compose(), cascade, channel=(out, into)))
    first, between, last = (
        np.ma.masked_invalid(panel(figure, f"stage {i + 1}")).compressed() for i in range(3)
    )
    half = [stage.weight[-(stage.weight.shape[0] // groups) :] for stage in cascade.stages]
    assert sorted(first) == sorted(half[0][:, into].flatten().tolist())
    assert sorted(between) == sorted(half[1].flatten().tolist())
    assert sorted(last) == sorted(cascade.stages[2].weight[out].flatten().tolist())
    assert f"output {out}, input {into} of 4 x {4 // groups}" in figure.get_suptitle()
    assert_allclose(panel(figure, "composed"), cascade.compose()[out, into], atol=1e-15)


def test_the_pair_of_most_energy_is_shown():
    weight = noise(3, 4, 5, 5)
    weight[2, 1] *= 5
    found = factorize(weight, widths=(2,))
    figure = drawn(plots.plot_kernels(weight.float(), found))
    assert_allclose(panel(figure, "original"), weight[2, 1], rtol=1e-6)
    assert "output 2, input 1 of 3 x 4" in figure.get_suptitle()


@pytest.mark.parametrize(
    ("count", "rows"), [(3, [6]), (4, [4, 3]), (7, [5, 5]), (9, [6, 6]), (15, [6, 6, 6])]
)
def test_pictures_stand_in_even_rows(count, rows):
    cascade = Cascade.random(Structure((StageShape(1, 1, (3, 3)),) * count))
    figure = drawn(plots.plot_kernels(cascade.compose(), cascade))
    heights = Counter(round(a.get_position().y0, 2) for a in figure.axes if a.get_title())
    assert [heights[height] for height in sorted(heights, reverse=True)] == rows
    assert panel(figure, f"stage {count}").shape == (3, 3)


@pytest.mark.parametrize("size", [1e-12, 3e-4, 0.07, 1.0, 40.0])
def test_the_error_is_enlarged_as_far_as_the_colours_reach(size):
    composed = chain().compose()[0, 0].numpy()
    target = composed + size * noise(5, 5).numpy()
    figure = drawn(plots.plot_kernels(target, chain()))
    (name,) = (a.get_title() for a in figure.axes if a.get_title().startswith("error"))
    factor = float(name.removeprefix("error x")) if name != "error" else 1.0
    assert f"{factor:.0e}"[0] in "125"
    assert_allclose(panel(figure, name), factor * (composed - target), rtol=1e-9)
    _, limit = limits(figure, name)
    assert limit / 2.5 < np.abs(panel(figure, name)).max() <= limit


def test_no_error_is_not_enlarged():
    figure = drawn(plots.plot_kernels(chain().compose(), chain()))
    assert not panel(figure, "error").any()


def test_zero_is_in_the_middle_of_one_scale_of_colours():
    middle, low, high = (np.array(plots.SIGNED(at)[:3]) for at in (0.5, 0.0, 1.0))
    assert middle.min() > 0.9
    assert low[2] > low[0]  # blue below zero
    assert high[0] > high[2]  # orange above


def test_a_calibrated_kernel_is_titled_by_the_error_of_the_output(counted):
    layer = conv()
    moments = Moments.from_inputs(layer, batches(2))
    weight = layer.weight.detach() + 0.05 * noise(2, 2, 5, 5).float()
    found = factorize(weight, widths=(1,), moments=moments)
    error = float((found.compose() - weight).norm() / weight.norm())
    title = plots.plot_kernels(weight, found).get_suptitle()
    assert f"output error {found.error:.2%}, of the weights {error:.2%} over all" in title
    assert "relative error" in plots.plot_kernels(weight, found.cascade).get_suptitle()
    entry = counted.entries[1]
    title = plots.plot_kernels(conv(seed=1).weight, entry).get_suptitle()
    assert f"output error {percent(entry.error)}, of the weights " in title


def test_an_entry_without_a_cascade_is_refused(counted):
    with pytest.raises(ValueError, match=r"'0' has none \(.*\); plan.replaced has the indices"):
        plots.plot_kernels(conv().weight, counted.entries[0])
    subject = replace(counted.entries[1].subject, norm="1.norm")
    with pytest.raises(ValueError, match=r"into which '1.norm' is folded; plan.to_html"):
        plots.plot_kernels(conv().weight, replace(counted.entries[1], subject=subject))


@pytest.mark.parametrize("layer", [nn.Conv1d(4, 4, 9), nn.ConvTranspose2d(4, 4, 10, 2)])
def test_planned_layers_of_other_forms_are_drawn(layer):
    nn.init.ones_(layer.weight)
    given = torch.rand(1, 4, 32) if isinstance(layer, nn.Conv1d) else images(channels=4)
    plan = convfactor.plan(nn.Sequential(layer), given, objective="macs")
    figure = drawn(plots.plot_kernels(layer.weight, plan.entries[0]))
    assert np.abs(panel(figure, "composed") - panel(figure, "original")).max() < 1e-5


def test_a_zero_kernel_has_a_picture():
    zero = Cascade((Stage(torch.zeros(1, 1, 3, 3)),))
    assert drawn(plots.plot_kernels(np.zeros((3, 3)), zero)).get_suptitle() == "relative error 0"
    assert drawn(plots.plot_response(np.zeros((3, 3)), zero))


@pytest.mark.parametrize("draw", [plots.plot_kernels, plots.plot_response])
@pytest.mark.parametrize(
    ("shape", "arguments", "message"),
    [
        ((5,), {}, r"target must have shape .*got \(5,\)"),
        ((0, 5), {}, "target must have shape"),
        ((2, 1, 5, 5), {}, r"target must have the cascade's channels .*\(1, 1\), got \(2, 1\)"),
        ((5, 5), {"channel": (1, 0)}, r"channel must be .*output below 1.*got \(1, 0\)"),
        ((5, 5), {"channel": (0, -1)}, "channel must be"),
        ((5, 5), {"dilation": 0}, "dilation must be an int >= 1 .*got 0"),
    ],
)
def test_kernels_that_do_not_fit_are_refused(draw, shape, arguments, message):
    with pytest.raises(ValueError, match=message):
        draw(np.ones(shape), chain(), **arguments)


@pytest.mark.parametrize("bad", [0, -1.0, float("nan"), float("inf")])
def test_the_error_scale_is_checked(bad):
    with pytest.raises(ValueError, match="error_scale must be a positive number"):
        plots.plot_kernels(np.ones((5, 5)), chain(), error_scale=bad)


@pytest.mark.parametrize("draw", [plots.plot_kernels, plots.plot_response])
@pytest.mark.parametrize(
    ("target", "cascade", "arguments", "message"),
    [
        (chain(), np.ones((5, 5)), {}, "cascade must be .*got ndarray; the target comes first"),
        (np.ones((5, 5)), None, {}, "cascade must be a convfactor.Cascade or Factorization"),
        (nn.Conv2d(1, 1, 5), chain(), {}, "target must be .*got Conv2d; .*such as conv.weight"),
        (np.ones((5, 5)), chain(), {"channel": 3}, "channel must be two ints .*got 3; leave it"),
        (np.ones((5, 5)), chain(), {"channel": (0,)}, r"channel must be two ints .*got \(0,\)"),
        (np.ones((5, 5)), chain(), {"channel": (0.0, 0)}, "channel must be two ints"),
    ],
)
def test_arguments_of_another_type_are_named(draw, target, cascade, arguments, message):
    with pytest.raises(TypeError, match=message):
        draw(target, cascade, **arguments)


@pytest.fixture(scope="module")
def factorizations():
    weight = noise(4, 4, 5, 5)
    return [factorize(weight, widths=(m,)) for m in (1, 3, 4)]


def lines(figure):
    return {line.get_label(): line for line in figure.axes[0].lines}


def test_the_frontier_marks_the_chosen_point(factorizations):
    figure = drawn(
        plots.plot_frontier(
            factorizations, chosen=1, tolerance=0.3, original=400, title="a 5x5 kernel"
        )
    )
    found = lines(figure)
    macs = [f.macs for f in factorizations]
    assert macs == [72, 216, 288]
    assert_allclose(found["best for cost"].get_xdata(), macs)
    assert_allclose(found["best for cost"].get_ydata(), [f.error for f in factorizations])
    assert found["chosen"].get_xydata().tolist() == [[216, factorizations[1].error]]
    assert set(found["tolerance 0.3"].get_ydata()) == {0.3}
    assert set(found["original kernel"].get_xdata()) == {400}
    assert figure.axes[0].get_yscale() == "log"
    assert {"width 1", "3", "4", "a 5x5 kernel", "multiplies per output pixel"} <= set(
        texts(figure)
    )


def test_the_frontier_over_times_sets_the_slower_ones_apart(factorizations):
    figure = drawn(plots.plot_frontier(factorizations, times=[1e-3, 5e-3, 4e-3], original=6e-3))
    found = lines(figure)
    assert_allclose(found["best for cost"].get_xdata(), [1, 4])
    assert_allclose(found["others"].get_xdata(), [5])
    assert_allclose(found["original kernel"].get_xdata(), 6)
    assert "time (ms)" in texts(figure)


@pytest.mark.parametrize(
    ("shapes", "label"),
    [
        ([(1, 1, 1)], "3x3"),
        ([(1, 1, 1)] * 2, "2 stages"),
        ([(1, 1, 1)] * 9, "9 stages"),
        ([(4, 4, 4)] * 3, "3 stages"),
        ([(4, 1, 1), (1, 4, 1)], "width 1"),
        ([(4, 8, 1), (8, 6, 2), (6, 4, 1)], "widths 8, 6"),
        ([(4, 5, 1), *[(5, 5, 1)] * 4, (5, 4, 1)], "6 stages of width 5"),
    ],
)
def test_frontier_labels_name_stages_or_widths(factorizations, shapes, label):
    stages = tuple(StageShape(c_in, c_out, (3, 3), groups=g) for c_in, c_out, g in shapes)
    found = replace(factorizations[0], cascade=Cascade.random(Structure(stages)))
    figure = drawn(plots.plot_frontier([found]))
    assert [t.get_text() for t in figure.axes[0].texts] == [label]


def test_frontier_labels_do_not_repeat_words(factorizations):
    shapes = [[4] * 3, [4] * 4, [4, 5, 4], [4, 6, 4], [4, 5, 5, 4], [4, 5, 6, 4], [4] * 3]
    found = []
    for i, widths in enumerate(shapes):
        groups = 4 if len(set(widths)) == 1 else 1
        stages = tuple(StageShape(a, b, 3, groups=groups) for a, b in pairwise(widths))
        cascade = Cascade.random(Structure(stages))
        found.append(replace(factorizations[0], cascade=cascade, error=0.1 / (i + 1)))
    figure = drawn(plots.plot_frontier(found))
    labels = [t.get_text() for t in figure.axes[0].texts if t.get_text()]
    assert labels == ["2 stages", "3", "width 5", "6", "5, 5", "5, 6", "2 stages"]


def test_an_exact_point_fits_on_the_logarithmic_axis(factorizations):
    exact = replace(factorizations[2], error=0.0)
    figure = drawn(plots.plot_frontier([factorizations[0], exact]))
    assert min(lines(figure)["best for cost"].get_ydata()) == plots.FLOOR


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"times": [1.0]}, "times must be one per factorization, got 1 for 3"),
        ({"chosen": 3}, "chosen must be an index into the 3 factorizations, got 3"),
        ({"chosen": -1}, "chosen must be an index"),
        ({"chosen": 1.5}, "chosen must be an index into the 3 factorizations, got 1.5"),
        ({"tolerance": 0}, "tolerance must be a positive number.* got 0"),
        ({"tolerance": 5}, "tolerance must be .*a fraction below 1 .* got 5"),
    ],
)
def test_frontier_arguments_are_checked(factorizations, arguments, message):
    with pytest.raises(ValueError, match=message):
        plots.plot_frontier(factorizations, **arguments)


@pytest.mark.parametrize("errors", [(0.1, 0.0521, 0.05), (0.05, 0.05, 0.05), (0.05,) * 12])
def test_labels_of_near_points_do_not_overlap(factorizations, errors):
    found = []
    for i, error in enumerate(errors):
        channels = [4] * (3 + i % 3)
        shapes = [StageShape(a, b, 3) for a, b in pairwise(channels)]
        cascade = Cascade.random(Structure(tuple(shapes)))
        found.append(replace(factorizations[0], cascade=cascade, error=error))
    figure = drawn(plots.plot_frontier(found, chosen=0, tolerance=0.05, original=400))
    (axis,) = figure.axes
    boxes = [t.get_window_extent() for t in axis.texts if t.get_text()]
    assert len(boxes) == len(errors)
    for i, box in enumerate(boxes):
        assert not box.count_overlaps(boxes[:i])
        assert not any(
            box.contains(*point)
            for point in axis.transData.transform([(f.macs, f.error) for f in found])
        )
        assert axis.bbox.x0 <= box.x0 < box.x1 <= axis.bbox.x1
        assert axis.bbox.y0 <= box.y0 < box.y1 <= axis.bbox.y1


@pytest.mark.parametrize(
    ("one", "message"),
    [
        (lambda f: f, r"factorizations must be a sequence .*got Factorization; .*\[f\]"),
        (lambda f: [f.cascade], "factorizations must hold .* only, got Cascade"),
        (lambda f: None, "factorizations must be a sequence .*got NoneType"),
    ],
)
def test_what_is_no_sequence_of_factorizations_is_named(factorizations, one, message):
    with pytest.raises(TypeError, match=message):
        plots.plot_frontier(one(factorizations[0]))


def test_a_frontier_of_nothing_is_refused():
    with pytest.raises(ValueError, match="factorizations must hold at least one"):
        plots.plot_frontier([])


@pytest.fixture(scope="module")
def counted() -> Plan:
    model = nn.Sequential(conv(), conv(seed=1), Functional())
    return convfactor.plan(
        model,
        images(),
        1e-3,
        calibration=batches(4),
        objective="macs",
        select=lambda name, module: name != "0",
    )


def timed(plan: Plan, count: int) -> Plan:
    """The plan as if it had been timed; every third layer was kept, every fifth never timed."""
    taken = plan.entries[1].decision
    entries = []
    for i in range(count):
        before, after = Timing(1e-3 * (i + 2), 1e-3 * (i + 1), 1e-3 * (i + 4)), Timing(5e-4, 0, 1)
        cost = Cost(before, replace(after, high=6e-4), 100, 36)
        decision = replace(taken, cost=cost)
        if i % 3 == 2:
            text = "tolerance: 3x3 3x3 (1), the closest of those fast enough, has 12 %"
            decision = Kept(
                Reason("tolerance", "tolerance", text), Tried(taken.structure, cost, 0.12)
            )
        if i % 5 == 4:
            decision = Kept(Reason("unsupported", "it has hooks", "it has hooks: remove them"))
        entries.append(Entry(replace(plan.entries[1].subject, name=f"layer{i}"), decision))
    settings = replace(plan.settings, objective="latency")
    whole = WholeModel((0.01,), Timing(4e-2, 4e-2, 4e-2), Timing(1e-2, 1e-2, 1e-2), "as given")
    return replace(plan, entries=tuple(entries), settings=settings, whole=whole)


def bars(figure):
    return [p for p in figure.axes[0].patches if isinstance(p, Rectangle)]


@pytest.mark.parametrize("count", [1, 4, 20])
def test_plan_bars_are_the_milliseconds_with_quartiles(counted, count):
    plan = timed(counted, count)
    figure = drawn(plots.plot_plan(plan))
    wanted, quartiles = [], []
    for entry in plan.entries:
        cost = entry.decision.cost
        for timing in () if cost is None else (cost.before, cost.after):
            wanted.append(1e3 * timing.median)
            quartiles.append((1e3 * timing.low, 1e3 * timing.high))
    assert_allclose([bar.get_width() for bar in bars(figure)], wanted)
    whiskers = [c.get_segments()[0] for c in figure.axes[0].collections]
    assert_allclose([(a[0], b[0]) for a, b in whiskers], quartiles)
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == [
        entry.name for entry in plan.entries
    ]
    assert any("whole model 40 ms -> 10 ms (4.00x)" in text for text in texts(figure))


def test_kept_layers_say_why_and_have_empty_bars(counted):
    figure = drawn(plots.plot_plan(timed(counted, 5)))
    assert "kept: tolerance\nerror 12%" in texts(figure)
    assert "kept: it has hooks" in texts(figure)
    assert "tried, not taken" in texts(figure)
    after = bars(figure)[1::2]
    filled = [matplotlib.colors.to_hex(bar.get_facecolor()) for bar in after]
    assert filled == [plots.BLUE.lower()] * 2 + ["#ffffff"] + [plots.BLUE.lower()]


def test_the_reason_that_decided_is_shown(counted):
    text = "3x3 3x3 (1) meets the tolerance, but 1.75x slower, timed carefully"
    decision = Kept(Reason("speed", "1.75x slower", text))
    entry = replace(counted.entries[1], decision=decision)
    figure = drawn(plots.plot_plan(replace(counted, entries=(entry,))))
    assert "kept: 1.75x slower" in texts(figure)
    assert not bars(figure)


def test_a_swapped_transform_shows_its_error_and_no_stages(counted):
    cost = Cost(Timing(4e-3, 3e-3, 5e-3), Timing(2e-3, 1e-3, 3e-3))
    entry = replace(counted.entries[1], decision=Swapped(cost, 0.0125, "torch"))
    settings = replace(counted.settings, objective="latency")
    figure = drawn(plots.plot_plan(replace(counted, entries=(entry,), settings=settings)))
    assert "error 1.25%" in texts(figure)
    assert_allclose([bar.get_width() for bar in bars(figure)], [4, 2])
    assert any(text.startswith("1 of 1 layer replaced") for text in texts(figure))


def test_without_a_clock_the_bars_are_multiplies(counted):
    figure = drawn(plots.plot_plan(counted))
    assert [bar.get_width() for bar in bars(figure)] == [100, 36, 100, 36]
    assert {"kept: not selected", "multiplies per output pixel"} <= set(texts(figure))
    assert any(text.startswith("2 of 3 layers replaced") for text in texts(figure))


def test_an_empty_plan_says_so(counted):
    empty = replace(counted, entries=(), whole=None)
    assert texts(drawn(plots.plot_plan(empty))) == [str(empty)]


@pytest.mark.parametrize("wrong", [lambda plan: "plan", lambda plan: (nn.Identity(), plan)])
def test_what_is_no_plan_is_named(counted, wrong):
    given = wrong(counted)
    message = rf"plan must be a convfactor.Plan, got {type(given).__name__}; .*\(model, plan\)"
    with pytest.raises(TypeError, match=message):
        plots.plot_plan(given)


def test_long_names_keep_their_end(counted):
    long = "backbone." * 8 + "7.conv"
    subject = replace(counted.entries[1].subject, name=long)
    plan = replace(counted, entries=(replace(counted.entries[1], subject=subject),))
    (label,) = drawn(plots.plot_plan(plan)).axes[0].get_yticklabels()
    assert label.get_text() == "..." + long[-45:]


@pytest.mark.parametrize("size", [32, 33])
def test_response_is_the_magnitude_of_the_fourier_transform(size):
    composed = chain().compose()[0, 0].numpy()
    target = composed + 0.1 * noise(5, 5).numpy()
    figure = drawn(plots.plot_response(target, chain(), size=size, scale="linear"))
    angles = 2 * np.pi * (np.arange(size) - size // 2) / size
    basis = np.exp(-1j * np.outer(angles, np.arange(5)))
    for name, kernel in (
        ("original", target),
        ("cascade", composed),
        ("difference", composed - target),
    ):
        assert_allclose(panel(figure, name), np.abs(basis @ kernel @ basis.T), atol=1e-12)
    left, right, *_ = figure.axes[0].images[0].get_extent()
    assert (right - left) == pytest.approx(1)
    assert left + (size // 2 + 0.5) / size == pytest.approx(0)


def test_response_in_decibels_has_one_scale_and_a_floor():
    target = chain().compose()
    figure = drawn(plots.plot_response(target, chain()))
    assert panel(figure, "original").max() == pytest.approx(0)
    assert panel(figure, "difference").max() == -plots.DECIBELS
    for name in ("original", "cascade", "difference"):
        assert limits(figure, name) == pytest.approx((-plots.DECIBELS, 0))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 4}, "size must be at least the 5 taps of the kernels, got 4"),
        ({"scale": "decibel"}, "scale must be 'log' or 'linear', got 'decibel'"),
    ],
)
def test_response_arguments_are_checked(arguments, message):
    with pytest.raises(ValueError, match=message):
        plots.plot_response(np.ones((5, 5)), chain(), **arguments)


def test_settings_of_matplotlib_are_left_alone():
    before = dict(matplotlib.rcParams)
    plots.plot_kernels(np.ones((5, 5)), chain())
    assert dict(matplotlib.rcParams) == before


def test_nothing_but_plots_imports_matplotlib_and_plots_not_pyplot():
    code = (
        "import sys, convfactor; assert 'matplotlib' not in sys.modules;"
        "import convfactor.plots; assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_matplotlib_the_extra_is_named():
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "try: import convfactor.plots\n"
        "except ImportError as error: assert \"pip install 'convfactor[plots]'\" in str(error)\n"
        "else: sys.exit(1)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
