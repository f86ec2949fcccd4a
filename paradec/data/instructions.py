"""Instructions to record a chat model's own answers to: many subjects, many kinds of task, in plain words."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from paradec.errors import InputError

SUBJECTS = (
    "the water cycle", "photosynthesis", "gravity", "the human heart", "plate tectonics", "vaccines", "black holes",
    "electric cars", "solar panels", "the internet", "encryption", "machine learning", "supply and demand",
    "inflation", "interest rates", "the stock market", "democracy", "the French Revolution", "the Roman Empire",
    "the Silk Road", "the printing press", "the Industrial Revolution", "the moon landing", "climate change",
    "recycling", "coral reefs", "honey bees", "migrating birds", "the rainforest", "deserts", "volcanoes",
    "earthquakes", "the ocean", "sleep", "memory", "stress", "healthy eating", "running", "yoga", "meditation",
    "learning a language", "reading books", "playing the piano", "jazz", "classical music", "painting", "photography",
    "poetry", "the theatre", "chess", "football", "cycling", "camping", "gardening", "baking bread", "cooking pasta",
    "coffee", "tea", "chocolate", "cats", "dogs", "horses", "elephants", "wolves", "penguins", "dinosaurs",
    "space travel", "robots", "video games", "social media", "online shopping", "remote work", "job interviews",
    "public speaking", "teamwork", "leadership", "time management", "saving money", "buying a house",
    "travelling by train", "city life", "country life", "museums", "libraries", "schools", "universities",
    "hospitals", "airports", "bridges", "skyscrapers", "clocks", "mirrors", "bicycles", "batteries", "computers",
    "mobile phones", "satellites", "telescopes", "microscopes", "magnets",
)  # fmt: skip
PEOPLE = (
    "a teacher", "a nurse", "a farmer", "a pilot", "a young inventor", "a detective", "a retired sailor", "a chef",
    "a shy student", "a travelling musician", "an astronaut", "a librarian", "a taxi driver", "two brothers",
    "an old clockmaker", "a curious child", "a lonely robot", "a talking cat", "a queen in disguise", "a mountaineer",
)  # fmt: skip
ABOUT = (
    "Explain {s} in simple terms.", "What is the most important thing to know about {s}?",
    "Write a short essay on {s}.", "List five facts about {s}.", "What are the advantages and disadvantages of {s}?",
    "Why does {s} matter today?", "Describe the history of {s}.", "Write a blog post about {s}.",
    "Write a poem about {s}.", "How would you explain {s} to a ten-year-old?",
    "Give three questions about {s} and answer each of them.", "Write a dialogue between two friends about {s}.",
    "What do most people get wrong about {s}?", "Compare {s} with {t}.", "How are {s} and {t} connected?",
    "Summarise what is known about {s} in one paragraph.", "Write a quiz with four questions on {s}.",
    "Write the outline of a lecture on {s}.", "Who played a part in the history of {s}, and when?",
    "Where does one find {s}, and why there?", "Write a letter to the editor of a newspaper about {s}.",
    "Give me practical advice about {s}.", "You are an expert on {s}. What will change in the next ten years?",
    "Write a product description about {s}.",
)  # fmt: skip
STORIES = (
    "Write a short story about {p} and {s}.", "Describe a day in the life of {p}.",
    "Begin a novel whose hero is {p}.", "Pretend to be {p} and talk about {s}.",
    "Write a letter from {p} to an old friend.", "Write an email in which {p} apologises for a mistake.",
    "Write a short speech that {p} gives about {s}.",
)  # fmt: skip
CODE = (
    "the largest number in a list", "the average of a list of numbers", "whether a word is a palindrome",
    "the factorial of a number", "the first n prime numbers", "the number of vowels in a string",
    "the most frequent word of a text", "the sum of the digits of a number", "the common elements of two lists",
    "the n-th Fibonacci number", "the greatest common divisor of two numbers", "a list without its duplicates",
    "the words of a sentence in reverse order", "whether a year is a leap year", "the area of a circle",
    "the longest line of a file", "the shortest path through a grid", "two matrices multiplied with each other",
)  # fmt: skip
PROGRAMS = (
    "Write a Python function that returns {c}.", "Write a C++ program that finds {c}.",
    "Explain step by step how a program can find {c}, then show the code.",
    "Write tests for a function that finds {c}.",
)  # fmt: skip
GERMAN = (
    "Der Zug nach Hamburg fährt heute zehn Minuten später ab.",
    "Meine Großmutter hat jeden Sonntag einen Kuchen gebacken.",
    "Die Regierung will im nächsten Jahr mehr Geld für Schulen ausgeben.",
    "Im Winter sind die Seen im Norden zugefroren.", "Er hat den Schlüssel auf dem Tisch liegen lassen.",
    "Die Preise für Strom sind im letzten Monat gestiegen.", "Viele junge Leute ziehen vom Land in die Stadt.",
    "Der Arzt riet ihr, mehr zu schlafen und weniger zu arbeiten.",
    "Das neue Museum zeigt Bilder aus drei Jahrhunderten.", "Wir haben gestern im Garten Äpfel und Birnen geerntet.",
    "Die Polizei sucht Zeugen des Unfalls vom Montag.", "Der Fluss trat nach dem Regen über die Ufer.",
    "Sie lernt seit zwei Jahren Japanisch und will bald nach Tokio reisen.",
    "Das Unternehmen baut eine Fabrik in Polen.", "Kinder unter sechs Jahren dürfen kostenlos mitfahren.",
    "Die Brücke wird bis zum Herbst repariert.", "Der Minister sprach über die Zukunft der Landwirtschaft.",
    "Am Abend saßen sie lange am Feuer und erzählten.", "Die Forscher fanden eine neue Art von Fröschen.",
    "Ohne Kaffee kann ich am Morgen nicht denken.",
)  # fmt: skip
TASKS = (
    "Translate German to English: {g}",
    "Rewrite this sentence in a more formal tone: I can't make it to the meeting about {s}.",
    "Write a haiku, a limerick and a slogan about {s}.", "Sort these by size and say why: {s}, {t}, {u}.",
    "Which of these does not belong with the others: {s}, {t}, {u}? Explain.",
    "Make a table with the columns name, use and origin for {s}, {t} and {u}.",
    "Plan a weekend for somebody who likes {s} and {t}.", "Write the minutes of a meeting about {s}.",
)  # fmt: skip


def instructions(count: int, seed: int = 0) -> list[str]:
    """`count` different instructions; a longer list begins with the shorter one. Raises `InputError` beyond 5000."""
    if count > 5000:
        raise InputError(f"There are instructions enough for 5000 prompts, not {count}.")
    rng, found = np.random.default_rng(seed), {}
    kinds = (ABOUT, STORIES, PROGRAMS, TASKS)
    while len(found) < count:
        form = str(rng.choice(kinds[rng.choice(4, p=[0.6, 0.14, 0.08, 0.18])]))
        s, t, u = (str(x) for x in rng.choice(SUBJECTS, 3, replace=False))
        words = {"p": str(rng.choice(PEOPLE)), "c": str(rng.choice(CODE)), "g": str(rng.choice(GERMAN))}
        found[form.format(s=s, t=t, u=u, **words)] = None
    return list(found)


RETELL = (
    "Summarize: {a}", "Summarize: {a}\n{b}", "Rewrite this in simpler words: {a}",
    "{a}\nWhat is the main point of this?",
    "Write a headline and a first sentence for this text: {a}", "List the most important facts of this text: {a}",
    "Answer the question with the help of the passages.\nPassage 1: {a}\nPassage 2: {b}\nQuestion: {q}",
    "{b}\n\n{a}\n\nAnswer the following question, using the text above where it helps: {q}",
    "Is the following text about a person, a thing or an idea? Give your reasons. {a}",
    "Continue this text: {a}", "What questions does this text leave open? {a}", "Repeat this text and correct it: {a}",
)  # fmt: skip


def retold(asked: Sequence[str], answers: Sequence[str], count: int, seed: int = 0) -> list[str]:
    """`count` prompts with text to read in them: a model's own `answers` to the questions `asked`, to be summarised,
    questioned and told again. Each depends on the seed and its number alone.

    So heads see long prompts and texts that quote their prompt, without a corpus. Raises `InputError` for fewer than 2
    answers.
    """
    if count and len(answers) < 2:
        raise InputError(f"Prompts are retold from 2 answers each, and there are {len(answers)}; record more texts.")
    prompts = []
    for number in range(count):
        rng = np.random.default_rng((seed, number))
        one, two = (int(i) for i in rng.choice(len(answers), 2, replace=False))
        form = str(rng.choice(RETELL))
        prompts.append(form.format(a=answers[one].strip(), b=answers[two].strip(), q=asked[one]))
    return prompts
