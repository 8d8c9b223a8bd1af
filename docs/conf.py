"""The site that sphinx-build makes of these pages."""

project = "vgg-export"
extensions = ["myst_parser"]
exclude_patterns = ["conf.py"]
html_theme = "furo"
html_title = "vgg-export"
html_show_copyright = False
myst_heading_anchors = 3
suppress_warnings = ["myst.header"]  # some pages begin below the first level
