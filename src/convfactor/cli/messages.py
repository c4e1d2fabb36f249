"""What the command line tells the person."""

from __future__ import annotations

import sys


def say(text: str) -> None:
    """Tell the person; results alone go to stdout."""
    print(f"convfactor: {text}", file=sys.stderr)
