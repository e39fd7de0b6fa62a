"""A certificate's content → one HTML page, to be read on a screen and printed on one or two sheets.

What the content is: requests/certificate.py. The page asks the network for nothing.
"""

from collections.abc import Mapping
from typing import Any

from manu_jax.report.numbers import NARROW_SPACE, SET_TITLES
from manu_jax.report.render import environment

FORMS = {"image": "with the image", "text": "by name"}
MOST_SUBJECTS = 12
TITLES = {
    **SET_TITLES,
    "forget": "As asked",
    "test": "With other images",
    "retain": "To keep, given to the method",
    "unseen": "To keep, not given to it",
}


def render(content: Mapping[str, Any]) -> str:
    """Return the page of a certificate."""
    subjects = content["asked"]["subjects"]
    return (
        environment()
        .get_template("certificate.html.jinja")
        .render(
            certificate=content,
            forms=FORMS,
            titles=TITLES,
            subjects=", ".join(subjects[:MOST_SUBJECTS]),
            more_subjects=max(len(subjects) - MOST_SUBJECTS, 0),
            settings=_settings(content["method"]["settings"]),
            share=_share,
            interval=_interval,
            day=lambda time: time.replace("T", " ").replace("+00:00", " UTC"),
        )
    )


def _share(found: Mapping[str, Any] | None) -> str:
    """Return a share of right answers as "93 %", or "0.4 %": as the title, without a last zero."""
    if found is None:
        return "not asked"
    return f"{100 * found['value']:.1f}".removesuffix(".0") + f"{NARROW_SPACE}%"


def _interval(found: Mapping[str, Any] | None) -> str:
    """Return "88–97" of a share, or "" where there is no interval."""
    if found is None or found["low"] is None:
        return ""
    return f"{100 * found['low']:.0f}–{100 * found['high']:.0f}"


def _settings(values: Any) -> str:
    """Return the settings that say something: "alpha 0.1, functions (absolute 1, rms 1)"."""
    if isinstance(values, Mapping):
        known = {key: value for key, value in values.items() if value not in (None, {}, [], ())}
        return ", ".join(
            f"{key} ({_settings(value)})"
            if isinstance(value, Mapping)
            else f"{key} {_settings(value)}"
            for key, value in known.items()
        )
    if isinstance(values, list | tuple):
        return " ".join(map(_settings, values))
    return f"{values:g}" if isinstance(values, float) else str(values)
