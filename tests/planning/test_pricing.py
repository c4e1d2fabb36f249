import gc

import pytest
import torch
from torch import nn

from convfactor import ConvGeometry
from convfactor.conv.forms import convolution
from convfactor.factorization.families import full, separable_pair
from convfactor.latency import Timing
from convfactor.model.sites import InputShape
from convfactor.planning.pricing import Multiplies, Stopwatch

KERNEL = ConvGeometry(4, 4, (7, 7), padding=(3, 3, 3, 3))


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@pytest.mark.parametrize("padding", [0, 2, (1, 3), "same", "valid"])
@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("size", [(5, 5), (4, 6)])
def test_convolution_is_that_of_the_module(padding, mode, size):
    conv = nn.Conv2d(2, 4, size, padding=padding, padding_mode=mode, groups=2).requires_grad_(False)
    x = torch.rand(2, 2, 12, 13, generator=torch.Generator().manual_seed(0))
    got = convolution(x, conv.weight, conv.bias, ConvGeometry.from_conv(conv))
    torch.testing.assert_close(got, conv(x))


def test_multiplies_need_no_clock():
    structure = next(iter(full(KERNEL))).structure((2, 2))
    price = Multiplies(KERNEL).quick(structure)
    assert price.relative == structure.macs / KERNEL.macs
    assert price.cost.before is None


def test_stopwatch_remembers_prices_for_layers_alike_and_leaves_the_random_state_alone():
    shapes = [(InputShape((1, 4, 32, 32), False), 2)]
    known = {}
    state = torch.get_rng_state()
    watches = [
        Stopwatch(KERNEL, shapes, torch.float32, torch.device("cpu"), known) for _ in range(2)
    ]
    structure = next(iter(separable_pair(KERNEL))).structure((2,))
    first, second = (watch.quick(structure) for watch in watches)
    assert first is second
    assert first.relative == pytest.approx(first.cost.after.median / first.cost.before.median)
    careful = watches[0].careful(structure)
    assert careful.memory_format == first.memory_format
    assert careful.cost.after.low <= careful.cost.after.median <= careful.cost.after.high
    assert torch.equal(state, torch.get_rng_state())


def test_a_layer_is_held_to_the_format_it_was_timed_in():
    def clock(calls, device, seconds, rounds):
        # The second one is the original in channels_last, or the only structure.
        return [Timing(m, m, m, rounds) for m in (2.0, 1.0, 0.5, 0.5)[: len(calls)]]

    shapes = [(InputShape((1, 4, 32, 32), False), 1)]
    watch = Stopwatch(KERNEL, shapes, torch.float32, torch.device("cpu"), {}, clock)
    structure = next(iter(separable_pair(KERNEL))).structure((2,))
    assert watch.quick(structure).memory_format == "channels_last"


def test_inputs_are_not_kept_when_their_prices_are_known():
    """Those of all layers of a model may not fit into memory."""
    size = (1, 4, 37, 41)
    watch = Stopwatch(
        KERNEL, [(InputShape(size, False), 1)], torch.float32, torch.device("cpu"), {}
    )
    watch.careful(next(iter(separable_pair(KERNEL))).structure((2,)))
    gc.collect()
    tensors = [one for one in gc.get_objects() if type(one) is torch.Tensor and not one.is_nested]
    assert not [one for one in tensors if one.shape == size]
