"""
How Sphinx builds these pages; run it as `.ci/run docs` does, with warnings as errors.
"""

from importlib.metadata import version as installed_version

project = "txasynchat"
author = "The txasynchat authors"
copyright = "The txasynchat authors"
release = version = installed_version("txasynchat")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.doctest",
    "sphinx.ext.napoleon",
]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "txasynchat"

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

autodoc_inherit_docstrings = False  # those of Twisted are in another language
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_class_signature = "separated"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
# `name` in a docstring is code, wherever it leads.
default_role = "code"
