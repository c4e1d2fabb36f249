"""The callback that optimizes after training, with both packages of Lightning."""

from __future__ import annotations

import subprocess
import sys
from collections import UserDict

import pytest
import torch
from tiny import batches, conv, images
from torch import nn
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader

from convfactor import CascadeConv2d, Inputs
from convfactor.model.digests import fingerprint

lightning = pytest.importorskip("lightning.pytorch")
other = pytest.importorskip("pytorch_lightning")
from convfactor.lightning import OptimizeAfterFit, _moved  # noqa: E402 - after its packages

pytestmark = pytest.mark.filterwarnings(
    "ignore:::lightning", "ignore:::pytorch_lightning", "ignore:.*isinstance.*LeafSpec"
)
OPTIONS = {"objective": "macs", "structures": "cascade", "tolerance": 0.5}


def module(package, **attributes):
    class Module(package.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(conv(), nn.BatchNorm2d(2))
            self.ran = None

        def forward(self, x):
            return self.net(x)

        def training_step(self, batch, _):
            return self(batch).square().mean()

        def predict_step(self, batch, _):
            return self(batch)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=1e-3)

    made = Module()
    for name, value in attributes.items():
        setattr(made, name, value)
    return made


def trainer(package, callback):
    return package.Trainer(
        max_epochs=1,
        accelerator="cpu",
        callbacks=[callback],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def data():
    return DataLoader(torch.cat(batches(4)), batch_size=2)


@pytest.mark.parametrize("package", [lightning, other])
def test_a_part_of_the_module_is_replaced_and_runs(package):
    callback = OptimizeAfterFit("net", example_inputs=images(), calibration=batches(4), **OPTIONS)
    model, run = module(package), trainer(package, callback)
    before = fingerprint(model.net[0].weight)
    run.fit(model, data())
    assert callback.plan.replaced == [0]
    assert callback.fast is model.net
    assert isinstance(model.net[0], CascadeConv2d)
    assert model.net.training
    assert callback.plan.entries[0].subject.fingerprint != before  # the trained weights count
    predicted = run.predict(model, data())
    with torch.no_grad():
        assert torch.equal(predicted[0], model.net.eval()(batches(4)[0]))


@pytest.mark.parametrize("package", [lightning, other])
def test_all_of_the_module_is_copied(package):
    callback = OptimizeAfterFit(**OPTIONS)
    model = module(package, example_input_array=images())
    run = trainer(package, callback)
    run.fit(model, data())
    assert model.trainer is run
    assert isinstance(model.net[0], nn.Conv2d)
    assert type(callback.fast) is type(model)
    assert isinstance(callback.fast.net[0], CascadeConv2d)
    assert callback.fast._trainer is None
    x = images(seed=4)
    with torch.no_grad():
        assert torch.equal(callback.plan.apply(model.eval())(x), callback.fast.eval()(x))


def test_all_that_a_model_may_be_called_with_is_moved():
    moved = _moved(
        [Inputs(images(), {"mask": images()}), UserDict(x=images())], torch.device("meta")
    )
    call, mapping = moved
    assert {t.device.type for t in (*tree_leaves(call.args), mapping["x"])} == {"meta"}


@pytest.mark.parametrize(
    ("attribute", "options", "message"),
    [
        ("head", {"example_inputs": images()}, "must name a module of Module, such as 'net', got"),
        ("net", {}, "give them to OptimizeAfterFit, or set example_input_array"),
        ("net", {"example_inputs": images(channels=3)}, "example_inputs must be what the model"),
    ],
)
def test_mistakes_are_told(attribute, options, message):
    callback = OptimizeAfterFit(attribute, **options, **OPTIONS)
    model = module(lightning)
    with pytest.raises(ValueError, match=message):
        trainer(lightning, callback).fit(model, data())
    assert isinstance(model.net[0], nn.Conv2d)


def test_other_processes_leave_it_to_the_first():
    class Second:
        is_global_zero = False

    callback = OptimizeAfterFit("net", example_inputs=images(), **OPTIONS)
    callback.on_fit_end(Second(), module(lightning))
    assert callback.plan is None


def test_without_lightning_the_error_says_what_to_install():
    code = (
        "import sys; sys.modules.update({'lightning': None, 'pytorch_lightning': None})\n"
        "import importlib.util as util; util.find_spec = lambda name: None\n"
        "try: import convfactor.lightning\n"
        "except ImportError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "pip install 'convfactor[lightning]'" in done.stdout, done.stderr
