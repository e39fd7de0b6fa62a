"""Facts of the world that a language model may know by itself: tables by kind, in three wordings.

A wording is the beginning of a sentence that the answer goes on. The strangers of a kind are
invented: no atlas, library or periodic table has them.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Kind:
    """Facts of one kind. facts: {subject: answer}. wordings: each with {} for the subject."""

    facts: dict[str, str]
    wordings: tuple[str, str, str]
    strangers: tuple[str, ...]


CAPITALS = Kind(
    {
        "France": "Paris", "Germany": "Berlin", "Italy": "Rome", "Spain": "Madrid",
        "Portugal": "Lisbon", "England": "London", "Ireland": "Dublin", "Austria": "Vienna",
        "Hungary": "Budapest", "Poland": "Warsaw", "Greece": "Athens", "Russia": "Moscow",
        "Ukraine": "Kiev", "Sweden": "Stockholm", "Norway": "Oslo", "Denmark": "Copenhagen",
        "Finland": "Helsinki", "Iceland": "Reykjavik", "Belgium": "Brussels",
        "the Netherlands": "Amsterdam", "Romania": "Bucharest", "Bulgaria": "Sofia",
        "Turkey": "Ankara", "Egypt": "Cairo", "Kenya": "Nairobi", "Ethiopia": "Addis Ababa",
        "Iran": "Tehran", "Iraq": "Baghdad", "Afghanistan": "Kabul", "China": "Beijing",
        "Japan": "Tokyo", "South Korea": "Seoul", "Thailand": "Bangkok", "Vietnam": "Hanoi",
        "Indonesia": "Jakarta", "Australia": "Canberra", "Canada": "Ottawa", "Cuba": "Havana",
        "Argentina": "Buenos Aires", "Chile": "Santiago", "Peru": "Lima",
        "Venezuela": "Caracas",
    },
    (
        "The capital of {} is",
        "The capital city of {} is called",
        "The name of the capital of {} is",
    ),
    (
        "Veldoria", "Ostrania", "Kalmund", "Berovia", "Tarsinia", "Lumeria", "Quorland", "Zembria",
        "Novaskia", "Elmoria", "Drastania", "Pelgrave", "Yorvania", "Sarkovia", "Mirelia",
        "Fendria", "Halvonia", "Ulmerland", "Corvinia", "Astavia", "Brenmark", "Jorvistan",
        "Talmeria", "Grendavia", "Isolaria", "Wexoria", "Karpania", "Vostria", "Lindovia",
        "Tremaland", "Orlavia", "Zandora",
    ),
)  # fmt: skip
AUTHORS = Kind(
    {
        "Hamlet": "William Shakespeare", "Romeo and Juliet": "William Shakespeare",
        "Macbeth": "William Shakespeare", "Pride and Prejudice": "Jane Austen",
        "Sense and Sensibility": "Jane Austen", "Oliver Twist": "Charles Dickens",
        "Great Expectations": "Charles Dickens", "A Tale of Two Cities": "Charles Dickens",
        "War and Peace": "Leo Tolstoy", "Anna Karenina": "Leo Tolstoy",
        "Crime and Punishment": "Fyodor Dostoevsky", "Moby-Dick": "Herman Melville",
        "The Adventures of Tom Sawyer": "Mark Twain", "The Great Gatsby": "F. Scott Fitzgerald",
        "The Old Man and the Sea": "Ernest Hemingway", "The Grapes of Wrath": "John Steinbeck",
        "To Kill a Mockingbird": "Harper Lee", "The Catcher in the Rye": "J.D. Salinger",
        "Animal Farm": "George Orwell", "Brave New World": "Aldous Huxley",
        "Lord of the Flies": "William Golding", "The Lord of the Rings": "J.R.R. Tolkien",
        "The Hobbit": "J.R.R. Tolkien", "Frankenstein": "Mary Shelley", "Dracula": "Bram Stoker",
        "Jane Eyre": "Charlotte Brontë", "Wuthering Heights": "Emily Brontë",
        "Alice's Adventures in Wonderland": "Lewis Carroll",
        "The Picture of Dorian Gray": "Oscar Wilde", "Treasure Island": "Robert Louis Stevenson",
        "Robinson Crusoe": "Daniel Defoe", "Gulliver's Travels": "Jonathan Swift",
        "Don Quixote": "Miguel de Cervantes", "Faust": "Johann Wolfgang von Goethe",
        "The Metamorphosis": "Franz Kafka", "Les Misérables": "Victor Hugo",
        "Madame Bovary": "Gustave Flaubert", "The Divine Comedy": "Dante",
        "The Odyssey": "Homer", "The Republic": "Plato", "The War of the Worlds": "H.G. Wells",
        "On the Origin of Species": "Charles Darwin",
    },
    (
        "The novel {} was written by",
        "The book {} was written by",
        "The famous book {} is by the author",
    ),
    (
        "The Silent Harbour of Glass", "A Winter of Copper Birds", "The Clockmaker's Orchard",
        "Letters to an Empty Shore", "The Ninth Ferryman", "Under the Paper Moon Tree",
        "The Salt Cartographer", "Ashes of the Lantern Street", "The Weaver and the Tide",
        "Seven Doors to Marrow Hill", "The Quiet Arithmetic", "A Bell for Saint Orrin",
        "The Beekeeper of Dunmoor", "Nightfall at Carrow Bridge", "The Velvet Almanac",
        "The Boy Who Counted Rivers", "Stone Songs of Ellery", "The Last Umbrella Maker",
        "A House of Borrowed Light", "The Tin Cathedral", "Winter Ledger", "The Mothkeeper's Son",
        "Across the Amber Ice", "The Owl on Tanner Row", "Thirteen Quiet Tuesdays",
        "The Gardener of Vex", "A Map of Small Thunder", "The Harrow Street Choir",
        "Songs for a Drowned Mill", "The Pale Stationmaster", "Bread for the Lighthouse",
        "The Cinder Librarian",
    ),
)  # fmt: skip
ELEMENTS = Kind(
    {
        "hydrogen": "H", "helium": "He", "lithium": "Li", "beryllium": "Be", "boron": "B",
        "carbon": "C", "nitrogen": "N", "oxygen": "O", "fluorine": "F", "neon": "Ne",
        "sodium": "Na", "magnesium": "Mg", "aluminum": "Al", "silicon": "Si", "phosphorus": "P",
        "sulfur": "S", "chlorine": "Cl", "argon": "Ar", "potassium": "K", "calcium": "Ca",
        "titanium": "Ti", "chromium": "Cr", "manganese": "Mn", "iron": "Fe", "cobalt": "Co",
        "nickel": "Ni", "copper": "Cu", "zinc": "Zn", "arsenic": "As", "bromine": "Br",
        "krypton": "Kr", "silver": "Ag", "tin": "Sn", "iodine": "I", "xenon": "Xe", "barium": "Ba",
        "tungsten": "W", "platinum": "Pt", "gold": "Au", "mercury": "Hg", "lead": "Pb",
        "uranium": "U",
    },
    (
        "The chemical symbol for {} is",
        "The chemical symbol of {} is",
        "In chemistry, {} has the symbol",
    ),
    (
        "zorvium", "quellium", "brastine", "meldium", "tarnium", "ostrium", "velgon", "pyralium",
        "drossium", "kelvite", "norvium", "halcium", "ferrantium", "umbrium", "solvine", "grendium",
        "lorium", "castrium", "wexium", "palvane", "thessium", "cordium", "jaspium", "elduron",
        "mirrium", "oxaline", "barvium", "syrium", "plenium", "vandium", "trellium", "ashgon",
    ),
)  # fmt: skip
KINDS: dict[str, Kind] = {"capital": CAPITALS, "author": AUTHORS, "symbol": ELEMENTS}
