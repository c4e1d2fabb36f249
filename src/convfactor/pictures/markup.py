"""Pages from templates, in which no name of a user is taken for markup."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any


def filled(
    package: str, template: str, filters: Mapping[str, Callable[[Any], str]], **values: Any
) -> str:
    """Fill in a template.

    Args:
        package: The package whose folder ``templates`` holds it.
        template: Name of the file.
        filters: What it calls beside jinja2's filters and ``breakable``, which lets a long name
            go on in the next line.
        **values: What it shows, escaped.
    """
    import jinja2  # slow to load, and only pages need it
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(package),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["breakable"] = lambda name: Markup("<wbr>").join(
        re.split(r"(?<=[._/])(?=.)", name)
    )
    environment.filters.update(filters)
    return environment.get_template(template).render(values)
