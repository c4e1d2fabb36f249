from __future__ import annotations

import html
import itertools
import json
import math
import re
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from markup import Markup
from scipy.signal import convolve2d
from tiny import Functional, batches, conv, images
from torch import nn

import convfactor
from convfactor import (
    Bounds,
    Cascade,
    ConvGeometry,
    Plan,
    PlanMismatchError,
    StageShape,
    Structure,
)
from convfactor.conv.accuracy import OutputErrors
from convfactor.latency import Timing
from convfactor.model.reasons import Reason
from convfactor.pictures.kernels import Channels, Picture
from convfactor.plans.circumstances import WhiteNoise
from convfactor.plans.decisions import Cost, Entry, Replaced, Swapped, WholeModel

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


def model() -> nn.Module:
    return nn.Sequential(
        conv(),
        conv(groups=2, dilation=2, padding=4, seed=1),
        Functional(seed=2),
        nn.ConvTranspose2d(2, 2, 6, 2, dilation=2),
    )


@pytest.fixture(scope="module")
def plan() -> Plan:
    return convfactor.plan(
        model(), images(size=24), 1e-2, calibration=batches(4, size=24), objective="macs"
    )


@pytest.fixture(scope="module")
def big(plan) -> Plan:
    """Twenty layers with everything that may be missing, infinite, long or hostile."""
    structures = [
        Structure((StageShape(32, 24, (3, 3)), StageShape(24, 32, (3, 3)))),
        Structure((StageShape(8, 8, (3, 3), groups=8),) * 15),
        Structure((StageShape(3, 8, (9, 1), (2, 1)), StageShape(8, 64, (1, 9), (1, 2)))),
        Structure((StageShape(4, 2, (3, 3), dilation=(2, 2)),) * 1, (2, 2)),
    ]
    time = Timing(0.0123, 0.0101, 0.0209)
    entries = []
    names = [f"encoder.stages.{i}.blocks.3.depthwise_convolution_in_a_block" for i in range(20)]
    names[:3] = "<script>alert('x')</script>&", "a|b\n`c`", "x" * 150
    for i, name in enumerate(names):
        structure = structures[i % 4]
        first, last = structure.stages[0], structure.stages[-1]
        dilation = first.dilation
        size = tuple(1 + (s - 1) // d for s, d in zip(structure.span, dilation, strict=True))
        geometry = ConvGeometry(
            first.in_channels, last.out_channels, size, structure.stride, dilation=dilation,
            groups=structure.groups,
        )  # fmt: skip
        subject = replace(plan.entries[0].subject, name=name, kernel_size=size, geometry=geometry)
        decision = replace(
            plan.entries[0].decision,
            cascade=Cascade.random(structure, seed=i, dtype=torch.float32),
            bias_shift=torch.zeros(last.out_channels).double(),
            cost=Cost(
                Timing(0.0123 * (i + 1), 0.01 * (i + 1), 0.02 * (i + 1)),
                time,
                geometry.macs,
                structure.macs,
            ),
            error=0.0123,
            bounds=Bounds(3.25, math.inf),
            errors=OutputErrors(0.0123, 0.5, math.inf, None),
        )
        if i % 5 == 4:
            reason = Reason(
                "tolerance" if i == 4 else "unsupported", "tolerance", "tolerance: " + "much " * 20
            )
            decision = replace(plan.entries[3].decision, reason=reason)
            subject = replace(plan.entries[3].subject, name=name)
        entries.append(Entry(subject, decision))
    whole = WholeModel((0.0345, math.inf), replace(time, median=0.0456), time, "channels_last")
    return replace(plan, entries=tuple(entries), whole=whole)


class Page(Markup):
    """A page with the figures in it."""

    def attribute(self, name: str) -> list[str]:
        return [given[name] for _, given in self.elements if name in given]

    def kernels(self, start: str) -> list[np.ndarray]:
        """The pictures whose label starts so, as numbers from -1 to 1."""
        return [_read(parts) for label, parts in self.svgs if label.startswith(start)]


def _read(parts) -> np.ndarray:
    """The numbers that a picture shows, from the strokes through its cells."""
    (_, area), *strokes = parts
    values = np.zeros((int(area["height"]), int(area["width"])))
    for _, stroke in strokes:
        level = int(stroke["class"][1:]) / 16 * (1 if stroke["class"][0] == "p" else -1)
        for x, y, length in re.findall(r"M(\d+) (\d+)\.5h(\d+)", stroke["d"]):
            run = values[int(y), int(x) : int(x) + int(length)]
            assert not run.any()
            run[:] = level
    return values


def strongest(kernel: torch.Tensor) -> tuple[int, int]:
    target, source = np.unravel_index(
        int(kernel.detach().flatten(2).norm(dim=2).argmax()), kernel.shape[:2]
    )
    return int(target), int(source)


def impulse_response(layer: nn.Module, source: int, size: int) -> np.ndarray:
    """The kernels from an input channel, from the layer's own output."""
    x = torch.zeros(2, 2, 4 * size + 1, 4 * size + 1)
    x[1, source, 2 * size, 2 * size] = 1
    with torch.no_grad():
        y = layer(x)
    reach = slice(2 * size - size // 2, 2 * size + size // 2 + 1)
    return (y[1] - y[0])[:, reach, reach].flip(1, 2).numpy()


def test_the_pictures_show_the_kernels(plan):
    page = Page(plan.to_html(model=model()))
    fast = plan.apply(model())
    kernels = [model()[0].weight, model()[1].weight, model()[2].kernel]
    layers = [fast[0], fast[1], fast[2].kernel_cascade]
    found = {}
    for name in ("original kernel", "composed kernel", "error"):
        found[name] = [(label, _read(parts)) for label, parts in page.svgs if f", {name}" in label]
    assert len(found["error"]) == len(found["original kernel"]) == 4 + 2 + 4
    for kernel, layer, first in zip(kernels, layers, (0, 4, 6), strict=True):
        target, index = strongest(kernel)
        source = index if kernel.shape[1] == 2 else target
        start = f"output channel {target}, input channel {source}, "
        assert all(found[name][first][0].startswith(start) for name in found)
        true = kernel[target, index].detach().numpy()
        dilation = layer.geometry.dilation[0]
        made = impulse_response(layer, source, 4 * dilation + 1)[target, ::dilation, ::dilation]
        scale = max(abs(true).max(), abs(made).max())
        half = 0.5 / 16 + 1e-5
        np.testing.assert_allclose(found["original kernel"][first][1], true / scale, atol=half)
        np.testing.assert_allclose(found["composed kernel"][first][1], made / scale, atol=half)


def test_the_error_is_magnified_by_the_factor_it_names(plan):
    module = model()
    first = plan.entries[0].decision
    stages = first.cascade.stages
    weight = stages[0].weight * 1.02
    cascade = replace(first.cascade, stages=(replace(stages[0], weight=weight), *stages[1:]))
    entry = replace(plan.entries[0], decision=replace(first, cascade=cascade))
    rough = replace(plan, entries=(entry, *plan.entries[1:]))
    page = Page(rough.to_html(model=module))
    label, parts = next(svg for svg in page.svgs if ", error" in svg[0])
    factor = float(re.search(r"error x([\d.e+]+),", label)[1])
    target, source = strongest(module[0].weight)
    true = module[0].weight[target, source].detach().numpy()
    expected = 0.02 * true * factor / (1.02 * abs(true).max())
    assert 0.2 < abs(expected).max() <= 1
    np.testing.assert_allclose(_read(parts), expected, atol=0.04)


def test_the_error_of_the_weights_stands_second(plan):
    module = model()
    first = plan.entries[0].decision
    stages = first.cascade.stages
    doubled = replace(stages[0], weight=stages[0].weight * 2)
    cascade = replace(first.cascade, stages=(doubled, *stages[1:]))
    entry = replace(plan.entries[0], decision=replace(first, cascade=cascade, error=0.01))
    shown = replace(plan, entries=(entry,))
    assert "Error of the weights" not in Page(shown.to_html()).text
    text = Page(shown.to_html(model=module)).text
    assert re.search(r"Error \(tolerance 1%\) 1\.00% .*Error of the weights (99|100)\.\d\d%", text)
    white = replace(shown, calibration=WhiteNoise())
    assert "Error of the weights" not in Page(white.to_html(model=module)).text


@pytest.mark.parametrize(("count", "columns"), [(1, 1), (3, 3), (4, 2), (5, 3), (7, 4), (9, 3)])
def test_stages_stand_in_even_rows(count, columns):
    picture = Picture.draw("stage", "", torch.zeros(3, 3), 1.0, 11)
    assert Channels(0, 0, (), 1, [picture] * count, picture, None, None).columns == columns


def test_the_page_lays_the_stages_out_so(big):
    counts = {len(big.entries[i].decision.cascade.stages) for i in big.replaced}
    columns = set(re.findall(r"grid-template-columns: repeat\((\d+), ", big.to_html()))
    assert counts == {1, 2, 15}
    assert columns == {"1", "2", "4"}


def test_stages_of_a_depthwise_layer_compose_to_its_kernel(plan):
    alone = replace(plan, entries=plan.entries[1:2])
    page = Page(alone.to_html())
    for channel in (0, 1):
        start = f"output channel {channel}, input channel {channel}, "
        (first,) = page.kernels(start + "stage 1")
        (second,) = page.kernels(start + "stage 2")
        (composed,) = page.kernels(start + "composed kernel")
        made = convolve2d(first, second)
        assert np.corrcoef(made.ravel(), composed.ravel())[0, 1] > 0.98


def taken(entry: Entry, cascade: Cascade) -> Entry:
    """The entry with a cascade in the layer's place, whatever was decided."""
    shift = torch.zeros(entry.subject.geometry.out_channels, dtype=torch.float64)
    cost = Cost(None, None, entry.subject.geometry.macs, cascade.structure.macs)
    bounds = Bounds(1.0, 1.0)
    decision = Replaced(cascade, shift, "as given", cost, 0.5, None, 0.5, bounds)
    return replace(entry, decision=decision)


def test_ways_through_hidden_channels_are_counted():
    module = nn.Sequential(nn.Conv2d(2, 2, 5))
    planned = convfactor.plan(module, images(), 0.999, objective="macs")
    cascade = Cascade.random(Structure((StageShape(2, 3, (3, 3)), StageShape(3, 2, (3, 3)))))
    weight = cascade.stages[0].weight.clone()
    weight[:, 0] = torch.tensor([0.0, 10.0, 1e-3])[:, None, None]
    cascade = replace(
        cascade, stages=(replace(cascade.stages[0], weight=weight), cascade.stages[1])
    )
    shown = replace(planned, entries=(taken(planned.entries[0], cascade),))
    text = Page(shown.to_html()).text
    assert text.count("strongest of 2 ways, through hidden 1") == 2
    assert text.count("strongest of 3 ways, through hidden") == 2


def test_kernels_that_reach_beyond_the_original_share_its_window(plan):
    module = nn.Sequential(nn.Conv2d(1, 1, 5, 2, bias=False))
    planned = convfactor.plan(module, images(channels=1), 0.999, objective="macs")
    structure = Structure((StageShape(1, 1, (3, 3), (2, 2)), StageShape(1, 1, (3, 3))), (-1, -1))
    cascade = Cascade.random(structure)
    shown = replace(planned, entries=(taken(planned.entries[0], cascade),))
    page = Page(shown.to_html(model=module))
    start = "output channel 0, input channel 0, "
    (original,) = page.kernels(start + "original kernel")
    (composed,) = page.kernels(start + "composed kernel")
    weight = module[0].weight[0, 0].detach().double()
    made = cascade.compose()[0, 0]
    scale = float(max(weight.abs().max(), made.abs().max()))
    window = torch.zeros(7, 7, dtype=torch.float64)
    window[1:6, 1:6] = weight
    np.testing.assert_allclose(original, window / scale, atol=0.5 / 16 + 1e-6)
    np.testing.assert_allclose(composed, made / scale, atol=0.5 / 16 + 1e-6)


def test_the_page_says_what_was_done(plan):
    text = Page(plan.to_html()).text
    for part in (
        "3 of 4 large-kernel layers replaced",
        "1 layer was kept",
        "a transposed convolution with stride and dilation",
        "dry run",
        "nothing was timed",
        "3 calibration batches",
        'plan = convfactor.Plan.load("folder")',
        "give to_html the model",
        torch.__version__,
    ):
        assert part in text
    for entry in plan.entries[:3]:
        cost = entry.decision.cost
        assert f"{cost.macs_before:,} → {cost.macs_after:,}" in text
        assert f"{entry.error:.2%}" in text
    assert "Times" not in text
    white = Page(replace(plan, calibration=WhiteNoise()).to_html()).text
    assert "Without calibration data" in white
    assert "did not see" not in white


def test_times_and_missing_values(big):
    text = Page(big.to_html()).text
    for part in (
        "16 of 20 large-kernel layers replaced",
        "4 layers were kept, 1 of them because nothing fast enough met the tolerance",
        "3.71x 45.6 ms [10.1..20.9] → 12.3 ms [10.1..20.9], in channels_last",
        "3.45%, inf%",
        "234 ms [190..380] → 12.3 ms [10.1..20.9]",
        "Why 19.00x faster",
        "Worst-case energy no bound",
        "memory_format=torch.channels_last",
    ):
        assert part in text
    assert "None" not in text


def test_figures_of_what_was_not_taken_are_in_parentheses(big):
    kept = big.keeping(0, Reason("tolerance", "tolerance", "tolerance: too far off"))
    page = Page(replace(kept, entries=kept.entries[:1]).to_html())
    assert "1 layer was kept, because nothing fast enough met the tolerance;" in page.text
    assert "(1.23%) 12.3 ms [10..20] (→ 12.3 ms [10.1..20.9]) 25,600 (→ 13,824)" in page.text
    assert "that was not taken" in page.text
    assert [given["class"] for tag, given in page.elements if tag == "rect"] == ["before"]
    assert "not taken" not in Page(big.to_html()).text


@pytest.mark.parametrize("memory_format", ["as given", "channels_last"])
def test_the_code_to_copy_runs(plan, tmp_path, memory_format):
    whole = WholeModel((0.0,), None, None, memory_format)
    shown = replace(plan, whole=whole)
    shown.save(tmp_path)
    (code,) = re.findall(r"<pre><code>(.*?)</code></pre>", shown.to_html(), re.DOTALL)
    names = {"model": model(), "x": images(size=24)}
    exec(html.unescape(code).replace('"folder"', repr(str(tmp_path))), names)
    expected = names["model"](names["x"])
    torch.testing.assert_close(names["fast"](names["x"]), expected, rtol=1e-2, atol=1e-3)
    assert ("y" in names) == (memory_format == "channels_last")
    assert isinstance(names["fast"][0], convfactor.CascadeConv2d)


def test_names_stay_text(big):
    source = big.to_html()
    assert "<script" not in source
    page = Page(source)
    assert "<script>alert('x')</script>&" in page.text
    assert "a|b `c`" in page.text


@pytest.mark.parametrize("name", ["plan", "big"])
def test_the_page_is_whole_and_loads_nothing(name, request):
    source = request.getfixturevalue(name).to_html()
    page = Page(source)
    assert len(source.encode()) < 500_000
    assert {tag for tag, _ in page.elements}.isdisjoint({"script", "link", "img", "iframe"})
    assert not re.search(r"url\(|@import|https?:|\bsrc=", source)
    ids = page.attribute("id")
    assert len(ids) == len(set(ids))
    assert {link.removeprefix("#") for link in page.attribute("href")} <= set(ids)
    assert set(page.attribute("aria-labelledby")) <= set(ids)
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    for tag, given in page.elements:
        if tag == "svg":
            assert given.get("aria-hidden") == "true" or given["role"] == "img"
            assert ("aria-hidden" in given) != bool(given.get("aria-label"))
    assert [tag for tag, _ in page.elements].count("caption") == 1


def test_every_picture_has_its_colours(big):
    source = big.to_html()
    used = set(re.findall(r'class="([pn]\d+|zero)"', source))
    assert {"p16", "n16", "zero"} <= used
    for scheme in _schemes(source):
        assert used <= set(re.findall(r"\.([pn]\d+|zero)\{", scheme))


# Machado, Oliveira and Fernandes (2009): full protanopia, deuteranopia, tritanopia.
COLOUR_BLIND = [
    [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
]


def _schemes(source: str) -> tuple[str, str]:
    light, dark = source.split("@media screen and (prefers-color-scheme: dark)")
    return light, dark.split("* {")[0]


def _linear(colour: str) -> np.ndarray:
    value = np.array(list(bytes.fromhex(colour))) / 255
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def _luminance(colour: str) -> float:
    return float(_linear(colour) @ [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize("scheme", [0, 1])
def test_text_has_contrast(plan, scheme):
    style = _schemes(plan.to_html())[scheme]
    colours = dict(re.findall(r"--(\w+): #([0-9a-f]{6})", style))
    for text in ("text", "soft", "link"):
        for ground in ("page", "card", "code"):
            low, high = sorted(_luminance(colours[name]) for name in (text, ground))
            assert (high + 0.05) / (low + 0.05) >= 4.5, (text, ground)
    for mark in ("before", "after"):
        low, high = sorted(_luminance(colours[name]) for name in (mark, "page"))
        assert (high + 0.05) / (low + 0.05) >= 3, mark


@pytest.mark.parametrize("scheme", [0, 1])
def test_colours_tell_signs_apart_for_colour_blind_people(plan, scheme):
    style = _schemes(plan.to_html())[scheme]
    colours = dict(re.findall(r"\.([pn]\d+|zero)\{\w+:#([0-9a-f]{6})\}", style))
    for sign in "pn":
        ramp = [
            _luminance(colours["zero"]),
            *(_luminance(colours[f"{sign}{n}"]) for n in range(1, 17)),
        ]
        assert sorted(ramp, reverse=scheme == 0) == ramp
    for matrix in COLOUR_BLIND:
        for n in range(4, 17):
            seen = [np.array(matrix) @ _linear(colours[f"{sign}{n}"]) for sign in "pn"]
            assert np.abs(seen[0] - seen[1]).max() > 0.1, n


def test_nothing_to_do():
    plan = convfactor.plan(nn.ReLU(), images(), objective="macs", min_kernel_size=7)
    page = Page(plan.to_html())
    assert "no convolution with a kernel of 7 or more taps on a side" in page.text
    assert "The model is unchanged" in page.text
    assert not page.svgs


def test_nothing_replaced(plan):
    kept = plan.keeping(0, "undone").keeping(1, "undone").keeping(2, "undone")
    page = Page(kept.to_html(model=model()))
    assert "Every layer was kept as it is. 4 layers were kept" in page.text
    assert "How to apply" not in page.text


def test_a_transform_has_no_kernel_to_draw(plan):
    subject = replace(plan.entries[3].subject, kind="transform", kernel_size=())
    cost = Cost(Timing(0.02, 0.01, 0.03), Timing(0.01, 0.01, 0.01))
    page = Page(replace(plan, entries=(Entry(subject, Swapped(cost, 0.01, "torch")),)).to_html())
    assert "1 of 1 wavelet transform replaced" in page.text
    assert "Why 2.00x faster, by convfactor.wavelets with torch's operations" in page.text
    assert not re.search(r"Worst-case (value|energy) \d", page.text)
    assert "20 ms [10..30] → 10 ms [10..10]" in page.text
    assert "There is no kernel to draw" in page.text


def test_another_model_is_refused(plan, tmp_path):
    other = model()
    with torch.no_grad():
        other[1].weight[0, 0, 0, 0] += 1
    with pytest.raises(PlanMismatchError, match=r"1\.weight"):
        plan.to_html(tmp_path / "page.html", other)
    with pytest.raises(PlanMismatchError, match="no module '0'"):
        plan.to_html(tmp_path / "page.html", nn.ReLU())
    assert not list(tmp_path.iterdir())


def test_the_model_is_not_touched(plan):
    module = model().train()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    plan.to_html(model=module)
    assert module.training
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert type(module[0]) is nn.Conv2d


def test_graphs_and_tied_weights_and_a_single_convolution():
    tied = nn.Sequential(conv(), nn.ReLU(), conv())
    tied[2].weight, tied[2].bias = tied[0].weight, tied[0].bias
    planned = convfactor.plan(tied, images(), 1e-3, objective="macs")
    for module in (tied, convfactor.fx.trace(tied)):
        page = Page(planned.to_html(model=module))
        assert "Also known as 2" in page.text
        assert len([1 for label, _ in page.svgs if "original" in label]) == 4
    alone = conv()
    page = Page(convfactor.plan(alone, images(), 1e-3, objective="macs").to_html(model=alone))
    assert any("original" in label for label, _ in page.svgs)


def test_the_page_is_written_at_once(plan, tmp_path):
    path = tmp_path / "new" / "page.html"
    text = plan.to_html(path)
    assert plan.to_html(str(path)) == text == path.read_bytes().decode()
    assert [file.name for file in path.parent.iterdir()] == ["page.html"]


def test_importing_the_package_does_not_load_jinja2():
    code = "import sys, convfactor; sys.exit('jinja2' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


VIEWS = [(width, scheme) for width in (390, 1440) for scheme in ("light", "dark")]
HEIGHT = 900
CHECK = """<script>
addEventListener("load", () => {
  const out = [...document.querySelectorAll("body *")].filter(e => {
    const box = e.getBoundingClientRect();
    return box.width && (box.right > innerWidth + 0.5 || box.left < 0) && !e.closest("pre, thead");
  });
  parent.postMessage({
    width: innerWidth,
    scroll: document.documentElement.scrollWidth,
    dark: matchMedia("(prefers-color-scheme: dark)").matches,
    out: out.map(e => e.outerHTML.slice(0, 80)),
    clipped: [...document.querySelectorAll("td, dd, h3")].filter(
      e => e.scrollWidth > e.clientWidth + 1).map(e => e.outerHTML.slice(0, 80)),
    kernels: [...document.querySelectorAll("svg.kernel")].filter(
      e => e.getBoundingClientRect().height >= 9).length,
    view: location.hash.slice(1),
  }, "*");
});
</script>"""


def browse(source: str, folder):
    """Show a page in frames of all views at once; what it measures, and a picture."""
    from PIL import Image

    (folder / "page.html").write_text(source + CHECK, encoding="utf-8")
    frames = "".join(
        f'<iframe src="page.html#{i}" width={width} height={HEIGHT} '
        f'style="border:0;display:block;color-scheme:{scheme}"></iframe>'
        for i, (width, scheme) in enumerate(VIEWS)
    )
    (folder / "views.html").write_text(
        f'<!doctype html><body style="margin:0">{frames}<script>const all = [];'
        "onmessage = e => { all[e.data.view] = e.data;"
        "document.body.dataset.found = JSON.stringify(all); }</script>"
    )
    shown = subprocess.run(
        [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
            "--no-first-run", "--disable-background-networking", "--disable-component-update",
            "--disable-sync", "--hide-scrollbars", f"--user-data-dir={folder / 'profile'}",
            f"--window-size=1440,{HEIGHT * len(VIEWS)}", f"--screenshot={folder / 'page.png'}",
            "--dump-dom", (folder / "views.html").as_uri(),
        ],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    found = json.loads(html.unescape(re.search(r'data-found="([^"]*)"', shown.stdout)[1]))
    picture = np.asarray(Image.open(folder / "page.png").convert("RGB"))
    return found, picture.reshape(len(VIEWS), HEIGHT, 1440, 3)


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")
@pytest.mark.parametrize("name", ["plan", "big"])
def test_in_a_browser(name, request, tmp_path):
    plan = request.getfixturevalue(name)
    source = plan.to_html(model=model() if name == "plan" else None)
    found, pictures = browse(source, tmp_path)
    count = source.count('class="kernel"')
    assert count > 20
    for (width, scheme), view, picture in zip(VIEWS, found, pictures, strict=True):
        assert (view["width"], view["scroll"]) == (width, width)
        assert view["dark"] == (scheme == "dark")
        assert view["out"] == view["clipped"] == []
        assert view["kernels"] == count
        ground = picture[: HEIGHT - 4, 4 : width - 4][::50, :8].mean()
        assert ground > 240 if scheme == "light" else ground < 40
        words = np.abs(picture[:, :width].mean(axis=2) - ground)
        assert (words > 120).mean() > 0.01
