"""Compiled kernels for a level of the transform, on the CPU.

They are written in C++ (`cpp/`), built once for a machine's vector instructions by
`torch.utils.cpp_extension`, and operators of torch: `torch.compile` sees them as one call each,
with gradients. A level goes through them where the `backend` of its transform is "cpp", or "auto"
after `build`. Elsewhere torch's operations compute the same: on other devices, for filters that
are trained, under `torch.func` and forward mode, and in exported programs, which then need nothing
but torch.
"""

from __future__ import annotations

import functools
import hashlib
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from convfactor.wavelets.banks import Bank
from convfactor.wavelets.checks import LOW_PRECISION

BACKENDS = ("auto", "torch", "cpp")
SOURCES = Path(__file__).parent / "cpp"
INSTRUCTIONS = {"AVX512": ("-march=x86-64-v4",), "AVX2": ("-march=x86-64-v3",)}

_chosen = False
_levels_taken = 0


def check(backend: Any) -> None:
    """Check the name of a backend, and build the kernels where they are asked for.

    Raises:
        ValueError: If there is no such backend.
        RuntimeError: If the kernels can't be built here.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
    if backend == "cpp":
        load()


def build() -> None:
    """Compile the kernels, or load those that an earlier process has compiled.

    From then on every transform of this process whose `backend` is "auto" goes through them. They
    stay on disk, in the folder for extensions of torch (`TORCH_EXTENSIONS_DIR`), one for each
    version of torch and set of vector instructions.

    Raises:
        RuntimeError: If there is no compiler for C++ or no ninja, or if the compiler fails.

    Example:
        >>> from convfactor import wavelets
        >>> wavelets.build()  # doctest: +SKIP
        >>> wavelets.DTCWTInverse().backend  # the compiled kernels, once they are built
        'auto'
    """
    global _chosen
    load()
    _chosen = True


@functools.cache
def load() -> None:
    """Compile the kernels, or load them.

    Raises:
        RuntimeError: If they can't be built here.
    """
    from torch.utils import cpp_extension  # slow to import

    flags = ("-O3", "-fopenmp", *INSTRUCTIONS.get(torch.backends.cpu.get_cpu_capability(), ()))
    name = f"convfactor_wavelets_{_digest(flags)}"
    root = os.environ.get("TORCH_EXTENSIONS_DIR") or cpp_extension.get_default_build_root()
    folder = Path(root) / name
    library, complete = folder / f"{name}.so", folder / "complete"
    if complete.exists() and library.exists():
        torch.ops.load_library(library)
    else:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            cpp_extension.load(
                name,
                [str(SOURCES / "operators.cpp")],
                extra_cflags=list(flags),
                extra_ldflags=["-fopenmp"],
                build_directory=str(folder),
                is_python_module=False,
            )
        except (RuntimeError, OSError) as error:
            raise RuntimeError(
                "the compiled kernels of convfactor.wavelets can't be built here: they need a "
                "compiler for C++ (g++ or clang++, or the one that CXX names) and ninja "
                "(pip install ninja); backend='torch' needs neither. "
                f"{error}"
            ) from error
        complete.touch()
    _register()


def _digest(flags: tuple[str, ...]) -> str:
    """What a built library depends on."""
    digest = hashlib.sha256(f"{torch.__version__} {sys.version_info[:2]} {flags}".encode())
    for source in sorted(SOURCES.iterdir()):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


def take(bank: Bank, *given: Tensor | None) -> bool:
    """Whether the kernels compute a level of these tensors."""
    global _levels_taken
    if not bank.fixed or not (bank.backend == "cpp" or (bank.backend == "auto" and _chosen)):
        return False
    if torch.compiler.is_compiling():
        if torch.compiler.is_exporting():
            return False
    else:
        load()
    for one in given:
        # Images are taken in pairs of rows and columns.
        odd = one is not None and one.ndim == 3 and (one.shape[1] % 2 or one.shape[2] % 2)
        if odd or (one is not None and one.device.type != "cpu"):
            return False
    if not torch.compiler.is_compiling():
        _levels_taken += 1
    return True


def levels_taken() -> int:
    """How many levels the kernels have taken in this process, those of compiled graphs apart."""
    return _levels_taken


def merge(low: Tensor | None, bands: Tensor | None, bank: Bank) -> Tensor:
    """As `levels.merge`."""
    given = low if low is not None else bands
    assert given is not None
    image: Tensor = torch.ops.convfactor.merge(low, bands, *_filters(bank), False, _dtype(given))
    return image


def split(image: Tensor, bank: Bank, with_bands: bool) -> tuple[Tensor, Tensor | None]:
    """As `levels.split`."""
    low, bands = torch.ops.convfactor.split(
        image, *_filters(bank), False, True, with_bands, _dtype(image)
    )
    return low, bands if with_bands else None


def _filters(bank: Bank) -> tuple[list[Tensor], list[int], int, int, bool]:
    taps = list(bank.taps.values())
    starts = [start for one in taps for start in one.starts]
    return [one.weight for one in taps], starts, taps[0].cols, taps[0].spacing, taps[0].symmetric


def _dtype(given: Tensor) -> torch.dtype:
    """What comes out; sums are kept in float32 or more on the way."""
    if given.dtype in LOW_PRECISION and torch.is_autocast_enabled("cpu"):
        return torch.get_autocast_dtype("cpu")
    return given.dtype


def _register() -> None:
    """Tell torch the operators' shapes and gradients: each is the other's, transposed."""
    torch.library.register_fake("convfactor::merge")(_fake_merge)
    torch.library.register_fake("convfactor::split")(_fake_split)
    torch.library.register_autograd(
        "convfactor::merge", _merge_gradient, setup_context=_remember_merge
    )
    torch.library.register_autograd(
        "convfactor::split", _split_gradient, setup_context=_remember_split
    )


def _scaled(size: Any, phases: int, cols: int, transposed: bool) -> Any:
    return size // phases * cols if transposed else size // cols * phases


def _fake_merge(
    low: Tensor | None,
    bands: Tensor | None,
    taps: list[Tensor],
    starts: list[int],
    cols: int,
    spacing: int,
    symmetric: bool,
    transposed: bool,
    dtype: torch.dtype,
) -> Tensor:
    given = low if low is not None else bands
    assert given is not None
    sides = given.shape[1:] if low is not None else [2 * side for side in given.shape[2:4]]
    made = [_scaled(side, taps[0].shape[0], cols, transposed) for side in sides]
    return given.new_empty([given.shape[0], *made], dtype=dtype)


def _fake_split(
    image: Tensor,
    taps: list[Tensor],
    starts: list[int],
    cols: int,
    spacing: int,
    symmetric: bool,
    transposed: bool,
    with_low: bool,
    with_bands: bool,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    sides = [_scaled(side, taps[0].shape[0], cols, transposed) for side in image.shape[1:]]
    pairs = [side // 2 for side in sides]
    return (
        image.new_empty([image.shape[0], *sides] if with_low else [0], dtype=dtype),
        image.new_empty([image.shape[0], 6, *pairs, 2] if with_bands else [0], dtype=dtype),
    )


def _remember_merge(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    low, bands, taps, *ctx.layout, ctx.transposed, _ = inputs
    ctx.dtypes = [None if one is None else one.dtype for one in (low, bands)]
    ctx.save_for_backward(*taps)


def _merge_gradient(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    wanted = ctx.needs_input_grad[:2]
    dtype = next(one for one, needed in zip(ctx.dtypes, wanted, strict=True) if needed)
    parts = torch.ops.convfactor.split(
        gradient, list(ctx.saved_tensors), *ctx.layout, not ctx.transposed, *wanted, dtype
    )
    low, bands = (
        part.to(one) if needed else None
        for part, one, needed in zip(parts, ctx.dtypes, wanted, strict=True)
    )
    return low, bands, [None] * len(ctx.saved_tensors), *[None] * 6


def _remember_split(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    image, taps, *ctx.layout, ctx.transposed, with_low, with_bands, _ = inputs
    ctx.dtype, ctx.wanted = image.dtype, (with_low, with_bands)
    ctx.save_for_backward(*taps)
    ctx.set_materialize_grads(False)


def _split_gradient(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
    low, bands = (
        one if wanted else None for one, wanted in zip(gradients, ctx.wanted, strict=True)
    )
    image = None
    if low is not None or bands is not None:
        image = torch.ops.convfactor.merge(
            low, bands, list(ctx.saved_tensors), *ctx.layout, not ctx.transposed, ctx.dtype
        )
    return image, [None] * len(ctx.saved_tensors), *[None] * 8
