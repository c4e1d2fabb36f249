from __future__ import annotations

import re

import torch
from tiny import images
from torch import nn

import convfactor
from convfactor.conv.forms import PLAIN
from convfactor.conv.geometry import ConvGeometry
from convfactor.planning import structures
from convfactor.planning.bench import Candidate
from convfactor.plans.settings import Settings

OPTIONS = {"objective": "macs", "structures": "cascade", "min_speedup": 2.0}


def test_where_little_is_missing_the_width_that_would_do_is_named():
    torch.manual_seed(0)
    model = nn.Conv2d(2, 2, 5, padding=2)
    errors = [convfactor.factorize(model.weight, widths=(width,)).error for width in (1, 2)]
    tolerance = errors[0] / 1.2
    assert errors[1] < tolerance
    (entry,) = convfactor.plan(model, images(), tolerance, **OPTIONS).entries
    told = re.search(r"; 3x3 3x3 \((\d)\) would meet it: (.*)x fewer multiplies$", entry.reason)
    assert told[1] == "2"
    assert 1 < float(told[2]) < OPTIONS["min_speedup"]
    (far,) = convfactor.plan(model, images(), errors[0] / 1.6, **OPTIONS).entries
    assert far.missed
    assert "would meet it" not in far.reason


def test_wider_structures_are_those_of_the_same_family():
    kernel, settings = ConvGeometry.from_conv(nn.Conv2d(4, 4, 7)), Settings()
    for family in structures.tried(kernel, settings, PLAIN):
        rungs = structures.rungs(family, kernel, settings)
        macs = [one.macs for one in rungs]
        assert macs == sorted(macs)
        assert max(macs, default=0) <= kernel.macs
        for i in {0, len(rungs) - 1} if rungs else ():
            assert structures.wider(rungs[i], kernel, settings, PLAIN) == rungs[i + 1 :]
    other = Candidate.of(family.structure(family.widths(100.0)), kernel)
    assert structures.wider(other, kernel, settings, PLAIN) == []
