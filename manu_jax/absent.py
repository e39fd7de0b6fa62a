"""Forms that nothing of a run is asked in: the image form of a model that takes no images."""

from collections.abc import Mapping
from typing import TypeVar

from manu_jax.config import AnyMethod, MaskMethod, RunConfig, UnlearnSection
from manu_jax.models.families.family import Family
from manu_jax.types import MODALITIES, ManuError, Modality

SomeMethod = TypeVar("SomeMethod", bound=AnyMethod)


def absent_of(family: Family) -> dict[Modality, str]:
    """Return {a form that models of a family can't be asked in: why}."""
    if family.takes_images:
        return {}
    return {"image": f"the model ({family.name}) takes no images"}


def in_forms(method: SomeMethod, absent: Mapping[Modality, str]) -> SomeMethod:
    """Return a method without the forms that are absent, and the towers that they alone score.

    absent: {form: why}. Raises ManuError where a method is to train in these forms alone.
    """
    if not absent:
        return method
    if isinstance(method, UnlearnSection):
        left = tuple(form for form in method.modalities if form not in absent)
        if not left:
            others = ", ".join(form for form in MODALITIES if form not in absent)
            raise ManuError(
                f"unlearn ({method.name}).modalities: {', '.join(method.modalities)}, but "
                f"{'; '.join(absent.values())}. Name others: modalities: [{others}]."
            )
        return method.model_copy(update={"modalities": left})
    if not isinstance(method, MaskMethod):
        return method
    towers = {form: names for form, names in method.towers.items() if form not in absent}
    scored = {name for names in towers.values() for name in names}
    layers = {
        name: part for name, part in method.layers.items() if "all" in scored or name in scored
    }
    return method.model_copy(update={"towers": towers, "layers": layers})


def check_goal(config: RunConfig, absent: Mapping[Modality, str]) -> None:
    """Raise ManuError where the goal of a config is in a form that is absent ({form: why})."""
    if config.erase == "visual" and "image" in absent:
        raise ManuError(
            f"erase: visual forgets where people are shown, but {absent['image']}. Give "
            "erase: both."
        )
