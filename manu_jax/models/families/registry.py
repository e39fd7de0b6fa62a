"""All families of models by the `model_type` of their `config.json`; a new one is a line here."""

from manu_jax.models.families import (
    gemma3,
    idefics2,
    idefics3,
    llama,
    llava,
    llava_next,
    llava_onevision,
    mllama,
    paligemma,
    qwen_vl,
)
from manu_jax.models.families.family import Family

_FAMILIES = (
    llava.FAMILY,
    llava_next.FAMILY,
    llava_onevision.FAMILY,
    paligemma.FAMILY,
    gemma3.FAMILY,
    idefics2.FAMILY,
    *qwen_vl.FAMILIES,
    *idefics3.FAMILIES,
    llama.FAMILY,
    mllama.FAMILY,
)
FAMILIES: dict[str, Family] = {family.model_type: family for family in _FAMILIES}
