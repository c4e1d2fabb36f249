"""A plan as JSON: sealed with a digest where it is written, checked where it is read."""

from __future__ import annotations

import hashlib
import json
import math
import reprlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, get_args, get_origin

import cattrs
import torch
from cattrs.strategies import configure_tagged_union
from torch import Tensor

from convfactor.conv.cascade import Cascade
from convfactor.conv.structure import Structure
from convfactor.model.digests import digest
from convfactor.plans.circumstances import Calibration
from convfactor.plans.decisions import Decision, Decisions
from convfactor.plans.validation import check_plan, check_weights, is_sha256

FORMAT = 4
LARGEST = 4 << 20  # characters; a layer takes two thousand
MOST_VALUES = 1 << 18  # a layer takes a hundred; reading this many takes half a second
SEAL = "sha256"


def write(plan: Decisions) -> tuple[str, dict[str, Tensor], str]:
    """Write everything but the tensors, whose digest stands for them.

    Returns:
        The record, the tensors by name, and their digest.

    Raises:
        ValueError: The plan is so large that it would not be read again.
    """
    tensors: dict[str, Tensor] = {}
    values = converter(tensors).unstructure(plan)
    sha256 = digest(tensors)
    text = sealed({"format": FORMAT, "tensors_sha256": sha256, **values})
    if len(text) > LARGEST:
        raise ValueError(
            f"plan must take at most {LARGEST} characters of JSON, got {len(text)} for "
            f"{len(plan.entries)} entries; plan fewer layers at a time, with select"
        )
    return text, tensors, sha256


@dataclass(frozen=True)
class _CascadeRecord:
    """A cascade as it is written."""

    structure: Structure
    weights: tuple[Tensor, ...]


P = TypeVar("P", bound=Decisions)


def read(text: str, tensors_of: Callable[[str], dict[str, Tensor]], kind: type[P]) -> P:
    """Read a plan.

    A record that was changed after it was written is refused as a damaged one is: a decision can't
    be changed without its tensors, and figures that nobody has measured help nobody.

    Args:
        text: What ``write`` made.
        tensors_of: Gives the tensors that have a digest.
        kind: The class of the plan.

    Raises:
        ValueError: Text or values are not such as ``write`` makes.
    """
    try:
        tensors_sha256, record = opened(text, FORMAT)
        tensors = tensors_of(tensors_sha256)
        plan = converter(tensors).structure(record, kind)
        if tensors:
            raise ValueError(f"the tensor {next(iter(tensors))!r} belongs to no entry")
        check_plan(plan)
    except Exception as error:  # whatever a damaged text leads the readers to raise
        raise ValueError(told(error)[:500]) from error
    return plan


def sealed(record: dict[str, Any]) -> str:
    """Write a record with a digest of its values."""
    return json.dumps({SEAL: _seal(record), **record}, indent=2, allow_nan=False) + "\n"


def opened(text: str, version: int) -> tuple[str, dict[str, Any]]:
    """Read a record that was sealed.

    Args:
        text: What ``sealed`` made.
        version: Number of the format that is wanted.

    Returns:
        The digest of its tensors, and its other values.

    Raises:
        ValueError: It is too large, of another format, or was changed.
    """
    if len(text) > LARGEST:
        raise ValueError(f"it has {len(text)} characters, more than {LARGEST}")
    if sum(map(text.count, ",[{")) > MOST_VALUES:
        raise ValueError(f"it has more than {MOST_VALUES} values")
    record = json.loads(text, parse_constant=_refuse)
    found = record.pop("format", None) if isinstance(record, dict) else record
    if found != version:
        raise ValueError(f"format must be {version}, got {reprlib.repr(found)}")
    if record.pop(SEAL, None) != _seal({"format": found, **record}):
        raise ValueError(
            "its values are not those that were saved; change them in Python, as with "
            "Plan.without, and save anew"
        )
    tensors_sha256 = record.pop("tensors_sha256", None)
    if not is_sha256(tensors_sha256):
        raise ValueError("tensors_sha256 must be a digest")
    return tensors_sha256, record


def _seal(record: dict[str, Any]) -> str:
    """Digest of a record's values, however they are laid out."""
    text = json.dumps(record, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def told(error: BaseException) -> str:
    """What is wrong, and where."""
    if isinstance(error, cattrs.BaseValidationError):
        return "; ".join(cattrs.transform_error(error, format_exception=lambda e, _: told(e)))
    return str(error) or type(error).__name__


def _refuse(constant: str) -> None:
    """JSON has no such numbers."""
    raise ValueError(f"{constant} is not JSON")


def converter(tensors: dict[str, Tensor]) -> cattrs.Converter:
    """Make a converter to JSON's types; it has no infinity, which is written as a string.

    Args:
        tensors: Takes the tensors that are written, and gives those that are read.
    """
    made = cattrs.Converter(forbid_extra_keys=True)

    def is_tuple(hint: Any) -> bool:
        return get_origin(hint) is tuple

    def read_tuple(value: Any, hint: Any) -> tuple[Any, ...]:
        hints = get_args(hint)
        if not isinstance(value, list) or (hints[-1] is not ... and len(value) != len(hints)):
            raise ValueError(f"must be a list as {hint}, got {reprlib.repr(value)}")
        if hints[-1] is ...:
            hints = hints[:1] * len(value)
        # Stops at the first error: a hostile list may hold a million.
        return tuple(made.structure(v, h) for v, h in zip(value, hints, strict=True))

    def write_tensor(tensor: Tensor) -> str:
        name = str(len(tensors))
        # Memory of its own, as safetensors wants it.
        tensors[name] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        return name

    def read_tensor(name: Any, _: Any) -> Tensor:
        if not isinstance(name, str) or name not in tensors:
            raise ValueError(f"the tensor {reprlib.repr(name)} is missing")
        return tensors.pop(name)

    def write_cascade(cascade: Cascade) -> Any:
        weights = tuple(stage.weight for stage in cascade.stages)
        return made.unstructure(_CascadeRecord(cascade.structure, weights))

    def read_cascade(value: Any, _: Any) -> Cascade:
        found = made.structure(value, _CascadeRecord)
        check_weights(found.structure, found.weights)
        return Cascade.of(found.structure, found.weights)

    made.register_structure_hook_func(is_tuple, read_tuple)
    for simple in (bool, int, str):
        made.register_structure_hook(simple, _reader(simple))
    made.register_structure_hook(float, _read_float)
    made.register_unstructure_hook(float, _write_float)
    made.register_structure_hook(Tensor, read_tensor)
    made.register_unstructure_hook(Tensor, write_tensor)
    made.register_structure_hook(Cascade, read_cascade)
    made.register_unstructure_hook(Cascade, write_cascade)
    for union, tag in ((Decision, "decision"), (Calibration, "errors_on")):
        configure_tagged_union(
            union, made, tag_name=tag, tag_generator=lambda kind: kind.__name__.lower()
        )
    return made


def _reader(kind: type) -> Callable[[Any, Any], Any]:
    """Take a value as it is, where cattrs would make ``int("5")`` of it."""

    def read(value: Any, _: Any) -> Any:
        if type(value) is not kind:
            raise ValueError(f"must be of type {kind.__name__}, got {reprlib.repr(value)}")
        if isinstance(value, str):
            value.encode()  # refuses half characters, which can't be printed
        return value

    return read


def _write_float(value: float) -> Any:
    """A number, or the name of one that JSON does not have."""
    return value if math.isfinite(value) else str(value)


def _read_float(value: Any, _: Any) -> float:
    """Undo that."""
    if type(value) in (int, float) or value in ("inf", "-inf", "nan"):
        return float(value)
    raise ValueError(f"must be a number, got {reprlib.repr(value)}")
