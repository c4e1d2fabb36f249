"""Why something is left as it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Code = Literal[
    "unselected",  # the user left it out
    "uncalled",  # the example inputs or the calibration data do not reach it
    "unsupported",  # no cascade can stand for it
    "shared",  # its weight is also read elsewhere
    "size",  # too large to be calibrated or solved
    "constant",  # its input does not vary
    "untimed",  # only a clock could tell
    "speed",  # nothing is faster
    "undecided",  # the noise of the timings is larger than what they show
    "tolerance",  # nothing fast enough is exact enough
    "budget",  # what the whole model may lose is better spent elsewhere
    "time",  # the time allowed was over before it was looked at
    "unsound",  # with it, the model does not compute what it did
]


@dataclass(frozen=True)
class Reason:
    """Why a layer is kept.

    Attributes:
        code: What kind of reason, for programs.
        short: In a few words, to stand beside a bar.
        text: In full, with figures and the way out.
    """

    code: Code
    short: str
    text: str

    @classmethod
    def brief(cls, code: Code, text: str) -> Reason:
        """A reason that needs no more than a few words."""
        return cls(code, text, text)

    @property
    def missed(self) -> bool:
        """Whether what was asked for could not be done within the tolerance."""
        return self.code in ("tolerance", "unsound")
