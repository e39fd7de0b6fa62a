"""Every released size, by shapes alone: its neurons, parameters and tensors."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from cases import real

from manu_jax import leaves as leaf_names
from manu_jax.leaves import num_parameters
from manu_jax.models.families.registry import FAMILIES
from manu_jax.models.hf import weights

# A config in tests/data: its family, its number of parameters, and (layers, neurons a layer) of
# its decoder and of its vision tower. The numbers of parameters are those of `transformers` on the
# meta device; those of llava-1.5-7b and of Qwen are published, too.
SIZES = {
    "llava-1.5-7b": ("llava", 7_063_427_072, (32, 11008), (23, 4096)),
    "llava-1.5-13b": ("llava", 13_351_494_656, (40, 13824), (23, 4096)),
    "llava-v1.6-vicuna-7b": ("llava_next", 7_063_431_168, (32, 11008), (23, 4096)),
    "llava-v1.6-vicuna-13b": ("llava_next", 13_351_499_776, (40, 13824), (23, 4096)),
    "llava-v1.6-mistral-7b": ("llava_next", 7_566_747_648, (32, 14336), (23, 4096)),
    "llava-v1.6-34b": ("llava_next", 34_752_083_968, (60, 20480), (23, 4096)),
    "llava-onevision-qwen2-0.5b": ("llava_onevision", 893_675_552, (24, 4864), (26, 4304)),
    "llava-onevision-qwen2-7b": ("llava_onevision", 8_030_807_584, (28, 18944), (26, 4304)),
    "llava-onevision-qwen2-72b": ("llava_onevision", 73_181_570_592, (80, 29568), (26, 4304)),
    "paligemma-3b-224": ("paligemma", 2_923_466_480, (18, 16384), (27, 4304)),
    "paligemma-3b-448": ("paligemma", 2_924_351_216, (18, 16384), (27, 4304)),
    "paligemma-3b-896": ("paligemma", 2_927_890_160, (18, 16384), (27, 4304)),
    "paligemma2-3b-224": ("paligemma", 3_032_242_416, (26, 9216), (27, 4304)),
    "paligemma2-10b-224": ("paligemma", 9_662_409_456, (42, 14336), (27, 4304)),
    "paligemma2-28b-224": ("paligemma", 27_650_192_112, (46, 36864), (27, 4304)),
    "gemma3-4b": ("gemma3", 4_300_079_472, (34, 10240), (27, 4304)),
    "gemma3-12b": ("gemma3", 12_187_325_040, (48, 15360), (27, 4304)),
    "gemma3-27b": ("gemma3", 27_432_406_640, (62, 21504), (27, 4304)),
    "idefics2-8b": ("idefics2", 8_402_768_112, (32, 14336), (27, 4304)),
    "idefics3-8b-llama3": ("idefics3", 8_462_086_384, (32, 14336), (27, 4304)),
    "granite-docling-258m": ("idefics3", 257_517_120, (30, 1536), (12, 3072)),
    "smolvlm-256m-instruct": ("idefics3", 256_484_928, (30, 1536), (12, 3072)),
    "smolvlm-500m-instruct": ("idefics3", 507_482_304, (32, 2560), (12, 3072)),
    "smolvlm-instruct": ("idefics3", 2_246_272_880, (24, 8192), (27, 4304)),
    "smolvlm2-2.2b-instruct": ("smolvlm", 2_246_784_880, (24, 8192), (27, 4304)),
    "internvl3-1b": ("internvl", 938_193_024, (24, 4864), (24, 4096)),
    "internvl3-2b": ("internvl", 2_088_957_440, (28, 8960), (24, 4096)),
    "internvl3-8b": ("internvl", 7_944_373_760, (28, 18944), (24, 4096)),
    "internvl3-14b": ("internvl", 15_117_256_704, (48, 13824), (24, 4096)),
    "internvl3-38b": ("internvl", 38_388_164_992, (64, 27648), (45, 12800)),
    "internvl3-78b": ("internvl", 78_408_318_336, (80, 29568), (45, 12800)),
    "llama-3.2-11b-vision-instruct": ("mllama", 10_670_220_835, (40, 14336), (40, 5120)),
    "llama-3.2-90b-vision-instruct": ("mllama", 88_593_355_323, (100, 28672), (40, 5120)),
    "qwen2-vl-2b": ("qwen2_vl", 2_208_985_600, (28, 8960), (32, 5120)),
    "qwen2-vl-7b": ("qwen2_vl", 8_291_375_616, (28, 18944), (32, 5120)),
    "qwen2-vl-72b": ("qwen2_vl", 73_405_560_320, (80, 29568), (32, 5120)),
    "qwen2.5-vl-3b": ("qwen2_5_vl", 3_754_622_976, (36, 11008), (32, 3420)),
    "qwen2.5-vl-7b": ("qwen2_5_vl", 8_292_166_656, (28, 18944), (32, 3420)),
    "qwen2.5-vl-32b": ("qwen2_5_vl", 33_452_718_336, (64, 27648), (32, 3456)),
    "qwen2.5-vl-72b": ("qwen2_5_vl", 73_410_777_344, (80, 29568), (32, 3456)),
    "qwen3-vl-2b": ("qwen3_vl", 2_127_532_032, (28, 6144), (24, 4096)),
    "qwen3-vl-4b": ("qwen3_vl", 4_437_815_808, (36, 9728), (24, 4096)),
    "qwen3-vl-8b": ("qwen3_vl", 8_767_123_696, (36, 12288), (27, 4304)),
    "qwen3-vl-32b": ("qwen3_vl", 33_357_390_064, (64, 25600), (27, 4304)),
}
# The largest of a family, and those that are peculiar. The others are the same code with other
# numbers: in the slow suite.
ALWAYS = {
    "llava-1.5-13b", "llava-v1.6-mistral-7b", "llava-v1.6-34b", "llava-onevision-qwen2-72b",
    "paligemma-3b-896", "paligemma2-28b-224", "gemma3-27b", "idefics2-8b", "idefics3-8b-llama3",
    "granite-docling-258m", "smolvlm2-2.2b-instruct", "internvl3-1b", "internvl3-78b",
    "llama-3.2-90b-vision-instruct", "qwen2-vl-72b", "qwen2.5-vl-72b", "qwen3-vl-2b",
    "qwen3-vl-32b",
}  # fmt: skip
# Towers beside these two
FURTHER = {"idefics2-8b": {"projection": (1, 14336), "resampler": (3, 16384)}}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in ALWAYS else [pytest.mark.slow]) for n in SIZES]
)
def test_released_sizes_have_the_published_counts(name):
    family, parameters, text, vision = SIZES[name]
    values = real(name)
    assert values["model_type"] == family
    chosen = FAMILIES[family]
    config = chosen.config_from_hf(values, name)
    model = chosen.abstract(config, jnp.bfloat16)
    assert num_parameters(model) == parameters
    assert chosen.towers(config) == {"text": text, "vision": vision, **FURTHER.get(name, {})}
    shapes = leaf_names.shapes(model)
    table = chosen.weight_table(config)
    assert {entry.path for entry in table} == set(shapes)

    hub_config = transformers.CONFIG_MAPPING[family].from_dict(values)
    with torch.device("meta"):
        hub = transformers.AutoModelForImageTextToText.from_config(hub_config)
    # A tied model has the repeat in memory, and no tensor for it.
    stored = {
        key: weights.Tensor(Path(name), key, tuple(x.shape), "F32")
        for key, x in hub.state_dict().items()
    }
    _, theirs = weights.with_export_names(stored, chosen.names.prefixes, chosen.names.buffers)
    theirs = {key: x.shape for key, x in theirs.items() if key not in chosen.tied(config)}
    names = [name for entry in table for name in entry.names(shapes[entry.path])]
    assert sorted(names) == sorted(theirs)
    assert sum(np.prod(shape) for shape in theirs.values()) == parameters
    theirs = hub.config.text_config
    assert config.text.norm_epsilon == theirs.rms_norm_eps
    assert config.text.activation == (
        getattr(theirs, "hidden_activation", None) or theirs.hidden_act
    )
    if "rope_theta" in theirs.rope_parameters:  # Gemma 3 has two: test_gemma3.py
        assert config.text.rope.theta == theirs.rope_parameters["rope_theta"]
