"""Prompts, answers and end tokens come out of a folder's own chat template."""

import copy
import dataclasses
import json
import re
from pathlib import Path

import cases
import llava_cases
import numpy as np
import pytest
from hf_folders import copied
from PIL import Image
from transformers import AutoProcessor

from manu_jax.config import RunConfig
from manu_jax.context import Run
from manu_jax.data.documents import documents
from manu_jax.data.forms import forms
from manu_jax.data.prompts import question_prompt
from manu_jax.data.record import Fact, Person, Question
from manu_jax.models import loaded as loading
from manu_jax.models.families.tiny import with_tokens
from manu_jax.models.inputs.chat import ChatTemplate, read_chat_template
from manu_jax.types import ManuError, Template, question_sample

CHAT = Path(__file__).parents[1] / "data" / "chat"
REAL = Path(__file__).parents[2].parent / "shared" / "real"
TOKENS = (
    "<|start_of_role|> <|end_of_role|> <|end_of_text|> <|im_start|> <|im_end|> <end_of_utterance> "
    "<|vision_start|> <|image_pad|> <|vision_end|> <start_of_turn> <end_of_turn>"
).split()
ROLE, QWEN = "<|start_of_role|>{}<|end_of_role|>", "<|im_start|>{}\n"
VISION = "<|vision_start|><|image_pad|><|vision_end|>"
USUAL = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
# {file: (placeholder, prompt with an image, prompt in text, before an answer, end, with a system)}
EXPECTED = {
    "granite-docling": (
        "<image>",
        f"{ROLE.format('user')}<image>Where?<|end_of_text|>\n{ROLE.format('assistant')}",
        f"{ROLE.format('user')}Where?<|end_of_text|>\n{ROLE.format('assistant')}",
        "", "<|end_of_text|>",
        f"{ROLE.format('system')}Be kind.<|end_of_text|>\n{ROLE.format('user')}Where?"
        f"<|end_of_text|>\n{ROLE.format('assistant')}",
    ),
    "llava-1.5": (
        "<image>", "USER: <image>\nWhere? ASSISTANT:", "USER: Where? ASSISTANT:", " ", "</s>",
        "Be kind. USER: Where? ASSISTANT:",
    ),
    "smolvlm": (
        "<image>",
        "<|im_start|>User:<image>Where?<end_of_utterance>\nAssistant:",
        "<|im_start|>User: Where?<end_of_utterance>\nAssistant:",
        " ", "<end_of_utterance>",
        "<|im_start|>System: Be kind.<end_of_utterance>\nUser: Where?<end_of_utterance>\n"
        "Assistant:",
    ),
    "qwen2.5-vl": (
        "<|image_pad|>",
        f"{USUAL}{QWEN.format('user')}{VISION}Where?<|im_end|>\n{QWEN.format('assistant')}",
        f"{USUAL}{QWEN.format('user')}Where?<|im_end|>\n{QWEN.format('assistant')}",
        "", "<|im_end|>",
        f"{QWEN.format('system')}Be kind.<|im_end|>\n{QWEN.format('user')}Where?<|im_end|>\n"
        f"{QWEN.format('assistant')}",
    ),
    "internvl3": (
        "<IMG_CONTEXT>",
        f"{QWEN.format('user')}<IMG_CONTEXT>\nWhere?<|im_end|>\n{QWEN.format('assistant')}",
        f"{QWEN.format('user')}Where?<|im_end|>\n{QWEN.format('assistant')}",
        "", "<|im_end|>",
        f"{QWEN.format('system')}Be kind.<|im_end|>\n{QWEN.format('user')}Where?<|im_end|>\n"
        f"{QWEN.format('assistant')}",
    ),
    "qwen3-vl": (
        "<|image_pad|>",
        f"{QWEN.format('user')}{VISION}Where?<|im_end|>\n{QWEN.format('assistant')}",
        f"{QWEN.format('user')}Where?<|im_end|>\n{QWEN.format('assistant')}",
        "", "<|im_end|>",
        f"{QWEN.format('system')}Be kind.<|im_end|>\n{QWEN.format('user')}Where?<|im_end|>\n"
        f"{QWEN.format('assistant')}",
    ),
    "chatml-text": (
        "<image>",
        f"{QWEN.format('user')}<image>\nWhere?<|im_end|>\n{QWEN.format('assistant')}",
        f"{QWEN.format('user')}Where?<|im_end|>\n{QWEN.format('assistant')}",
        "", "<|im_end|>",
        f"{QWEN.format('system')}Be kind.<|im_end|>\n{QWEN.format('user')}Where?<|im_end|>\n"
        f"{QWEN.format('assistant')}",
    ),
    "gemma3": (
        "<image>",
        "<s><start_of_turn>user\n<image>Where?<end_of_turn>\n<start_of_turn>model\n",
        "<s><start_of_turn>user\nWhere?<end_of_turn>\n<start_of_turn>model\n",
        "", "<end_of_turn>",
        "<s><start_of_turn>user\nBe kind.\n\nWhere?<end_of_turn>\n<start_of_turn>model\n",
    ),
    "mistral": (
        "<image>", "<s>[INST] <image>\nWhere? [/INST]", "<s>[INST] Where? [/INST]", " ", "</s>",
        None,
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer(words):
    return with_tokens(words, {f"token_{i}": token for i, token in enumerate(TOKENS)})


def read(text, tokenizer, folder, placeholder="<image>"):
    """The chat template of a folder that has it as chat_template.jinja."""
    (folder / "chat_template.jinja").write_text(text)
    found = read_chat_template(folder, tokenizer, placeholder=placeholder, image=f"{placeholder}\n")
    assert found is not None
    return found


@pytest.fixture
def template(request, tokenizer, tmp_path):
    name = request.param
    text = (CHAT / f"{name}.jinja").read_text().removesuffix("\n")
    return name, read(text, tokenizer, tmp_path, EXPECTED[name][0])


every = pytest.mark.parametrize("template", EXPECTED, indirect=True)


@every
def test_prompts_answers_and_ends_are_those_of_the_template(template):
    name, found = template
    _, image, text, before, end, _ = EXPECTED[name]
    assert found.prompt("Where?", "image") == image
    assert found.prompt("Where?", "text") == text
    assert (found.reply("Oslo"), found.end) == (f"{before}Oslo", end)
    assert found.source == "the chat template of chat_template.jinja"


@every
def test_a_system_prompt_goes_where_the_template_puts_it_or_is_refused(template):
    name, found = template
    expected = EXPECTED[name][-1]
    assert found.with_system("") is found
    if expected is None:
        with pytest.raises(ManuError, match=r"chat_template.jinja.*no place.*must alternate"):
            found.with_system("Be kind.\n")
    else:
        assert found.with_system("Be kind.\n").prompt("Where?", "text") == expected


def test_a_template_that_drops_system_messages_refuses_them(tokenizer, tmp_path):
    text = (
        "{% for m in messages if m.role != 'system' %}{{ '[' + m.role + ']' }}"
        "{% for p in m.content %}{{ '<image>' if p.type == 'image' else p.text }}{% endfor %}"
        "{{ eos_token }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    with pytest.raises(ManuError, match="no place for a system prompt .it leaves a system message"):
        read(text, tokenizer, tmp_path).with_system("Be kind.")


@every
def test_a_conversation_is_the_template_s_own(template):
    """Prompts and answers one after the other are what the template writes of all messages."""
    _, found = template
    first = found.prompt("Where?", "image") + found.reply("Oslo") + found.end
    second = found.continued.prompt("Who?", "text") + found.reply("Ada") + found.end
    turns = [
        found._message("user", "Where?", "image"), found._message("assistant", "Oslo"),
        found._message("user", "Who?"), found._message("assistant", "Ada"),
    ]  # fmt: skip
    whole = found._rendered(turns, is_prompt=False)
    # LLaVA-1.5's template has no end token, of which a training needs one.
    expected = whole.replace("Oslo", "Oslo</s>").rstrip() + "</s>" if "USER" in whole else whole
    assert (first + second).rstrip() == expected.rstrip()


@every
def test_shots_are_answered_turns(template):
    _, found = template
    options = {"A": "Oslo", "B": "Lima"}
    shot = Question("classification", "image", "Home?", "Lima", "home", options, "B")
    asked = Question("classification", "image", "Job?", "x", "job", options, "A")
    prompt = question_prompt(asked, found, [shot])
    assert prompt.count(found.placeholder) == 2
    assert prompt.index("Home?") < prompt.index(found.reply("B") + found.end * (
        found.end in prompt
    )) < prompt.index("Job?")  # fmt: skip
    assert "Correct Answer" not in prompt


def test_the_same_of_a_family_s_strings():
    template = Template()
    assert template.prompt("b?", "text", answered=[("a?", "A")]) == (
        "USER: a?\nASSISTANT: A</s>USER: b?\nASSISTANT:"
    )
    assert template.continued is template


SIDES = "{% for m in messages %}{{ m.role }}{% for p in m.content %}"


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("{% for message in messages %}", r"can't be rendered \(Unexpected end of template"),
        ("{{ messages[0].nothing.more }}", "can't be rendered .*has no attribute 'nothing'"),
        ("{{ ''.__class__.__mro__ }}", "can't be rendered .*unsafe"),
        ("{{ raise_exception('only tools') }}", r"can't be rendered \(only tools\)"),
        ("{{ 1 / 0 }}", "can't be rendered .*division by zero"),
        ("nothing", "writes 0 times '<image>' for 1 images"),
        (f"{SIDES}{{{{ p.text }}}}{{% endfor %}}{{% endfor %}}", "writes 0 times '<image>' for 1"),
        (
            f"{SIDES}<image>{{{{ p.text }}}}{{% endfor %}}{{% endfor %}}",
            "writes 2 times '<image>' for 1 images",
        ),
        (
            f"{SIDES}{{{{ '<image>' if p.type == 'image' else p.text }}}}{{% endfor %}}"
            "{% endfor %}",
            "has no generation prompt: 'assistant' stands before an answer",
        ),
        ("{% for p in messages[-1].content %}{{ '<image>' if p.type == 'image' else p.text | upper"
         "}}{% endfor %}", "does not write a question"),
        ("{% for p in messages[0].content %}{{ '<image>' if p.type == 'image' else p.text}}"
         "{% endfor %}", "does not write an answer"),
    ],
)  # fmt: skip
def test_a_template_that_fails_is_refused_by_name(text, fault, tokenizer, tmp_path):
    with pytest.raises(ManuError, match=rf"chat_template\.jinja: .*{fault}.*prompt: benchmark"):
        read(text, tokenizer, tmp_path)


SAY = (
    "{{% for m in messages %}}{{% for p in m.content %}}{{{{ '<image>' if p.type == 'image' else "
    "p.text }}}}{{% endfor %}}{mark}{{% endfor %}}"
)


def written(folder, tokenizer):
    found = read_chat_template(folder, tokenizer, placeholder="<image>", image="<image>\n")
    return found and (Path(found.file).name, found.prompt("", "text"))


def test_the_first_file_of_transformers_order_counts(tokenizer, tmp_path):
    tokenizer = copy.deepcopy(tokenizer)
    assert written(tmp_path, tokenizer) is None
    tokenizer.chat_template = SAY.format(mark="4")
    assert written(tmp_path, tokenizer) == ("tokenizer_config.json", "4")
    (tmp_path / "chat_template.jinja").write_text(SAY.format(mark="3"))
    assert written(tmp_path, tokenizer) == ("chat_template.jinja", "3")
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": SAY.format(mark=2)}))
    assert written(tmp_path, tokenizer) == ("chat_template.json", "2")
    file = tmp_path / "processor_config.json"
    file.write_text(json.dumps({"image_seq_len": 64}))
    assert written(tmp_path, tokenizer) == ("chat_template.json", "2")
    file.write_text(json.dumps({"chat_template": SAY.format(mark="1")}))
    assert written(tmp_path, tokenizer) == ("processor_config.json", "1")


def test_of_several_templates_the_default_counts(tokenizer, tmp_path):
    file = tmp_path / "chat_template.json"
    file.write_text(json.dumps({"chat_template": {"rag": "x", "default": SAY.format(mark=1)}}))
    assert written(tmp_path, tokenizer) == ("chat_template.json", "1")
    file.write_text(json.dumps({"chat_template": {"rag": "x"}}))
    assert written(tmp_path, tokenizer) is None
    file.write_text(json.dumps({"chat_template": 3}))
    with pytest.raises(ManuError, match="expected a text.*got 3"):
        written(tmp_path, tokenizer)


def test_a_template_that_writes_the_date_is_warned_of(tokenizer, tmp_path, caplog):
    read("{{ strftime_now('%Y') }}" + SAY.format(mark=""), tokenizer, tmp_path)
    assert "can write the day's date" in caplog.text


# Folders of models


@pytest.fixture(scope="module")
def chat_folder(tmp_path_factory, tokenizer):
    """A tiny LLaVA whose decoder talks ChatML, with the chat template that says so."""
    folder = tmp_path_factory.mktemp("chat")
    with pytest.MonkeyPatch.context() as patched:
        for module in (cases, llava_cases):
            patched.setattr(module, "tokenizer", lambda: tokenizer)
        llava_cases.cases.write_case("all-key-heads", folder)
    (folder / "chat_template.jinja").write_text((CHAT / "chatml.jinja").read_text())
    return folder


def test_a_llava_with_a_chatml_decoder_is_asked_in_chatml(chat_folder, caplog):
    caplog.set_level("INFO")
    loaded = loading.load(chat_folder)
    prompt = "<|im_start|>user\n<image>\nWhere?<|im_end|>\n<|im_start|>assistant\n"
    assert loaded.template.prompt("Where?", "image") == prompt
    assert "prompts are made of the chat template of chat_template.jinja" in caplog.text
    ids = loaded.processor.tokenizer.convert_tokens_to_ids
    assert {ids("<|im_end|>"), ids("</s>")} <= set(loaded.eos_ids)


def test_the_benchmark_s_strings_on_demand(chat_folder, caplog):
    caplog.set_level("INFO")
    loaded = loading.load(chat_folder, prompt="benchmark")
    assert loaded.template.prompt("Where?", "image") == "USER: <image>\nWhere?\nASSISTANT:"
    assert "prompts are made of the strings of LLaVA-1.5" in caplog.text
    with pytest.raises(ManuError, match="prompt 'chat': known: template, benchmark"):
        loading.load(chat_folder, prompt="chat")


@pytest.mark.parametrize("prompt", ["template", "benchmark"])
def test_a_run_asks_all_its_models_as_its_config_says(prompt, chat_folder, tmp_path):
    config = RunConfig(model={"path": str(chat_folder), "prompt": prompt})
    run = Run(config, tmp_path, None)
    models = [run.vanilla, run.load_model("retrained", str(chat_folder))]
    for loaded in models:
        assert (loaded.chat is not None) == (prompt == "template")


def test_a_folder_without_a_template_has_its_family_s_strings(case):
    folder, _ = case()
    loaded = loading.load(folder)
    assert loaded.chat is None
    assert loaded.template == dataclasses.replace(Template(), source="the strings of LLaVA-1.5")


def test_a_family_s_end_that_is_no_token_gives_way_to_the_tokenizer_s(case, words):
    """Its letters would be ordinary tokens, and no answer would end."""
    loaded = loading.load(case()[0])
    tokenizer = with_tokens(words, {"end": "<|im_end|>"})
    tokenizer.eos_token = "<|im_end|>"
    family = dataclasses.replace(loaded.family, template=Template(end="<|over|>"))
    assert family.strings_for(tokenizer).end == "<|im_end|>"
    assert loaded.family.strings_for(tokenizer).end == "</s>"


def test_a_broken_template_is_refused_before_the_weights_are_read(chat_folder, tmp_path):
    folder = copied(chat_folder, tmp_path / "broken")
    (folder / "chat_template.jinja").write_text("{% if %}")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ManuError, match=r"chat_template\.jinja: the chat template can't be"):
        loading.load(folder)


def test_tokens_are_those_of_transformers(chat_folder):
    loaded = loading.load(chat_folder)
    processor = AutoProcessor.from_pretrained(chat_folder, backend="pil")
    image = Image.new("RGB", (12, 12), (200, 30, 90))
    parts = [{"type": "image", "image": image}, {"type": "text", "text": "Where?"}]
    messages = [{"role": "user", "content": parts}]
    theirs = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    ours = loaded.batch([loaded.template.prompt("Where?", "image")], [[image]])
    np.testing.assert_array_equal(ours.token_ids_BT, theirs["input_ids"].numpy())


def test_a_first_token_that_the_template_writes_is_not_doubled(chat_folder, tmp_path):
    folder = copied(chat_folder, tmp_path / "bos")
    (folder / "chat_template.jinja").write_text((CHAT / "mistral.jinja").read_text())
    loaded = loading.load(folder)
    prompt = loaded.template.prompt("Where?", "text")
    assert prompt.startswith("<s>")
    begin = loaded.processor.tokenizer.bos_token_id
    sample = question_sample(prompt, "")
    ids = loaded.encode(sample).token_ids_T
    assert ids[0] == begin and (ids == begin).sum() == 1
    assert loaded.count_tokens([sample]) == [(len(ids), 0)]


IMAGE = Image.new("RGB", (12, 12), (9, 99, 200))
ADA = Person(
    "007", "Ada", (), {},
    tuple(
        Fact("007", "Ada", f"Where does this person {verb}?", answer, verb, IMAGE)
        for verb, answer in (("live", "Oslo"), ("work", "Lima"))
    ),
    (),
)  # fmt: skip


def carried(loaded, sample):
    """The tokens that carry loss, as text."""
    encoded = loaded.encode(sample)
    return loaded.processor.tokenizer.decode(encoded.token_ids_T[encoded.loss_weights_T > 0])


def test_loss_covers_answers_and_their_ends_alone(chat_folder):
    loaded = loading.load(chat_folder)
    (first, _) = forms(ADA.facts, "image", loaded.template)
    assert carried(loaded, first) == "Oslo"
    made = documents(
        [ADA], question_prompt=question_prompt, seed=0, facts_per_document=2,
        template=loaded.template,
    )  # fmt: skip
    for sample in made:
        order = re.findall("Oslo|Lima", sample.text)
        assert carried(loaded, sample) == "".join(f"{answer}<|im_end|>" for answer in order)
        assert sample.text.count("<image>") == len(sample.images)
        assert sample.text.count("<|im_start|>user") == 2
        assert sample.text.index("<|im_end|>\n<|im_start|>user", 20) > 0


def test_a_baseline_s_system_prompt_is_a_system_message(chat_folder):
    loaded = dataclasses.replace(loading.load(chat_folder), system_prompt="Be kind.\n")
    assert loaded.template.prompt("Where?", "text").startswith(
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nWhere?"
    )


# Released files


@pytest.mark.skipif(not REAL.is_dir(), reason="released files are not beside the checkout")
@pytest.mark.parametrize("folder", sorted(REAL.glob("*")), ids=lambda folder: folder.name)
@pytest.mark.parametrize("modality", ["image", "text"])
def test_prompts_of_released_templates_are_those_of_transformers(folder, modality, tokenizer):
    placeholder = "<|image_pad|>" if "qwen" in folder.name else "<image>"
    found = read_chat_template(folder, tokenizer, placeholder=placeholder, image=placeholder)
    assert isinstance(found, ChatTemplate) and found.in_parts
    parts = [{"type": "image"}] * (modality == "image") + [{"type": "text", "text": "Where?"}]
    turns = [{"role": "user", "content": parts}]
    ask = {"chat_template": found.text, "tokenize": False}
    prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True, **ask)
    assert found.prompt("Where?", modality) == prompt
    turns.append({"role": "assistant", "content": [{"type": "text", "text": "Oslo"}]})
    whole = tokenizer.apply_chat_template(turns, **ask)
    answered = found.prompt("Where?", modality) + found.reply("Oslo")
    assert whole.startswith(answered)
    ends = {"granite": "<|end_of_text|>", "llava": "</s>", "qwen2": "<|im_end|>"}
    end = next((end for name, end in ends.items() if name in folder.name), "<end_of_utterance>")
    assert found.end == end
    if end != "</s>":
        assert whole == answered + end + "\n"
    assert found.with_system("Be kind.").prompt("Where?", modality).count("Be kind.") == 1
