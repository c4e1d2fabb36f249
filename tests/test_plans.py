from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from tiny import Functional, batches, conv, images
from torch import nn

import convfactor
from convfactor import Bounds, CascadeConv2d, Plan
from convfactor.latency import Timing
from convfactor.plans import PLAN_FILE, WEIGHTS_FILE, WholeModel, channels_last
from convfactor.verification import OutputErrors


def model() -> nn.Module:
    return nn.Sequential(conv(), conv(seed=1), Functional())


@pytest.fixture(scope="module")
def planned() -> Plan:
    plan = convfactor.plan(
        model(),
        images(),
        1e-3,
        calibration=batches(4),
        objective="macs",
        select=lambda name, module: name != "0",
    )
    timing = Timing(0.1, 1e-3, 2.0)
    whole = WholeModel((0.01, math.inf), timing, timing, "channels_last")
    entry = replace(
        plan.entries[1],
        before=timing,
        bounds=Bounds(1.0, math.inf),
        errors=OutputErrors(1e-17, math.inf, math.nan, None),
    )
    return replace(plan, entries=(plan.entries[0], entry, plan.entries[2]), whole=whole)


def test_saving_and_loading_gives_the_same_plan(planned, tmp_path):
    planned.save(tmp_path / "a" / "b")
    loaded = Plan.load(tmp_path / "a" / "b")
    assert repr(loaded.entries) == repr(planned.entries)  # a NaN is not equal to itself
    assert loaded.entries[2] == planned.entries[2]
    for part in ("settings", "environment", "metric", "whole"):
        assert getattr(loaded, part) == getattr(planned, part)
    assert loaded.replacements.keys() == planned.replacements.keys() == {1, 2}
    for i, replacement in planned.replacements.items():
        other = loaded.replacements[i]
        assert other.cascade.structure == replacement.cascade.structure
        assert torch.equal(other.bias_shift, replacement.bias_shift)
        for mine, theirs in zip(other.cascade.stages, replacement.cascade.stages, strict=True):
            assert mine.weight.dtype == theirs.weight.dtype
            assert torch.equal(mine.weight, theirs.weight)
    assert str(loaded) == str(planned)


def test_a_loaded_plan_gives_a_fresh_model_the_same_outputs(planned, tmp_path):
    planned.save(tmp_path)
    fast, again = planned.apply(model()), Plan.load(tmp_path).apply(model())
    assert torch.equal(fast(images()), again(images()))
    assert not torch.equal(fast(images()), model()(images()))


def test_the_files_are_plain_json_and_tensors(planned, tmp_path):
    planned.save(tmp_path)
    planned.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([PLAN_FILE, WEIGHTS_FILE])

    def refuse(constant):
        raise AssertionError(constant)

    record = json.loads((tmp_path / PLAN_FILE).read_text(), parse_constant=refuse)
    assert record["entries"][1]["bounds"]["spectral"] == "inf"
    assert not (tmp_path / WEIGHTS_FILE).read_bytes()[:2].startswith(b"\x80")


def test_tensors_that_share_memory_are_saved(planned, tmp_path):
    replacement = planned.replacements[1]
    first = replacement.cascade.stages[0]
    stages = tuple(
        replace(s, weight=first.weight.expand_as(first.weight))
        for s in replacement.cascade.stages[:1]
    )
    shared = replace(
        replacement,
        cascade=replace(replacement.cascade, stages=(*stages, *replacement.cascade.stages[1:])),
        bias_shift=torch.zeros(4, dtype=torch.float64)[::2],
    )
    twice = replace(planned, replacements={1: shared, 2: shared})
    twice = replace(twice, entries=(twice.entries[0], twice.entries[1], twice.entries[1]))
    twice.save(tmp_path)
    assert len(Plan.load(tmp_path).replacements) == 2


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:-20],
        lambda text: "",
        lambda text: "[]",
        lambda text: "3",
        lambda text: text.replace('"format": 2', '"format": 99'),
        lambda text: text.replace('"decision": "replaced"', '"decision": "perhaps"'),
        lambda text: text.replace('"entries"', '"items"'),
        lambda text: text.replace('"kernel_size"', '"ksize"'),
        lambda text: text.replace('"tolerance": 0.001', '"tolerance": "much"'),
        lambda text: text.replace('"out_channels": 2', '"out_channels": 5'),
    ],
)
def test_damaged_text_gives_a_clear_error(planned, tmp_path, damage):
    planned.save(tmp_path)
    text = (tmp_path / PLAN_FILE).read_text()
    assert damage(text) != text
    (tmp_path / PLAN_FILE).write_text(damage(text))
    with pytest.raises(ValueError, match="does not hold a plan that can be read"):
        Plan.load(tmp_path)


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-9], lambda data: b"", lambda data: b"\0" * 99]
)
def test_damaged_weights_give_a_clear_error(planned, tmp_path, damage):
    planned.save(tmp_path)
    path = tmp_path / WEIGHTS_FILE
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match="does not hold a plan that can be read"):
        Plan.load(tmp_path)


@pytest.mark.parametrize("missing", [PLAN_FILE, WEIGHTS_FILE])
def test_missing_files_are_named(planned, tmp_path, missing):
    planned.save(tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(FileNotFoundError, match=f"must hold {PLAN_FILE} and {WEIGHTS_FILE}"):
        Plan.load(tmp_path)


def test_keeping_a_layer_after_all(planned):
    less = planned.without(1, "undone")
    assert (less.entries[1].decision, less.entries[1].reason) == ("kept", "undone")
    assert less.replacements.keys() == {2}
    assert planned.entries[1].replaced
    assert isinstance(less.apply(model())[1], nn.Conv2d)


def test_weights_that_read_one_channel_are_brought_into_the_format_too():
    layer = nn.Conv2d(1, 8, 5)
    cascade = CascadeConv2d.from_conv(
        layer, convfactor.factorize(layer.weight, widths=(2,)), torch.channels_last
    )
    assert channels_last(layer).weight.stride() == (25, 1, 5, 1)
    for module in (layer, channels_last(cascade)):
        output = module(torch.rand(1, 1, 9, 9))
        assert output.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("path", "error"), [(3, TypeError), (nn.ReLU(), TypeError)])
def test_a_path_must_be_a_path(path, error):
    plan = convfactor.plan(nn.Sequential(conv()), images(), objective="macs")
    with pytest.raises(error, match="path must be"):
        plan.to_csv(path)


def test_a_folder_is_no_file(tmp_path):
    plan = convfactor.plan(nn.Sequential(conv()), images(), objective="macs")
    with pytest.raises(ValueError, match="path must be a file, got the folder"):
        plan.to_html(tmp_path)


@pytest.mark.parametrize("model", [nn.Conv2d, {"weight": torch.ones(1)}])
def test_plans_apply_to_modules_only(model):
    plan = convfactor.plan(nn.Sequential(conv()), images(), objective="macs")
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module"):
        plan.apply(model)
