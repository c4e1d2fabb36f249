"""Which layers a user selects: by patterns for their names, or by a function."""

from __future__ import annotations

import difflib
import fnmatch
import itertools
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

Pattern = str | re.Pattern[str]
# Says of a name and its module whether the layer may be replaced.
Predicate = Callable[[str, nn.Module], bool]
# What users give.
Select = Pattern | Iterable[Pattern] | Predicate

LEFT_OUT = "!"
MOST_NAMES = 20


@dataclass(frozen=True)
class Patterns:
    """Patterns for the names of layers, and of the modules around them.

    Attributes:
        patterns: Globs as the shell's, where ``*`` also takes dots and one that starts with ``!``
            leaves out, and regular expressions, which must match the whole name.
    """

    patterns: tuple[Pattern, ...]

    def select(self, names: Iterable[str]) -> bool:
        """Whether a layer is selected: by any pattern that takes it, and by none that leaves out.

        Args:
            names: What the layer is called, all its names.
        """
        names = _with_parents(names)
        taking = [pattern for pattern in self.patterns if not _leaves_out(pattern)]
        if taking and not any(_matches(pattern, names) for pattern in taking):
            return False
        return not any(_matches(p, names) for p in self.patterns if _leaves_out(p))

    def check(self, layers: Sequence[Sequence[str]], least: int) -> None:
        """Refuse a pattern that matches no layer; where there are none, there is none to choose.

        Args:
            layers: The names of every layer with a large kernel.
            least: Size from which a kernel is large.

        Raises:
            ValueError: A pattern matches none of them.
        """
        names = _with_parents(itertools.chain.from_iterable(layers))
        for pattern in self.patterns if layers else ():
            if _matches(pattern, names):
                continue
            text = pattern if isinstance(pattern, str) else pattern.pattern
            near = difflib.get_close_matches(text.removeprefix(LEFT_OUT), sorted(names))
            listed = [own[0] for own in layers[:MOST_NAMES]]
            more = ", ..." if len(layers) > MOST_NAMES else ""
            raise ValueError(
                f"select: {text!r} matches none of the layers with a kernel of {least} or more, "
                f"which are {', '.join(listed)}{more}"
                + (f"; did you mean {' or '.join(map(repr, near))}?" if near else "")
            )


def read(value: Any) -> Patterns | Predicate | None:
    """Read what a user gives to select layers.

    Args:
        value: A pattern, several, a function ``(name, module)``, or None for all layers.

    Raises:
        TypeError: It is none of these.
        ValueError: It holds no pattern.
    """
    if value is None or isinstance(value, Patterns):
        return value
    if isinstance(value, (str, re.Pattern)):
        value = [value]
    if isinstance(value, Iterable) and not isinstance(value, (bytes, nn.Module)):
        patterns = tuple(value)
        wrong = [p for p in patterns if not (isinstance(p, str) or _is_expression(p))]
        if not wrong and patterns:
            return Patterns(patterns)
        if not patterns:
            raise ValueError("select must hold a pattern, got none; leave it out for all layers")
        value = wrong[0]
    if isinstance(value, nn.Module) or not callable(value):
        raise TypeError(
            "select must be a pattern such as '*.stem', a compiled regular expression, a list of "
            f"these, or a function (name, module) -> bool, got {type(value).__name__}"
        )
    predicate: Predicate = value
    return predicate


def _is_expression(value: object) -> bool:
    """Whether a value is a compiled regular expression for text."""
    return isinstance(value, re.Pattern) and isinstance(value.pattern, str)


def _leaves_out(pattern: Pattern) -> bool:
    """Whether what a pattern matches is left out."""
    return isinstance(pattern, str) and pattern.startswith(LEFT_OUT)


def _matches(pattern: Pattern, names: Iterable[str]) -> bool:
    """Whether a pattern matches one of several names."""
    if isinstance(pattern, re.Pattern):
        return any(pattern.fullmatch(name) for name in names)
    return any(fnmatch.fnmatchcase(name, pattern.removeprefix(LEFT_OUT)) for name in names)


def _with_parents(names: Iterable[str]) -> set[str]:
    """Names, and those of the modules around them."""
    found: set[str] = set()
    for name in names:
        parts = name.split(".")
        found.update(".".join(parts[:count]) for count in range(1, len(parts) + 1))
    return found
