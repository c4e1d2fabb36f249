"""The layers of a plan, found in a model and compared with what was planned."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Iterator
from typing import Any

from torch import Tensor, fx, nn

from convfactor.conv.forms import of_module
from convfactor.errors import PlanMismatchError
from convfactor.model import transforms
from convfactor.model.candidates import is_convolution, is_special
from convfactor.model.digests import fingerprint
from convfactor.model.effective import Effective, effective, state_digest
from convfactor.model.folding import neighbours, untouched
from convfactor.model.norms import NORMS, Affine, with_norm, with_scales
from convfactor.model.pads import zeros_of
from convfactor.model.sites import Subject
from convfactor.model.transforms import is_transform


def check_all(model: nn.Module, subjects: Iterable[Subject]) -> Iterator[PlanMismatchError | None]:
    """Compare layers with the planned ones: their weights, what is folded into them, their hooks.

    Args:
        model: The model.
        subjects: The layers.

    Yields:
        What is wrong with each, or None.
    """
    pairs: set[tuple[int, int]] | None = None
    for subject in subjects:
        if pairs is None and (subject.norm or subject.pad):
            pairs = neighbours(model)
        try:
            _check(model, subject)
            _check_around(model, subject, pairs or set())
            yield None
        except PlanMismatchError as error:
            yield error


def _check(model: nn.Module, subject: Subject) -> None:
    """Compare the weights of a layer with the planned ones."""
    if subject.kind == "transform":
        _check_transform(model, subject)
        return
    names = [subject.weight_name]
    missing = sorted(owner for owner in subject.owners if not has(model, owner))
    if missing and not isinstance(model, fx.GraphModule):
        raise PlanMismatchError(
            f"layer {subject.name}: the model has no module {missing[0]!r}; apply the plan to the "
            "model that was planned"
        )
    if subject.pad:
        pad_of(model, subject)
    if subject.computed:
        _check_computed(model, subject)
        return
    if subject.kind == "module":
        names = [f"{owner}.weight".lstrip(".") for owner in owners(model, subject)]
    for name in names:
        try:
            weight = tensor(model, name)
        except AttributeError as error:
            raise PlanMismatchError(
                f"layer {subject.name}: the model has no {name}; apply the plan to the model that "
                "was planned"
            ) from error
        found = _with_surroundings(fingerprint(weight), model, subject)
        if found != subject.fingerprint:
            scaled = f", or {', '.join(subject.scaled_by)} differs" if subject.scaled_by else ""
            raise PlanMismatchError(
                f"layer {subject.name}: {name} (shape {tuple(weight.shape)}, {weight.dtype}) is "
                f"not the weight that was planned, in {subject.dtype}{scaled}; load the planned "
                "weights in that dtype, or plan anew"
            )


def _check_around(model: nn.Module, subject: Subject, pairs: Collection[tuple[int, int]]) -> None:
    """Refuse what would be lost, or done in a place where it was not, with a layer."""
    if subject.kind != "module":
        return
    for owner in owners(model, subject):
        conv = model.get_submodule(owner)
        if not subject.computed and is_special(conv):
            raise PlanMismatchError(
                f"layer {subject.name}: {owner} has hooks or a forward of its own, which it had "
                "not when it was planned; remove them, or plan anew"
            )
        beside = []
        if subject.norm:
            norm = norm_of(model, subject)
            beside.append((subject.norm, (id(conv), id(norm)), untouched(norm)))
        if subject.pad:
            pad = pad_of(model, subject)
            beside.append((subject.pad, (id(pad), id(conv)), untouched(pad)))
        for name, pair, alone in beside:
            if pair not in pairs or not alone:
                raise PlanMismatchError(
                    f"layer {subject.name}: the plan folds {name} into it, but in this model "
                    f"{name} has hooks, or others read what is between the two; plan anew"
                )


def _with_surroundings(found: str, model: nn.Module, subject: Subject) -> str:
    """Digest of a layer with what scales its output."""
    if subject.norm:
        found = with_norm(found, norm_of(model, subject))
    try:
        scales = {name: tensor(model, name) for name in subject.scaled_by}
    except AttributeError as error:
        raise PlanMismatchError(
            f"layer {subject.name}: the model lacks one of {', '.join(subject.scaled_by)}, which "
            "scale its output; apply the plan to the model that was planned"
        ) from error
    return with_scales(found, scales)


def _check_computed(model: nn.Module, subject: Subject) -> None:
    """Compare what the weights of a layer are computed from with what was planned."""
    for owner in owners(model, subject):
        found = _with_surroundings(state_digest(model.get_submodule(owner)), model, subject)
        if found != subject.fingerprint:
            raise PlanMismatchError(
                f"layer {subject.name}: {owner} computes its weight from other tensors, or is "
                "another module, than was planned; load the planned weights, or plan anew"
            )


def _check_transform(model: nn.Module, subject: Subject) -> None:
    """Compare the filters of a transform with the planned ones."""
    for owner in owners(model, subject):
        try:
            module = model.get_submodule(owner)
        except AttributeError as error:
            raise PlanMismatchError(
                f"transform {subject.name}: the model has no {owner}"
            ) from error
        if not is_transform(module) or (transforms.fingerprint(module) != subject.fingerprint):
            raise PlanMismatchError(
                f"transform {subject.name}: {owner} is not the one that was planned; plan anew"
            )


def tensor(model: nn.Module, name: str) -> Tensor:
    """Look up a parameter or buffer by its qualified name."""
    owner, _, attribute = name.rpartition(".")
    value = getattr(model.get_submodule(owner), attribute)
    if not isinstance(value, Tensor):
        raise AttributeError(f"{name} is not a tensor")
    return value


def plain_weight(model: nn.Module, subject: Subject) -> Tensor:
    """The weight of the plain convolution that a planned layer of a model is.

    Raises:
        PlanMismatchError: It is missing.
    """
    assert subject.geometry is not None
    if subject.computed:
        owner = owners(model, subject)[0]
        weight = read(model.get_submodule(owner), owner, subject).weight
    else:
        weight = _held(model, subject)
    weight = subject.form.weight(weight, subject.geometry.groups)
    if subject.norm:
        weight, _ = Affine.of(norm_of(model, subject)).folded(weight, None, subject.form)
    return weight


def _held(model: nn.Module, subject: Subject) -> Tensor:
    """The weight as a model holds it; a graph may know the module by one of its names only."""
    names = [subject.weight_name, *(f"{owner}.weight" for owner in subject.owners)]
    for name in names:
        with contextlib.suppress(AttributeError):
            return tensor(model, name)
    raise PlanMismatchError(f"layer {subject.name}: the model has none of {', '.join(names)}")


def read(conv: nn.Module, owner: str, subject: Subject) -> Effective:
    """Read the convolution of a module, which must be the planned one."""
    found: Effective | None = None
    with contextlib.suppress(ValueError):
        if subject.computed:
            found = effective(conv, subject.form, subject.shapes[0][0].size)
        elif is_convolution(conv):
            module: Any = conv
            found = Effective(module.weight, module.bias, *of_module(conv))
    if found is None or (found.form, found.geometry) != (subject.form, subject.geometry):
        raise PlanMismatchError(f"layer {subject.name}: {owner} is not the planned convolution")
    return found


def norm_of(model: nn.Module, subject: Subject) -> nn.Module:
    """The batch normalization that is folded into a layer."""
    if has(model, subject.norm):
        norm = model.get_submodule(subject.norm)
        if type(norm) in NORMS:
            return norm
    raise PlanMismatchError(
        f"layer {subject.name}: the model has no batch normalization {subject.norm!r}; apply the "
        "plan to the model that was planned"
    )


def pad_of(model: nn.Module, subject: Subject) -> nn.Module:
    """The module in front of a layer whose zeros the cascade adds."""
    if has(model, subject.pad):
        pad = model.get_submodule(subject.pad)
        if zeros_of(pad) == subject.pads:
            return pad
    raise PlanMismatchError(
        f"layer {subject.name}: the model has no {subject.pad!r} that adds {subject.pads} zeros "
        "(left, right, top, bottom); apply the plan to the model that was planned"
    )


def owners(model: nn.Module, subject: Subject) -> list[str]:
    """The names under which a model holds a subject; graphs keep only those that they call."""
    if not isinstance(model, fx.GraphModule):
        return list(subject.owners)
    return [owner for owner in subject.owners if has(model, owner)] or list(subject.owners)


def has(model: nn.Module, name: str) -> bool:
    """Whether a model holds a module of that name; all names are not listed for one."""
    module: Any = model
    for part in name.split(".") if name else ():
        if part not in module._modules or module._modules[part] is None:
            return False
        module = module._modules[part]
    return True
