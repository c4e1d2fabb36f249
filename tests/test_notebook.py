"""The notebook of the examples: what is committed, and what a clean kernel makes of it."""

from __future__ import annotations

import base64
import html
import importlib.util
import math
import re
import struct
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
for name in ("ipykernel", "matplotlib", "skimage", "pytorch_wavelets"):
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed", allow_module_level=True)

PATH = Path(__file__).parent.parent / "examples" / "filter_factorization.ipynb"
ABSOLUTE = re.compile(r"(?<![\w./:])/(home|root|tmp|usr|opt|var|mnt|work|Users)/|[A-Z]:\\")


def read():
    return nbformat.read(PATH, as_version=4)


def execute():
    notebook = read()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    client = nbclient.NotebookClient(notebook, timeout=None, kernel_name="python3")
    return client.execute()


@pytest.fixture(scope="module", params=["committed", "executed"])
def notebook(request):
    return read() if request.param == "committed" else execute()


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def printed(cell):
    return "".join(output.text for output in cell.outputs if output.output_type == "stream")


def table(notebook, header):
    """Fields, two blanks apart, of the rows under a header."""
    (text,) = (t for t in map(printed, code_cells(notebook)) if header in t)
    rows = text[text.index(header) :].splitlines()[1:]
    return [re.split(r" {2,}", row.strip()) for row in rows if row.strip()]


def test_every_cell_ran_in_order_without_errors_and_warnings(notebook):
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        assert cell.outputs, cell.source
        for output in cell.outputs:
            assert output.output_type != "error"
            if output.get("name") == "stderr":  # other tests run beside it
                assert output["text"].startswith("the machine is busy"), output
        assert "Warning" not in printed(cell)


def test_no_path_of_a_machine(notebook):
    for cell in notebook.cells:
        assert not ABSOLUTE.search(cell.source)
        for output in cell.get("outputs", []):
            texts = [output.get("text", "")]
            texts += [v for k, v in output.get("data", {}).items() if k.startswith("text/")]
            assert not any(ABSOLUTE.search(text) for text in texts)


def test_it_is_small_and_its_pictures_are_not(notebook):
    assert PATH.stat().st_size < 2e6
    pictures = [
        base64.b64decode(output.data["image/png"])
        for cell in code_cells(notebook)
        for output in cell.outputs
        if "image/png" in output.get("data", {})
    ]
    assert len(pictures) == 14
    for picture in pictures:
        width, height = struct.unpack(">II", picture[16:24])
        assert width >= 500
        assert height >= 200


def test_the_filters_are_those_of_the_transform(notebook):
    (text,) = (t for t in map(printed, code_cells(notebook)) if "largest difference to" in t)
    found = re.findall(r"^(\w\w): .* rank 1, sum ([01]), .* (\S+)$", text, re.MULTILINE)
    assert [(name, int(total)) for name, total, _ in found] == [
        ("ll", 1), ("lh", 0), ("hl", 0), ("hh", 0)
    ]  # fmt: skip
    assert all(float(difference) < 1e-7 for *_, difference in found)


def test_a_chain_of_small_kernels_is_counted(notebook):
    rows = table(notebook, "reach   one kernel")
    assert rows[1][:3] == ["5x5", "25", "18"]
    assert rows[2][:3] == ["7x7", "49", "27"]


def test_it_says_which_kernels_the_library_runs(notebook):
    rows = table(notebook, "kernel  channels      ms")
    assert [row[0] for row in rows] == ["3x3", "5x5", "7x7", "9x9"]
    for _, channels, *times, used, names in rows:
        assert int(channels) > 0
        assert all(float(time) > 0 for time in times)
        assert names
        assert (used == "neither") == (not re.search(r"wino|fft", names, re.IGNORECASE))


def test_no_tap_of_a_chain_is_convex(notebook):
    (text,) = (t for t in map(printed, code_cells(notebook)) if "Hessian H of xy" in t)
    assert "eigenvalues: [-1.0, 1.0]" in text
    assert "v = [-1, 1] gives v'Hv = -2" in text
    (text,) = (t for t in map(printed, code_cells(notebook)) if "its rows and columns" in t)
    assert "hold [[0.0, 1.0], [1.0, 0.0]]" in text
    assert "v = [-1, 1] there and 0 elsewhere gives v'Hv = -2" in text
    assert "9 of 18 eigenvalues are negative" in text


def test_a_small_identity_helps_in_the_valley_only(notebook):
    (text,) = (t for t in map(printed, code_cells(notebook)) if "H + I:" in t)
    rows = [line.rsplit(")", 1)[1].split() for line in text.splitlines()[1:]]
    for diagonal, beside, dominant, least, dominant_then, least_then in rows:
        gap = float(diagonal) - float(beside)
        assert dominant == ("yes" if gap >= 0 else "no")
        assert dominant_then == ("yes" if gap >= -1 else "no")
        assert float(least_then) == pytest.approx(float(least) + 1, abs=0.11)
    assert [row[4] for row in rows] == ["yes", "no", "yes", "yes"]


def test_gradient_steps_stand_beside_the_closed_form(notebook):
    *rows, _ = table(notebook, "step        x        y")
    least = 0.2 * math.sqrt(20)  # with a product of 20; a little below it is possible
    for step, *cells in rows:
        both = [list(map(float, cells[:4])), list(map(float, cells[4:]))]
        for x, y, product, loss in both:
            assert product == pytest.approx(x * y, rel=1e-3)
            assert loss == pytest.approx((product - 20) ** 2 + 0.1 * (x + y), abs=0.02)
            assert loss > least - 0.01
        if int(step) == 1:
            assert both[0][:2] == pytest.approx([1 + 0.01 * (4 * 18 - 0.1), 2], abs=1e-4)
            assert both[1][:2] == pytest.approx([(40 - 0.05) / 4, 2], abs=1e-4)
    assert [float(row[4]) for row in rows] == sorted((float(row[4]) for row in rows), reverse=True)


def test_every_weighting_gives_another_filter(notebook):
    rows = table(notebook, "energy  admissibility")
    assert len(rows) == 7
    assert len({row[2] for row in rows}) == 7
    assert all(float(row[2]) >= 4.480e-4 for row in rows)


def test_one_of_two_numbers_changes_at_a_time(notebook):
    rows = table(notebook, "step  changed")
    assert [row[1] for row in rows] == ["x", "y"] * (len(rows) // 2)
    previous = (1.0, 2.0)
    losses = []
    for _, changed, x, y, product, size, loss in rows:
        now = float(x), float(y)
        held = 1 if changed == "x" else 0
        assert now[held] == previous[held]
        assert float(product) == pytest.approx(now[0] * now[1], rel=1e-3)
        assert float(loss) == pytest.approx((float(product) - 20) ** 2 + 20 * float(size), rel=1e-3)
        losses.append(float(loss))
        previous = now
    assert losses == sorted(losses, reverse=True)
    assert previous == pytest.approx((4.19, 4.19), abs=0.2)  # v^3 - 20 v + 10 = 0


def test_mean_squared_errors_in_the_original_normalisation(notebook):
    rows = table(notebook, "filter  stages     limit")
    limits = {(name, stages): float(limit) for name, stages, limit, *_ in rows}
    original = {(name, stages): float(value) for name, stages, _, value, _ in rows}
    ours = {(name, stages): float(value) for name, stages, *_, value in rows}
    assert ours["lh", "one 5x5"] == ours["lh", "two 3x3"] == limits["lh", "two 3x3"] == 4.480e-4
    assert ours["lh", "three 3x3"] < 1e-25
    assert ours["ll", "two 3x3"] == 1.594e-2
    assert len(ours) == 4
    assert all(original[key] >= ours[key] for key in ours)
    titles = [cell.source for cell in code_cells(notebook) if "levenberg.solve" in cell.source]
    for name, stages in ours:
        assert any(f"{name} as {stages}, MSE" in source for source in titles)


def test_ours_is_exact_where_exact_exists_and_never_behind(notebook):
    rows = table(notebook, "filter  stages  solver")
    found = {(name, int(stages), solver): float(e) for name, stages, solver, e, _ in rows}
    for name, stages in (("ll", 3), ("lh", 3), ("hl", 3), ("hh", 2)):
        assert found[name, stages, "convfactor"] < 1e-14
    for (name, stages, solver), error in found.items():
        if solver == "original":
            assert found[name, stages, "convfactor"] <= error


def test_sums_are_kept(notebook):
    rows = table(notebook, "wanted sum")
    assert len(rows) == 4
    for _, _, wanted, without, kept, *_ in rows:
        assert float(kept) == pytest.approx(float(wanted), abs=1e-12)
        assert abs(float(without) - float(wanted)) < 0.1


def test_the_layers_were_timed(notebook):
    rows = table(notebook, "channels  dtype")
    assert len(rows) == 27
    for *_, before, after, ratio in rows:
        assert float(ratio[:-1]) == pytest.approx(float(before) / float(after), rel=0.05)


def shown(notebook, start):
    """Text of what a cell's last value shows as a piece of a page."""
    pages = (
        output.data["text/html"]
        for cell in code_cells(notebook)
        for output in cell.outputs
        if "text/html" in output.get("data", {})
    )
    texts = (" ".join(html.unescape(re.sub(r"<[^>]*>", " ", page)).split()) for page in pages)
    (text,) = (text for text in texts if start in text)
    return text


def test_a_factorization_shows_itself(notebook):
    text = shown(notebook, "in place of 5x7 1->1")
    assert "3x3 3x3 1x3 (1, 1)" in text
    assert "tolerance met" in text
    assert all(name in text for name in ("original", "stage 3", "composed", "error"))


def test_the_network_has_a_plan_and_keeps_its_quality(notebook):
    text = shown(notebook, "tolerance 0.05")
    assert "conv1 9x9 1->64" in text
    assert "conv3 5x5 32->1" in text
    for name, bicubic, original, optimized, change in table(notebook, "PSNR (dB)"):
        assert name in ("astronaut", "camera")
        assert float(original) > float(bicubic) + 1
        assert float(change) == pytest.approx(float(optimized) - float(original), abs=0.02)
        assert abs(float(change)) < 0.2


def test_the_fast_transform_gives_the_same(notebook):
    rows = table(notebook, "images              levels")
    assert len(rows) == 3
    assert all(float(row[-1]) < 1e-5 for row in rows)
