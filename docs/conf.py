"""Sphinx builds the documentation from Markdown (MyST) and from docstrings: ``make docs``."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs" / "_ext")]

from afm_fx import __version__  # noqa: E402 - found on the path that is set above

project = "afm-fx"
author = "the authors of afm-fx"
version = release = __version__
copyright = author  # noqa: A001 - Sphinx asks for this name

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "mathml"]
exclude_patterns = ["_build"]

myst_enable_extensions = ["dollarmath", "deflist", "colon_fence"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = f"afm-fx {__version__}"
html_static_path = ["_static"]
html_css_files = ["tables.css"]
html_math_renderer = "mathml"
html_show_sphinx = False
html_copy_source = False

autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_class_signature = "mixed"
autodoc_preserve_defaults = True
autodoc_default_options = {"members": True}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
add_module_names = False
python_use_unqualified_type_names = True
