"""A byte-level BPE tokenizer, trained on the run's own texts."""

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from manu_jax.types import ManuError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SPECIAL_TOKENS = ("<unk>", "<s>", "</s>", "<pad>", "<image>")
NUM_BYTES = 256


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> "PreTrainedTokenizerFast":
    """Return a tokenizer of at most `vocabulary` tokens that encodes any text without loss.

    The special tokens come first, then the 256 bytes, then the merges. It puts "<s>" before a text,
    as LLaVA-1.5's does; "</s>" ends an answer. The same texts in the same order give the same
    tokenizer. Raises ManuError if `vocabulary` leaves no room for a merge.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    if vocabulary <= len(SPECIAL_TOKENS) + NUM_BYTES:
        raise ManuError(
            f"model.text.vocabulary: {len(SPECIAL_TOKENS)} special tokens and {NUM_BYTES} bytes "
            f"need more than {vocabulary} tokens; give 512 or more."
        )
    tokenizer = Tokenizer(models.BPE(unk_token=SPECIAL_TOKENS[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        min_frequency=2,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    # The letters of a special token are not text to learn merges from.
    special = re.compile("|".join(map(re.escape, SPECIAL_TOKENS)))
    pieces = (piece for text in texts for piece in special.split(text))
    tokenizer.train_from_iterator(pieces, trainer)
    begin = SPECIAL_TOKENS[1]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A",
        pair=f"{begin} $A {begin} $B",
        special_tokens=[(begin, tokenizer.token_to_id(begin))],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>"},
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
