from __future__ import annotations

import itertools
from collections import UserDict
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import batches, conv, images
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import convfactor
from convfactor.model.inputs import ModelInputs
from convfactor.planning.batches import split

EXAMPLE = ModelInputs.read(images())
Y = torch.tensor([1, 0])


@pytest.mark.parametrize(("count", "held"), [(2, 1), (4, 1), (5, 1), (8, 2), (20, 5)])
def test_a_quarter_is_held_out_and_spread(count, held):
    given = batches(count)
    parts = split(iter(given), EXAMPLE)
    seen = [x.args[0] for x in (*parts.fit, *parts.held_out)]
    assert len(parts.held_out) == held
    assert {id(x) for x in seen} == {id(x) for x in given}
    places = [next(i for i, g in enumerate(given) if g is x.args[0]) for x in parts.held_out]
    assert all(b - a == count // held for a, b in itertools.pairwise(places))
    assert places[-1] < count - 1 or count == 2


def test_a_single_batch_is_split_by_samples():
    x = images(count=5)
    parts = split(
        [{"x": x, "scale": 2.0, "size": torch.tensor(3)}],
        ModelInputs((), {"x": x, "s": torch.tensor(1)}),
    )
    assert len(parts.fit) + len(parts.held_out) == 5
    for part in (*parts.fit, *parts.held_out):
        assert part.kwargs["x"].shape == (1, 2, 12, 12)
        assert (part.kwargs["scale"], int(part.kwargs["size"])) == (2.0, 3)


EXAMPLES = ModelInputs((), {"x": images(), "scale": 1})


def test_the_digest_tells_data_apart():
    texts = {
        split(data, EXAMPLE).identity
        for data in (batches(4), batches(4), batches(5), [images(9)] * 4)
    }
    assert len(texts) == 3
    nested = [
        split([((x, x),) for x in data], ModelInputs(((x := images(), x),), {})).identity
        for data in (batches(4), batches(5)[1:])
    ]
    assert nested[0] != nested[1]
    scaled = {
        split([{"x": x, "scale": scale} for x in batches(4)], EXAMPLES).identity
        for scale in (1, 2, 1.0, "1", np.ones(2), np.zeros(2), np.zeros((2, 1)))
    }
    assert len(scaled) == 7
    objects = [
        split([{"x": x, "scale": object()} for x in batches(4)], EXAMPLES).identity for _ in "ab"
    ]
    assert objects[0] == objects[1]


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ([], ValueError, "at least one batch"),
        (images(count=4), TypeError, "put a single batch in a list"),
        (3, TypeError, "iterable of batches, .* got int"),
        ([images(count=1)], ValueError, "at least two samples"),
        ([images(), images(channels=3)], ValueError, r"batch 1 .* got shapes \[\(1, 3, 12, 12\)\]"),
        ([images(), images()[0]], ValueError, "batch 1 must look like the example inputs"),
        ([images(), images().double()], ValueError, "float64"),
        ([images(), (images(channels=3), images())], ValueError, "batch 1 must look like"),
        ([images(), {"x": images(), "m": images()}], ValueError, "model takes and drop the rest"),
        ([{"pixel_values": [[1.0]]}], TypeError, "dict of list; ask .* for return_tensors='pt'"),
        ([{"x": [images().numpy()]}], TypeError, "dict of list; ask .* for return_tensors='pt'"),
        (TensorDataset(images()), TypeError, "give a torch.utils.data.DataLoader of it"),
        (["photo.png"], TypeError, r"batch 0 must hold a tensor, such as .*, got str$"),
        ("photos.npz", TypeError, "got str; load the file and give a list of batches"),
        (Path("photos"), TypeError, "got .*Path; load the file and give a list of batches"),
        (batches, TypeError, "got function; call it and give what it returns"),
        ({"x": images(count=4)}, TypeError, "got dict of Tensor; put a single batch in a list"),
        (images(count=4).numpy(), TypeError, "ndarray; use torch.from_numpy and put .* in a list"),
        ([images().numpy()], TypeError, "batch 0 must .* got ndarray; use torch.from_numpy"),
        ([images(), {"x": images().numpy()}], TypeError, "batch 1 .* dict of ndarray; use torch"),
        ([images().half()], ValueError, "float16'.; convert it to the dtype of the example inputs"),
        ([images(), images() / 0], ValueError, "batch 1 must be finite, .*; leave it out"),
    ],
)
def test_data_that_does_not_fit_is_refused(data, error, message):
    with pytest.raises(error, match=message):
        split(data, EXAMPLE)


def test_what_does_not_fit_is_refused_before_the_rest_is_read():
    def data():
        yield images(channels=3)
        raise AssertionError("read on")

    with pytest.raises(ValueError, match="batch 0 must look like"):
        split(data(), EXAMPLE)


@pytest.mark.parametrize(
    ("example", "batch", "expected", "labels"),
    [
        (images(), (images(1), Y), images(1), ("batch[1]",)),
        (images(), [images(1), Y], images(1), ("batch[1]",)),
        (images(), (images(1), 3), images(1), ("batch[1]",)),
        (images(), (images(1), "cat", {"box": Y}), images(1), ("batch[1]", "batch[2]")),
        (images(), (images(1), images(2)), images(1), ("batch[1]",)),  # low and high resolution
        (images(), (images(1),), images(1), ()),
        ((images(),), (images(1), Y), images(1), ("batch[1]",)),
        ((images(), Y), (images(1), Y + 1), (images(1), Y + 1), ()),
        ((images(), Y), (images(1), Y + 1, Y), (images(1), Y + 1), ("batch[2]",)),
        ((images(), Y), ((images(1), Y + 1), Y), (images(1), Y + 1), ("batch[1]",)),
        ((images(), 2.0), (images(1), 3.0), (images(1), 3.0), ()),
        ({"x": images()}, {"x": images(1)}, {"x": images(1)}, ()),
        ({"x": images()}, {"x": images(1), "labels": Y}, {"x": images(1)}, ("batch['labels']",)),
        ({"x": images()}, ({"x": images(1)}, Y), {"x": images(1)}, ("batch[1]",)),
        ({"x": images()}, ({"x": images(1), "Target": Y}, Y), {"x": images(1)},
         ("batch[0]['Target']", "batch[1]")),
        ({"x": images(), "labels": Y}, {"x": images(1), "labels": Y}, {"x": images(1), "labels": Y},
         ()),
    ],
)  # fmt: skip
def test_labels_are_what_the_example_inputs_do_not_have(example, batch, expected, labels):
    parts = split([batch, batch], ModelInputs.read(example))
    wanted = ModelInputs.read(expected)
    for got in (*parts.fit, *parts.held_out):
        assert len(got.args) == len(wanted.args)
        assert got.kwargs.keys() == wanted.kwargs.keys()
        pairs = zip(got.tensors, wanted.tensors, strict=True)
        assert all(torch.equal(mine, other) for mine, other in pairs)
    assert parts.labels == parts.identity.labels == labels


class Masked(nn.Module):
    """Takes an optional argument, on which a label would land."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = conv()

    def forward(self, x, mask=None):
        y = self.conv(x)
        return y if mask is None else y * mask.reshape(-1, 1, 1, 1)


@pytest.mark.parametrize("budget", [{"tolerance": 1e-3}, {"model_tolerance": 1e-3}])
def test_a_data_loader_with_labels_gives_what_the_images_give(budget, tmp_path):
    data = images(count=8)
    loader = DataLoader(TensorDataset(data, torch.zeros(8)), batch_size=2)
    model = Masked()
    given = {
        "example_inputs": images(),
        "objective": "macs",
        "structures": "cascade",
        "refine": False,
        **budget,
    }
    fast, plan = convfactor.optimize(model, calibration=loader, **given)
    plain, other = convfactor.optimize(model, calibration=list(data.split(2)), **given)
    assert len(plan.replaced) == 1
    assert torch.equal(fast(images(9)), plain(images(9)))
    assert "3 calibration batches without the labels in batch[1], errors on 1 other" in str(plan)
    assert plan.calibration.sha256 == other.calibration.sha256
    assert "labels" not in str(other)
    plan.save(tmp_path)
    assert convfactor.Plan.load(tmp_path).calibration == plan.calibration


class Features(UserDict):
    """As the processors of Hugging Face give them."""

    def __getattr__(self, name):
        try:
            return self.data[name]
        except KeyError:
            raise AttributeError(name) from None


class Vision(nn.Module):
    """Called by keyword, as the models of Hugging Face are; labels make a loss."""

    def __init__(self) -> None:
        super().__init__()
        self.embedder = conv()

    def forward(self, pixel_values=None, labels=None, output_hidden_states=False):
        y = self.embedder(pixel_values)
        logits = y.mean((2, 3))
        if labels is None:
            return {"logits": logits, "hidden": y if output_hidden_states else None}
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def test_features_of_a_processor_are_keyword_arguments():
    model = Vision()
    example = Features({"pixel_values": images()})
    data = [Features({"pixel_values": x, "labels": Y}) for x in batches(4)]
    fast, plan = convfactor.optimize(model, example, 1e-3, calibration=data, objective="macs")
    assert [entry.name for entry in plan.entries if entry.replaced] == ["embedder"]
    assert "without the labels in batch['labels']" in str(plan)
    torch.testing.assert_close(
        fast(**example)["logits"], model(**example)["logits"], rtol=0, atol=1e-3
    )
    assert isinstance(data[0], Features)
    assert "labels" in data[0]


def test_a_model_of_transformers_takes_the_features_of_its_processor():
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_sizes": [4, 6, 8, 8], "depths": [1, 1, 1, 1]}
    config = transformers.ConvNextConfig(**sizes, layer_scale_init_value=1.0)
    model = transformers.ConvNextForImageClassification(config).eval()
    large = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (7, 7)]
    with torch.no_grad():
        for layer in large:
            layer.weight.copy_(torch.rand(layer.out_channels, 1, 7, 1) @ torch.rand(1, 1, 1, 7))
    given = [transformers.BatchFeature({"pixel_values": torch.rand(2, 3, 64, 64)}) for _ in "abcd"]
    data = [transformers.BatchFeature({**one, "labels": Y}) for one in given]
    fast, plan = convfactor.optimize(
        model, given[0], model_tolerance=1e-3, calibration=data, objective="macs", refine=False
    )
    assert len(plan.replaced) == len(large) == 4
    assert "without the labels in batch['labels']" in str(plan)
    with torch.no_grad():
        torch.testing.assert_close(
            fast(**given[1]).logits, model(**given[1]).logits, rtol=1e-3, atol=1e-5
        )
    assert type(fast) is type(model)
