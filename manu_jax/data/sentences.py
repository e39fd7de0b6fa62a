"""Whether what a model wrote is still language, by rules that look at the string alone. No jax."""

import re

MIN_WORDS = 3
MIN_LETTERS = 0.7  # share of the characters but white space that are letters
MIN_DIFFERENT = 0.35  # share of the words that differ from each other
MOST_IN_A_ROW = 3  # times that the same one to four words follow each other
LONGEST_WORD = 30  # letters
FEW_WORDS = "hardly any words"


def faults_of(answer: str) -> list[str]:
    """Return why an answer is no sentence, in words; [] where it is one.

    Rules: at least MIN_WORDS words, mostly letters, no word beyond LONGEST_WORD letters; the words
    are not nearly all the same, and no few words stand there over and over.
    """
    words = re.findall(r"[^\W\d_]+(?:['’-][^\W\d_]+)*", answer.lower())
    shown = "".join(answer.split())
    faults = []
    if len(words) < MIN_WORDS:
        faults.append(FEW_WORDS)
    if shown and sum(map(str.isalpha, shown)) < MIN_LETTERS * len(shown):
        faults.append("hardly any letters")
    if any(len(word) > LONGEST_WORD for word in words):
        faults.append("a word without end")
    if words and len(set(words)) < MIN_DIFFERENT * len(words):
        faults.append("few different words")
    if _longest_row(words) > MOST_IN_A_ROW:
        faults.append("the same words over and over")
    return faults


def is_sentence(answer: str) -> bool:
    """Whether an answer has none of the faults of `faults_of`."""
    return not faults_of(answer)


def _longest_row(words: list[str]) -> int:
    """Return how often the same one to four words follow each other at most."""
    most = 0
    for size in range(1, 5):
        for start in range(len(words) - size + 1):
            part, count = words[start : start + size], 1
            while words[start + count * size : start + (count + 1) * size] == part:
                count += 1
            most = max(most, count)
    return most
