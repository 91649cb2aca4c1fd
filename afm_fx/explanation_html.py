"""An explanation as one HTML page that loads nothing: the picture of its flow beside every site and use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from afm_fx.page_templates import page_template
from afm_fx.picture_parts import picture_parts

if TYPE_CHECKING:
    from afm_fx.explanation import Explanation


def explanation_page(explanation: Explanation, title: str) -> str:
    """The page.

    Raises:
        MissingPackageError: the extra ``report`` is not installed.
    """
    template = page_template("explanation.html")
    page: str = template.render(title=title, explanation=explanation, parts=picture_parts(explanation))
    return page
