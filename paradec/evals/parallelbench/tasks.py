"""The ParallelBench tasks that need no outside data: ten operations on a waiting line, two puzzles, and
three kinds of words to make a sentence of.

Source: ParallelBench (arXiv 2510.04767). The tasks, lengths, seeds and answer caps are the paper's; every prompt, name
and word is our own, so scores compare methods with each other, not with published tables. Other departures: "sort"
says by which key it sorts, namely the full name (the paper's prompt says the last name and its label takes the full
one); words to make a sentence of are drawn anew (the paper has fixed lists) and their label is only one valid answer.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random

from paradec.errors import InputError, UnknownName
from paradec.evals.parallelbench import metrics
from paradec.evals.parallelbench.metrics import Metric, Sample
from paradec.evals.parallelbench.words import FIRST_NAMES, LAST_NAMES, RARE, RELATED

QUEUE = (
    "A repair shop keeps the customers who wait at its counter as a list. The customer at index 0 is served next, and "
    "indices are counted from 0. You are given the list and what happens, and write the list as it is afterwards. "
    "Answer with the final list only, written as in the example."
)
LATIN = (
    "A Latin square of order {size} is a table of {size} rows and {size} columns in which each of {size} symbols "
    "stands once in every row and once in every column. Fill such a table with the symbols you are given. Answer with "
    "the table only: one row a line, a comma between neighbours."
)
SUDOKU = (
    "In a sudoku of 4 rows and 4 columns each of the digits 1 to 4 stands once in every row, once in every column and "
    "once in every corner block of 2 by 2 cells. Fill the cells marked 0 and keep the others. Answer with the full "
    "grid only: one row a line, its four digits without blanks."
)
SENTENCE = (
    "Write one English sentence in which all of these words occur just as they are spelled here: {words}. Answer with "
    "the sentence only."
)
LENGTHS = (3, 4, 5, 6)
MOST_ITEMS = 100
MOST_WORDS = 7
CLUES = 12


@dataclass(frozen=True)
class Task:
    """A kind of question. `make(random, size, sizes)` is one sample whose question has `size` items and whose example,
    if any, has one of `sizes`; `score` and `score_strict` (exact quoting; None where nothing is quoted) are metrics.

    `sizes` are those of a common run, taken in turn, and `allowed` those that may be asked for (None: no choice).
    `most_tokens` is the paper's cap on answers of the common sizes; lists of 15 names need about twice as many.
    """

    name: str
    title: str
    most_tokens: int
    make: Callable[[Random, int, Sequence[int]], Sample]
    score: Metric
    sizes: tuple[int, ...]
    allowed: range | None = None
    score_strict: Metric | None = None


def default_seed(name: str) -> int:
    """The paper's seed of a task, from its short name alone ("copy", "sudoku_n4_12")."""
    return (int(hashlib.sha256(name.encode()).hexdigest(), 16) + 42) % 65535


def find(name: str) -> Task:
    """The task of that name. Raises `UnknownName`, with why where the paper has it and it is left out here."""
    if name not in TASKS:
        raise UnknownName("ParallelBench task", name, TASKS, LEFT_OUT.get(name, ""))
    return TASKS[name]


def make(name: str, count: int = 100, seed: int | None = None, items: int | None = None) -> list[Sample]:
    """`count` samples of a task; the same for the same arguments, and a longer list begins with the shorter one.

    `seed`: None is the task's own. `items`: how many names are in every list (the paper's n15 variant is 15), or how
    many words a sentence needs (1 to 7); None is what the task is known for, lengths in equal shares. The paper asks
    100 samples of each task, and 108 sudokus. Raises `UnknownName` and `InputError`.
    """
    task = find(name)
    if count < 1:
        raise InputError(f"A task needs at least one sample; ask for 1 or more, not {count}.")
    allowed = task.allowed
    if items is not None and allowed is None:
        raise InputError(f"{name} has one size only; leave items away.")
    if items is not None and allowed is not None and items not in allowed:
        raise InputError(f"{name} takes {allowed[0]} to {allowed[-1]} items; choose from these, not {items}.")
    rng = Random(default_seed(name) if seed is None else seed)
    sizes = task.sizes if items is None else (items,)
    return [task.make(rng, sizes[i % len(sizes)], sizes) for i in range(count)]


# Waiting line


def as_list(names: Sequence[str]) -> str:
    """Names as the tasks write them: `["a", "b"]`."""
    return "[" + ", ".join(f'"{name}"' for name in names) + "]"


def _changed(rng: Random, operation: str, given: Sequence[str], word: str) -> tuple[str, list[str], int | None]:
    """What happens to the list, told in words; one list that may come of it; and the index the words name, if any.

    `given` holds two names or more, all different, or a shuffle would never end; `word` is the name that joins, and is
    not in the list ("remove" and those that only reorder do not use it).
    """
    given = list(given)
    verb, _, where = operation.partition("_")
    place = rng.randrange(len(given) + (verb == "insert"))
    index = place if where == "index" else None
    if verb == "insert":
        told = f"at index {place}" if where == "index" else "at a place that you pick at random"
        return f"{word} joins {told}; the others keep their order.", given[:place] + [word] + given[place:], index
    whom = f"the customer at index {place}" if where == "index" else "one customer, whom you pick at random,"
    if verb == "remove":
        return f"{whom} leaves; the others keep their order.".capitalize(), given[:place] + given[place + 1 :], index
    if verb == "replace":
        told = f"{word} takes the place of {whom.rstrip(',')}; all others stay where they are."
        return told, given[:place] + [word] + given[place + 1 :], index
    return *_reordered(rng, verb, given), None


def _reordered(rng: Random, verb: str, given: list[str]) -> tuple[str, list[str]]:
    match verb:
        case "copy":
            return "Nothing; the list stays as it is.", given
        case "reverse":
            return "The list is turned round, so that the last customer comes first.", given[::-1]
        case "sort":
            return "The customers line up in alphabetical order of their full names, first name first.", sorted(given)
    mixed = list(given)
    while mixed == given:
        rng.shuffle(mixed)
    return "The customers line up anew in a random order that differs from the given one.", mixed


def _waiting_line(operation: str) -> Callable[[Random, int, Sequence[int]], Sample]:
    people = [f"{first} {last}" for first, last in itertools.product(FIRST_NAMES, LAST_NAMES)]

    def case(rng: Random, size: int) -> tuple[str, str, dict]:
        *given, word = rng.sample(people, size + 1)
        told, answer, index = _changed(rng, operation, given, word)
        uses_word = operation.startswith(("insert", "replace"))
        facts = {"given": tuple(given), "word": word if uses_word else None, "index": index}
        return f"List: {as_list(given)}\nWhat happens: {told}\nFinal list:", as_list(answer), facts

    def sample(rng: Random, size: int, sizes: Sequence[int]) -> Sample:
        shown, answer, _ = case(rng, rng.choice(sizes))
        asked, label, facts = case(rng, size)
        return Sample(f"{QUEUE}\n\nExample:\n{shown} {answer}\n\nYour turn:\n{asked}", label, facts)

    return sample


# Puzzles


def latin_square(rng: Random, size: int, sizes: Sequence[int]) -> Sample:
    """Symbols from A-Z and 0-9; the label is the cyclic square with its rows and columns mixed."""

    def case() -> tuple[str, str, tuple[str, ...]]:
        symbols = rng.sample("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789", size)
        rows, columns = (rng.sample(range(size), size) for _ in range(2))
        square = "\n".join(",".join(symbols[(r + c) % size] for c in columns) for r in rows)
        return f"Symbols: {' '.join(symbols)}\nTable:", square, tuple(symbols)

    (shown, answer, _), (asked, label, symbols) = case(), case()
    prompt = f"{LATIN.format(size=size)}\n\nExample:\n{shown}\n{answer}\n\nYour turn:\n{asked}\n"
    return Sample(prompt, label, {"symbols": symbols})


def completions(cells: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Every 4×4 sudoku that agrees with 16 cells, given row by row with 0 for an empty one."""
    if 0 not in cells:
        return [cells]
    at = cells.index(0)
    row, column = divmod(at, 4)
    seen = {
        cells[r * 4 + c]
        for r, c in itertools.product(range(4), repeat=2)
        if r == row or c == column or (r // 2, c // 2) == (row // 2, column // 2)
    }
    free = [digit for digit in range(1, 5) if digit not in seen]
    return [full for digit in free for full in completions((*cells[:at], digit, *cells[at + 1 :]))]


@functools.cache
def _grids() -> list[tuple[int, ...]]:
    return completions((0,) * 16)


def small_sudoku(rng: Random, size: int, sizes: Sequence[int]) -> Sample:
    """One of the 288 grids, all equally likely, with 4 of its 16 cells emptied such that one solution is left."""

    def case() -> tuple[str, str]:
        while True:
            full = rng.choice(_grids())
            empty = set(rng.sample(range(16), 16 - CLUES))
            clues = tuple(0 if i in empty else digit for i, digit in enumerate(full))
            if len(completions(clues)) == 1:
                return _rows(clues), _rows(full)

    (shown, answer), (puzzle, label) = case(), case()
    example = f"Puzzle:\n{shown}\nSolution:\n{answer}"
    return Sample(
        f"{SUDOKU}\n\nExample:\n{example}\n\nYour turn:\nPuzzle:\n{puzzle}\nSolution:\n", label, {"puzzle": puzzle}
    )


def _rows(cells: Sequence[int]) -> str:
    return "\n".join("".join(map(str, cells[i : i + 4])) for i in range(0, 16, 4))


# Words to a sentence


def _drawn(rng: Random, level: str, count: int) -> list[str]:
    match level:
        case "easy":
            return rng.sample(rng.choice(list(RELATED.values())), count)
        case "medium":
            return [rng.choice(words) for words in rng.sample(list(RELATED.values()), count)]
    return rng.sample(RARE, count)


def _sentence(level: str) -> Callable[[Random, int, Sequence[int]], Sample]:
    def sample(rng: Random, size: int, sizes: Sequence[int]) -> Sample:
        words = _drawn(rng, level, size)
        said = " and ".join([", ".join(words[:-1]), words[-1]]) if size > 1 else words[0]
        label = f"Somebody wrote the word{'s' if size > 1 else ''} {said} on the wall."
        return Sample(SENTENCE.format(words=", ".join(words)), label, {"words": tuple(words)})

    return sample


def _tasks() -> dict[str, Task]:
    found, allowed = [], range(2, MOST_ITEMS + 1)
    free = ("shuffle", "insert_random", "remove_random", "replace_random")
    fixed = ("copy", "reverse", "sort", "insert_index", "remove_index", "replace_index")
    for name in sorted(fixed + free):
        score = getattr(metrics, name) if name in free else metrics.list_match
        title, strict = f"Waiting line: {name.replace('_', ' ')}", metrics.score_strict(score)
        found.append(Task(name, title, 32, _waiting_line(name), score, LENGTHS, allowed, strict))
    found.append(Task("latin_square_n4", "Latin square of order 4", 64, latin_square, metrics.latin, (4,)))
    found.append(Task("sudoku_n4_12", "4×4 sudoku with 12 clues", 64, small_sudoku, metrics.sudoku, (4,)))
    for level, what in {"easy": "related", "medium": "unrelated", "hard": "rare or abstract"}.items():
        title, size = f"A sentence of {what} words", range(1, MOST_WORDS + 1)
        name, score = f"words_to_sentence_{level}", metrics.words_to_sentence
        found.append(Task(name, title, 64, _sentence(level), score, (4,), size))
    return {task.name: task for task in found}


TASKS: Mapping[str, Task] = _tasks()
"""Every task by its short name."""
LEFT_OUT: Mapping[str, str] = {
    "paraphrase": "Paraphrase is left out: it needs a set of outside texts, BERTScore and a grammar checker.",
    "summary": "Summary is left out: it needs a set of outside dialogues and a grammar checker.",
}
"""The paper's other tasks by name, and why they are not here."""
