"""``convfactor factorize``: what it reads, and what it prints and writes."""

from __future__ import annotations

import functools
import io
import json
import subprocess
import sys

import numpy as np
import pytest
import safetensors.torch
import scipy.signal
import torch
from tiny import kernel

from convfactor import StageShape, Structure, factorize, filters


def composed(stages: list[np.ndarray]) -> np.ndarray:
    """What kernels applied one after the other are together."""
    return functools.reduce(scipy.signal.convolve2d, stages)


def test_the_stages_compose_to_the_filter(run):
    ran = run("factorize", "gaussian:size=7,sigma=1.2", "--json")
    assert (ran.status, ran.err) == (0, "")
    found = json.loads(ran.out)
    stages = [np.array(stage["weight"])[0, 0] for stage in found["stages"]]
    assert [stage.shape for stage in stages] == [(3, 3)] * 3
    np.testing.assert_allclose(composed(stages), filters.gaussian(7, 1.2), atol=1e-12)
    assert (found["met"], found["offset"], found["shape"]) == (True, [0, 0], [1, 1, 7, 7])
    assert (found["multiplies_before"], found["multiplies_after"]) == (49, 27)


def test_the_text_says_stages_error_and_multiplies(run):
    ran = run("factorize", "binomial:size=5", "--tolerance", "0.02")
    lines = ran.out.splitlines()
    assert lines[0] == "binomial:size=5, 5x5: 3x3 3x3 (1)"
    assert lines[1].endswith(", tolerance 0.02 met")
    assert lines[2] == "18 multiplies per output pixel, 1.39x fewer than 25"
    stages = [[[float(tap) for tap in line.split()] for line in lines[i : i + 3]] for i in (4, 8)]
    np.testing.assert_allclose(
        composed([np.array(stage) for stage in stages]), filters.binomial(5), rtol=2e-3
    )


def test_a_miss_is_told_and_strict_makes_it_a_failure(run):
    options = ("factorize", "log:size=9", "--stages", "2", "--tolerance", "0.01")
    ran = run(*options)
    assert ran.status == 0
    assert "tolerance 0.01 missed" in ran.out
    assert "what was asked for has a relative error of" in ran.out
    ran = run(*options, "--strict")
    assert (ran.status, ran.out) == (1, "")
    assert "what was asked for has a relative error of" in ran.err


WRITTEN = {
    "offset",
    *(f"stage{i}{what}" for i in (1, 2) for what in ("", ".stride", ".dilation", ".groups")),
}
WEIGHT = kernel(4, 2, 5, seed=1)


def files(folder):
    """One weight in files of every kind."""
    np.save("k.npy", WEIGHT.numpy())
    np.savez("k.npz", bias=np.zeros(4), weight=WEIGHT.numpy())
    torch.save(WEIGHT, "k.pt")
    torch.save({"state_dict": {"conv.weight": WEIGHT, "conv.bias": torch.zeros(4)}}, "n.pth")
    torch.save(WEIGHT, "old.pt", _use_new_zipfile_serialization=False)
    safetensors.torch.save_file({"a": WEIGHT.contiguous(), "b": torch.zeros(3)}, "k.safetensors")


@pytest.mark.parametrize("name", ["k.npy", "k.npz", "k.pt", "n.pth", "old.pt", "k.safetensors"])
def test_files_of_every_kind_are_read(folder, run, name, monkeypatch):
    files(folder)
    options = ("--widths", "1", "--json")
    found = json.loads(run("factorize", name, *options).out)
    structure = Structure((StageShape(2, 1, 3), StageShape(1, 4, 3)))
    expected = factorize(WEIGHT, structure=structure)
    assert found["shape"] == [4, 2, 5, 5]
    assert found["error"] == pytest.approx(expected.error, abs=1e-6)
    data = (folder / name).read_bytes()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))
    again = json.loads(run("factorize", "-", *options).out)
    assert {**again, "kernel": name} == found


def test_an_image_is_read_as_its_luma(folder, run):
    image = pytest.importorskip("PIL.Image")
    pixels = np.round(255 * np.outer([0.2, 0.6, 1, 0.6, 0.2], [0.1, 0.5, 1, 0.5, 0.1]))
    image.fromarray(pixels.astype(np.uint8)).save("psf.png")
    image.fromarray((pixels * 257).astype(np.uint16)).save("deep.png")
    for name in ("psf.png", "deep.png"):
        found = json.loads(run("factorize", name, "--stages", "2", "--json").out)
        assert found["error"] == pytest.approx(factorize(pixels, stages=2).error, rel=1e-6)


def test_groups_stride_and_dilation_are_passed_on(folder, run):
    np.save("k.npy", kernel(4, 4, 5, groups=4).numpy())
    options = ("--groups", "4", "--stride", "2x1", "--dilation", "2", "--tolerance", "0.5")
    stages = json.loads(run("factorize", "k.npy", *options, "--json").out)["stages"]
    strides, dilations = (np.array([s[name] for s in stages]) for name in ("stride", "dilation"))
    assert strides.prod(0).tolist() == [2, 1]
    assert {s["groups"] for s in stages} == {4}
    assert dilations.min() >= 1
    assert dilations.max() == 2


def test_picture_and_weights_go_to_files(folder, run):
    image = pytest.importorskip("PIL.Image")
    pytest.importorskip("matplotlib")
    ran = run("factorize", "gaussian:size=5", "--plot", "a/b.png", "--output", "w.npz")
    assert ran.err == "convfactor: wrote w.npz\nconvfactor: wrote a/b.png\n"
    with image.open("a/b.png") as picture:
        assert picture.size[0] > 300
    run("factorize", "gaussian:size=5", "--plot", "p.svg", "--output", "w.safetensors")
    assert "<svg" in (folder / "p.svg").read_text()
    tensors = safetensors.torch.load_file("w.safetensors")
    with np.load("w.npz") as arrays:
        assert set(arrays) == set(tensors) == WRITTEN
        for name, array in arrays.items():
            assert np.array_equal(array, tensors[name])
        stages = [arrays[f"stage{i}"][0, 0] for i in (1, 2)]
    np.testing.assert_allclose(composed(stages), filters.gaussian(5), atol=1e-12)


def test_weights_go_to_a_pipe_and_nothing_else_does():
    command = [sys.executable, "-m", "convfactor", "factorize", "gaussian:size=5"]
    done = subprocess.run([*command, "--output", "-"], capture_output=True, check=True)
    with np.load(io.BytesIO(done.stdout)) as arrays:
        assert set(arrays) == WRITTEN
    assert done.stderr == b""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["two.npz"], "two.npz holds several kernels: choose with --tensor from a 5x5, b 5x5"),
        (["two.npz", "--tensor", "aa"], "--tensor 'aa' is not in two.npz, which holds a 5x5"),
        (["one.npy", "--tensor", "a"], "one.npy holds one array without"),
        (["none.npz"], "none.npz holds no kernel, an array of 2 or 4 dimensions"),
        (["junk.bin"], "it is neither .npy, .npz, .pt or .safetensors nor an image"),
        (["empty.npy"], "it is neither .npy, .npz, .pt or .safetensors nor an image"),
        (["text.npy"], "weight must be a tensor or an array"),
        (["objects.npy"], "Object arrays cannot be loaded"),
        (["evil.pt"], "or holds more than these, which is not loaded for safety"),
        (["gaussian:size=0"], "size must be a whole number of taps"),
        (["gaussian", "--stages", "2", "--widths", "3"], "give one of them"),
        (["gaussian", "--stages", "99"], "--stages must make at most 9 stages"),
        (["gaussian", "--widths", "3,a"], "'3,a' is not hidden channel counts such as 8,16"),
        (["gaussian", "--tolerance", "2"], "--tolerance must be a positive number"),
        (["gaussian", "--strict", "--stages", "2"], "--strict needs --tolerance"),
        (["gaussian", "--plot", "x.bmp"], "--plot must end in .png, .svg, .pdf, or be -"),
        (["gaussian", "--json", "--plot", "-"], "--plot and --json can't both write to stdout"),
        (["gaussian", "--groups", "2"], "--groups must divide the 1 output channels"),
        (["gaussian", "--time-limit", "0"], "--time-limit must be above 0 seconds"),
        (["gaussian:size=5", "--output", "one.npy/x.npz"], "x.npz can't be written: "),
    ],
)
def test_a_mistake_is_one_line(folder, run, arguments, message):
    np.savez("two.npz", a=np.ones((5, 5)), b=np.ones((5, 5)))
    np.savez("none.npz", a=np.ones(5))
    np.save("one.npy", np.ones((5, 5)))
    np.save("text.npy", np.array(["a"]))
    np.save("objects.npy", np.array([{}], dtype=object))
    torch.save(print, "evil.pt")
    (folder / "junk.bin").write_bytes(b"junk")
    (folder / "empty.npy").touch()
    ran = run("factorize", *arguments)
    assert (ran.status, ran.out) == (2, "")
    assert message in ran.err
    assert ran.err.startswith("convfactor: error: ")
    assert ran.err.count("\n") == 1
