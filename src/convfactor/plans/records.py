"""A plan as JSON: sealed with a digest where it is written, checked where it is read."""

from __future__ import annotations

import hashlib
import json
import math
import reprlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, get_args, get_origin

import cattrs
from cattrs.gen import make_dict_structure_fn, make_dict_unstructure_fn, override

from convfactor.plans.validation import check_plan, is_sha256

if TYPE_CHECKING:
    from convfactor.plans.plan import Plan

FORMAT = 2
LARGEST = 4 << 20  # characters; a layer takes two thousand
MOST_VALUES = 1 << 18  # a layer takes a hundred; reading this many takes half a second
SEAL = "sha256"


def write(plan: Plan, tensors_sha256: str) -> str:
    """Write everything but the tensors, whose digest stands for them.

    Raises:
        ValueError: The plan is so large that it would not be read again.
    """
    values = _converter(type(plan)).unstructure(plan)
    record = {"format": FORMAT, "tensors_sha256": tensors_sha256, **values}
    text = json.dumps({SEAL: _seal(record), **record}, indent=2, allow_nan=False) + "\n"
    if len(text) > LARGEST:
        raise ValueError(
            f"plan must take at most {LARGEST} characters of JSON, got {len(text)} for "
            f"{len(plan.entries)} entries; plan fewer layers at a time, with select"
        )
    return text


def read(text: str, kind: type[Plan]) -> tuple[Plan, str]:
    """Read a plan without its tensors.

    A record that was changed after it was written is refused as a damaged one is: a decision can't
    be changed without its tensors, and figures that nobody has measured help nobody.

    Args:
        text: What ``write`` made.
        kind: The class of the plan.

    Returns:
        The plan, and the digest of its tensors.

    Raises:
        ValueError: Text or values are not such as ``write`` makes.
    """
    try:
        if len(text) > LARGEST:
            raise ValueError(f"it has {len(text)} characters, more than {LARGEST}")
        if sum(map(text.count, ",[{")) > MOST_VALUES:
            raise ValueError(f"it has more than {MOST_VALUES} values")
        record = json.loads(text, parse_constant=_refuse)
        found = record.pop("format", None) if isinstance(record, dict) else record
        if found != FORMAT:
            raise ValueError(f"format must be {FORMAT}, got {reprlib.repr(found)}")
        sealed = record.pop(SEAL, None)
        if sealed != _seal({"format": found, **record}):
            raise ValueError(
                "its values are not those that were saved; change a plan in Python, with "
                "Plan.without, and save it anew"
            )
        tensors_sha256 = record.pop("tensors_sha256", None)
        if not is_sha256(tensors_sha256):
            raise ValueError("tensors_sha256 must be a digest")
        plan = _converter(kind).structure(record, kind)
        check_plan(plan)
    except Exception as error:  # whatever a damaged text leads the readers to raise
        raise ValueError(_told(error)[:500]) from error
    return plan, tensors_sha256


def _seal(record: dict[str, Any]) -> str:
    """Digest of a record's values, however they are laid out."""
    text = json.dumps(record, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _told(error: BaseException) -> str:
    """What is wrong, and where."""
    if isinstance(error, cattrs.BaseValidationError):
        return "; ".join(cattrs.transform_error(error, format_exception=lambda e, _: _told(e)))
    return str(error) or type(error).__name__


def _refuse(constant: str) -> None:
    """JSON has no such numbers."""
    raise ValueError(f"{constant} is not JSON")


def _converter(kind: type[Plan]) -> cattrs.Converter:
    """Converter to JSON's types; it has no infinity, which is written as a string."""
    converter = cattrs.Converter(forbid_extra_keys=True)

    def is_tuple(hint: Any) -> bool:
        return get_origin(hint) is tuple

    def read_tuple(value: Any, hint: Any) -> tuple[Any, ...]:
        hints = get_args(hint)
        if not isinstance(value, list) or (hints[-1] is not ... and len(value) != len(hints)):
            raise ValueError(f"must be a list as {hint}, got {reprlib.repr(value)}")
        if hints[-1] is ...:
            hints = hints[:1] * len(value)
        # Stops at the first error: a hostile list may hold a million.
        return tuple(converter.structure(v, h) for v, h in zip(value, hints, strict=True))

    converter.register_structure_hook_func(is_tuple, read_tuple)
    for simple in (bool, int, str):
        converter.register_structure_hook(simple, _reader(simple))
    converter.register_structure_hook(float, _read_float)
    converter.register_unstructure_hook(float, _write_float)
    elsewhere = override(omit=True)  # tensors are not for JSON
    converter.register_unstructure_hook(
        kind, make_dict_unstructure_fn(kind, converter, replacements=elsewhere)
    )
    converter.register_structure_hook(
        kind,
        make_dict_structure_fn(
            kind, converter, _cattrs_forbid_extra_keys=True, replacements=elsewhere
        ),
    )
    return converter


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
