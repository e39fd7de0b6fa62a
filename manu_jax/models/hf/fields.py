"""Reading a Hugging Face config section: every field is handled, harmless, or refused by name."""

from collections.abc import Collection, Mapping
from typing import Any

from manu_jax.types import ManuError

# Fields of any section that change nothing in the forward pass of a trained model.
HARMLESS = frozenset(
    """
    _attn_implementation _name_or_path architectures attention_dropout auto_map
    bos_token_id chunk_size_feed_forward dropout dtype eos_token_id finetuning_task id2label
    initializer_factor initializer_range is_composition label2id model_type output_attentions
    output_hidden_states output_scores pad_token_id prefix problem_type projection_dim
    return_dict sep_token_id task_specific_params tf_legacy_loss tie_encoder_decoder
    tokenizer_class torch_dtype torchscript transformers_version use_bfloat16 use_cache
    unsloth_version _commit_hash
    bad_words_ids begin_suppress_tokens decoder_start_token_id diversity_penalty do_sample
    cache_implementation early_stopping encoder_no_repeat_ngram_size
    exponential_decay_length_penalty
    forced_bos_token_id forced_eos_token_id length_penalty max_length min_length
    no_repeat_ngram_size num_beam_groups num_beams num_return_sequences remove_invalid_values
    repetition_penalty return_dict_in_generate suppress_tokens temperature top_k top_p typical_p
    """.split()
)


class Fields:
    """One section of a config.json, read field by field; `finish` refuses what is left.

    Problems are collected over all sections in `faults`, so that one error names them together.
    """

    def __init__(self, values: Mapping[str, Any], section: str, faults: list[str]):
        self.values, self.section, self.faults = dict(values), section, faults
        self.read: set[str] = set()

    def get(self, name: str, default: Any = None) -> Any:
        """Return a field, or `default` where it is absent or null."""
        self.read.add(name)
        value = self.values.get(name)
        return default if value is None else value

    def size(self, name: str, default: int) -> int:
        """Return a field that has to be a positive whole number; note a fault otherwise."""
        value = self.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            self.fault(name, "expected a positive whole number")
            return default
        return value

    def part(self, name: str) -> Mapping[str, Any]:
        """Return a field that has to be a section, {} where absent; note a fault otherwise."""
        value = self.get(name, {})
        if not isinstance(value, Mapping):
            self.fault(name, "expected a section with fields of its own")
            return {}
        return value

    def divides(self, whole: str, size: int, part: str, count: int) -> None:
        """Note a fault where the field `whole` is no multiple of the field `part`."""
        if size % count:
            self.fault(whole, f"expected a multiple of {part}, which is {count}")

    def need(self, name: str, default: Any, known: Collection[Any]) -> Any:
        """Return a field that has to be one of `known`; note a fault otherwise."""
        value = self.get(name, default)
        if value not in known:
            self.fault(name, f"known: {', '.join(map(str, known))}")
            return default
        return value

    def fault(self, name: str, why: str) -> None:
        self.faults.append(f"{self.section}{name} = {self.values.get(name)!r}: {why}")

    def finish(self) -> None:
        """Note every field that is set, was not read and is not known to be harmless."""
        for name, value in self.values.items():
            if name in self.read or name in HARMLESS or value in (None, False, [], {}, ""):
                continue
            self.fault(name, "not handled")


def refuse(faults: list[str], where: str) -> None:
    """Raise one ManuError with all faults of a config; return where there are none."""
    if faults:
        listed = "\n".join(f"  {fault}" for fault in faults)
        raise ManuError(
            f"{where}: this model needs what manu_jax does not do; the outputs would be wrong:\n"
            f"{listed}\nUse a model whose config.json has these fields at their usual values."
        )
