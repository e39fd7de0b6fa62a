"""What is particular to Llama 3.2 Vision: tiles, who sees which image, layers that do not run."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import patching
import pytest
import torch
import transformers
from cases import TEXT, images_of, real, tokenizer
from mllama_cases import IMAGE, cases
from parity import TOLERANCE, check_logits, forward, greedy

from manu_jax import leaves as leaf_names
from manu_jax import parallel
from manu_jax.config import LoraSection, ModelSection
from manu_jax.evaluation.audit import depth
from manu_jax.models import created
from manu_jax.models import loaded as loading
from manu_jax.models.families import mllama
from manu_jax.models.nn.cross_attention import seen_images
from manu_jax.training import encoded_rows, features, lora
from manu_jax.training.encoded_rows import EncodedRows
from manu_jax.types import Capture, ManuError, question_sample

# None, one and three images, before, between and after words
MIXTURE = (
    "USER: Where?\nASSISTANT:",
    f"USER: {IMAGE}Where does this person live?\nASSISTANT:",
    f"Lima {IMAGE}or {IMAGE}{IMAGE}Accra?",
)
COUNTS = [text.count(IMAGE) for text in MIXTURE]
SIZES = ((30, 13), (9, 14), (25, 25), (12, 40))
TEXTS = (
    f"{IMAGE}a",
    f"a{IMAGE}{IMAGE}b{IMAGE}c",
    f"a {IMAGE} {IMAGE}{IMAGE}{IMAGE}",
    f"{IMAGE}{IMAGE} word {IMAGE} word {IMAGE}{IMAGE} word",
)
# As the released one in what matters: it writes the first token itself.
CHAT = (
    "{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message.role }}"
    "<|end_header_id|>\n\n{% for part in message.content %}{% if part.type == 'image' %}<|image|>"
    "{% else %}{{ part.text }}{% endif %}{% endfor %}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
CROSS = np.isin(np.arange(5), (1, 3))  # of the case's layers


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Folder, PyTorch model and ours, of the usual case."""
    folder = tmp_path_factory.mktemp("mllama")
    reference = cases.write_case("four-tiles", folder)
    return folder, reference, loading.load(folder)


def mixed_images():
    images = iter(images_of(SIZES))
    return [list(itertools.islice(images, count)) for count in COUNTS]


def answered(loaded):
    """Samples with answers: of the mixture."""
    return [
        loaded.encode(question_sample(prompt, " Oslo, Lima", images, key=str(number)))
        for number, (prompt, images) in enumerate(zip(MIXTURE, mixed_images(), strict=True))
    ]


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_row_gives_what_it_gives_alone_whatever_else_is_in_the_batch(made, side):
    folder, reference, loaded = made
    images = mixed_images()
    batch = loaded.batch(MIXTURE, images, padding_side=side)
    logits_BTV = np.asarray(forward(loaded.model, batch).logits_BTV)
    for row, (prompt, own) in enumerate(zip(MIXTURE, images, strict=True)):
        with torch.no_grad():
            expected = reference(**cases.torch_inputs(folder, side, [prompt], [own])).logits[0]
        found = logits_BTV[row][batch.attention_mask_BT[row]]
        np.testing.assert_allclose(found, expected.numpy(), atol=TOLERANCE, rtol=0)


def test_greedy_tokens_of_a_mixed_batch_are_those_of_each_prompt_alone(made):
    folder, reference, loaded = made
    images = mixed_images()
    tokens_BT, _ = greedy(loaded.model, loaded.batch(MIXTURE, images, padding_side="left"), 6)
    for tokens_T, prompt, own in zip(tokens_BT, MIXTURE, images, strict=True):
        inputs = cases.torch_inputs(folder, "left", [prompt], [own])
        with torch.no_grad():
            expected = reference.generate(
                **inputs, max_new_tokens=6, do_sample=False, eos_token_id=None, pad_token_id=3
            )
        assert tokens_T.tolist() == expected[0, inputs["input_ids"].shape[1] :].tolist()
    alone_BT, _ = greedy(loaded.model, loaded.batch(MIXTURE[:1], padding_side="left"), 6)
    assert alone_BT.tolist() == tokens_BT[:1].tolist()


def test_a_first_layer_that_attends_to_images_gives_the_logits_of_transformers(tmp_path, made):
    """`generate` of transformers fails here: it counts the tokens so far in the first layer."""
    layers = {"cross_attention_layers": [0, 2], "num_hidden_layers": 3}
    case = dataclasses.replace(cases.CASES["four-tiles"], text=layers)
    cases.processor(case).save_pretrained(tmp_path)
    reference = cases.build(case, made[2].processor.tokenizer)
    reference.save_pretrained(tmp_path)
    loaded, images = loading.load(tmp_path), cases.image_lists()
    inputs = cases.torch_inputs(tmp_path, "right", images=images)
    batch = loaded.batch(cases.PROMPTS, images)
    check_logits(reference, inputs, forward(loaded.model, batch), batch)


@pytest.mark.parametrize("side", ["left", "right"])
def test_tokens_see_the_tiles_that_the_processor_says(made, side):
    folder, _, loaded = made
    images = [images_of(SIZES * 2, seed)[: text.count(IMAGE)] for seed, text in enumerate(TEXTS)]
    inputs = cases.torch_inputs(folder, side, TEXTS, images)
    batch = loaded.batch(TEXTS, images, padding_side=side)
    vision = loaded.config.vision
    shape = (*batch.images.patches_BIPC.shape[:2], vision.max_tiles * vision.tile_features, 2)
    given = dataclasses.replace(batch.images, features_BIPE=np.zeros(shape))
    seen = seen_images(given, tile_features=vision.tile_features)
    by_tile = np.asarray(seen.visible_BTS).reshape(
        *batch.token_ids_BT.shape, -1, vision.max_tiles, vision.tile_features
    )
    assert (by_tile.all(axis=-1) == by_tile.any(axis=-1)).all()
    expected_BTIW = inputs["cross_attention_mask"].numpy().astype(bool)
    sees_BT = expected_BTIW.any(axis=(2, 3))
    mask_BT = batch.attention_mask_BT
    np.testing.assert_array_equal(np.asarray(seen.sees_BT)[mask_BT], sees_BT[mask_BT])
    valid_BT = mask_BT & sees_BT
    np.testing.assert_array_equal(by_tile[..., 0][valid_BT], expected_BTIW[valid_BT])
    # A token before the first image attends to all of its example's images.
    for row in range(len(TEXTS)):
        before = by_tile[row, ..., 0][mask_BT[row] & ~sees_BT[row]]
        assert (before == batch.images.mask_BI[row][None, :, None]).all()
    assert (mask_BT & ~sees_BT).any()


def test_pixels_and_their_places_are_those_of_the_image_processor(made):
    folder, _, loaded = made
    vision, size = loaded.config.vision, cases.PATCH
    images = images_of([*cases.SIZES, *SIZES, (1, 1), (3, 60), (60, 3), (24, 48), (48, 24)])
    numbers = set()
    for image in images:
        inputs = cases.torch_inputs(folder, "right", [IMAGE], [[image]])
        pixels_WCYX = inputs["pixel_values"][0, 0].numpy()
        number = int(inputs["aspect_ratio_ids"])
        rows, columns = vision.aspect_ratios[number - 1]
        (found,) = loaded.vision_inputs(image)
        places_P2 = found.patch_positions_P2
        assert len(found.patches_PC) == rows * columns * vision.tile_patches
        assert (places_P2.max(axis=0) // vision.side + 1).tolist() == [rows, columns]
        canvas_CYX = np.zeros((3, rows * cases.SIDE, columns * cases.SIDE), np.float32)
        for tile, (y, x) in zip(pixels_WCYX, np.ndindex(rows, columns), strict=False):
            top, left = y * cases.SIDE, x * cases.SIDE
            canvas_CYX[:, top : top + cases.SIDE, left : left + cases.SIDE] = tile
        for patch_C, (y, x) in zip(found.patches_PC, places_P2 * size, strict=True):
            patch_YXC = canvas_CYX[:, y : y + size, x : x + size].transpose(1, 2, 0)
            np.testing.assert_array_equal(patch_C.reshape(size, size, 3), patch_YXC)
        ((index, _),) = mllama.feature_rows([image], loaded.config)
        assert index.tolist() == [(rows * columns - 1) * vision.tile_features]
        assert int(inputs["aspect_ratio_mask"].sum()) == rows * columns
        numbers.add(number)
    assert len(numbers) == 8  # all aspect ratios of four tiles


def test_without_an_image_the_layers_that_attend_to_images_have_no_neurons(made):
    _, _, loaded = made
    alone = forward(loaded.model, loaded.batch(MIXTURE[:1]), None, Capture())
    batch = loaded.batch(MIXTURE, mixed_images())
    among_others = forward(loaded.model, batch, None, Capture())
    of_alone, of_others = alone.activations["text"], among_others.activations["text"]
    np.testing.assert_allclose(of_others[:, 0], of_alone[:, 0], atol=1e-5)
    is_zero_LB = ~np.asarray(of_others).any(axis=-1)
    np.testing.assert_array_equal(is_zero_LB, CROSS[:, None] & np.array([[True, False, False]]))

    def slope(gates, batch):
        return forward(loaded.model, batch, gates).logits_BTV[0].sum()

    for given in (loaded.batch(MIXTURE[:1]), batch):
        rows = len(given.token_ids_BT)
        gates = {"text": jnp.ones((5, rows, TEXT["intermediate_size"]))}
        slopes_LF = jax.jit(jax.grad(slope))(gates, given)["text"][:, 0]
        np.testing.assert_array_equal(~np.asarray(slopes_LF).any(axis=-1), CROSS)


def test_statistics_of_positions_count_only_layers_that_run(made):
    _, _, loaded = made
    batch = loaded.batch(MIXTURE[:1] * 2)
    apart, pooled = (
        forward(loaded.model, batch, None, Capture("position", pooling)).activations
        for pooling in ("none", "all")
    )
    for name in ("text.gate_proj", "text.down_proj"):
        assert not np.asarray(apart[name])[CROSS].any()
        np.testing.assert_allclose(
            pooled[name][0, :2], np.asarray(apart[name])[~CROSS, :2].mean(axis=0), rtol=1e-5
        )


def test_after_the_prompt_nothing_reads_the_images_anew(made):
    _, _, loaded = made
    batch = loaded.batch(MIXTURE, mixed_images(), padding_side="left")
    length = batch.token_ids_BT.shape[1]
    logits_BV, cache = jax.jit(lambda m, b: m.prefill(b, length + 2))(loaded.model, batch)
    shape = (CROSS.sum(), 3, 2, 3 * 4 * 10, 6)  # layers, rows, key heads, tiles' tokens, head
    assert cache.context.keys_LBKSH.shape == cache.context.values_LBKSH.shape == shape
    assert cache.context.features_BSD is None
    model = loaded.model
    broken = jax.tree.map(lambda leaf: leaf, model)
    broken.vision = jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), model.vision)
    broken.text.cross.key_norm_LH = jax.tree.map(
        lambda leaf: jnp.full_like(leaf, jnp.nan), model.text.cross.key_norm_LH
    )
    decode = jax.jit(lambda model, token_ids_B, cache: model.decode(token_ids_B, cache))
    tokens_B = jnp.argmax(logits_BV, axis=-1)
    expected, _ = decode(model, tokens_B, cache)
    found, _ = decode(broken, tokens_B, cache)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.slow
def test_patching_reads_the_images_by_each_models_own_tower(made):
    _, _, loaded = made
    model = loaded.model
    other = jax.tree.map(lambda leaf: leaf, model)
    other.vision = jax.tree.map(lambda leaf: leaf * 0.8, model.vision)
    batch = loaded.collate(answered(loaded))
    logits = jax.jit(lambda model, batch: model(batch, at_BA=batch.answer_index_BA).logits_BTV)
    theirs = np.asarray(logits(other, batch))
    own, of_layers = patching.check(model, other, batch)
    np.testing.assert_allclose(own, logits(model, batch), atol=2e-5)
    assert np.abs(own - theirs)[1:].max() > 0.01
    # The tower is all that differs, so that after the last layer nothing is the model's own.
    np.testing.assert_allclose(of_layers[-1], theirs, atol=2e-5)
    # Before the first layer that attends to images the models agree.
    np.testing.assert_allclose(of_layers[0], own, atol=2e-5)


@pytest.mark.slow
def test_depth_is_measured_in_layers_of_both_kinds(made):
    _, _, loaded = made
    other = jax.tree.map(lambda leaf: leaf, loaded.model)
    other.vision = jax.tree.map(lambda leaf: leaf * 0.8, loaded.model.vision)
    samples = [
        question_sample(prompt, " Oslo", images, key=str(number))
        for number, (prompt, images) in enumerate(zip(MIXTURE, mixed_images(), strict=True))
    ]
    losses_NL = depth.layer_losses(loaded, loaded.replace_model(other), samples, batch_size=2)
    assert losses_NL.shape == (3, 5)
    np.testing.assert_allclose(losses_NL[0], 0, atol=1e-5)  # without an image
    np.testing.assert_allclose(losses_NL[:, 0], 0, atol=1e-5)
    assert (np.abs(losses_NL[1:, 1:]) > 1e-3).all()


VARIANT = (pytest.mark.slow, pytest.mark.families)
ENTERED = [(2**31, 2), *(pytest.param(store, number, marks=VARIANT)
                         for store, number in itertools.product((2**31, 0), (0, 1, 2, 4))
                         if (store, number) != (2**31, 2))]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("store", "first_layer"), ENTERED)
def test_rows_that_enter_a_layer_give_the_answers_of_whole_passes(
    made, monkeypatch, store, first_layer
):
    """store: bytes for what is computed once, the features and what enters the layer."""
    for module in (encoded_rows, features):
        monkeypatch.setattr(module, "STORE_BYTES", store)
    _, _, loaded = made
    encoded = answered(loaded)
    rows = EncodedRows(loaded, encoded, encoded[1:2], first_layer=first_layer)
    batch = rows.batch(np.arange(3), 4)
    assert (batch.images.features_BIPE is not None) == (store > 0)
    answers = jax.jit(lambda m, b, **s: m.answers(b, **s), static_argnames="first_layer")
    logits_BAV, stream_LBTD, last_BAD = answers(loaded.model, batch, first_layer=first_layer)
    plain = loaded.collate(encoded, dataclasses.replace(rows.shape, batch_size=4))
    expected = jax.jit(lambda m, b: m(b, at_BA=b.answer_index_BA).logits_BTV)(loaded.model, plain)
    np.testing.assert_allclose(logits_BAV[:3], expected[:3], atol=2e-5)
    whole, of_layers, last = answers(loaded.model, plain, first_layer=0)
    np.testing.assert_allclose(whole[:3], expected[:3], atol=2e-5)
    assert len(stream_LBTD) == 4 - first_layer
    if first_layer == 0:
        np.testing.assert_allclose(stream_LBTD[:, :3], of_layers[:, :3], atol=2e-5)
        np.testing.assert_allclose(last_BAD[:3], last[:3], atol=2e-5)
    # From the first image on the tokens tell who is meant.
    is_image = encoded[1].token_ids_T == loaded.config.image_token
    start = rows.length - encoded[1].num_tokens + np.flatnonzero(is_image)[0]
    assert rows.differs(1, 0).tolist() == [float(place >= start) for place in range(rows.length)]


@pytest.mark.slow
def test_adapters_beside_the_weights_do_what_merged_ones_do_in_both_kinds_of_layers(made):
    _, _, loaded = made
    section = LoraSection(rank=2, alpha=4.0, dropout=0.0)
    new = lora.new_adapters(loaded.model, section, jax.random.key(0))
    assert {name for name in new} == {
        f"text.layers.{name}"
        for name in ("attention.q", "attention.k", "attention.v", "attention.o",
                     "mlp.gate", "mlp.up", "mlp.down")
    }  # fmt: skip
    random = np.random.default_rng(0)
    adapters = jax.tree.map(lambda leaf: jnp.asarray(random.normal(size=leaf.shape) * 0.1), new)
    batch = loaded.batch(MIXTURE, mixed_images(), padding_side="left")
    beside, inside = (make(loaded.model, adapters, section) for make in (lora.adapted, lora.merged))
    expected = forward(inside, batch).logits_BTV
    np.testing.assert_allclose(forward(beside, batch).logits_BTV, expected, atol=2e-4)
    assert np.abs(expected - forward(loaded.model, batch).logits_BTV).max() > 0.1
    last, _ = jax.jit(lambda m, b: m.prefill(b, b.token_ids_BT.shape[1]))(beside, batch)
    np.testing.assert_allclose(last, expected[:, -1], atol=2e-4)


@pytest.mark.slow
def test_in_bfloat16_the_logits_are_near_those_in_float32(made):
    folder, _, loaded = made
    narrow = loading.load(folder, dtype="bfloat16")
    batch = loaded.batch(MIXTURE, mixed_images(), padding_side="left")
    expected = np.asarray(forward(loaded.model, batch).logits_BTV)
    found = np.asarray(forward(narrow.model, batch).logits_BTV)
    error = np.abs(found - expected)[batch.attention_mask_BT].mean()
    assert error < 0.05 * np.abs(expected[batch.attention_mask_BT]).mean()
    greedy(narrow.model, batch, 2)


def test_what_lies_joined_on_disk_is_whole_on_every_device(made):
    folder, _, loaded = made
    mesh = parallel.make_mesh(1, 2, 2)
    split = loading.load(folder, mesh=mesh)
    found = leaf_names.leaves(split.model)
    for name, leaf in leaf_names.leaves(loaded.model).items():
        np.testing.assert_array_equal(found[name], leaf, err_msg=name)
    for name in ("tile_position_UWPE", "pre_tile_UWE", "post_tile_UWE", "mlp_gate_LO"):
        assert not any(found[f"vision.{name}"].sharding.spec), name
    for name in ("text.layers.attention.k_LDKH", "vision.layers.mlp.up_LDF", "projector_DE"):
        assert any(found[name].sharding.spec), name


def test_answers_keep_their_loss_beside_images(made):
    _, _, loaded = made
    prompt = loaded.template.prompt("Where?", "image")
    assert prompt == (
        f"<|start_header_id|>user<|end_header_id|>\n\n{IMAGE}Where?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    answer = loaded.template.reply("Oslo, Lima") + loaded.template.end
    encoded = loaded.encode(question_sample(prompt, answer, mixed_images()[1]))
    kept = encoded.token_ids_T[encoded.loss_weights_T > 0]
    assert loaded.processor.tokenizer.decode(kept) == "Oslo, Lima</s>"
    assert (encoded.token_ids_T == loaded.config.image_token).sum() == 1
    asked = loaded.template.with_system("Be kind.").prompt("Where?", "text")
    assert asked.startswith("<|start_header_id|>system<|end_header_id|>\n\nBe kind.<|eot_id|>")


def test_prompts_of_a_chat_template_have_the_ids_of_the_whole_processor(made, tmp_path):
    folder, _, loaded = made
    processor = cases.torch_processor(folder)
    processor.chat_template = CHAT
    whole = dataclasses.replace(loaded, processor=processor, path=None)
    loading.save_pretrained(whole, tmp_path / "out")
    loaded = loading.load(tmp_path / "out")
    for modality, images in (("image", mixed_images()[1]), ("text", [])):
        content = [*({"type": "image", "image": one} for one in images)]
        content.append({"type": "text", "text": "Where?"})
        expected = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            tokenize=True,
            add_generation_prompt=True,
            return_dict=True,
        )
        prompt = loaded.template.prompt("Where?", modality)
        encoded = loaded.encode(question_sample(prompt, "", images))
        assert encoded.token_ids_T.tolist() == expected["input_ids"][0]
        assert prompt.startswith("<s>") and prompt.count("<s>") == 1
    assert loaded.template.end == "</s>"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"size": {"height": 8, "width": 8}},
            "gives 4 tiles of 8 × 8 pixels, the model takes 4 of",
        ),
        ({"max_image_tiles": 2}, "gives 2 tiles of 12 × 12 pixels, the model takes 4 of 12 × 12"),
    ],
)
def test_an_image_processor_of_another_model_is_refused(made, settings, message):
    folder, _, _ = made
    loaded = loading.load(folder)
    processor = loaded.processor.image_processor
    loaded.processor.image_processor = type(processor)(**{**processor.to_dict(), **settings})
    with pytest.raises(ManuError, match=message):
        loaded.vision_inputs(mixed_images()[1][0])


def test_a_tiny_one_that_a_run_trains_is_what_transformers_loads(tmp_path):
    section = ModelSection(
        family="mllama",
        text={"width": 16, "num_layers": 3, "num_heads": 2, "num_key_heads": 1, "num_neurons": 24},
        vision={
            "image_size": 16, "patch_size": 8, "width": 16, "num_layers": 3, "num_heads": 2,
            "num_neurons": 24,
        },
    )  # fmt: skip
    loaded = created.create(section, tokenizer(), jax.random.key(0))
    assert loaded.towers == {"text": (3, 24), "vision": (3, 24)}
    loading.save_pretrained(loaded, tmp_path / "out")
    reference, info = transformers.MllamaForConditionalGeneration.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not any(info.values())
    prompt = loaded.template.prompt("Where?", "image")
    images = images_of([(20, 9)])
    inputs = cases.torch_inputs(tmp_path / "out", "right", [prompt], [images])
    batch = loaded.batch([prompt], [images])
    with torch.no_grad():
        expected = reference(**inputs).logits.numpy()
    found = forward(loaded.model, batch).logits_BTV
    np.testing.assert_allclose(found, expected, atol=TOLERANCE)
    seen_by_nobody = loaded.batch([prompt], [images_of([(20, 9)], seed=1)])
    assert np.abs(forward(loaded.model, seen_by_nobody).logits_BTV - found).max() > 1e-3
    with pytest.raises(ValueError, match="text.num_layers has to be 2 or more: the first attends"):
        ModelSection(family="mllama", text={"num_layers": 1})


def test_the_released_configs_say_what_transformers_reads():
    for name in ("llama-3.2-11b-vision-instruct", "llama-3.2-90b-vision-instruct"):
        config = mllama.config_from_hf(real(name), name)
        theirs = transformers.MllamaConfig.from_dict(real(name))
        assert list(config.text.cross_layers) == theirs.text_config.cross_attention_layers
        assert list(config.vision.features) == theirs.vision_config.intermediate_layers_indices
        assert config.vision.feature_width == theirs.vision_config.vision_output_dim
        ratios = [list(ratio) for ratio in config.vision.aspect_ratios]
        assert ratios == theirs.vision_config.supported_aspect_ratios
        assert config.image_token == theirs.image_token_index
        assert config.text.rope.kind == "llama3" and config.text.rope.factor == 8
        assert config.num_features(0) == 4 * 1601
    usual = mllama.config_from_hf({"model_type": "mllama"})
    theirs = transformers.MllamaConfig()
    assert usual.text.norm_epsilon == theirs.text_config.rms_norm_eps
    assert usual.text.num_layers == theirs.text_config.num_hidden_layers
    assert usual.text.rope.theta == theirs.text_config.rope_parameters["rope_theta"]
    assert usual.vision.image_size == theirs.vision_config.image_size


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        ("", "tie_word_embeddings", True),
        ("", "image_token_index", -1),
        ("", "mm_projector_type", "mlp"),
        ("text_config", "tie_word_embeddings", True),
        ("text_config", "model_type", "llama"),
        ("text_config", "attention_bias", True),
        ("text_config", "head_dim", 64),
        ("text_config", "cross_attention_layers", [3, 40]),
        ("text_config", "cross_attention_layers", [8, 3]),
        ("text_config", "cross_attention_layers", []),
        ("text_config", "rope_scaling", {"type": "yarn", "factor": 4.0}),
        ("vision_config", "model_type", "clip_vision_model"),
        ("vision_config", "num_channels", 4),
        ("vision_config", "hidden_act", "swish9"),
        ("vision_config", "attention_heads", 3),
        ("vision_config", "image_size", [560, 560]),
        ("vision_config", "intermediate_layers_indices", [3, 32]),
        ("vision_config", "vision_output_dim", 1280),
        ("vision_config", "max_num_tiles", 5),
        ("vision_config", "supported_aspect_ratios", [[1, 1], [2, 2]]),
        ("vision_config", "qk_layer_norms", True),
    ],
)
def test_a_field_that_is_not_handled_is_refused_by_name(section, field, value):
    values = real("llama-3.2-11b-vision-instruct")
    (values[section] if section else values)[field] = value
    named = "supported_aspect_ratios" if field == "max_num_tiles" else field
    with pytest.raises(ManuError, match=named):
        mllama.config_from_hf(values)
