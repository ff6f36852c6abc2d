"""How the documentation is built: `make docs` writes it to build/docs."""

import torchrec

project = "rowwise"
author = "the rowwise maintainers"
copyright = author
version = release = torchrec.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
source_suffix = {".md": "markdown"}

html_theme = "furo"
html_title = f"rowwise {version}"

myst_enable_extensions = ["colon_fence", "fieldlist"]
myst_heading_anchors = 3

# Single backticks in docstrings name things of the package where they can, and are code elsewhere.
default_role = "py:obj"
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
add_module_names = False
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
