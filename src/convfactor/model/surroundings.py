"""What scales the channels of a convolution's output and input: seen while a model runs."""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from convfactor.conv.calls import is_about
from convfactor.conv.scales import relative
from convfactor.model.scaling import Scaling, is_norm, keeps_constant, read_scaling

S = TypeVar("S")


@dataclass(frozen=True, eq=False)
class Step:
    """What is done to all that a convolution gives.

    Attributes:
        scaling: What is done to each channel.
        inside: The module in whose forward it is done.
        sources: The parameters and buffers that say so, by name.
    """

    scaling: Scaling
    inside: nn.Module
    sources: frozenset[str]


@dataclass(frozen=True, eq=False)
class _Known:
    """A tensor with what it holds: its memory is used again, and may be written to."""

    tensor: weakref.ReferenceType[Tensor]
    version: int
    sources: frozenset[str] = frozenset()

    @classmethod
    def of(cls, tensor: Tensor, sources: frozenset[str] = frozenset()) -> _Known:
        """Note a tensor as it is now."""
        return cls(weakref.ref(tensor), _version(tensor), sources)

    def still_is(self, value: object) -> bool:
        """Whether a value is that tensor, to which nobody has written."""
        tensor = self.tensor()
        return tensor is not None and tensor is value and self.version == _version(tensor)


@dataclass(eq=False)
class _Value:
    """What one call of a convolution gave, or what was made of that channel by channel."""

    tensor: weakref.ReferenceType[Tensor]
    axis: int
    readers: int = 0
    step: Step | None = None
    made: _Value | None = None
    written: bool = False  # what was made of it took its place

    def steps(self) -> list[Step]:
        """What is done to it before anybody else can see it.

        A tensor that is still alive has been kept by somebody.
        """
        found: list[Step] = []
        value = self
        while value.readers == 1 and value.step is not None and value.made is not None:
            if value.tensor() is not None and not value.written:
                break
            found.append(value.step)
            value = value.made
        return found


class Surroundings(Generic[S]):
    """Follows the outputs of convolutions, and the constants that they are scaled by.

    A tensor is constant where it is a parameter or buffer, or one reshaped or computed from such
    alone, and nobody has written into it since. What is taken out of one by an index is not: the
    index may be another one in the next call.
    """

    def __init__(self, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Start with nothing seen.

        Args:
            tensors: The parameters and buffers of the model, with their names.
        """
        self._constants: dict[int, _Known] = {}
        self._values: dict[int, _Value] = {}
        self._sizes: dict[int, tuple[_Known, Tensor]] = {}
        self._given: defaultdict[S, list[_Value]] = defaultdict(list)
        self._read: defaultdict[S, list[Tensor | None]] = defaultdict(list)
        self._pads: defaultdict[nn.Module, list[_Value]] = defaultdict(list)
        self._sources: defaultdict[S, list[_Value | None]] = defaultdict(list)
        self._norms: defaultdict[nn.Module, int] = defaultdict(int)
        with _plainly():
            for name, tensor in tensors:
                self._add_constants([tensor], frozenset([name]))

    def called(
        self,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        output: object,
        inside: nn.Module,
    ) -> None:
        """Take in a call of a function of torch.

        Args:
            func: The function.
            args: Its positional arguments.
            kwargs: Its keyword arguments.
            output: What it gave.
            inside: The module whose forward runs.
        """
        if is_about(func):
            return
        if is_norm(func):
            self._norms[inside] += 1
        with _plainly():
            given = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
            for tensor in given:
                value = self._known(tensor)
                if value is not None:
                    value.readers += 1
            found = read_scaling(func, args, kwargs, self._axis, self._is_constant)
            made = output[0] if isinstance(output, tuple) and output else output
            if found is not None and isinstance(made, Tensor) and made.shape == found[0].shape:
                self._scales(found[0], Step(found[1], inside, self._sources_of(given)), made)
            elif given and all(map(self._is_constant, given)) and keeps_constant(func, args):
                results = (value for value in tree_leaves(output) if isinstance(value, Tensor))
                self._add_constants(results, self._sources_of(given))

    def gave(self, site: S, output: object, dims: int) -> None:
        """Take in what a convolution gave.

        Args:
            site: The convolution.
            output: Its output.
            dims: Of images, 2, or of sequences, 1.
        """
        tensor = output if isinstance(output, Tensor) else torch.empty(0)
        value = self._known(tensor) or _Value(weakref.ref(tensor), -dims - 1)
        self._values[id(tensor)] = value
        self._given[site].append(value)

    def reads(self, site: S, x: object, dims: int) -> None:
        """Take in what a convolution reads."""
        batched = isinstance(x, Tensor) and x.dim() == dims + 2
        self._read[site].append(self._size(x) if batched else None)
        self._sources[site].append(self._known(x) if isinstance(x, Tensor) else None)

    def padded(self, pad: nn.Module, output: object) -> None:
        """Take in what a module gave that pads images."""
        tensor = output if isinstance(output, Tensor) else torch.empty(0)
        self._values[id(tensor)] = _Value(weakref.ref(tensor), 1 - tensor.dim())
        self._pads[pad].append(self._values[id(tensor)])

    def after(self, site: S) -> list[list[Step]]:
        """What is done to each of the outputs of a convolution."""
        return [value.steps() for value in self._given[site]]

    def norm(self, site: S) -> nn.Module | None:
        """The module that normalizes all that a convolution gives, and nothing else."""
        chains = self.after(site)
        first = {chain[0].inside if chain else None for chain in chains}
        norm = first.pop() if len(first) == 1 else None
        return norm if norm is not None and self._norms[norm] == len(chains) else None

    def pad(self, site: S) -> nn.Module | None:
        """The module whose paddings a convolution reads, all of them and nobody else."""
        sources = self._sources[site]
        for pad, values in self._pads.items():
            if values and len(values) == len(sources):
                same = all(a is b for a, b in zip(values, sources, strict=True))
                if same and all(v.readers == 1 and v.tensor() is None for v in values):
                    return pad
        return None

    def outputs(self, site: S, behind: int = 0) -> tuple[Tensor | None, tuple[str, ...]]:
        """How much the channels of a convolution's output count beside each other.

        Args:
            site: The convolution.
            behind: Steps to leave out, as they are part of the convolution.

        Returns:
            Float64 (C,), None where it is not known, or all count the same; and the names of the
            parameters and buffers that say so.
        """
        scales: list[Tensor | None] = []
        sources: set[str] = set()
        for chain in self.after(site):
            steps = [step for step in chain[behind:] if step.scaling.scale is not None]
            factors = [step.scaling.scale for step in steps if step.scaling.scale is not None]
            scales.append(torch.stack(factors).prod(0) if factors else None)
            sources.update(*(step.sources for step in steps))
        common = _common(scales)
        return common, () if common is None else tuple(sorted(sources))

    def inputs(self, site: S) -> Tensor | None:
        """How large the channels are that a convolution reads, beside each other.

        Returns:
            Float64 (C,); None where it is not known, or all are the same.
        """
        return _common(self._read[site])

    def _scales(self, x: Tensor, step: Step, made: Tensor) -> None:
        """Take in that the channels of a tensor were scaled."""
        value, axis, scaling = self._known(x), self._axis(x), step.scaling
        if value is not None:
            value.step, value.written = step, made is x
            value.made = self._values[id(made)] = _Value(weakref.ref(made), axis)
        size, before = scaling.size, self._size(x)
        if size is None and scaling.scale is not None and before is not None:
            size = scaling.scale * before
        if size is not None and axis == 1 - made.dim():
            self._sizes[id(made)] = _Known.of(made), size

    def _size(self, x: object) -> Tensor | None:
        """What the channels of a tensor were scaled by just before."""
        known, size = self._sizes.get(id(x), (None, None))
        return size if known is not None and known.still_is(x) else None

    def _known(self, tensor: Tensor) -> _Value | None:
        """What is known of a tensor; memory is used again, so that its number does not tell."""
        value = self._values.get(id(tensor))
        return value if value is not None and value.tensor() is tensor else None

    def _axis(self, tensor: Tensor) -> int:
        """The dimension of a tensor's channels, from the end."""
        value = self._known(tensor)
        return 1 - tensor.dim() if value is None else value.axis

    def _add_constants(self, tensors: Iterable[Tensor], sources: frozenset[str]) -> None:
        """Note tensors that are the same in every call, and what they are made of."""
        for tensor in tensors:
            self._constants[id(tensor)] = _Known.of(tensor, sources)

    def _sources_of(self, tensors: Iterable[Tensor]) -> frozenset[str]:
        """The parameters and buffers that the constants among some tensors are made of."""
        constants = filter(self._is_constant, tensors)
        return frozenset().union(*(self._constants[id(tensor)].sources for tensor in constants))

    def _is_constant(self, tensor: Tensor) -> bool:
        """Whether a tensor is the same in every call."""
        known = self._constants.get(id(tensor))
        return known is not None and known.still_is(tensor)


def _plainly() -> AbstractContextManager[None]:
    """Ask tensors as such, past the classes that some are of."""
    context: AbstractContextManager[None] = torch._C.DisableTorchFunctionSubclass()
    return context


def _version(tensor: Tensor) -> int:
    """How often was written into a tensor; torch does not count that of inference tensors."""
    return 0 if tensor.is_inference() else tensor._version


def _common(scales: list[Tensor | None]) -> Tensor | None:
    """The scales of all calls, if they are one."""
    first = scales[0] if scales else None
    if first is None or not all(one is not None and torch.equal(one, first) for one in scales):
        return None
    return relative(first)
