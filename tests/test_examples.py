"""Every example, run at small size as a user runs it: results are checked, times are not."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("skimage")

from matplotlib import image

EXAMPLES = Path(__file__).parent.parent / "examples"
WARNINGS = (
    "error",
    # pytorch_wavelets 1.3.0
    "ignore:pkg_resources is deprecated:UserWarning",
    "ignore:Deprecated call to `pkg_resources:DeprecationWarning",
)


def run(name, *arguments, folder):
    filters = [part for warning in WARNINGS for part in ("-W", warning)]
    done = subprocess.run(
        [sys.executable, *filters, EXAMPLES / f"{name}.py", *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "120", "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr
    # Other tests run beside it.
    told = [line for line in done.stderr.splitlines() if not line.startswith("the machine is busy")]
    assert told == []
    return done.stdout


def rows(output):
    """Cells of the lines of a table."""
    lines = [line for line in output.splitlines() if line.startswith("│")]
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]


def number(pattern, text):
    found = re.search(pattern, text)
    assert found, f"{pattern} is not in {text}"
    return float(found[1])


def assert_drawn(path):
    pixels = image.imread(path)[..., :3]
    assert min(pixels.shape[:2]) > 200
    assert pixels.std() > 0.05


def test_super_resolution(tmp_path):
    output = run(
        "super_resolution", "--size", 48, "--layers", "conv1", "--max-drops", 0.5,
        folder=tmp_path,
    )  # fmt: skip
    original = number(r"original (\S+) dB", output)
    table = rows(output)
    assert 20 < original < 45
    assert [row[0] for row in table] == ["0.5 dB"]
    for _, replaced, error, *_, change in table:
        assert replaced in ("0 of 3", "1 of 3")
        if replaced == "0 of 3":
            assert error == change == "-"
        else:
            assert 0 < number(r"(\S+)%", error) < 50
            assert number(r"(\S+) dB", change) > -2
    some_replaced = any(row[1] != "0 of 3" for row in table)
    assert (tmp_path / "super_resolution.png").exists() == some_replaced
    if some_replaced:
        assert_drawn(tmp_path / "super_resolution.png")


def test_gaussian_blur(tmp_path):
    pytest.importorskip("scipy")
    output = run("gaussian_blur", "--size", 96, "--output", "here.png", folder=tmp_path)
    assert number(r"double precision: (\S+)", output) < 1e-12
    table = rows(output)
    assert [row[1] for row in table] == ["961", "135", "135", "62"]
    assert all(0 < float(row[2]) < 5e-6 for row in table)
    assert_drawn(tmp_path / "here.png")


def test_gabor_bank(tmp_path):
    output = run(
        "gabor_bank", "--kernel-size", 11, "--size", 64, "--tolerance", 0.5, folder=tmp_path
    )
    error = number(r"responses to the photograph: (\S+)%", output)
    if "1 of 1 large-kernel layer replaced" in output:
        assert 0.1 < error < 100
    else:
        assert "0 of 1 large-kernel layer replaced" in output
        assert error == 0
    assert_drawn(tmp_path / "gabor_bank.png")


def test_wavelet_denoiser(tmp_path):
    pytest.importorskip("pytorch_wavelets")
    output = run("wavelet_denoiser", "--size", 128, "--output", "here.png", folder=tmp_path)
    assert number(r"noisy (\S+) dB", output) + 3 < number(r"denoised (\S+) dB", output)
    assert number(r"optimized (\S+) dB", output) == number(r"denoised (\S+) dB", output)
    assert number(r"largest difference between the two: (\S+)", output) < 1e-5
    assert_drawn(tmp_path / "here.png")


def test_digits_after_training(tmp_path):
    pytest.importorskip("sklearn")
    output = run(
        "digits_after_training", "--size", 8, "--channels", 4, "--epochs", 8, "--max-drop", 0.02,
        folder=tmp_path,
    )  # fmt: skip
    (_, before, many), (_, after, fewer) = rows(output)
    accuracies = [float(cell.strip("%")) for cell in (before, after)]
    assert accuracies[0] > 85
    assert accuracies[1] > accuracies[0] - 5
    replaced = "1 of 1 large-kernel layer replaced" in output
    assert int(fewer) < int(many) if replaced else int(fewer) == int(many)
    changed = number(r"answers that changed: (\d+)", output)
    assert changed < 0.05 * 450 if replaced else changed == 0


def test_finetune(tmp_path):
    output = run("finetune", "--size", 16, "--channels", 4, "--steps", 60, folder=tmp_path)
    (_, original), (_, optimized), (_, trained) = rows(output)
    if "0 of 2 large-kernel layers replaced" in output:
        assert optimized == original
    else:
        assert float(trained) < float(optimized)
    assert number(r"loaded into a fresh network: (\S+)", output) == float(trained)


def test_lightning_callback(tmp_path):
    pytest.importorskip("lightning")
    output = run(
        "lightning_callback", "--size", 16, "--channels", 4, "--epochs", 1, "--count", 64,
        "--model-tolerance", 0.3, folder=tmp_path,
    )  # fmt: skip
    assert " of 2 large-kernel layers replaced" in output
    assert 0 < number(r"with the optimized network (\S+)", output) < 1


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_says_how_it_is_started_and_is_tested(path):
    text = path.read_text(encoding="utf-8")
    assert f"\n    python examples/{path.name}" in text
    assert path.stem == "train_srcnn" or f"test_{path.stem}" in globals()
