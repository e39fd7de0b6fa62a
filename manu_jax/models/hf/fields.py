"""Reading a Hugging Face config section: every field is handled, harmless, or refused by name."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

from manu_jax.types import ManuError

MOST = 2**31 - 1  # of any size
LARGEST = 3e38  # of any number: float32's
# Fields of any section that change nothing in the forward pass of a trained model. Token ids are
# the tokenizer's; the image's own is read by each family, where transformers reads it.
HARMLESS = frozenset(
    """
    _attn_implementation _name_or_path architectures attention_dropout auto_map
    bos_token_id chunk_size_feed_forward dropout dtype eos_token_id finetuning_task id2label
    initializer_factor initializer_range is_composition label2id model_type output_attentions
    output_hidden_states output_scores pad_token_id prefix problem_type projection_dim
    return_dict sep_token_id task_specific_params tf_legacy_loss tie_encoder_decoder
    tokenizer_class torch_dtype torchscript transformers_version use_bfloat16 use_cache
    _attn_implementation_autoset _attn_implementation_internal attn_implementation
    _commit_hash _flash_attn_2_enabled gradient_checkpointing ignore_index
    image_token_id keys_to_ignore_at_inference neftune_noise_alpha tokenizer_model_max_length
    tokenizer_padding_side transformers.js_config unsloth_fixed unsloth_version
    video_token_id video_token_index vision_end_token_id vision_start_token_id vision_token_id
    bad_words_ids begin_suppress_tokens decoder_start_token_id diversity_penalty do_sample
    cache_implementation early_stopping encoder_no_repeat_ngram_size
    exponential_decay_length_penalty
    forced_bos_token_id forced_eos_token_id length_penalty max_length min_length
    no_repeat_ngram_size num_beam_groups num_beams num_return_sequences remove_invalid_values
    repetition_penalty return_dict_in_generate suppress_tokens temperature top_k top_p typical_p
    """.split()
)

# Beside a text_config no transformers reads these: DeepSpeed and older versions put them there.
BESIDE_TEXT = frozenset("hidden_size vocab_size image_seq_length image_seq_len".split())


class Fields:
    """A config.json or one of its sections, read field by field; `finish` notes what is left.

    section: its name and a dot, "" of the whole. faults: the list of the whole config, for a
    section: one error names the faults of all sections together (`refuse`).
    """

    def __init__(
        self, values: Mapping[str, Any], section: str = "", faults: list[str] | None = None
    ):
        self.values, self.section = dict(values), section
        self.faults: list[str] = [] if faults is None else faults
        self.read: set[str] = set()

    def get(self, name: str, default: Any = None) -> Any:
        """Return a field, or `default` where it is absent or null."""
        self.read.add(name)
        value = self.values.get(name)
        return default if value is None else value

    def size(self, name: str, default: int, most: int = MOST) -> int:
        """Return a field that has to be a positive whole number; note a fault otherwise."""
        expected = f"expected a whole number from 1 to {most:,}"
        return self._checked(name, default, lambda x: _is_whole(x, 1, most), expected)

    def token(self, name: str, default: int) -> int:
        """Return a field that has to be a token's id; note a fault otherwise."""
        expected = "expected a token's id, a whole number from 0"
        return self._checked(name, default, lambda x: _is_whole(x, 0, MOST), expected)

    def number(self, name: str, default: float) -> float:
        """Return a field that has to be a positive number; note a fault otherwise."""
        return self._checked(name, default, is_positive, "expected a positive number")

    def flag(self, name: str, default: bool) -> bool:
        """Return a field that has to be true or false; note a fault otherwise."""
        return self._checked(name, default, lambda x: isinstance(x, bool), "expected true or false")

    def part(self, name: str) -> Mapping[str, Any]:
        """Return a field that has to be a section, {} where absent; note a fault otherwise."""
        expected = "expected a section with fields of its own"
        return self._checked(name, {}, lambda x: isinstance(x, Mapping), expected)

    def divides(self, name: str, whole: int, *, by: str, part: int) -> None:
        """Note a fault where the field `name`, which is `whole`, is no multiple of `part`."""
        if whole % part:
            self.fault(name, f"expected a multiple of {by}, which is {part}")

    def need(self, name: str, default: Any, known: Collection[Any]) -> Any:
        """Return a field that has to be one of `known`; note a fault otherwise."""
        value = self.get(name, default)
        # True is not 1 here.
        if not any((value is True) == (other is True) and value == other for other in known):
            self.fault(name, f"known: {', '.join(map(str, known))}")
            return default
        return value

    def fault(self, name: str, why: str) -> None:
        """Note a fault of a field, once."""
        line = f"{self.section}{name} = {self.values.get(name)!r:.200}: {why}"
        if line not in self.faults:
            self.faults.append(line)

    def finish(self, text: Mapping[str, Any] | None = None) -> None:
        """Note every field that is set, was not read and is not known to be harmless.

        text: the section of the decoder, where `self` is the whole config. Some versions of
        transformers repeat its fields beside it; those are not read, and have to say the same.
        """
        passed = HARMLESS if text is None else HARMLESS | BESIDE_TEXT
        text = text or {}
        for name, value in self.values.items():
            if name in self.read or name in passed or value in (None, False, [], {}, ""):
                continue
            if name not in text:
                self.fault(name, "not handled")
            elif text[name] != value:
                self.fault(name, f"the text_config says {text[name]!r}")

    def refuse(self, where: str) -> None:
        """Finish a whole config, and raise one ManuError with the faults of all its sections."""
        self.finish(self.part("text_config"))
        if self.faults:
            listed = "\n".join(f"  {fault}" for fault in self.faults)
            raise ManuError(
                f"{where}: this model needs what manu_jax does not do; the outputs would be wrong:"
                f"\n{listed}\nUse a model whose config.json has these fields at their usual values."
            )

    def _checked(self, name: str, default: Any, is_right: Callable[[Any], bool], why: str) -> Any:
        """Return a field that is right; note a fault, and return the default, otherwise."""
        value = self.get(name, default)
        if not is_right(value):
            self.fault(name, why)
            return default
        return value


def is_positive(value: Any) -> bool:
    """Whether a value is a positive number that float32 holds."""
    return isinstance(value, int | float) and value is not True and 0 < value < LARGEST


def _is_whole(value: Any, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most
