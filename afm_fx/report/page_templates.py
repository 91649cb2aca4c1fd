"""The HTML pages: one frame, one picture, everything that they are given escaped, nothing that they would load."""

from __future__ import annotations

from typing import TYPE_CHECKING

from afm_fx.report.chains import groups_of, listed
from afm_fx.report.extras import import_for_report
from afm_fx.report.picture import FORMS, picture_of
from afm_fx.report.picture_svg import css_class, picture_svg, size_of

if TYPE_CHECKING:
    from afm_fx.report.explanation import Explanation


def render_page(template: str, explanation: Explanation, **context: object) -> str:
    """Fills a template that shows an explanation. A name that it does not know is an error.

    Raises:
        MissingPackageError: the extra ``report`` is not installed.
    """
    jinja2 = import_for_report("jinja2")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("afm_fx.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(grouped="{:,}".format, css_class=css_class, listed=listed, size_of=size_of)
    picture = picture_of(explanation)
    page: str = environment.get_template(template).render(
        explanation=explanation,
        picture=picture,
        svg=picture_svg(picture),
        groups=groups_of(explanation.chains),
        forms=FORMS,
        **context,
    )
    return page
