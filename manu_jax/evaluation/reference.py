"""What a model that has forgotten is held against: the level of never having known.

The gold standard is a model that was trained without the people to forget. Where there is none, it
is what the vanilla model itself says about invented people (training/strangers_target.py). What is
to be kept is held against that gold standard, too, or else against the vanilla model.
"""

import dataclasses

from manu_jax.types import RETRAINED

STRANGERS = "strangers"


@dataclasses.dataclass(frozen=True)
class Reference:
    """What distances on the people to forget are from.

    name: in results.json. title, text: of the table of distances.
    """

    name: str
    title: str
    text: str


REFERENCES = {
    one.name: one
    for one in (
        Reference(
            RETRAINED,
            "Distance from the retrained model",
            "KL divergence from it at the answers’ tokens (0: the same), and whether the truth "
            "ratios of multiple-choice items can be told from its (Kolmogorov–Smirnov; alike: p ≥ "
            "0.05). The test takes the items of a person as independent, which they are not: its "
            "p-values are too small.",
        ),
        Reference(
            STRANGERS,
            "Distance from what is said of strangers",
            "There is no retrained model. The reference on the people to forget is what the "
            "vanilla model says of invented people: the mean of its probabilities for the same "
            "question about each of them; on the people to keep it is the vanilla model itself. KL "
            "divergence from it at the answers’ tokens (0: the same).",
        ),
    )
}
