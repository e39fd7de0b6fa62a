"""What is particular to Qwen3-VL: positions of tokens and patches, sizes of images, its config."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from cases import DATA, USUAL, real
from parity import check_logits, forward
from qwen3_vl_cases import Qwen3VLCases, cases
from transformers.models.qwen3_vl import modeling_qwen3_vl
from transformers.vision_utils import get_vision_interpolation_indices_and_weights

from manu_jax.models import loaded as loading
from manu_jax.models.families import qwen3_vl
from manu_jax.models.families.registry import FAMILIES
from manu_jax.models.nn.qwen3_vision import Qwen3Vision
from manu_jax.models.nn.rope import rotary_angles
from manu_jax.types import ManuError, question_sample

RELEASED = sorted(path.stem for path in DATA.glob("qwen3-vl*.json"))
FAMILY = qwen3_vl.FAMILY


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("qwen3")
    return cases.write_case("three-layers", folder), loading.load(folder), folder


def test_positions_are_those_of_get_rope_index(made):
    reference, loaded, folder = made
    images = cases.image_lists()
    for side in ("left", "right"):
        inputs = cases.torch_inputs(folder, side, images=images)
        expected, _ = reference.model.get_rope_index(
            inputs["input_ids"],
            inputs["mm_token_type_ids"],
            image_grid_thw=inputs["image_grid_thw"],
            attention_mask=inputs["attention_mask"],
        )
        batch = loaded.batch(cases.PROMPTS, images, padding_side=side)
        np.testing.assert_array_equal(batch.rope_BT3, expected.permute(1, 2, 0).numpy())


@pytest.mark.parametrize("sections", [(24, 20, 20), (22, 21, 21), (2, 31, 31), (64, 0, 0)])
def test_the_three_positions_take_turns_as_in_transformers(sections):
    values = real("qwen3-vl-8b")
    values["text_config"]["rope_scaling"]["mrope_section"] = list(sections)
    config = FAMILY.config_from_hf(values)
    assert config.text.rope.is_interleaved
    positions_BT3 = np.random.default_rng(0).integers(0, 900, (2, 7, 3))
    theirs = modeling_qwen3_vl.Qwen3VLTextRotaryEmbedding(
        transformers.Qwen3VLConfig.from_dict(values).text_config
    )
    expected = theirs(torch.zeros(1), torch.tensor(positions_BT3).permute(2, 0, 1))
    found = rotary_angles(jnp.asarray(positions_BT3), config.text.rope, config.text.head_size)
    for ours, one in zip(found, expected, strict=True):
        # Of angles up to 900, which float32 rounds in the fifth digit after the point.
        np.testing.assert_allclose(ours, one[..., : ours.shape[-1]].numpy(), atol=2e-4)


@pytest.mark.parametrize("grid", [(2, 2), (2, 130), (48, 48), (6, 10), (50, 34)])
def test_learned_positions_are_interpolated_as_in_transformers(grid):
    """Of the released grid of 48 × 48, to fewer, as many and more rows and columns."""
    config = FAMILY.config_from_hf(real("qwen3-vl-2b")).vision
    tower = object.__new__(Qwen3Vision)
    table_PD = np.random.default_rng(0).normal(size=(config.side**2, 3)).astype(np.float32)
    object.__setattr__(tower, "config", config)
    object.__setattr__(tower, "position_PD", jnp.asarray(table_PD))
    rows, columns = grid
    index_P4, weights_P4 = get_vision_interpolation_indices_and_weights(
        torch.tensor([[1, rows, columns]]), config.side, align_corners=True
    )
    expected_PD = (table_PD[index_P4] * weights_P4.numpy()[..., None]).sum(axis=1)
    positions_P2 = np.moveaxis(np.indices(grid), 0, -1).reshape(1, -1, 2)
    padded_BP2 = np.concatenate([positions_P2, np.full((1, 5, 2), -1)], axis=1)
    found_BPD = jax.jit(lambda positions: Qwen3Vision._learned(tower, positions))(padded_BP2)
    np.testing.assert_allclose(found_BPD[0, : rows * columns], expected_PD, atol=1e-4)


@pytest.mark.parametrize(
    "edges", [(1536, 4096), (64, 256)], ids=["all are made larger", "all are made smaller"]
)
def test_images_are_scaled_to_the_fewest_and_the_most_pixels_as_in_transformers(tmp_path, edges):
    class Scaled(Qwen3VLCases):
        SIZES = ((9, 41), (20, 21), (33, 8), (30, 30))

        def processor(self, case=USUAL):
            parts = super().processor(case)
            size = parts.image_processor.size
            parts.image_processor.size = type(size)(shortest_edge=edges[0], longest_edge=edges[1])
            return parts

    scaled = Scaled()
    reference = scaled.write_case("three-layers", tmp_path)
    loaded, images = loading.load(tmp_path), scaled.image_lists()
    inputs = scaled.torch_inputs(tmp_path, "right", images=images)
    batch = loaded.batch(cases.PROMPTS, images)
    counts = inputs["image_grid_thw"].prod(dim=1)
    assert len(set(counts.tolist())) > 1 and counts.max() * 16 <= edges[1]
    check_logits(reference, inputs, forward(loaded.model, batch), batch)


def test_the_prompt_has_no_system_prompt_of_its_own(made):
    _, loaded, _ = made
    usual = loaded.template.prompt("Where?", "image")
    assert usual == f"<|im_start|>user\n{cases.SEEN}Where?<|im_end|>\n<|im_start|>assistant\n"
    other = loaded.template.with_system("Do not tell.").prompt("Where?", "text")
    assert other.startswith("<|im_start|>system\nDo not tell.<|im_end|>\n<|im_start|>user\nWhere?")
    encoded = loaded.encode(question_sample(usual, "Oslo<|im_end|>", cases.image_lists()[0]))
    assert encoded.token_ids_T[-1] in loaded.eos_ids and encoded.loss_weights_T[-1] == 1


@pytest.mark.parametrize("name", RELEASED)
def test_what_transformers_writes_says_what_the_released_config_says(name):
    values = real(name)
    theirs = transformers.Qwen3VLConfig.from_dict(values)
    written = json.loads(theirs.to_json_string(use_diff=False))
    assert "rope_parameters" in written["text_config"]
    config = FAMILY.config_from_hf(values, name)
    assert FAMILY.config_from_hf(written, name) == config
    assert config.text.rope.theta == 5e6 and config.text.rope.sections == (24, 20, 20)
    assert config.text.has_head_norms and not config.text.qkv_bias
    assert len(config.vision.deepstack) == 3 and config.vision.side == 48


def test_what_a_config_leaves_out_is_what_transformers_takes():
    ours = FAMILY.config_from_hf({"text_config": {"hidden_size": 3584}, "vision_config": {}})
    theirs = transformers.Qwen3VLConfig(text_config={"hidden_size": 3584})
    written = json.loads(theirs.to_json_string(use_diff=False))
    assert FAMILY.config_from_hf(written) == ours


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        ("", "attn_logit_softcapping", 30.0),
        ("text_config", "num_experts", 128),
        ("text_config", "sliding_window", 4096),
        ("text_config", "model_type", "qwen3_vl_moe_text"),
        ("text_config", "rope_scaling", {"mrope_section": [16, 24, 20]}),
        ("text_config", "rope_scaling", {"mrope_interleaved": False}),
        ("text_config", "rope_scaling", {"rope_type": "yarn", "factor": 4.0}),
        ("vision_config", "model_type", "qwen3_vl_moe"),
        ("vision_config", "in_channels", 4),
        ("vision_config", "out_hidden_size", 1024),
        ("vision_config", "hidden_act", "swish9"),
        ("vision_config", "num_position_embeddings", 2300),
        ("vision_config", "rope_parameters", {"rope_type": "axial", "rope_theta": 5.0}),
        ("vision_config", "window_size", 112),
        ("vision_config", "deepstack_visual_indexes", [16, 8, 24]),
        ("vision_config", "deepstack_visual_indexes", [8, 8, 24]),
        ("vision_config", "deepstack_visual_indexes", [8, 27]),
        ("vision_config", "deepstack_visual_indexes", [8.0]),
        ("vision_config", "deepstack_visual_indexes", 8),
    ],
)
def test_a_field_that_is_not_handled_is_refused_by_name(section, field, value):
    values = real("qwen3-vl-8b")
    (values[section] if section else values)[field] = value
    with pytest.raises(ManuError, match="merger's width" if field == "out_hidden_size" else field):
        FAMILY.config_from_hf(values)


def test_a_mixture_of_experts_is_refused_by_name(tmp_path):
    values = real("qwen3-vl-8b") | {"model_type": "qwen3_vl_moe"}
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(ManuError, match=r"'qwen3_vl_moe'.*qwen3_vl"):
        loading.load(tmp_path)
    assert "qwen3_vl_moe" not in FAMILIES
