"""Write what a benchmark printed into its section of a page."""

from __future__ import annotations

import platform
import re
from pathlib import Path

import torch

from convfactor.plans.words import counted

PAGE = Path(__file__).parent.parent / "docs" / "benchmarks.md"


def write(name: str, text: str, page: Path = PAGE) -> None:
    """Replace a section of a page, which stands between two comments with its name.

    Args:
        name: Name of the section.
        text: What it holds from now on.
        page: The page, in Markdown.

    Raises:
        ValueError: The page has no such section.
    """
    start, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    found = re.compile(f"{re.escape(start)}.*?{re.escape(end)}", re.DOTALL)
    whole, count = found.subn(lambda _: f"{start}\n\n{text.strip()}\n\n{end}", page.read_text())
    if count != 1:
        raise ValueError(f"{page} must have one section from {start} to {end}, it has {count}")
    page.write_text(whole)


def machine(device: torch.device) -> str:
    """What it runs on."""
    if device.type == "cpu":
        return f"{platform.machine()}, {counted(torch.get_num_threads(), 'thread')}"
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
