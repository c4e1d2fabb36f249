import copy
import pickle
import random

import numpy as np
import pytest
import pytorch_wavelets as reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck

from convfactor.wavelets import DTCWTInverse

dtcwt = pytest.importorskip("dtcwt")

BIORTS = ("antonini", "legall", "near_sym_a", "near_sym_b")
QSHIFTS = ("qshift_06", "qshift_a", "qshift_b", "qshift_c", "qshift_d", "qshift_32")


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def coefficients(size, levels, biort="near_sym_a", qshift="qshift_a", batch=(2, 3), seed=0):
    """Random coefficients of the shapes that the transform of an image would have."""
    torch.manual_seed(seed)
    transform = reference.DTCWTForward(biort, qshift, J=levels)
    low, highs = transform(torch.randn(*batch, *size))
    return torch.randn_like(low), [torch.randn_like(bands) for bands in highs]


def difference(result, expected):
    assert result.shape == expected.shape
    assert result.dtype == expected.dtype
    return ((result - expected).abs().max() / expected.abs().max()).item()


def cases():
    """All sizes 2..12 in both directions, and larger ones, over all filters and both modes."""
    rng = random.Random(0)
    sizes = [(height, width) for height in range(2, 13) for width in range(2, 13)]
    sizes += [(rng.randint(13, 70), rng.randint(2, 70)) for _ in range(90)]
    filters = [(b, q, mode) for b in BIORTS for q in QSHIFTS for mode in ("symmetric", "zero")]
    rng.shuffle(filters)
    return [(size, 1 + i % 5, *filters[i % len(filters)]) for i, size in enumerate(sizes)]


@pytest.mark.parametrize(("size", "levels", "biort", "qshift", "mode"), cases())
def test_same_as_reference(size, levels, biort, qshift, mode):
    coeffs = coefficients(size, levels, biort, qshift)
    expected = reference.DTCWTInverse(biort, qshift, mode=mode)(coeffs)
    assert difference(DTCWTInverse(biort, qshift, mode=mode)(coeffs), expected) < 1e-5


@pytest.mark.parametrize(("size", "levels", "biort", "qshift", "mode"), cases()[::3])
def test_same_as_reference_in_double(size, levels, biort, qshift, mode, double):
    coeffs = coefficients(size, levels, biort, qshift, batch=(1, 2))
    expected = reference.DTCWTInverse(biort, qshift, mode=mode)(coeffs)
    assert difference(DTCWTInverse(biort, qshift, mode=mode)(coeffs), expected) < 1e-12


@pytest.mark.parametrize("size", [(120, 77), (64, 256), (301, 90)])
@pytest.mark.parametrize("biort", BIORTS)
@pytest.mark.parametrize("qshift", ["qshift_06", "qshift_b", "qshift_32"])
def test_tiles_of_large_images(size, biort, qshift, double):
    coeffs = coefficients(size, 3, biort, qshift, batch=(1, 2))
    expected = reference.DTCWTInverse(biort, qshift)(coeffs)
    assert difference(DTCWTInverse(biort, qshift)(coeffs), expected) < 1e-12


@pytest.mark.parametrize("levels", [1, 2, 4])
@pytest.mark.parametrize("biort", BIORTS)
@pytest.mark.parametrize("qshift", [q for q in QSHIFTS if q != "qshift_32"])
def test_same_as_dtcwt(biort, qshift, levels, double):
    low, highs = coefficients((52, 38), levels, biort, qshift, batch=(1, 1))
    pyramid = dtcwt.Pyramid(
        low[0, 0].numpy(),
        tuple(torch.view_as_complex(b[0, 0]).permute(1, 2, 0).numpy() for b in highs),
    )
    expected = torch.from_numpy(dtcwt.Transform2d(biort, qshift).inverse(pyramid))
    result = DTCWTInverse(biort, qshift)((low, highs))[0, 0]
    assert difference(result, expected) < 1e-12


@pytest.mark.parametrize("size", [(64, 64), (50, 36), (33, 47)])
@pytest.mark.parametrize("qshift", QSHIFTS)
@pytest.mark.parametrize("biort", BIORTS)
def test_perfect_reconstruction(biort, qshift, size, double):
    image = torch.randn(1, 2, *size)
    coeffs = reference.DTCWTForward(biort, qshift, J=3)(image)
    result = DTCWTInverse(biort, qshift)(coeffs)[:, :, : size[0], : size[1]]
    bound = {"qshift_32": 1e-8}.get(qshift, 1e-10)
    assert difference(result, image) < bound


@pytest.mark.parametrize("o_dim", range(1, 6))
@pytest.mark.parametrize("ri_dim", range(1, 6))
def test_dimensions(o_dim, ri_dim):
    if o_dim == ri_dim:
        with pytest.raises(ValueError, match="must differ"):
            DTCWTInverse(o_dim=o_dim, ri_dim=ri_dim)
        return
    low, highs = coefficients((20, 44), 2)
    expected = reference.DTCWTInverse()((low, highs))
    order = [0, 1, 3, 4]
    for dim, source in sorted([(o_dim, 2), (ri_dim, 5)]):
        order.insert(dim, source)
    moved = [bands.permute(order).contiguous() for bands in highs]
    assert difference(DTCWTInverse(o_dim=o_dim, ri_dim=ri_dim)((low, moved)), expected) < 1e-6
    negative = DTCWTInverse(o_dim=o_dim - 6, ri_dim=ri_dim - 6)
    assert difference(negative((low, moved)), expected) < 1e-6


@pytest.mark.parametrize("mode", ["per", "periodization", "constant", "reflect", "replicate"])
def test_other_modes_are_zero_padding_at_level_one(mode):
    coeffs = coefficients((24, 20), 3)
    expected = reference.DTCWTInverse(mode=mode)(coeffs)
    assert difference(DTCWTInverse(mode=mode)(coeffs), expected) < 1e-6


@pytest.mark.parametrize("mode", ["symmetric", "zero"])
@pytest.mark.parametrize("absent", [{0}, {1}, {0, 1}, {2}, {0, 2}, {0, 1, 2}])
def test_absent_bands(absent, mode):
    low, highs = coefficients((72, 96), 3)
    nones = [None if level in absent else bands for level, bands in enumerate(highs)]
    scalars = [torch.zeros([]) if bands is None else bands for bands in nones]
    empty = [torch.tensor([]) if bands is None else bands for bands in nones]
    expected = reference.DTCWTInverse(mode=mode)((low, nones))
    for given_bands in (nones, scalars, empty):
        result = DTCWTInverse(mode=mode)((low, given_bands))
        assert difference(result, expected) < 1e-6


@pytest.mark.parametrize("low", [None, torch.zeros([]), torch.tensor([])])
@pytest.mark.parametrize("absent", [set(), {0}, {2}, {1, 2}])
def test_absent_lowpass(low, absent):
    zeros, highs = coefficients((40, 56), 3)
    zeros = torch.zeros_like(zeros)
    zeroed = [b.zero_() if level in absent else b for level, b in enumerate(highs)]
    expected = reference.DTCWTInverse()((zeros, zeroed))
    highs = [None if level in absent else bands for level, bands in enumerate(highs)]
    assert difference(DTCWTInverse()((low, highs)), expected) < 1e-6


def test_everything_absent():
    with pytest.raises(ValueError, match="all coefficients are absent"):
        DTCWTInverse()((None, [None, None]))


def test_no_levels_returns_the_lowpass():
    low = torch.randn(1, 1, 4, 6)
    assert torch.equal(DTCWTInverse()((low, [])), low)
    assert torch.equal(DTCWTInverse()((low, None)), low)


def test_empty_batch():
    low, highs = coefficients((16, 16), 2)
    result = DTCWTInverse()((low[:0], [bands[:0] for bands in highs]))
    assert result.shape == (0, 3, 16, 16)


def test_custom_filters():
    rng = np.random.default_rng(0)
    biort = (rng.standard_normal(5), rng.standard_normal(9))
    qshift = (*rng.standard_normal((2, 12)), *rng.standard_normal((2, 6)))
    coeffs = coefficients((36, 100), 3)
    for mode in ("symmetric", "zero"):
        expected = reference.DTCWTInverse(biort, qshift, mode=mode)(coeffs)
        tensors = tuple(torch.from_numpy(taps) for taps in biort)
        assert difference(DTCWTInverse(tensors, qshift, mode=mode)(coeffs), expected) < 1e-5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"biort": "haar"}, "biort='haar' is unknown; there are antonini"),
        ({"biort": "qshift_a"}, "biort='qshift_a' does not define g0o, g1o"),
        ({"biort": (np.ones(3),)}, "2 filters"),
        ({"biort": (np.ones(4), np.ones(4))}, "odd length"),
        ({"qshift": (np.ones(4), np.ones(6), np.ones(4), np.ones(4))}, "even length"),
        ({"mode": "mirror"}, "mode must be one of symmetric, zero"),
        ({"o_dim": 6}, "o_dim must lie in -6..5"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        DTCWTInverse(**arguments)


@pytest.mark.parametrize(
    ("low", "bands", "message"),
    [
        ((1, 8, 8), (1, 1, 6, 4, 4, 2), "yl must have 4 dimensions"),
        ((1, 1, 8, 8), (1, 1, 6, 4, 4), "bands of level 1 must have 6 dimensions"),
        ((1, 1, 8, 8), (1, 1, 5, 4, 4, 2), "6 orientations in dimension 2"),
        ((1, 1, 8, 8), (1, 1, 6, 8, 4, 2), "16 x 8, or one more on each side; got 8 x 8"),
        (
            (2, 1, 8, 8),
            (1, 1, 6, 4, 4, 2),
            r"batch and channels \(1, 1\), but the levels above or yl have \(2, 1\)",
        ),
    ],
)
def test_wrong_shapes(low, bands, message):
    with pytest.raises(ValueError, match=message):
        DTCWTInverse()((torch.zeros(low), [torch.zeros(bands)]))


def test_odd_lowpass_without_bands_above_level_one():
    with pytest.raises(ValueError, match="even size"):
        DTCWTInverse()((torch.zeros(1, 1, 7, 8), [None, None]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    low, highs = coefficients((70, 40), 3)
    expected = reference.DTCWTInverse()((low, highs))
    coeffs = low.to(dtype), [bands.to(dtype) for bands in highs]
    result = DTCWTInverse().to(dtype)(coeffs)
    assert result.dtype == dtype
    assert difference(result.float(), expected) < 4 * torch.finfo(dtype).eps


def test_cast_module_has_the_filters_of_a_cast_reference():
    low, highs = coefficients((30, 70), 3)
    coeffs = low.double(), [bands.double() for bands in highs]
    expected = reference.DTCWTInverse().double()(coeffs)
    assert difference(DTCWTInverse().double()(coeffs), expected) < 1e-12


def test_autocast():
    low, highs = coefficients((64, 64), 2)
    low.requires_grad_()
    module = DTCWTInverse()
    expected = module((low, highs))
    with torch.autocast("cpu", torch.bfloat16):
        result = module((low, highs))
    assert result.dtype == torch.bfloat16
    assert difference(result.float(), expected) < 0.03
    (gradient,) = torch.autograd.grad(result.float().sum(), low)
    (exact,) = torch.autograd.grad(expected.sum(), low)
    assert difference(gradient, exact) < 0.03


@pytest.mark.parametrize("size", [(24, 20), (100, 70)])
@pytest.mark.parametrize("mode", ["symmetric", "zero"])
@pytest.mark.parametrize("wanted", ["both", "low", "bands"])
def test_gradients_are_the_reference_s(size, mode, wanted, double):
    low, highs = coefficients(size, 3, "near_sym_b", "qshift_b")
    leaves = []
    if wanted != "bands":
        leaves.append(low.requires_grad_())
    if wanted != "low":
        leaves += [bands.requires_grad_() for bands in highs]
    results = []
    for kind in (reference.DTCWTInverse, DTCWTInverse):
        image = kind("near_sym_b", "qshift_b", mode=mode)((low, highs))
        weight = torch.linspace(-1, 1, image.numel()).reshape(image.shape)
        results.append(torch.autograd.grad((image * weight).sum(), leaves))
    for expected, gradient in zip(*results, strict=True):
        assert difference(gradient, expected) < 1e-12


@pytest.mark.parametrize("mode", ["symmetric", "zero"])
@pytest.mark.parametrize("whole", [0, 100])
def test_gradcheck(mode, whole, double):
    low, highs = coefficients((12, 8), 2, batch=(1, 1))
    module = DTCWTInverse(mode=mode)
    module.retile(module.sizes._replace(tile=4, whole=whole))
    leaves = [tensor.requires_grad_() for tensor in (low, *highs)]

    def invert(low, *highs):
        return module((low, highs))

    assert gradcheck(invert, leaves)
    assert gradgradcheck(lambda *args: invert(*args).square(), leaves, fast_mode=True)


def test_gradient_through_chunks(double):
    low, highs = coefficients((32, 48), 2, batch=(3, 5))
    leaves = [tensor.requires_grad_() for tensor in (low, *highs)]
    one, many = DTCWTInverse(), DTCWTInverse()
    many.retile(many.sizes._replace(chunk=4 * 32 * 48))
    assert torch.equal(one((low, highs)), many((low, highs)))
    first = torch.autograd.grad(one((low, highs)).square().sum(), leaves)
    second = torch.autograd.grad(many((low, highs)).square().sum(), leaves)
    for expected, gradient in zip(first, second, strict=True):
        assert difference(gradient, expected) < 1e-12


@settings(max_examples=40)
@given(
    size=st.tuples(st.integers(2, 90), st.integers(2, 90)),
    tile=st.sampled_from([1, 4, 7, 16, 40]),
    whole=st.integers(0, 200),
    chunk=st.integers(1, 10_000),
)
def test_the_result_does_not_depend_on_the_sizes(size, tile, whole, chunk):
    coeffs = coefficients(size, 2)
    module = DTCWTInverse()
    expected = module(coeffs)
    module.retile(module.sizes._replace(tile=tile, whole=whole, chunk=chunk))
    assert difference(module(coeffs), expected) < 1e-6


def test_tune_keeps_a_winner_and_the_result():
    coeffs = coefficients((64, 64), 2)
    module = DTCWTInverse()
    expected = module(coeffs)
    times = module.tune((2, 3, 64, 64), levels=2)
    assert module.sizes == min(times, key=times.get)
    assert len(times) > 3
    assert difference(module(coeffs), expected) < 1e-6


def test_state_dict_is_the_reference_s():
    original = reference.DTCWTInverse("near_sym_b", "qshift_d")
    module = DTCWTInverse("near_sym_b", "qshift_d")
    state = original.state_dict()
    assert list(module.state_dict()) == list(state)
    state = {name: buffer * 1.5 for name, buffer in state.items()}
    original.load_state_dict(state)
    module.load_state_dict(state)
    coeffs = coefficients((30, 60), 2)
    assert difference(module(coeffs), original(coeffs)) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_from_module(dtype):
    original = reference.DTCWTInverse("legall", "qshift_32", o_dim=1, mode="zero").to(dtype).eval()
    low, highs = coefficients((34, 66), 2, "legall", "qshift_32")
    coeffs = low.to(dtype), [bands.transpose(1, 2).to(dtype) for bands in highs]
    module = DTCWTInverse.from_module(original)
    assert difference(module(coeffs), original(coeffs)) < 4 * torch.finfo(dtype).eps
    assert not module.training
    assert "biort='legall', qshift='qshift_32', o_dim=1" in repr(module)


def test_from_module_refuses_others():
    with pytest.raises(TypeError, match="got Conv2d"):
        DTCWTInverse.from_module(torch.nn.Conv2d(1, 1, 3))


def test_copies_and_pickles():
    coeffs = coefficients((20, 64), 2)
    module = DTCWTInverse()
    expected = module(coeffs)
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(other(coeffs), expected)


def test_built_on_the_meta_device():
    with torch.device("meta"):
        module = DTCWTInverse()
    module = module.to_empty(device="cpu")
    module.load_state_dict(DTCWTInverse().state_dict())
    coeffs = coefficients((20, 64), 2)
    assert torch.equal(module(coeffs), DTCWTInverse()(coeffs))


def test_inference_mode_leaves_later_gradients_alone():
    module = DTCWTInverse((np.array([1.0, 2, 1]), np.array([1.0])))
    low, highs = coefficients((8, 8), 1)
    with torch.inference_mode():
        module((low.clone(), [highs[0].clone()]))
    module((low.requires_grad_(), highs)).sum().backward()
    assert low.grad is not None


class TestReferenceSuite:
    """The inverse's tests of pytorch_wavelets, against dtcwt."""

    @staticmethod
    def pyramid(levels, seed=0):
        rng = np.random.default_rng(seed)
        low = 100 * rng.standard_normal((3, 5, 64, 64))
        highs = [rng.standard_normal((3, 5, 6, 2**j, 2**j, 2)) for j in range(4 + levels, 4, -1)]
        return low, highs

    @staticmethod
    def expected(low, highs, biort="near_sym_a", qshift="qshift_a"):
        transform = dtcwt.Transform2d(biort, qshift)
        result = [
            transform.inverse(
                dtcwt.Pyramid(
                    low[index],
                    tuple((b[index][..., 0] + 1j * b[index][..., 1]).transpose(1, 2, 0)
                          for b in highs),
                )
            )
            for index in np.ndindex(low.shape[:2])
        ]  # fmt: skip
        return np.stack(result).reshape(*low.shape[:2], *result[0].shape)

    @pytest.mark.parametrize("levels", [1, 2, 3])
    @pytest.mark.parametrize("orientation_first", [False, True])
    def test_inv(self, levels, orientation_first):
        low, highs = self.pyramid(levels)
        bands = [torch.tensor(b, dtype=torch.float32) for b in highs]
        if orientation_first:
            bands = [b.transpose(1, 2) for b in bands]
        module = DTCWTInverse(o_dim=1 if orientation_first else 2)
        image = module((torch.tensor(low, dtype=torch.float32), bands))
        np.testing.assert_array_almost_equal(image, self.expected(low, highs), decimal=3)

    @pytest.mark.parametrize("skipped", [{0}, {1}, {0, 2}, {0, 1, 2}])
    def test_inv_skip_hps(self, skipped):
        low, highs = self.pyramid(3)
        bands = [torch.tensor(b, dtype=torch.float32) for b in highs]
        bands = [torch.tensor([]) if j in skipped else b for j, b in enumerate(bands)]
        highs = [np.zeros_like(b) if j in skipped else b for j, b in enumerate(highs)]
        yl = torch.tensor(low, dtype=torch.float32, requires_grad=True)
        image = DTCWTInverse()((yl, bands))
        np.testing.assert_array_almost_equal(image.detach(), self.expected(low, highs), decimal=3)
        image.backward(torch.ones_like(image))
        assert yl.grad is not None

    @pytest.mark.parametrize("ri_dim", range(1, 6))
    def test_inv_ri_dim(self, ri_dim):
        low, highs = self.pyramid(2)
        bands = [torch.tensor(b, dtype=torch.float32).movedim(-1, ri_dim) for b in highs]
        module = DTCWTInverse(o_dim=3 if ri_dim <= 2 else 2, ri_dim=ri_dim)
        image = module((torch.tensor(low, dtype=torch.float32), bands))
        np.testing.assert_array_almost_equal(image, self.expected(low, highs), decimal=3)

    @pytest.mark.parametrize(
        ("biort", "qshift", "size", "levels"),
        [
            ("antonini", "qshift_a", (128, 128), 3),
            ("antonini", "qshift_a", (126, 126), 3),
            ("legall", "qshift_a", (99, 100), 4),
            ("near_sym_a", "qshift_c", (104, 101), 2),
            ("near_sym_b", "qshift_d", (126, 126), 3),
        ],
    )
    @pytest.mark.filterwarnings("ignore:The 'warn' function is deprecated")  # of logging, in dtcwt
    def test_end2end(self, biort, qshift, size, levels):
        image = np.random.default_rng(0).standard_normal((1, 2, *size))
        coeffs = reference.DTCWTForward(biort, qshift, J=levels)(torch.from_numpy(image).float())
        result = DTCWTInverse(biort, qshift)(coeffs)
        transform = dtcwt.Transform2d(biort, qshift)
        for channel in range(2):
            expected = transform.inverse(transform.forward(image[0, channel], nlevels=levels))
            np.testing.assert_array_almost_equal(result[0, channel], expected, decimal=3)

    def test_gradients_inv(self):
        low, highs = coefficients((16, 16), 2, batch=(1, 1))
        leaves = [t.double().requires_grad_() for t in (low, *highs)]
        module = DTCWTInverse().double()
        assert gradcheck(lambda low, *highs: module((low, highs)), leaves, eps=1e-3, atol=1e-4)
