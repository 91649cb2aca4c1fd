"""The templates of the HTML pages. Whatever they are given is escaped, and a name that they do not know is an error."""

from __future__ import annotations

from typing import Any

from afm_fx.errors import MissingPackageError
from passes.sink_codes import Fate


def page_template(name: str) -> Any:
    """The jinja2 template of one page.

    Raises:
        MissingPackageError: the extra ``report`` is not installed.
    """
    try:
        import jinja2  # noqa: PLC0415 - an extra; results print without it
    except ImportError as error:
        raise MissingPackageError("the page needs jinja2: pip install 'afm-fx[report]'") from error
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("afm_fx", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["css_class"] = css_class
    environment.filters["grouped"] = "{:,}".format
    return environment.get_template(name)


def css_class(fate: Fate | str | None) -> str:
    """The class that colours a fate; that of what is only moved for None."""
    return str(fate or "moved").replace(" ", "-")
