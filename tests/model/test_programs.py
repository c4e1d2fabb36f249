from __future__ import annotations

import io

import pytest
import torch
from tiny import batches, conv, images
from torch import nn
from torch.export import Dim, ExportedProgram, export

import convfactor
from convfactor import Inputs, PlanMismatchError

# Of torch, where it exports and decomposes.
pytestmark = pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec:FutureWarning")
MACS = {"objective": "macs", "structures": "cascade"}


class Net(nn.Module):
    """Modules, a functional call, a buffer that each call changes, and structured outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = conv(), nn.BatchNorm2d(2)
        self.mirrored = conv(seed=1, padding_mode="reflect")
        self.kernel = nn.Parameter(conv(seed=2).weight.detach().clone())
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("gain", torch.tensor(2.0), persistent=False)

    def forward(self, x, *, scale=None, power=1):
        self.count.add_(1)
        y = self.mirrored(self.norm(self.conv(x)).relu())
        y = nn.functional.conv2d(y, self.kernel, stride=2)
        return {"image": self.gain * y**power * scale, "calls": self.count + 0}


def program(dynamic: bool = True, decomposed: bool = False) -> ExportedProgram:
    batch, height = Dim("batch", min=1, max=64), Dim("height", min=8, max=100)
    shapes = {"x": {0: batch, 2: height}, "scale": {0: batch}, "power": None}
    made = export(
        Net().eval(),
        (images(count=2, size=16),),
        {"scale": torch.full((2, 1, 1, 1), 0.5), "power": 2},
        dynamic_shapes=shapes if dynamic else None,
    )
    return made.run_decompositions() if decomposed else made


def call(one: ExportedProgram, count: int = 2, height: int = 16):
    model = one.module()
    x = images(5, count=count, size=32)[:, :, :height, :16]
    with torch.no_grad():
        given = {"scale": torch.linspace(1, 2, count).reshape(-1, 1, 1, 1), "power": 2}
        return [model(x, **given) for _ in range(2)][-1]


def targets(one: ExportedProgram) -> list[str]:
    return [str(node.target) for node in one.graph.nodes if "aten.conv" in str(node.target)]


@pytest.mark.parametrize("decomposed", [False, True])
def test_a_program_comes_back_as_one(decomposed):
    given = program(decomposed=decomposed)
    fast, plan = convfactor.optimize(given, tolerance=1e-3, **MACS)
    assert isinstance(fast, ExportedProgram)
    names = ["conv.weight", "mirrored.weight", "kernel"]
    assert [entry.name for entry in plan.entries if entry.replaced] == names
    assert fast.dialect == given.dialect
    assert set(targets(fast)) == set(targets(given))
    assert len(targets(fast)) == 6

    signature, wanted = fast.graph_signature, given.graph_signature
    assert signature.user_inputs == wanted.user_inputs
    assert signature.user_outputs == wanted.user_outputs
    assert set(signature.buffers_to_mutate.values()) == set(wanted.buffers_to_mutate.values())
    assert signature.non_persistent_buffers == wanted.non_persistent_buffers
    assert {"norm.weight", "norm.bias"} <= set(signature.parameters)
    assert not {"conv.weight", "kernel"} & set(fast.state_dict)
    assert fast.call_spec.in_spec == given.call_spec.in_spec
    assert sorted(map(str, fast.range_constraints.values())) == sorted(
        map(str, given.range_constraints.values())
    )
    for calls, (count, height) in zip((2, 4, 6), ((2, 16), (1, 8), (7, 29)), strict=True):
        mine, true = call(fast, count, height), call(given, count, height)
        assert mine.keys() == true.keys()
        torch.testing.assert_close(mine["image"], true["image"], rtol=1e-4, atol=1e-4)
        assert float(mine["calls"]) == float(true["calls"]) == calls


def test_the_plan_of_a_program_applies_to_it_after_saving_both(tmp_path):
    given = program()
    plan = convfactor.plan(given, tolerance=1e-3, **MACS)
    plan.save(tmp_path)
    file = io.BytesIO()
    torch.export.save(given, file)
    file.seek(0)
    loaded = torch.export.load(file)
    again = convfactor.Plan.load(tmp_path).apply(loaded)
    torch.testing.assert_close(call(again, 3, 20)["image"], call(given, 3, 20)["image"])
    assert "<svg" in plan.to_html(model=given)
    with torch.no_grad():
        loaded.state_dict["kernel"].mul_(2)
    with pytest.raises(PlanMismatchError, match="kernel"):
        plan.apply(loaded)


def test_its_own_example_inputs_need_not_be_taken():
    given = export(
        nn.Sequential(conv()).eval(), (images(count=2),), dynamic_shapes=({0: Dim("n")},)
    )
    fast, plan = convfactor.optimize(
        given, Inputs(images()), model_tolerance=1e-3, calibration=batches(4), refine=True, **MACS
    )
    assert len(plan.replaced) == 1
    assert [str(one) for one in plan.calls] == ["1 x (1x2x12x12)"]
    x = images(3, count=5)
    torch.testing.assert_close(fast.module()(x), given.module()(x), rtol=0, atol=1e-3)


class Doubled(nn.Module):
    """Takes sizes that follow from each other."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = conv()

    def forward(self, x, y):
        return self.conv(x) + nn.functional.avg_pool2d(self.conv(y), 2)


def test_sizes_that_follow_from_others_stay_so():
    n = Dim("n", min=4, max=32)
    given = export(
        Doubled().eval(),
        (images(size=8), images(size=16)),
        dynamic_shapes=({2: n, 3: n}, {2: 2 * n, 3: 2 * n}),
    )
    fast, plan = convfactor.optimize(given, tolerance=1e-3, **MACS)
    assert len(plan.replaced) == 1
    for size in (5, 31):
        x, y = images(1, size=size), images(2, size=2 * size)
        torch.testing.assert_close(fast.module()(x, y), given.module()(x, y), rtol=0, atol=1e-5)


def test_an_unbounded_size_stays_unbounded():
    given = export(conv().eval(), (images(count=3),), dynamic_shapes=({0: Dim("n")},))
    fast = convfactor.plan(given, tolerance=1e-3, **MACS).apply(given)
    assert [str(r.upper) for r in fast.range_constraints.values()] == [
        str(r.upper) for r in given.range_constraints.values()
    ]


class Overwriting(nn.Module):
    """Writes into its input."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = conv()

    def forward(self, x):
        y = self.conv(x)
        x.mul_(0.5)
        return y


@pytest.mark.parametrize("decomposed", [False, True])
def test_an_input_that_is_overwritten_still_is(decomposed):
    given = export(Overwriting().eval(), (images(),))
    given = given.run_decompositions() if decomposed else given
    fast = convfactor.plan(given, tolerance=1e-3, **MACS).apply(given)
    x = images(4)
    got = fast.module()(x)
    torch.testing.assert_close(got, conv()(images(4)), rtol=0, atol=1e-5)
    assert torch.equal(x, 0.5 * images(4))


def test_a_program_without_large_kernels_comes_back():
    given = export(nn.Conv2d(2, 2, 3), (images(),))
    fast, plan = convfactor.optimize(given)
    assert "no convolution with a kernel of 5" in str(plan)
    assert torch.equal(fast.module()(images(1)), given.module()(images(1)))


@pytest.mark.parametrize("decomposed", [False, True])
@pytest.mark.parametrize("layer", [nn.BatchNorm2d(2), nn.Dropout(0.5)])
def test_training_mode_is_refused(layer, decomposed):
    given = export(nn.Sequential(conv(), layer).train(), (images(count=2),))
    if decomposed and isinstance(layer, nn.BatchNorm2d):
        given = given.run_decompositions()
    with pytest.raises(ValueError, match=r"in evaluation mode, but \w+ is in training mode: call"):
        convfactor.optimize(given)


def test_example_inputs_are_needed():
    given = export(conv(), (images(),))
    given.example_inputs = None
    with pytest.raises(ValueError, match=r"set program.example_inputs = \(args, kwargs\)"):
        convfactor.optimize(given, images())


def test_a_program_of_fixed_shapes_takes_no_others():
    given = export(conv(), (images(),))
    with pytest.raises(ValueError, match="calibration batches must be what the model takes"):
        convfactor.plan(given, calibration=batches(4))
    with pytest.raises(ValueError, match="example_inputs must be what the model takes"):
        convfactor.plan(given, images(count=2))


def test_the_plan_of_a_model_is_not_that_of_its_program():
    model = nn.Sequential(conv()).eval()
    plan = convfactor.plan(model, images(), 1e-3, **MACS)
    with pytest.raises(PlanMismatchError):
        plan.apply(export(model, (images(),)))


def test_the_module_of_a_program_is_a_graph_as_any():
    model = nn.Sequential(export(nn.Sequential(conv()).eval(), (images(),)).module())
    fast, plan = convfactor.optimize(model, images(), 1e-3, **MACS)
    assert len(plan.replaced) == 1
    torch.testing.assert_close(fast(images(1)), model(images(1)), rtol=0, atol=1e-5)
