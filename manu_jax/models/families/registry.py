"""All families of models by the `model_type` of their `config.json`; a new one is a line here."""

from manu_jax.models.families import (
    gemma3,
    idefics2,
    idefics3,
    internvl,
    llama,
    llava,
    llava_next,
    llava_onevision,
    mllama,
    paligemma,
    qwen3_vl,
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
    qwen3_vl.FAMILY,
    *idefics3.FAMILIES,
    internvl.FAMILY,
    llama.FAMILY,
    mllama.FAMILY,
)
FAMILIES: dict[str, Family] = {family.model_type: family for family in _FAMILIES}
