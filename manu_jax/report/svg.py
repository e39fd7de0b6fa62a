"""Matplotlib figures as inline SVG that takes the page's fonts and colours.

Matplotlib draws with placeholder colours. Each is replaced by a CSS variable of the page, so that a
plot follows its light and dark themes. Text remains text.
"""

import dataclasses
import io
import re
import warnings
from typing import Any

import matplotlib
import matplotlib.figure

WIDTH = 440  # CSS pixels
FONT = 12
INK, MUTED, RULE, PAPER = "#010101", "#020202", "#030303", "#040404"
IMAGE_COLOR, TEXT_COLOR, ACCENT = "#050505", "#060606", "#070707"
SERIES = ("#080808", "#090909", "#0a0a0a", "#0b0b0b", "#0c0c0c", "#0d0d0d", "#0e0e0e", "#0f0f0f")
VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    RULE: "--rule",
    PAPER: "--paper",
    IMAGE_COLOR: "--form-image",
    TEXT_COLOR: "--form-text",
    ACCENT: "--accent",
    **{color: f"--series-{index}" for index, color in enumerate(SERIES)},
}
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "manu_jax",
    "font.family": "DejaVu Sans",
    "font.size": FONT,
    "axes.edgecolor": RULE,
    "axes.labelcolor": MUTED,
    "axes.linewidth": 1.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.8,
    "text.color": INK,
    "text.parse_math": False,  # names of people and methods are drawn as they are, with their $
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.major.pad": 7,
    "ytick.major.pad": 8,
}


@dataclasses.dataclass(frozen=True)
class Plot:
    """An SVG element, its heading, and the same in words for those who do not see it."""

    heading: str
    alt: str
    svg: str
    width: int


def new_figure(
    width: int, height: int, *, left: int, right: int, top: int, bottom: int
) -> tuple[matplotlib.figure.Figure, Any]:
    """Return a figure of this many CSS pixels (72 dots an inch) and its axes, margins as given."""
    figure = matplotlib.figure.Figure(figsize=(width / 72, height / 72), dpi=72)
    figure.patch.set_alpha(0)
    axes = figure.add_axes(
        (left / width, bottom / height, 1 - (left + right) / width, 1 - (top + bottom) / height)
    )
    axes.patch.set_alpha(0)
    return figure, axes


def to_svg(figure: matplotlib.figure.Figure, name: str) -> str:
    """Return the figure as an SVG element with the page's variables and identifiers of its own."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}), warnings.catch_warnings():
        # The browser draws the text, and finds the letters that Matplotlib's font lacks.
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font")
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<style type="text/css">.*?</style>', "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"', "", svg).replace("xlink:href", "href")
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = svg.replace("font-family: 'DejaVu Sans'; ", "")
    for color, variable in VARIABLES.items():
        svg = svg.replace(color, f"var({variable})")
    slug = re.sub(r"\W+", "-", name.lower())
    svg = re.sub(r'\bid="', f'id="{slug}-', svg)
    svg = re.sub(r'href="#', f'href="#{slug}-', svg)
    return svg.replace("url(#", f"url(#{slug}-").strip()


def described(heading: str, svg: str, *, alt: str, width: int) -> Plot:
    """Return the plot with its SVG marked as one image that `alt` describes."""
    words = alt.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    box = re.search(r'viewBox="[^"]*"', svg)
    body = svg[svg.index(">") + 1 :]
    start = f'<svg {box.group() if box else ""} role="img" aria-label="{words}" width="{width}">'
    return Plot(heading, alt, start + body, width)
