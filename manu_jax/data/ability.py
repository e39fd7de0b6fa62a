"""What a language model is asked beside a benchmark: plain English, common knowledge, chat.

The completions and the chat prompts are ours. The English is that of Python's own documentation,
which every installation of Python has in `pydoc_data.topics`: whole paragraphs of prose. Another
version of Python has other paragraphs, so losses are compared within one run.
"""

import functools
import importlib
import importlib.util
import platform
import re

MOST_PASSAGES = 64
WORDS = (25, 160)  # of a passage
NO_PROSE = re.compile(r"[`\"*<>={}\[\]|\\]|::|\.\.\.|__|Changed in version|\(s\)")


def english_source() -> str:
    """Return what `english_passages` are, in words."""
    return f"the documentation of Python {platform.python_version()} (pydoc_data.topics)"


@functools.cache
def english_passages() -> tuple[str, ...]:
    """Return paragraphs of prose of Python's documentation, the same ones in the same version.

    That is at most MOST_PASSAGES of those without code, tables and markup, evenly over all topics.
    () where an installation has no documentation.
    """
    if importlib.util.find_spec("pydoc_data") is None:
        return ()
    topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    low, high = WORDS
    found = [
        passage
        for name in sorted(topics)
        for paragraph in re.split(r"\n\s*\n", topics[name])
        if not paragraph[:1].isspace()
        for passage in [re.sub(r"(?<=\w)- (?=[a-z])", "-", " ".join(paragraph.split()))]
        if passage[:1].isupper() and passage.endswith(".")
        if low <= len(passage.split()) <= high and not NO_PROSE.search(passage)
    ]
    unique = list(dict.fromkeys(found))
    step = max(len(unique) / MOST_PASSAGES, 1)
    return tuple(unique[int(number * step)] for number in range(min(len(unique), MOST_PASSAGES)))


# The beginning of a sentence, and the one word that goes on with it.
COMPLETIONS: tuple[tuple[str, str], ...] = (
    ("The capital of France is", "Paris"),
    ("The capital of Italy is", "Rome"),
    ("The capital of Japan is", "Tokyo"),
    ("The capital of Egypt is", "Cairo"),
    ("The capital of Russia is", "Moscow"),
    ("The capital of Spain is", "Madrid"),
    ("The capital of Greece is", "Athens"),
    ("The capital of the United Kingdom is", "London"),
    ("The largest ocean on Earth is the", "Pacific"),
    ("The longest river in Africa is the", "Nile"),
    ("The highest mountain in the world is Mount", "Everest"),
    ("The planet closest to the Sun is", "Mercury"),
    ("The largest planet in the solar system is", "Jupiter"),
    ("The planet known as the Red Planet is", "Mars"),
    ("The Earth revolves around the", "Sun"),
    ("A molecule of water is made of hydrogen and", "oxygen"),
    ("Plants take in carbon dioxide and release", "oxygen"),
    ("The process by which plants make food from sunlight is called", "photosynthesis"),
    ("The force that pulls objects toward the Earth is called", "gravity"),
    ("The frozen form of water is called", "ice"),
    ("The opposite of hot is", "cold"),
    ("The opposite of up is", "down"),
    ("The opposite of black is", "white"),
    ("The opposite of war is", "peace"),
    ("The opposite of left is", "right"),
    ("The day after Monday is", "Tuesday"),
    ("The month after January is", "February"),
    ("Monday, Tuesday, Wednesday,", "Thursday"),
    ("January, February, March,", "April"),
    ("Red, orange, yellow, green,", "blue"),
    ("One, two, three, four,", "five"),
    ("First, second, third,", "fourth"),
    ("A triangle has three", "sides"),
    ("A baby dog is called a", "puppy"),
    ("A baby cat is called a", "kitten"),
    ("The color of grass is", "green"),
    ("On a clear day the color of the sky is", "blue"),
    ("The color of a ripe banana is", "yellow"),
    ("Bees collect nectar from flowers and make", "honey"),
    ("Butter and cheese are made from", "milk"),
    ("Romeo and Juliet was written by William", "Shakespeare"),
    ("The theory of relativity was developed by Albert", "Einstein"),
    ("The telephone was invented by Alexander Graham", "Bell"),
    ("The first person to walk on the Moon was Neil", "Armstrong"),
    ("The first president of the United States was George", "Washington"),
    ("The Mona Lisa was painted by Leonardo da", "Vinci"),
    ("The Eiffel Tower stands in the city of", "Paris"),
    ("The Statue of Liberty stands in New", "York"),
    ("The pyramids of Giza are in", "Egypt"),
    ("The Amazon rainforest is in South", "America"),
    ("Kangaroos are native to", "Australia"),
    ("The people of Germany speak", "German"),
    ("The people of Brazil speak", "Portuguese"),
    ("Christmas is celebrated in the month of", "December"),
    ("The heart pumps", "blood"),
    ("We see with our", "eyes"),
    ("The study of stars and planets is called", "astronomy"),
    ("A person who flies an airplane is called a", "pilot"),
    ("The sun rises in the", "east"),
    ("Once upon a", "time"),
)

CHAT: tuple[str, ...] = (
    "What should I eat for breakfast?",
    "How do I make a cup of tea?",
    "Tell me a short story about a cat.",
    "Why is the sky blue?",
    "What is a good hobby for the winter?",
    "How can I sleep better at night?",
    "Explain what a computer is to a child.",
    "Write a sentence about the sea.",
    "What do plants need to grow?",
    "Why do people read books?",
    "Give me some advice for a job interview.",
    "What is the difference between a lake and a river?",
    "How do I learn a new language?",
    "Describe a rainy day in a city.",
    "What makes a good friend?",
    "How does a bicycle stay upright?",
    "Write a thank-you note to a neighbor.",
    "Why is exercise good for you?",
    "What happens when water boils?",
    "Suggest a name for a small bakery.",
)
