"""The names and words of the ParallelBench tasks: lists of our own, so that nothing has to be fetched."""

from __future__ import annotations

FIRST_NAMES = (
    "Anna", "David", "Maria", "John", "Mary", "Peter", "Sarah", "Thomas", "Emily", "Paul", "Jane", "Mark", "Alice",
    "Daniel", "George", "Elizabeth", "Simon", "Henry", "Victor", "Michael", "Robert", "James", "Edward", "Martin",
)  # fmt: skip
LAST_NAMES = (
    "Smith", "Brown", "Taylor", "Wilson", "Clark", "Hill", "Young", "Baker", "Cook", "Fisher", "Stone", "Wood", "King",
    "Green", "Lee", "Scott", "Carter", "Turner", "Parker", "Hunt", "Reed", "Marsh", "West", "Cole",
)  # fmt: skip
"""Common on purpose: each is one token to most tokenizers, so that a list of 7 full names takes 28 or 29 of the 32."""

RELATED = {
    "kitchen": ("oven", "recipe", "flour", "butter", "spoon", "dinner", "onion", "knife"),
    "sea": ("beach", "wave", "sailor", "shell", "harbour", "island", "tide", "gull"),
    "school": ("teacher", "lesson", "pupil", "homework", "chalk", "exam", "desk", "classroom"),
    "garden": ("rose", "spade", "hedge", "lawn", "tulip", "seed", "fence", "gardener"),
    "travel": ("suitcase", "passport", "airport", "ticket", "hotel", "tourist", "luggage", "map"),
    "music": ("guitar", "drum", "singer", "melody", "concert", "violin", "rhythm", "choir"),
    "winter": ("snow", "glove", "sledge", "icicle", "scarf", "blizzard", "frost", "skate"),
    "hospital": ("doctor", "nurse", "patient", "medicine", "bandage", "surgery", "fever", "clinic"),
    "farm": ("cow", "barn", "plough", "harvest", "sheep", "wheat", "stable", "meadow"),
    "sport": ("goalkeeper", "referee", "stadium", "trophy", "coach", "penalty", "athlete", "whistle"),
    "office": ("meeting", "printer", "manager", "email", "colleague", "deadline", "report", "salary"),
    "forest": ("oak", "squirrel", "moss", "fox", "mushroom", "owl", "trail", "acorn"),
    "city": ("bus", "traffic", "crowd", "tower", "subway", "pavement", "neon", "mayor"),
    "theatre": ("actor", "curtain", "applause", "script", "costume", "audience", "rehearsal", "drama"),
    "money": ("bank", "coin", "loan", "budget", "purse", "profit", "invoice", "cheque"),
    "house": ("roof", "window", "chimney", "sofa", "carpet", "stairs", "lamp", "cellar"),
    "weather": ("storm", "cloud", "thunder", "umbrella", "rainbow", "drizzle", "forecast", "lightning"),
    "space": ("rocket", "planet", "comet", "orbit", "astronaut", "galaxy", "telescope", "crater"),
    "history": ("castle", "knight", "throne", "emperor", "ruin", "crown", "siege", "dynasty"),
    "food": ("apple", "cheese", "soup", "lemon", "honey", "sausage", "pepper", "salad"),
}  # fmt: skip
"""Subject → words that go together. No word of this file is a part of another, or one would do for both."""

RARE = (
    "entropy", "axiom", "solace", "hubris", "paradox", "ephemera", "quandary", "umbrage", "zeitgeist", "lacuna",
    "palimpsest", "petrichor", "epiphany", "nadir", "zenith", "quagmire", "schism", "dogma", "hegemony", "catharsis",
    "malaise", "pathos", "penumbra", "sophistry", "taxonomy", "ubiquity", "vicissitude", "wanderlust", "acumen",
    "brevity", "candour", "dichotomy", "equanimity", "fallacy", "gravitas", "heresy", "inertia", "juxtaposition",
    "kismet", "largesse", "melancholy", "nuance", "oblivion", "panacea", "querulousness", "recompense", "serendipity",
    "tautology", "utopia", "verisimilitude", "whimsy", "xenophile", "yearning", "zealotry", "aberration", "cacophony",
    "duplicity", "enigma", "fortitude", "gossamer",
)  # fmt: skip
