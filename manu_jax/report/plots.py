"""The report's plots: forget against keep over α, person by person, and where neurons sit.

A plot is at most `WIDTH` wide, so that it can be read on a phone without zooming; what is wider
(many layers) scrolls inside its own container.
"""

import dataclasses
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import markupsafe
import matplotlib
import matplotlib.markers
import matplotlib.patches
import numpy as np

from manu_jax.evaluation.analyses.sweep import SweepPoint
from manu_jax.report.inputs import PruneCount
from manu_jax.report.numbers import PersonChange
from manu_jax.report.results import Results
from manu_jax.report.svg import (
    ACCENT,
    IMAGE_COLOR,
    INK,
    PAPER,
    SERIES,
    STYLE,
    TEXT_COLOR,
    VARIABLES,
    WIDTH,
    Plot,
    described,
    new_figure,
    to_svg,
)
from manu_jax.types import RETRAINED, VANILLA

MARKERS = "osD^vPX*"
MODALITY_COLORS = {"image": IMAGE_COLOR, "text": TEXT_COLOR}
MODALITY_HEADINGS = {"image": "Asked with the portrait", "text": "Asked by name"}
TOWER_HEADINGS = {
    "text": "Language tower",
    "vision": "Vision tower",
    "projection": "Projection",
    "resampler": "Resampler",
}


@dataclasses.dataclass(frozen=True)
class LegendEntry:
    """A method's name, the CSS variable of its colour, and its marker as SVG (26 × 12 box)."""

    name: str
    variable: str
    shape: markupsafe.Markup
    is_headline: bool


def sweep_view(results: Results) -> dict[str, Any]:
    """Return what the section on the sweep shows."""
    points = results.analyses.get("alpha_sweep", ())
    return {
        "is_unseen": _kept(points) == "unseen",
        "sweep": sweep_plots(points, results.headline),
        "legend": legend(points, results.headline),
    }


def sweep_methods(points: Sequence[SweepPoint], headline: str) -> list[str]:
    """Return the methods of a sweep, the headline's first, without the reference points."""
    names = dict.fromkeys(point.method for point in points)
    methods = [name for name in names if name not in (VANILLA, RETRAINED)]
    return sorted(methods, key=lambda name: name != headline)


def legend(points: Sequence[SweepPoint], headline: str) -> list[LegendEntry]:
    """Return one entry per method of the sweep, in the order of its colours."""
    return [
        LegendEntry(name, VARIABLES[_series(i)], _marker_shape(i), name == headline)
        for i, name in enumerate(sweep_methods(points, headline))
    ]


def sweep_plots(points: Sequence[SweepPoint], headline: str) -> list[Plot]:
    """Return one plot per modality: right on forget against right on those to keep, by method."""
    kept = _kept(points)
    methods = sweep_methods(points, headline)
    plots = []
    for modality, heading in MODALITY_HEADINGS.items():
        values = {
            (point.method, point.alpha, point.set): point.value
            for point in points
            if point.modality == modality
        }
        curves = {name: _curve(values, name, kept) for name in (*methods, VANILLA, RETRAINED)}
        if any(curves[name] for name in methods):
            plots.append(_sweep_plot(curves, methods, headline=headline, heading=heading))
    return plots


def people_plots(changes: Mapping[str, Sequence[PersonChange]]) -> list[Plot]:
    """Return one dumbbell plot per modality: each person's answers before and after."""
    return [
        _people_plot(lines, MODALITY_HEADINGS[modality], MODALITY_COLORS[modality])
        for modality, lines in changes.items()
    ]


def heat_maps(counts: Mapping[str, Sequence[PruneCount]]) -> list[Plot]:
    """Return one map per tower: layers across, methods down, colour deepening with the share."""
    towers = dict.fromkeys(count.tower for parts in counts.values() for count in parts)
    largest = largest_share(counts)
    return [
        _heat_map(
            {m: p.share_L for m, parts in counts.items() for p in parts if p.tower == tower},
            tower,
            largest or 1.0,
        )
        for tower in towers
    ]


def largest_share(counts: Mapping[str, Sequence[PruneCount]]) -> float:
    """Return the largest share of a layer that any method removes: the deepest colour of a map."""
    return max(
        (float(part.share_L.max()) for parts in counts.values() for part in parts), default=0.0
    )


def _marker_shape(index: int) -> markupsafe.Markup:
    """Return the marker of the plots as an SVG path centred in a box of 26 × 12."""
    marker = matplotlib.markers.MarkerStyle(MARKERS[index % len(MARKERS)])
    polygons = marker.get_path().transformed(marker.get_transform()).to_polygons()
    path = "".join(
        "M" + "L".join(f"{13 + 9 * x:.2f} {6 - 9 * y:.2f}" for x, y in np.asarray(polygon)) + "Z"
        for polygon in polygons
    )
    return markupsafe.Markup(f'<path d="{path}" fill="var({VARIABLES[_series(index)]})"/>')


def _series(index: int) -> str:
    return SERIES[index % len(SERIES)]


def _kept(points: Sequence[SweepPoint]) -> str:
    """Return the set of the people to keep that a sweep measured."""
    return "unseen" if any(point.set == "unseen" for point in points) else "retain"


def _curve(
    values: Mapping[tuple[str, float, str], float], method: str, kept: str
) -> list[tuple[float, float, float]]:
    """Return (alpha, forget, keep) by rising alpha, where both sets were measured."""
    alphas = sorted({alpha for name, alpha, _ in values if name == method})
    return [
        (alpha, values[method, alpha, "forget"], values[method, alpha, kept])
        for alpha in alphas
        if (method, alpha, "forget") in values and (method, alpha, kept) in values
    ]


def _sweep_plot(
    curves: Mapping[str, Sequence[tuple[float, float, float]]],
    methods: Sequence[str],
    *,
    headline: str,
    heading: str,
) -> Plot:
    start = curves[VANILLA][:1]
    with matplotlib.rc_context(STYLE):
        figure, axes = new_figure(WIDTH, 350, left=58, right=14, top=14, bottom=50)
        for index, name in reversed(list(enumerate(methods))):
            curve = curves[name]
            line = [*start, *curve]
            axes.plot(
                [100 * forget for _, forget, _ in line],
                [100 * retain for _, _, retain in line],
                color=_series(index),
                linewidth=2.2 if name == headline else 1.3,
                zorder=3 if name == headline else 2,
            )
            _dot(
                axes,
                [100 * forget for _, forget, _ in curve],
                [100 * retain for _, _, retain in curve],
                color=_series(index),
                marker=MARKERS[index % len(MARKERS)],
                markersize=7 if name == headline else 6.5,
                markeredgecolor=PAPER,
                markeredgewidth=0.8,
                zorder=5 if name == headline else 4,
            )
        for name, label in ((VANILLA, "before"), (RETRAINED, "retrained")):
            for _, forget, retain in curves[name][:1]:
                _ring(axes, 100 * forget, 100 * retain, size=9, color=INK, zorder=6)
                axes.annotate(
                    label,
                    (100 * forget, 100 * retain),
                    xytext=(0, 10),
                    textcoords="offset points",
                    ha="right" if forget > 0.9 else "left" if forget < 0.12 else "center",
                    zorder=7,
                )
        _percent_across(axes)
        lowest = min(100 * retain for line in curves.values() for _, _, retain in line)
        bottom = max(0, 25 * int((lowest - 2) // 25))
        axes.set_ylim(bottom, 100 + 0.09 * (100 - bottom))
        axes.yaxis.set_ticks(range(bottom, 101, 25 if bottom < 75 else 5))
        _label_alphas(axes, curves.get(headline, ()))
        axes.set_xlabel("people to forget, % right")
        axes.set_ylabel("people to keep, % right")
        svg = to_svg(figure, heading)
    words = "; ".join(
        f"{name}: "
        + ", ".join(
            f"α {100 * a:g} %: forget {100 * f:.0f}, keep {100 * r:.0f}" for a, f, r in line
        )
        for name, line in curves.items()
        if line and name in methods
    )
    alt = f"{heading}: percent right on people to forget and to keep, by method and α. {words}."
    return described(heading, svg, alt=alt, width=WIDTH)


def _label_alphas(axes: Any, curve: Sequence[tuple[float, float, float]]) -> None:
    """Write α at the points of the headline's curve, leaving out labels that would collide."""
    placed: list[tuple[float, float]] = []
    for alpha, forget, retain in curve:
        x, y = axes.transData.transform((100 * forget, 100 * retain))
        if all(abs(x - px) > 46 or abs(y - py) > 18 for px, py in placed):
            axes.annotate(
                f"{100 * alpha:g} %",
                (100 * forget, 100 * retain),
                xytext=(-9, -14),
                textcoords="offset points",
                fontsize=11,
                ha="center",
                zorder=3.5,  # over the lines, under the markers
                bbox={"facecolor": PAPER, "linewidth": 0, "edgecolor": PAPER, "pad": 0.8},
            )
            placed.append((x, y))


def _percent_across(axes: Any) -> None:
    """Let x go from 0 to 100 %, with room for half a marker."""
    axes.set_xlim(0, 102)
    axes.xaxis.set_ticks([0, 25, 50, 75, 100])


def _ring(axes: Any, x: float, y: float, *, size: float, color: str, zorder: int) -> None:
    """Draw a hollow marker: the model before, or one that is only compared with."""
    style = {"markerfacecolor": PAPER, "markeredgecolor": color, "markeredgewidth": 1.7}
    _dot(axes, x, y, marker="o", markersize=size, zorder=zorder, **style)


def _dot(axes: Any, x: Any, y: Any, **style: Any) -> None:
    """Draw markers without lines, whole at the border too."""
    axes.plot(x, y, linestyle="none", clip_on=False, **style)


def _people_plot(lines: Sequence[PersonChange], heading: str, color: str) -> Plot:
    pitch = 30 if len(lines) <= 15 else 20
    names = [_short(line.name or line.person) for line in lines]
    left = 22 + int(6.6 * max(map(_columns, names)))
    with matplotlib.rc_context(STYLE):
        height = 62 + pitch * len(lines)
        figure, axes = new_figure(WIDTH, height, left=left, right=16, top=8, bottom=46)
        axes.grid(axis="y", visible=False)
        for y, line in enumerate(lines):
            before, after = 100 * line.before, 100 * line.after
            if before != after:
                axes.plot([before, after], [y, y], color=color, linewidth=2.4, alpha=0.45, zorder=2)
            _ring(axes, before, y, size=10.5, color=color, zorder=4)
            _dot(axes, after, y, marker="o", markersize=6.5, color=color, zorder=5)
            if line.reference is not None:
                axes.plot(
                    [100 * line.reference] * 2,
                    [y - 0.32, y + 0.32],
                    color=INK,
                    linewidth=1.8,
                    zorder=3,
                    clip_on=False,
                )
        _percent_across(axes)
        axes.set_ylim(len(lines) - 0.4, -0.6)
        axes.yaxis.set_ticks(range(len(lines)), names, color=INK)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel("% right")
        svg = to_svg(figure, f"people {heading}")
    words = "; ".join(
        f"{line.name or line.person}: {100 * line.before:.0f} before, {100 * line.after:.0f} after"
        + (f", {100 * line.reference:.0f} retrained" if line.reference is not None else "")
        for line in lines
    )
    alt = f"{heading}: percent right per person. {words}."
    return described(heading, svg, alt=alt, width=WIDTH)


def _heat_map(shares: Mapping[str, np.ndarray], tower: str, largest: float) -> Plot:
    methods = list(shares)
    num_layers = max(len(share_L) for share_L in shares.values())
    left = 20 + int(6.8 * max(map(_columns, methods)))
    cell = max(20, min(96, (WIDTH - left - 10) // num_layers))
    width, height = left + cell * num_layers + 10, 54 + 30 * len(methods)
    heading = TOWER_HEADINGS.get(tower, tower)
    with matplotlib.rc_context({**STYLE, "axes.grid": False}):
        figure, axes = new_figure(width, height, left=left, right=10, top=6, bottom=48)
        for y, name in enumerate(methods):
            for x, share in enumerate(shares[name]):
                depth = float(share) / largest
                box = matplotlib.patches.Rectangle(
                    (x + 0.02, y + 0.04), 0.96, 0.92, color=ACCENT, alpha=0.06 + 0.94 * depth, lw=0
                )
                axes.add_patch(box)
                if cell >= 36:
                    axes.text(
                        x + 0.5,
                        y + 0.52,
                        _share_text(float(share)),
                        ha="center",
                        va="center",
                        fontsize=11,
                        color=PAPER if depth > 0.5 else INK,
                    )
        axes.set_xlim(0, num_layers)
        axes.set_ylim(len(methods), 0)
        step = 1 if num_layers <= 12 else 4
        axes.xaxis.set_ticks([i + 0.5 for i in range(0, num_layers, step)])
        axes.set_xticklabels([str(i) for i in range(0, num_layers, step)])
        axes.yaxis.set_ticks([i + 0.5 for i in range(len(methods))], methods, color=INK)
        for spine in axes.spines.values():
            spine.set_visible(False)
        axes.set_xlabel("layer")
        svg = to_svg(figure, f"map {tower}")
    words = "; ".join(
        f"{name}: " + ", ".join(_share_text(float(share)) for share in share_L)
        for name, share_L in shares.items()
    )
    alt = f"{heading}: percent of each layer's neurons that are pruned, first layer first. {words}."
    return described(heading, svg, alt=alt, width=width)


def _share_text(share: float) -> str:
    return f"{100 * share:.0f}" if share >= 0.0995 or share == 0 else f"{100 * share:.1f}"


def _short(name: str, most: int = 22) -> str:
    """Return a name in at most so many columns, with an ellipsis where it is cut."""
    if _columns(name) <= most:
        return name
    while _columns(name) > most - 1:
        name = name[:-1]
    return f"{name}…"


def _columns(text: str) -> int:
    """Return how wide a text is in letters; those of Chinese, Japanese and Korean are two."""
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)
