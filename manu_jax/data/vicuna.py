"""The turns of LLaVA-1.5's conversations as benchmarks write them by hand, with a system sentence.

    SYSTEM USER: <image>\\nQUESTION ASSISTANT:

Their authors tuned and asked models in this text; a family's strings and chat templates are near to
it, and differ in a line's end or the sentence.
"""

from manu_jax.types import PromptTemplate


def vicuna_prompt(question: str, template: PromptTemplate, *, system: str) -> str:
    """Return the prompt of a question about an image, in the template's turns.

    Where these are LLaVA-1.5's they are written as published. A system prompt of the user's own
    stands in place of `system`. Other families have none, as with the authors.
    """
    found = template.prompt(question, "image")
    turn = f"USER: <image>\n{question} ASSISTANT:"
    if not _squeezed(found).endswith(_squeezed(turn)):
        return found
    before = found[: found.rindex("USER:")].strip() or system
    return f"{before} {turn}"


def _squeezed(text: str) -> str:
    return " ".join(text.split())
