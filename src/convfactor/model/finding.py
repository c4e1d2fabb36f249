"""Find the large-kernel convolutions that a model calls."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn
from torch.nn.parameter import UninitializedParameter

from convfactor.model.candidates import (
    Candidate,
    foreign_hooks,
    of_modules,
    unsupported,
)
from convfactor.model.effective import NotPlainError, effective, state_digest
from convfactor.model.finder import Finder
from convfactor.model.inputs import ModelInputs, Workload
from convfactor.model.reasons import Reason
from convfactor.model.selection import Patterns, Predicate
from convfactor.model.sites import Found
from convfactor.model.transforms import Transform

UNSELECTED = Reason.brief("unselected", "not selected")
UNCALLED = Reason("uncalled", "not called", "not called with the example inputs")


def find(
    model: nn.Module,
    inputs: Workload | ModelInputs,
    min_kernel_size: int = 5,
    select: Patterns | Predicate | None = None,
) -> list[Found]:
    """Run a model and list its large-kernel convolutions in the order of their first call.

    Modules are seen through hooks and functional calls through torch's function mode, so models
    that can't be traced are seen as well. A module registered under several names, and modules
    with the same weight, bias and geometry, are one site; so are functional calls with the same
    weight and geometry. Convolutions that were not called come after the others, and wavelet
    transforms last.

    Args:
        model: The model; it is left as it was.
        inputs: One call, or several.
        min_kernel_size: Smallest longer side of a kernel to list.
        select: Which sites may be replaced; a function says so of (name, module).

    Raises:
        ValueError: A pattern of ``select`` matches none of them.
    """
    finder = Finder(model, of_modules(model, min_kernel_size), min_kernel_size)
    workload = Workload.of(inputs)
    with finder.watching():
        # Kept until the end: what an output holds must stay as it is.
        outputs = []
        for finder.call, call in enumerate(workload.calls):
            finder.weight = workload.weights[finder.call]
            outputs.append(call.run(model))
    seen = [c for c in finder.in_order() if not isinstance(c.held, UninitializedParameter)]
    functional = {id(one.held) for one in seen if one.kind == "functional"}
    # A module that only lends its weight to a functional call is not one more layer.
    seen = [c for c in seen if c.kind != "module" or c.shapes or id(c.held) not in functional]
    # Nor is one whose forward calls a convolution with its weight, as the call is replaced.
    seen = [c for c in seen if not (c.special and id(c.held) in functional)]
    finder.sites = seen
    for special in (c for c in seen if c.special and c.shapes and c.obstacle is None):
        _read_off(model.get_submodule(special.owners[0]), special)
    finder.look_around()
    del outputs

    if isinstance(select, Patterns):
        listed: list[Candidate | Transform] = [*seen, *finder.transforms.values()]
        select.check([(one.name, *one.owners) for one in listed], min_kernel_size)

    def selected(one: Candidate | Transform) -> bool:
        if isinstance(select, Patterns):
            return select.select((one.name, *one.owners))
        return select is None or select(one.name, model.get_submodule(one.owners[0]))

    def obstacle(one: Candidate | Transform, known: Reason | None, called: bool) -> Reason | None:
        if not selected(one):
            return UNSELECTED
        return known or (None if called else UNCALLED)

    return [
        *(c.found(obstacle(c, c.obstacle or finder.other_use(c), bool(c.shapes))) for c in seen),
        *(t.found(obstacle(t, t.obstacle, bool(t.calls))) for t in finder.transforms.values()),
    ]


def reaching(
    model: nn.Module,
    workload: Workload,
    batches: Iterable[ModelInputs],
    min_kernel_size: int = 5,
) -> list[ModelInputs]:
    """The batches that are the first to reach a large kernel, which no call before them reaches.

    Args:
        model: The model; it is left as it was.
        workload: Calls that are made before.
        batches: Further calls; not made where all large kernels were reached.
        min_kernel_size: Smallest longer side of a large kernel.
    """
    finder = Finder(model, of_modules(model, min_kernel_size), min_kernel_size)
    found = []
    with finder.watching():
        for call in workload.calls:
            call.run(model)
        for batch in () if finder.complete() else batches:
            before = finder.reached()
            batch.run(model)
            if finder.reached() > before:
                found.append(batch)
    return found


def _read_off(module: nn.Module, one: Candidate) -> None:
    """Read the convolution that a module computes, with a weight that it computes, off a call."""
    size = next(iter(one.shapes)).size
    one.obstacle = foreign_hooks(module)
    if one.obstacle is not None:
        return
    try:
        found = effective(module, one.form, size)
    except NotPlainError as error:
        kind = type(module).__name__
        text = (
            f"a {kind} that can't be taken for a convolution: {error}; put an nn.Conv2d with its "
            "weight in its place"
        )
        one.obstacle = unsupported(f"a {kind}: {error}", text)
        return
    one.held, one.bias = found.weight, found.bias
    one.form, one.geometry, one.fingerprint = found.form, found.geometry, state_digest(module)
    if found.form.same is not None:
        shapes = one.shapes
        one.shapes = {shape.padded(found.form.same): 0.0 for shape in shapes}
        for shape, n in shapes.items():
            one.shapes[shape.padded(found.form.same)] += n
