"""Parts of plans, by the names of layers, and two plans in one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields, replace
from fnmatch import fnmatchcase

from convfactor.errors import PlanMismatchError
from convfactor.model.sites import Subject
from convfactor.plans.decisions import Decisions, Entry, Kept
from convfactor.plans.settings import Settings


def matching(entries: Iterable[Entry], patterns: tuple[str, ...]) -> set[int]:
    """Indices of the entries that patterns name.

    Args:
        entries: Those of a plan.
        patterns: Names in the table, of modules or of weights, with the wildcards of ``fnmatch``.

    Raises:
        TypeError: One is not a text.
        ValueError: One names no entry, or there is none.
    """
    if not patterns:
        raise ValueError('give the name of a layer, or a pattern such as "stem.*"')
    names = [_names(entry.subject) for entry in entries]
    found: set[int] = set()
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise TypeError(f"layers must be named by str, got {type(pattern).__name__}")
        hits = {i for i, own in enumerate(names) if any(fnmatchcase(n, pattern) for n in own)}
        if not hits:
            known = ", ".join(repr(own[0]) for own in names) or "no layer at all"
            raise ValueError(f"the plan has no layer {pattern!r}; it has {known}")
        found |= hits
    return found


def merged(mine: Decisions, other: Decisions) -> tuple[tuple[Entry, ...], Settings]:
    """The decisions of two plans of one model.

    Args:
        mine: One plan.
        other: The other.

    Returns:
        The entries of the first, then those that only the second has; and what was asked for.

    Raises:
        PlanMismatchError: They are of different models.
        ValueError: They were measured in different ways, or both replace a layer.
    """
    settings = _common(mine, other)
    theirs = {_key(entry.subject): entry for entry in other.entries}
    entries = [_chosen(entry, theirs.pop(_key(entry.subject), entry)) for entry in mine.entries]
    return (*entries, *theirs.values()), settings


def _names(subject: Subject) -> list[str]:
    """What a layer may be called."""
    names = [subject.name, *subject.owners]
    return [*names, subject.weight_name] if subject.weight_name else names


def _key(subject: Subject) -> tuple[object, ...]:
    """What tells a layer from the others of its model."""
    return subject.name, subject.kind, subject.owners, subject.weight_name, subject.geometry


def _chosen(mine: Entry, its: Entry) -> Entry:
    """The decision that counts: a replacement, or else a reason that is not one's own choice."""
    name = mine.name
    if mine.subject.fingerprint != its.subject.fingerprint:
        raise PlanMismatchError(
            f"layer {name}: the plans are of different weights; merge plans of one trained model"
        )
    if mine.replaced and its.replaced and mine is not its:
        raise ValueError(
            f"layer {name} is replaced in both plans; leave it out of one of them, as by "
            f"plan.without({name!r})"
        )
    left_out = isinstance(mine.decision, Kept) and mine.decision.reason.code == "unselected"
    return its if its.replaced or left_out else mine


def _common(mine: Decisions, other: Decisions) -> Settings:
    """What both were asked for; of two tolerances the larger, which both keep to."""
    tolerances = (mine.settings.tolerance, other.settings.tolerance)
    if tolerances[0] is None or tolerances[1] is None:
        raise ValueError(
            "plans with a budget for the whole model can't be merged, as no run has measured both "
            "together; optimize once with all of these layers in select, or give each layer a "
            "tolerance"
        )
    for what in ("environment", "calibration"):
        _demand_equal(what, getattr(mine, what), getattr(other, what))
    tolerance = max(tolerances[0], tolerances[1])
    pair = [replace(plan.settings, tolerance=tolerance) for plan in (mine, other)]
    for field in fields(Settings):
        _demand_equal(field.name, *(getattr(settings, field.name) for settings in pair))
    return pair[0]


def _demand_equal(what: str, mine: object, its: object) -> None:
    """Refuse figures that do not stand beside each other."""
    if mine != its:
        told = str if str(mine) != str(its) else repr  # which tells digests too
        raise ValueError(
            f"plans can be merged where they were made alike, but their {what} differs: "
            f"{told(mine)} and {told(its)}; make one of them again as the other"
        )
