"""Show the examples of docstrings as code: griffe knows the section by its plural only."""

import re
from typing import Any

from griffe import Extension, Object


class Examples(Extension):
    """Rename the section ``Example`` of every docstring."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Rename it in one docstring."""
        if obj.docstring:
            obj.docstring.value = re.sub(
                "^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE
            )
