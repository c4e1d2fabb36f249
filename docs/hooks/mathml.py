"""Write the formulas of a page as MathML, which browsers draw without a script or the network."""

import html
import re
from typing import Any

from latex2mathml.converter import convert

# As pymdownx.arithmatex leaves them.
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def on_page_content(content: str, **_: Any) -> str:
    """Replace the formulas of a page.

    Raises:
        ValueError: A formula holds a command that is not known.
    """
    return FORMULA.sub(_mathml, content)


def _mathml(found: re.Match[str]) -> str:
    formula = html.unescape(found[2]).strip()
    written = convert(formula, display="inline" if found[1] == "span" else "block")
    unknown = re.search(r"\\[A-Za-z]+", written)
    if unknown:
        raise ValueError(f"{unknown[0]} of the formula {formula} can't be written as MathML")
    return written
