"""The families of models.

A Family says how a `config.json` becomes a module, which tensors fill it and how its prompts look.
A new one is one file with those functions and one entry in FAMILIES.
"""

import functools
from typing import Any

from manu_jax.models.families import (
    gemma3,
    idefics2,
    idefics3,
    llava,
    llava_next,
    llava_onevision,
    paligemma,
    qwen_vl,
    tiny,
)
from manu_jax.models.families.family import Family
from manu_jax.models.inputs import processing, vision_inputs
from manu_jax.types import Template

EXPORT_NAMES: dict[str, Any] = dict(
    name_prefixes=llava.NAME_PREFIXES, buffers=llava.BUFFERS, tied=llava.tied
)
QWEN_VL: dict[str, Any] = dict(
    build=qwen_vl.QwenVL,
    mlps=qwen_vl.mlps,
    weight_table=qwen_vl.weight_table,
    name_prefixes=qwen_vl.NAME_PREFIXES,
    buffers=qwen_vl.BUFFERS,
    tied=qwen_vl.tied,
    replacements=qwen_vl.replacements,
    vision_inputs=qwen_vl.vision_inputs,
    new_processor=tiny.qwen_vl_processor,
    template=qwen_vl.TEMPLATE,
    load_processor=functools.partial(
        processing.processor_without_videos, image_token="<|image_pad|>"
    ),
    rope_positions=qwen_vl.rope_positions,
)
IDEFICS3: dict[str, Any] = dict(
    build=idefics3.Idefics3,
    weight_table=idefics3.weight_table,
    name_prefixes=idefics2.NAME_PREFIXES,
    buffers=idefics2.BUFFERS,
    tied=idefics2.tied,
    replacements=idefics3.replacements,
    vision_inputs=idefics3.vision_inputs,
    new_processor=tiny.idefics3_processor,
    template=idefics3.TEMPLATE,
    template_of=idefics3.template_of,
    load_processor=functools.partial(
        processing.processor_without_videos, image_token=idefics3.PLACEHOLDER
    ),
)
FAMILIES: dict[str, Family] = {
    "llava": Family(
        name="LLaVA-1.5",
        model_type="llava",
        config_from_hf=llava.config_from_hf,
        build=llava.Llava,
        weight_table=llava.weight_table,
        **EXPORT_NAMES,
        replacements=processing.repeated_token,
        vision_inputs=vision_inputs.square_vision_input,
        new_config=tiny.llava_config,
        new_processor=tiny.llava_processor,
        template=Template(),
    ),
    "llava_next": Family(
        name="LLaVA-NeXT",
        model_type="llava_next",
        config_from_hf=llava_next.config_from_hf,
        build=llava_next.LlavaNext,
        weight_table=llava_next.weight_table,
        name_prefixes=llava_next.NAME_PREFIXES,
        buffers=llava.BUFFERS,
        tied=llava.tied,
        replacements=llava_next.replacements,
        vision_inputs=llava_next.vision_inputs,
        feature_rows=llava_next.feature_rows,
        new_config=tiny.llava_next_config,
        new_processor=tiny.llava_next_processor,
        template=Template(),
        template_of=llava_next.template_of,
        load_processor=llava_next.load_processor,
    ),
    "llava_onevision": Family(
        name="LLaVA-OneVision",
        model_type="llava_onevision",
        config_from_hf=llava_onevision.config_from_hf,
        build=llava_next.LlavaNext,
        weight_table=llava_next.weight_table,
        name_prefixes=llava_next.NAME_PREFIXES,
        buffers=llava.BUFFERS,
        tied=llava.tied,
        replacements=llava_onevision.replacements,
        vision_inputs=llava_next.vision_inputs,
        vision_inputs_of_many=llava_onevision.vision_inputs_of_many,
        feature_rows=llava_onevision.feature_rows,
        new_config=tiny.llava_onevision_config,
        new_processor=tiny.llava_onevision_processor,
        template=llava_onevision.TEMPLATE,
        load_processor=functools.partial(
            processing.processor_without_videos, image_token=llava_onevision.PLACEHOLDER
        ),
    ),
    "paligemma": Family(
        name="PaliGemma",
        model_type="paligemma",
        config_from_hf=paligemma.config_from_hf,
        build=paligemma.PaliGemma,
        weight_table=paligemma.weight_table,
        **EXPORT_NAMES,
        replacements=processing.repeated_token,
        vision_inputs=vision_inputs.square_vision_input,
        new_config=tiny.paligemma_config,
        new_processor=tiny.paligemma_processor,
        template=paligemma.TEMPLATE,
        template_of=paligemma.template_of,
        prompt_sees_ahead=True,
    ),
    "gemma3": Family(
        name="Gemma 3",
        model_type="gemma3",
        config_from_hf=gemma3.config_from_hf,
        build=gemma3.Gemma3,
        weight_table=gemma3.weight_table,
        **EXPORT_NAMES,
        replacements=gemma3.replacements,
        vision_inputs=gemma3.vision_inputs,
        new_config=tiny.gemma3_config,
        new_processor=tiny.gemma3_processor,
        template=gemma3.TEMPLATE,
        placeholder="boi_token",
    ),
    "idefics2": Family(
        name="Idefics2",
        model_type="idefics2",
        config_from_hf=idefics2.config_from_hf,
        build=idefics2.Idefics2,
        mlps=idefics2.mlps,
        weight_table=idefics2.weight_table,
        name_prefixes=idefics2.NAME_PREFIXES,
        buffers=idefics2.BUFFERS,
        tied=idefics2.tied,
        replacements=idefics2.replacements,
        vision_inputs=idefics2.vision_inputs,
        new_config=tiny.idefics2_config,
        new_processor=tiny.idefics2_processor,
        template=idefics2.TEMPLATE,
    ),
    "qwen2_vl": Family(
        name="Qwen2-VL",
        model_type="qwen2_vl",
        config_from_hf=qwen_vl.qwen2_config,
        new_config=tiny.qwen2_vl_config,
        **QWEN_VL,
    ),
    "qwen2_5_vl": Family(
        name="Qwen2.5-VL",
        model_type="qwen2_5_vl",
        config_from_hf=qwen_vl.qwen2_5_config,
        new_config=tiny.qwen2_5_vl_config,
        **QWEN_VL,
    ),
    "idefics3": Family(
        name="Idefics3",
        model_type="idefics3",
        config_from_hf=idefics3.idefics3_config,
        new_config=functools.partial(tiny.idefics3_config, name="Idefics3"),
        **IDEFICS3,
    ),
    "smolvlm": Family(
        name="SmolVLM",
        model_type="smolvlm",
        config_from_hf=idefics3.smolvlm_config,
        new_config=functools.partial(tiny.idefics3_config, name="SmolVLM"),
        **IDEFICS3,
    ),
}
