"""A folder's own chat template (Jinja): what its prompts, answers and end tokens are made of.

It is rendered by transformers, in its sandbox. What stands before an answer and what ends it is
read off a rendered conversation, so that nothing is assumed about the words of a template.
"""

import dataclasses
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from manu_jax.folder import ForeignErrors
from manu_jax.types import MODALITIES, TEXT_ALONE, ManuError, Modality

logger = logging.getLogger(__name__)

# Stand-ins whose place in a rendered text is looked up; no template has these words.
QUESTION, ANSWER = "Question5f0c", "Answer5f0c"
REMEDY = (
    "Mend the template, or take the family's own strings with model.prompt: benchmark "
    "(in Python, load(path, prompt='benchmark'))."
)


@dataclasses.dataclass(frozen=True, eq=False)
class ChatTemplate:
    """A chat template as a `types.PromptTemplate`.

    text: Jinja. file: where it came from, for messages. placeholder: what stands for an image; "":
    the model takes none.
    image: an image's mark in a message of plain text. in_parts: messages are lists of parts, which
    the templates of image models take; otherwise plain text. before_answer: stands between a prompt
    and the answer. end: ends an answer in training. system: the user's own system prompt.
    is_continued: prompts go on after an answer of the same conversation.
    """

    text: str
    file: str
    tokenizer: Any
    placeholder: str
    image: str
    in_parts: bool = True
    before_answer: str = ""
    end: str = ""
    system: str = ""
    is_continued: bool = False

    @property
    def source(self) -> str:
        """What prompts are made of, for the log and results.json."""
        return f"the chat template of {Path(self.file).name}"

    @property
    def continued(self) -> "ChatTemplate":
        """The template of further questions of a conversation, after an answer and its end."""
        return dataclasses.replace(self, is_continued=True)

    def with_system(self, prompt: str) -> "ChatTemplate":
        """Return the template with the user's own system prompt; an empty one changes nothing.

        White space around it is the template's to write. Raises ManuError where the template has no
        place for a system prompt.
        """
        if not prompt.strip():
            return self
        found = dataclasses.replace(self, system=prompt.strip())
        try:
            is_shown = found.system in found.prompt(QUESTION, "text")
            reason = "it leaves a system message out"
        except ManuError as error:
            is_shown, reason = False, str(error)
        if not is_shown:
            raise ManuError(
                f"{self.file}: the chat template has no place for a system prompt ({reason}). Go "
                "without one, or take the family's own strings with model.prompt: benchmark."
            )
        return found

    def prompt(
        self, question: str, modality: Modality, *, answered: Sequence[tuple[str, str]] = ()
    ) -> str:
        """Return the prompt of a question, up to where the answer begins.

        answered: questions and answers, in the same modality, which come first as turns of their
        own. Raises ManuError where the template fails or writes another number of images.
        """
        messages = [self._message("system", self.system)] if self.system else []
        if self.is_continued:
            messages += [self._message("user", QUESTION), self._message("assistant", ANSWER)]
        for asked, answer in answered:
            messages += [self._message("user", asked, modality), self._message("assistant", answer)]
        messages.append(self._message("user", question, modality))
        text = self._rendered(messages, is_prompt=True)
        num_images = (len(answered) + 1) * (modality == "image")
        given = [question, self.system, *(part for pair in answered for part in pair)]
        found = self._count(text) - sum(map(self._count, given))
        if found != num_images:
            raise ManuError(
                f"{self.file}: the chat template writes {found} times {self.placeholder!r} for "
                f"{num_images} images. {REMEDY}"
            )
        if not self.is_continued:
            return text
        return text.partition(ANSWER)[2].removeprefix(self.end)

    def reply(self, answer: str) -> str:
        """Return an answer as it follows a prompt."""
        return self.before_answer + answer

    def probed(self) -> "ChatTemplate":
        """Return the template with what it writes around an answer; ManuError where it fails."""
        for modality in MODALITIES if self.placeholder else TEXT_ALONE:
            prompt = self.prompt(QUESTION, modality)
            if prompt.count(QUESTION) != 1 or "'type'" in prompt:
                raise ManuError(
                    f"{self.file}: the chat template does not write a question as it is given, but "
                    f"{prompt!r:.200}. {REMEDY}"
                )
        prompt = self.prompt(QUESTION, "text")
        turns = [self._message("user", QUESTION), self._message("assistant", ANSWER)]
        whole = self._rendered(turns, is_prompt=False)
        if whole.count(ANSWER) != 1:
            raise ManuError(
                f"{self.file}: the chat template does not write an answer as it is given, but "
                f"{whole!r:.200}. {REMEDY}"
            )
        before, after = whole.split(ANSWER)
        # Where the answer of a past turn begins otherwise, a model still goes on from its prompt.
        between = before.removeprefix(prompt) if before.startswith(prompt) else ""
        if between.strip():
            raise ManuError(
                f"{self.file}: the chat template has no generation prompt: {between!r} stands "
                f"before an answer, and not at the end of a prompt. {REMEDY}"
            )
        return dataclasses.replace(self, before_answer=between, end=self._end(after))

    def _count(self, text: str) -> int:
        return text.count(self.placeholder) if self.placeholder else 0

    def _message(self, role: str, text: str, modality: Modality = "text") -> dict[str, Any]:
        if not self.in_parts:
            return {"role": role, "content": self.image * (modality == "image") + text}
        images = [{"type": "image"}] * (modality == "image")
        return {"role": role, "content": [*images, {"type": "text", "text": text}]}

    def _rendered(self, messages: Sequence[dict[str, Any]], *, is_prompt: bool) -> str:
        with ForeignErrors(self.file, "the chat template can't be rendered", REMEDY):
            return self.tokenizer.apply_chat_template(
                list(messages),
                chat_template=self.text,
                tokenize=False,
                add_generation_prompt=is_prompt,
            )

    def _end(self, after: str) -> str:
        """Return the token that follows an answer; the tokenizer's own where it is only text."""
        tail = after.lstrip()
        for token in sorted(self.tokenizer.get_added_vocab(), key=len, reverse=True):
            if token and tail.startswith(token):
                return after[: len(after) - len(tail)] + token
        return self.tokenizer.eos_token or ""


def read_chat_template(
    path: Path, tokenizer: Any, *, placeholder: str, image: str
) -> ChatTemplate | None:
    """Return the chat template of a folder, tried on a conversation; None where it has none.

    The first of processor_config.json, chat_template.json, chat_template.jinja and
    tokenizer_config.json counts, as in transformers. Of several by name it is the one that is named
    "default"; the others have other uses than chat. image: an image's mark in a message of plain
    text. Raises ManuError, with the file, for a template that fails.
    """
    found = _find(path, tokenizer)
    if found is None:
        return None
    name, text = found
    template = ChatTemplate(text, str(path / name), tokenizer, placeholder, image)
    if "strftime_now" in text:
        logger.warning(
            "%s: the chat template can write the day's date, so that prompts may differ between "
            "days. Fix the date in it, or set model.prompt: benchmark.",
            template.file,
        )
    try:
        return template.probed()
    except ManuError as fault:
        try:  # templates of text models take plain text
            return dataclasses.replace(template, in_parts=False).probed()
        except ManuError:
            raise fault from None


def _find(path: Path, tokenizer: Any) -> tuple[str, str] | None:
    """Return (name of the file, template) of a folder's chat template."""
    for name in ("processor_config.json", "chat_template.json"):
        if (path / name).is_file():
            value = json.loads((path / name).read_text(encoding="utf-8")).get("chat_template")
            if (text := _text(value, path / name)) is not None:
                return name, text
    name = "chat_template.jinja"
    if (path / name).is_file():
        with ForeignErrors(str(path / name), "can't be read as text", REMEDY):
            return name, (path / name).read_text(encoding="utf-8")
    name = "tokenizer_config.json"
    text = _text(tokenizer.chat_template, path / name)
    return None if text is None else (name, text)


def _text(value: Any, file: Path) -> str | None:
    """Return the template, or the default of several, if there is one; ManuError for others."""
    found = value.get("default") if isinstance(value, dict) else value
    if found is not None and not isinstance(found, str):
        raise ManuError(f"{file}: chat_template: expected a text, got {found!r:.100}. {REMEDY}")
    return found
