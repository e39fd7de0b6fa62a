"""A GGUF file becomes the Hugging Face folder that its weights came from."""

import importlib.metadata
import types

import from_gguf
import numpy as np
import pytest
from transformers import AutoTokenizer, LlamaConfig

gguf = pytest.importorskip("gguf")
torch = pytest.importorskip("torch")

CONFIG = LlamaConfig(
    vocab_size=300, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64, rms_norm_eps=1e-5,
    rope_theta=5000.0, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2, pad_token_id=2,
)  # fmt: skip
# The other way round: names in a Hugging Face folder → in a GGUF file.
THEIRS = {ours: theirs for theirs, ours in (from_gguf.LAYER_TENSORS | from_gguf.TENSORS).items()}


def permuted(rows, num_heads):
    """The order of llama.cpp's converter (convert_hf_to_gguf.py, LlamaModel.permute)."""
    split = rows.reshape(num_heads, 2, rows.shape[0] // num_heads // 2, *rows.shape[1:])
    return split.swapaxes(1, 2).reshape(rows.shape)


def tokens():
    from tokenizers import pre_tokenizers

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("h", "e"), ("l", "l"), ("he", "ll"), ("1", "9"), ("Ġ", "w")]
    found = special + letters + ["".join(pair) for pair in merges]
    found += [f"<unused{number}>" for number in range(CONFIG.vocab_size - len(found))]
    return found, [" ".join(pair) for pair in merges]


def write_gguf(path, taught, **changes):
    """Write a model as llama.cpp's converter does; `changes` replace values of the metadata."""
    values = {"architecture": "llama", "model": "gpt2", "pre": "smollm", **changes}
    writer = gguf.GGUFWriter(path, values["architecture"])
    writer.add_block_count(CONFIG.num_hidden_layers)
    writer.add_context_length(CONFIG.max_position_embeddings)
    writer.add_embedding_length(CONFIG.hidden_size)
    writer.add_feed_forward_length(CONFIG.intermediate_size)
    writer.add_head_count(CONFIG.num_attention_heads)
    writer.add_head_count_kv(CONFIG.num_key_value_heads)
    writer.add_rope_freq_base(5000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    if "scaling" in values:
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    if "factor" in values:
        writer.add_float32(values["factor"], 4.0)
    names, merges = tokens()
    writer.add_tokenizer_model(values["model"])
    writer.add_tokenizer_pre(values["pre"])
    writer.add_token_list(names)
    writer.add_token_types([3] * 3 + [1] * (len(names) - 3))
    writer.add_token_merges(merges)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template("{{ messages[0]['content'] }}")
    for name, tensor in taught.state_dict().items():
        rows = tensor.numpy()
        if name == "lm_head.weight":
            continue
        if name.startswith("model.layers."):
            _, _, layer, rest = name.split(".", 3)
            part = THEIRS[rest.removesuffix(".weight")]
            heads = {"attn_q": CONFIG.num_attention_heads, "attn_k": CONFIG.num_key_value_heads}
            rows = permuted(rows, heads[part]) if part in heads else rows
            writer.add_tensor(f"blk.{layer}.{part}.weight", np.ascontiguousarray(rows))
        else:
            writer.add_tensor(f"{THEIRS[name.removesuffix('.weight')]}.weight", rows)
    if "tensor" in values:
        writer.add_tensor(values["tensor"], np.zeros(4, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def model():
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(CONFIG).eval()


def test_the_folder_holds_the_model_that_the_file_was_made_from(model, tmp_path):
    from transformers import LlamaForCausalLM

    file = write_gguf(tmp_path / "model.gguf", model)
    assert from_gguf.main([str(file), str(tmp_path / "hf")]) == 0
    found = LlamaForCausalLM.from_pretrained(tmp_path / "hf")
    assert found.config.rms_norm_eps == 1e-5 and found.config.tie_word_embeddings
    theirs = model.state_dict()
    for name, tensor in found.state_dict().items():
        assert torch.equal(tensor, theirs[name]), name
    ids = torch.tensor([[5, 9, 250, 7]])
    with torch.no_grad():
        assert torch.equal(found(ids).logits, model(ids).logits)


def test_the_tokenizer_is_that_of_the_file(model, tmp_path):
    file = write_gguf(tmp_path / "model.gguf", model)
    assert from_gguf.main([str(file), str(tmp_path / "hf"), "--dtype", "bfloat16"]) == 0
    found = AutoTokenizer.from_pretrained(tmp_path / "hf", local_files_only=True)
    names, _ = tokens()
    text = "hello 1984<|im_end|>"
    ids = found(text)["input_ids"]
    # Digits stand alone, though there is a merge of 1 and 9.
    assert [names[i] for i in ids] == ["hell", "o", "Ġ", "1", "9", "8", "4", "<|im_end|>"]
    assert found.decode(ids) == text
    assert (found.bos_token, found.eos_token, found.pad_token) == (names[1], names[2], names[2])
    assert found.chat_template == "{{ messages[0]['content'] }}"


@pytest.mark.parametrize(
    "changes, told",
    [
        ({"architecture": "qwen2"}, "general.architecture 'qwen2'; known: llama"),
        ({"scaling": True}, "llama.rope.scaling.type 'yarn'; known: 'none'"),
        ({"factor": "llama.rope.scaling.factor"}, "llama.rope.scaling.factor 4.0; known: 1.0"),
        ({"factor": "llama.rope.scale_linear"}, "llama.rope.scale_linear 4.0; known: 1.0"),
        ({"model": "llama", "pre": "llama-bpe"}, "tokenizer.ggml.model 'llama'; known: gpt2"),
        ({"tensor": "rope_freqs.weight"}, "a tensor rope_freqs.weight"),
        ({"tensor": "blk.0.attn_q.bias"}, "a tensor blk.0.attn_q.bias"),
    ],
)
def test_what_is_not_a_plain_llama_is_refused_by_name(model, tmp_path, capsys, changes, told):
    file = write_gguf(tmp_path / "model.gguf", model, **changes)
    assert from_gguf.main([str(file), str(tmp_path / "hf")]) == 1
    assert told in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]


@pytest.mark.parametrize(
    ("method", "told"),
    [
        ("add_embedding_length", "llama.embedding_length None; known: a number above 0"),
        ("add_layer_norm_rms_eps", "llama.attention.layer_norm_rms_epsilon None"),
        ("add_block_count", "llama.block_count None"),
        ("add_token_list", "no tokenizer.ggml.tokens"),
        ("add_token_merges", "no tokenizer.ggml.merges"),
        ("add_head_count_kv", "k_proj.weight is [16, 32], expected [32, 32]"),
    ],
)
def test_metadata_that_lack_are_named(model, tmp_path, capsys, monkeypatch, method, told):
    monkeypatch.setattr(gguf.GGUFWriter, method, lambda *_: None)
    file = write_gguf(tmp_path / "model.gguf", model)
    assert from_gguf.main([str(file), str(tmp_path / "hf")]) == 1
    assert told in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]


@pytest.mark.parametrize(
    ("change", "kind", "told"),
    [
        (lambda rows: None, "float32", "2 missing: model.layers.0.mlp.up_proj.weight, model."),
        (lambda rows: rows * np.nan, "float32", "NaN or infinite numbers, as float32"),
        (lambda rows: rows * 0 + 1e6, "float16", "NaN or infinite numbers, as float16"),
        (lambda rows: rows.astype(np.int32), "float32", "Dequantization for I32 is not yet"),
    ],
)
def test_weights_that_make_no_model_are_refused(
    model, tmp_path, capsys, monkeypatch, change, kind, told
):
    real = gguf.GGUFWriter.add_tensor

    def add(writer, name, rows):
        rows = change(rows) if "ffn_up" in name else rows
        if rows is not None:
            real(writer, name, rows)

    monkeypatch.setattr(gguf.GGUFWriter, "add_tensor", add)
    file = write_gguf(tmp_path / "model.gguf", model)
    assert from_gguf.main([str(file), str(tmp_path / "hf"), "--dtype", kind]) == 1
    assert told in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]


def test_a_damaged_file_and_a_missing_package_are_one_message(tmp_path, capsys):
    (tmp_path / "model.gguf").write_bytes(b"no GGUF")
    assert from_gguf.main([str(tmp_path / "model.gguf"), str(tmp_path / "hf")]) == 1
    assert "can't be read as GGUF" in capsys.readouterr().err
    assert from_gguf.main(["no-such-package", str(tmp_path / "hf")]) == 1
    assert "neither a GGUF file nor an installed package" in capsys.readouterr().err


def test_the_file_of_a_package_is_found_without_importing_it(tmp_path, monkeypatch):
    (tmp_path / "weights.gguf").write_bytes(b"")
    place = tmp_path / "weights.gguf"
    listed = [
        types.SimpleNamespace(suffix=".py", name="__init__.py"),
        types.SimpleNamespace(suffix=".gguf", name=place.name, locate=lambda: place),
    ]
    monkeypatch.setattr(importlib.metadata, "files", lambda name: listed)
    assert from_gguf.gguf_file(tmp_path / "some-package") == place
