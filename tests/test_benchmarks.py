"""The benchmarks of layers and of growth, run at small size: that they measure, not what."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("skimage")

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def run(name, *arguments):
    without = {k: v for k, v in os.environ.items() if k != "CONVFACTOR_CASES"}
    done = subprocess.run(
        [sys.executable, "-W", "error", BENCHMARKS / f"{name}.py", *map(str, arguments)],
        env={**without, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in done.stdout.splitlines()
        if line.startswith("|")
    ]


def test_layers_prices_what_has_no_weights():
    header, _, *rows = run("layers", "--only", "ResNet stem", "--side", 64, "--modes", "eager")
    assert header[-3:] == ["1/2", "1/4", "1/8"]
    assert [row[:2] for row in rows] == [
        ["1x64x64", "float32"],
        ["16x32x32", "float32"],
        ["1x64x64", "bfloat16"],
    ]
    for row in rows:
        for cell in row[-3:]:
            ratio, low, high = map(
                float, re.fullmatch(r"(\S+)x \[(\S+)\.\.(\S+)\] .*\dx\d.*", cell).groups()
            )
            assert 0 < low <= ratio <= high


def test_growth_plans_every_network_in_its_own_process():
    _, _, *rows = run("growth", "--layers", 2, "--kernels", "--channels", "--sides")
    assert [row[0].split()[0] for row in rows] == ["2"] * 4
    for _, how, seconds, each, before, after, replaced in rows:
        assert float(seconds) > float(each) > 0
        assert 0 < float(before) <= float(after)
        done, of = map(int, replaced.split(" of "))
        assert done == of if "multiplies" in how else done <= of


def test_deployment_times_both_runtimes():
    pytest.importorskip("onnxruntime")
    _, _, *rows = run("deployment", "--side", 48, "--layers", "conv3")
    assert [row[0] for row in rows] == ["torch", "onnxruntime"]
    for _, before, after, ratio in rows:
        for cell in (before, after):
            median, low, high = map(float, re.fullmatch(r"(\S+) \[(\S+)\.\.(\S+)\]", cell).groups())
            assert 0 < low <= median <= high
        assert float(ratio.removesuffix("x")) > 0
