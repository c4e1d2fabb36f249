"""``convfactor bench``: prices of what could take a kernel's place."""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import replace

import pytest
import torch

from convfactor import bench
from convfactor.planning import pricing


def chain_macs(channels: list[int]) -> int:
    """Multiplies of dense 3x3 stages between so many channels."""
    return sum(9 * a * b for a, b in itertools.pairwise(channels))


def test_multiplies_are_those_of_the_stages():
    found = bench((8, 4, 7, 7), 32, objective="macs")
    assert found.kernel.macs == 8 * 4 * 49
    (chain,) = (price for price in found.prices if price.name == "3x3 3x3 3x3")
    assert chain.fastest.cost.macs_after == chain_macs([4, 1, 1, 8])
    for speedup, tried in zip(found.speedups, chain.widest, strict=True):
        assert tried is not None
        widths = list(tried.structure.widths)
        assert tried.cost.macs_after == chain_macs([4, *widths, 8]) <= found.kernel.macs / speedup
        wider = [width + 2 for width in widths]
        assert chain_macs([4, *wider, 8]) > found.kernel.macs / speedup


def test_families_come_fastest_first_and_json_says_what_the_table_says(run, monkeypatch):
    ran = run("bench", "8x4x7x7", "--size", "32", "--objective", "macs", "--json")
    record = json.loads(ran.out)
    speedups = [family["fastest"]["speedup"] for family in record["families"]]
    assert speedups == sorted(speedups, reverse=True)
    assert (record["pays"], record["input"], record["groups"]) == (True, [1, 4, 32, 32], 1)
    for columns in (80, 160):
        monkeypatch.setenv("COLUMNS", str(columns))
        text = run("bench", "8x4x7x7", "--size", "32", "--objective", "macs").out
        assert text.startswith("8x4x7x7 on 1 x 32x32, float32\n")
        assert max(map(len, text.splitlines())) <= columns
        for family in record["families"]:
            if columns == 160 or len(family["structure"]) < 16:  # on one line
                name = re.escape(family["structure"])
                (line,) = re.findall(rf"^ {name}  .*$", text, re.MULTILINE)
                for offer in family["widest"]:
                    assert ", ".join(map(str, offer["widths"])) in line


def test_times_are_measured(run, monkeypatch):
    monkeypatch.setattr(pricing, "QUICK", 0.005)
    monkeypatch.setattr(pricing, "CAREFUL", 0.005)
    ran = run("bench", "4x4x7x7", "--size", "16x24", "--batch", "2", "--json")
    record = json.loads(ran.out)
    assert record["input"] == [2, 4, 16, 24]
    for family in record["families"]:
        times = family["fastest"]
        assert times["speedup"] == pytest.approx(times["before_s"] / times["after_s"])
        assert times["after_s"] > 0
    assert record["threads"] == torch.get_num_threads()


def test_a_kernel_without_anything_cheaper_is_not_worth_it(run):
    text = run("bench", "4x4x2x2", "--stride", "2", "--size", "16", "--objective", "macs").out
    assert "not worth it: no structure has fewer multiplies" in text


def test_a_busy_machine_is_told():
    found = bench((8, 4, 7, 7), 32, objective="macs")
    assert "busy" not in str(found)
    busy = replace(found, environment=replace(found.environment, load=9.0, threads=2))
    told = "the machine was busy (a load of 9.0 with 2 threads in use): time again when it is quiet"
    assert str(busy).splitlines()[-1] == told


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["64x32x9"], "'64x32x9' is not the shape of a weight"),
        (["64x0x9x9"], "is not the shape of a weight"),
        (["4x4x5x5", "--size", "1x2x3"], "is not a number such as 2, or two"),
        (["4x4x5x5", "--size", "1000000"], "--size must be smaller"),
        (["4x4x5x5", "--groups", "3"], "--groups must divide the 4 outputs, got 3"),
        (["4x4x5x5", "--batch", "0"], "--batch must be at least 1, got 0"),
        (["4x4x5x5", "--dtype", "float31"], "did you mean float32"),
        (["4x4x5x5", "--device", "toaster"], "--device toaster can't be used"),
        (["4x4x5x5", "--min-speedup", "0.5"], "--min-speedup must be at least 1, got 0.5"),
    ],
)
def test_a_mistake_is_one_line(run, arguments, message):
    ran = run("bench", *arguments)
    assert (ran.status, ran.out) == (2, "")
    assert message in ran.err
    assert ran.err.count("\n") == 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"shape": (4, 4, 5)}, "shape must be that of a weight"),
        ({"groups": 3}, "groups must divide the 4 output channels, got 3"),
        ({"batch": 0}, "batch must be at least 1, got 0"),
        ({"size": 0}, "size must be an int >= 1"),
        ({"objective": "size"}, "objective must be one of"),
    ],
)
def test_arguments_in_python_are_checked(given, message):
    with pytest.raises(ValueError, match=message):
        bench(**{"shape": (4, 4, 5, 5), **given})
