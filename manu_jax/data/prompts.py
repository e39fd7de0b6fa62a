"""The prompts of MLLMU-Bench's questions, zero-shot and few-shot, in a model's turns.

What is asked, in which words, is the benchmark's (arXiv 2410.22108, its code's eval.py); the turns
("USER:", "ASSISTANT:") are the family's, or those of the folder's chat template. tests/golden holds
whole prompts.
"""

from collections.abc import Sequence

from manu_jax.data.forms import LLAVA
from manu_jax.data.record import Question
from manu_jax.types import ManuError, PromptTemplate, Template

LETTER_ONLY = "Just give ONE letter representing the answer directly."
BLANK_ONLY = "Please **ONLY** provide the correct answer that should replace the [Blank]."
SENTENCE = {
    "image": "Answer the question based on your trained knowledge in one sentence accurately in "
    "ENGLISH.",
    "text": "Answer the question based on your trained knowledge in one sentence in ENGLISH.",
}


def question_prompt(
    question: Question, template: PromptTemplate = LLAVA, shots: Sequence[Question] = ()
) -> str:
    """Return the benchmark's prompt of a question, up to where the answer begins.

    shots: answered questions of the same task and modality, which come first. A prompt has one
    image per shot and one for the question, where they are asked with images.
    Differs: the benchmark's own prompt of a generation question with an image goes on with a space.
    Tokenizers join a space to the word after it, so the model would have to go on from half a word.
    Differs: a chat template has each shot as a turn of its own with its answer; the benchmark has
    all of them in one turn.
    """
    if not isinstance(template, Template):
        answered = [(_asked(shot), _truth(shot)) for shot in shots]
        return template.prompt(_asked(question), question.modality, answered=answered)
    before = "".join(_shot(shot, template) for shot in shots)
    opening = template.space if _is_inline(question) else "\n"
    body = f"{opening}{_asked(question)}"
    return template.conversation(before + template.turn(body, question.modality))


def refuse_shots(shots: Sequence[Question], benchmark: str) -> None:
    """Raise ManuError where there are shots: the benchmark, as a sentence names it, has none."""
    if shots:
        raise ManuError(
            f"evaluate.protocol: {benchmark} has no few-shot prompts. Give zero_shot or likelihood."
        )


def _is_inline(question: Question) -> bool:
    return question.task == "generation" and question.modality == "text"


def _asked(question: Question) -> str:
    if question.task == "classification":
        return f"{question.question}\n{_options(question)}{LETTER_ONLY}"
    if question.task == "cloze":
        return f"{question.question.replace('__', '[Blank]')}\n{BLANK_ONLY}"
    return f"{question.question}\n{SENTENCE[question.modality]}"


def _shot(shot: Question, template: Template) -> str:
    """Return an answered question. The benchmark has a space before a question's image alone."""
    is_image = shot.modality == "image"
    if shot.task == "classification":
        image = template.image if is_image else ""
        body = f"Question: {shot.question}\n{_options(shot)}"
    elif shot.task == "cloze":
        image = template.image.strip() if is_image else ""
        body = f"{_asked(shot)}\n"
    else:
        raise ValueError("generation has no shots")
    return f"{template.user}{image}\n{body}Correct Answer: {_truth(shot)}\n"


def _truth(shot: Question) -> str:
    """Return the answer that a shot shows: a letter, or what fills the blank."""
    return shot.answer if shot.correct is None else shot.correct


def _options(question: Question) -> str:
    return "".join(f"{key}: {value}\n" for key, value in (question.options or {}).items())
