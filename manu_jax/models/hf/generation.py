"""What a folder's generation settings say about greedy answers, as `generate` of transformers does.

They stand in generation_config.json, or in config.json (and its text_config) where there is none.
Settings of sampling, of caches and of speed change no greedy token and are passed over. Lengths
(max_length, max_new_tokens) are the run's own. `forced_bos_token_id` acts on prompts of one token.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from manu_jax.types import ManuError

FILE = "generation_config.json"
# {setting that changes greedy answers and is not done here: its values that change nothing}
REFUSED: dict[str, tuple[Any, ...]] = {
    "num_beams": (0, 1),
    "num_beam_groups": (0, 1),
    "num_return_sequences": (0, 1),
    "penalty_alpha": (0,),
    "dola_layers": (),
    "constraints": ([],),
    "force_words_ids": ([],),
    "guidance_scale": (1,),
    "sequence_bias": ({}, []),
    "encoder_repetition_penalty": (1,),
    "encoder_no_repeat_ngram_size": (0,),
    "exponential_decay_length_penalty": (),
    "watermarking_config": ({},),
    "stop_strings": ([], ""),
    "max_time": (),
    "token_healing": (False,),
}


@dataclasses.dataclass(frozen=True)
class GenerationRules:
    """What changes greedy tokens; the defaults change none. Hashable, as a static argument.

    eos_ids: end an answer. repetition_penalty: divides positive logits, and multiplies negative
    ones, of tokens that stand in the prompt or the answer. no_repeat_ngram: the size of the runs of
    tokens that do not occur twice, 0: any. bad_words: runs of tokens that do not occur. min_length:
    tokens before an end, the prompt's included; min_new_tokens: without them. forced_eos: ends the
    longest answer. suppressed, suppressed_first: tokens that do not occur, or not at first.
    """

    eos_ids: tuple[int, ...] = ()
    repetition_penalty: float = 1.0
    no_repeat_ngram: int = 0
    bad_words: tuple[tuple[int, ...], ...] = ()
    min_length: int = 0
    min_new_tokens: int = 0
    forced_eos: tuple[int, ...] = ()
    suppressed: tuple[int, ...] = ()
    suppressed_first: tuple[int, ...] = ()

    @property
    def change_logits(self) -> bool:
        """Whether anything but the end tokens is set."""
        return dataclasses.replace(self, eos_ids=()) != GenerationRules()

    def __str__(self) -> str:
        """Return what is set beside the end tokens, in words; "" for nothing."""
        usual = GenerationRules()
        names = [field.name for field in dataclasses.fields(self) if field.name != "eos_ids"]
        return ", ".join(
            f"{name} {getattr(self, name)}"
            for name in names
            if getattr(self, name) != getattr(usual, name)
        )


def read_rules(path: Path, config: Mapping[str, Any], vocabulary: int) -> GenerationRules:
    """Return the rules of a folder; ManuError lists what is refused or not understood.

    config: its `config.json`. vocabulary: the logits of a token.
    """
    if (path / FILE).is_file():
        place, values = path / FILE, json.loads((path / FILE).read_text(encoding="utf-8"))
    else:
        place, text = path / "config.json", config.get("text_config") or {}
        values = {**text, **{name: one for name, one in config.items() if one is not None}}
    reader = _Reader(values, vocabulary)
    rules = GenerationRules(
        eos_ids=reader.tokens("eos_token_id", is_bounded=False),
        repetition_penalty=reader.penalty(),
        no_repeat_ngram=reader.count("no_repeat_ngram_size"),
        bad_words=reader.runs("bad_words_ids"),
        min_length=reader.count("min_length"),
        min_new_tokens=reader.count("min_new_tokens"),
        forced_eos=reader.tokens("forced_eos_token_id"),
        suppressed=reader.tokens("suppress_tokens", is_bounded=False),
        suppressed_first=reader.tokens("begin_suppress_tokens", is_bounded=False),
    )
    for name, harmless in REFUSED.items():
        if (value := values.get(name)) is not None and value not in harmless:
            reader.fault(name, "greedy answers of transformers differ by it; not handled")
    if reader.faults:
        listed = "\n".join(f"  {fault}" for fault in reader.faults)
        raise ManuError(
            f"{place}: settings of generation that manu_jax can't follow:\n{listed}\n"
            "Remove them, or set them to values that change nothing."
        )
    if rules.min_new_tokens:  # it takes precedence, as in transformers
        return dataclasses.replace(rules, min_length=0)
    return rules


class _Reader:
    """Reads settings one by one, and collects their faults."""

    def __init__(self, values: Mapping[str, Any], vocabulary: int):
        self.values, self.vocabulary = values, vocabulary
        self.faults: list[str] = []

    def fault(self, name: str, why: str) -> None:
        self.faults.append(f"{name} = {self.values.get(name)!r:.200}: {why}")

    def penalty(self) -> float:
        value = self.values.get("repetition_penalty")
        value = 1.0 if value is None else value
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e6:
            self.fault("repetition_penalty", "expected a positive number")
            return 1.0
        return float(value)

    def count(self, name: str) -> int:
        value = self.values.get(name)
        value = 0 if value is None else value
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            self.fault(name, "expected a whole number from 0")
            return 0
        return value

    def tokens(self, name: str, *, is_bounded: bool = True) -> tuple[int, ...]:
        """Return one token or several; is_bounded: each has a logit."""
        value = self.values.get(name)
        several = value if isinstance(value, list) else [] if value is None else [value]
        if not self._are_tokens(several, is_bounded):
            self.fault(name, "expected the id of a token, or several")
            return ()
        return tuple(several)

    def runs(self, name: str) -> tuple[tuple[int, ...], ...]:
        value = self.values.get(name)
        value = [] if value is None else value
        if not isinstance(value, list) or not all(
            isinstance(run, list) and run and self._are_tokens(run, True) for run in value
        ):
            self.fault(name, "expected lists of ids of tokens")
            return ()
        return tuple(tuple(run) for run in value)

    def _are_tokens(self, values: list[Any], is_bounded: bool) -> bool:
        return all(
            isinstance(one, int)
            and not isinstance(one, bool)
            and 0 <= one < (self.vocabulary if is_bounded else 2**31)
            for one in values
        )
