from __future__ import annotations

import re

import pytest
from tiny import Functional, conv, images
from torch import nn

import convfactor
from convfactor.model.finding import UNSELECTED, find
from convfactor.model.inputs import ModelInputs
from convfactor.model.selection import MOST_NAMES, read
from convfactor.model.sites import TurnedAway


class Net(nn.Sequential):
    """Layers at several depths: stem, body.stem, body.more.0, body.more.10, call.kernel, tail."""

    def __init__(self) -> None:
        more = nn.Sequential()
        more.add_module("0", conv(seed=2))
        more.add_module("10", conv(seed=3))
        body = nn.Sequential()
        body.add_module("stem", conv(seed=1))
        body.add_module("more", more)
        super().__init__()
        self.add_module("stem", conv(seed=0))
        self.add_module("body", body)
        self.add_module("call", Functional(seed=4))
        self.add_module("tail", body.stem)  # a second name


ALL = ["stem", "body.stem", "body.more.0", "body.more.10", "call.kernel"]


def selected(select) -> list[str]:
    found = find(Net(), ModelInputs.read(images()), select=read(select))
    assert [one.subject.name for one in found] == ALL
    kept = [one for one in found if isinstance(one, TurnedAway)]
    assert all(one.reason is UNSELECTED for one in kept)
    return [one.subject.name for one in found if one not in kept]


@pytest.mark.parametrize(
    ("select", "names"),
    [
        (None, ALL),
        ("*", ALL),
        ("stem", ["stem"]),
        ("*.stem", ["body.stem"]),
        ("*stem", ["stem", "body.stem"]),
        ("tail", ["body.stem"]),
        ("body", ["body.stem", "body.more.0", "body.more.10"]),
        ("body.more", ["body.more.0", "body.more.10"]),
        ("body.*.?", ["body.more.0"]),
        ("*.[0-9]", ["body.more.0"]),
        ("call", ["call.kernel"]),
        ("*.kernel", ["call.kernel"]),
        (["stem", "call"], ["stem", "call.kernel"]),
        (("stem", "call"), ["stem", "call.kernel"]),
        ("!body", ["stem", "call.kernel"]),
        (["body", "!*.10"], ["body.stem", "body.more.0"]),
        (["!*.10", "body"], ["body.stem", "body.more.0"]),
        (["!body", "!stem"], ["call.kernel"]),
        (re.compile("stem"), ["stem"]),
        (re.compile(r".*\.\d+"), ["body.more.0", "body.more.10"]),
        (re.compile("STEM", re.IGNORECASE), ["stem"]),
        ([re.compile("call.*"), "!*.kernel"], []),
        ([re.compile("call.*"), "stem"], ["stem", "call.kernel"]),
        (lambda name, module: isinstance(module, Functional), ["call.kernel"]),
    ],
)
def test_layers_are_selected_by_names_and_by_modules_around_them(select, names):
    assert selected(select) == names


@pytest.mark.parametrize(
    ("select", "message"),
    [
        ("Stem", r"^select: 'Stem' matches none of the layers .* 5 or more.*mean .*'stem'.*\?$"),
        ("*.stam", r"'\*.stam' matches none .*; did you mean 'stem'"),
        ("xyz", "'xyz' matches none .* or more, which are stem, body.stem, .*, call.kernel$"),
        (["stem", "!bodi"], "'!bodi' matches .*; did you mean 'body'"),
        (re.compile("ste"), "'ste' matches none .*; did you mean .*'stem'"),
    ],
)
def test_a_pattern_that_matches_nothing_is_refused(select, message):
    with pytest.raises(ValueError, match=message):
        selected(select)


def test_the_names_of_a_large_model_are_not_all_listed():
    model = nn.Sequential(*[conv(seed=seed) for seed in range(MOST_NAMES + 1)])
    with pytest.raises(ValueError, match=r"which are 0, 1, .*, 19, \.\.\.$"):
        convfactor.plan(model, images(), select="head", objective="macs")


def test_where_there_is_nothing_to_select_the_plan_says_so():
    plan = convfactor.plan(nn.Sequential(nn.Conv2d(2, 2, 3)), images(), select="head")
    assert "no convolution with a kernel of 5 or more taps" in str(plan)


def test_a_plan_keeps_what_is_not_selected():
    plan = convfactor.plan(Net(), images(), 1e-3, select=["*stem", "!body"], objective="macs")
    assert [entry.name for entry in plan.entries if entry.replaced] == ["stem"]
    assert {e.reason for e in plan.entries if not e.replaced} == {"not selected"}
