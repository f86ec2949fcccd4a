"""The ParallelBench tasks: labels are right answers, wrong answers score nothing, samples follow from the seed."""

import collections
import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paradec.errors import InputError, UnknownName
from paradec.evals.parallelbench import metrics, tasks, words
from paradec.evals.parallelbench.metrics import Sample, score_strict
from paradec.evals.parallelbench.tasks import TASKS, as_list, make

LINE = [name for name, task in TASKS.items() if task.most_tokens == 32]
WORDS = [name for name in TASKS if name.startswith("words")]
ONE_ANSWER = ["copy", "insert_index", "remove_index", "replace_index", "reverse", "sort"]
NAMES = st.lists(st.text("abcxyz ", min_size=1).map(lambda s: f"<{s}>"), min_size=2, max_size=8, unique=True)


def score(name, answer, sample):
    """The score of a list or a text; with the text given, both scores must be plain floats."""
    text = answer if isinstance(answer, str) else as_list(answer)
    found = TASKS[name].score(text, sample)
    assert type(found) is float
    if name in LINE:
        strict = TASKS[name].score_strict(text, sample)
        assert type(strict) is float and strict <= found
    return found


def test_the_tasks_of_the_paper():
    assert len(LINE) == 10 and len(TASKS) == 15 and set(tasks.LEFT_OUT) == {"paraphrase", "summary"}
    assert {task.most_tokens for name, task in TASKS.items() if name not in LINE} == {64}
    assert all(name == task.name and task.title for name, task in TASKS.items())


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("seed", [None, 0, 1])
def test_labels_are_right(name, seed):
    for sample in make(name, 40, seed):
        assert score(name, sample.label, sample) == 1.0
        assert score(name, "", sample) == score(name, "[", sample) == 0.0
        if name not in ("copy", "sort"):  # where repeating the question may answer it
            assert score(name, sample.prompt, sample) == 0.0


@pytest.mark.parametrize("name", LINE)
def test_lists_of_any_length(name):
    for items in (2, 3, 15, 100):
        for sample in make(name, 5, 3, items):
            assert len(sample.facts["given"]) == items
            assert score(name, sample.label, sample) == 1.0
            assert TASKS[name].score_strict(f"Here it is: {sample.label}.", sample) == 1.0


@pytest.mark.parametrize("name", LINE)
def test_prompts_say_what_is_asked(name):
    for sample in make(name, 20):
        before, _, asked = sample.prompt.partition("Your turn:\n")
        assert as_list(sample.facts["given"]) in asked and sample.label not in before
        if sample.facts["word"]:
            assert f" {sample.facts['word']} " in asked and sample.facts["word"] not in sample.facts["given"]
        if name.endswith("index"):
            assert f"at index {sample.facts['index']}" in asked
        else:
            assert sample.facts["index"] is None
        shown = [json.loads("[" + line.partition("[")[2]) for line in before.splitlines() if "[" in line]
        assert len(shown) == 2 and 2 <= min(map(len, shown)) and max(map(len, shown)) <= 7
        if name == "shuffle":
            assert sorted(shown[0]) == sorted(shown[1]) and shown[0] != shown[1]


def test_labels_by_hand():
    for operation in ONE_ANSWER:
        for sample in make(operation, 30, 8):
            given, word, i = list(sample.facts["given"]), sample.facts["word"], sample.facts["index"]
            if operation == "insert_index":
                given.insert(i, word)
            elif operation == "remove_index":
                del given[i]
            elif operation == "replace_index":
                given[i] = word
            else:
                given = {"copy": given, "reverse": given[::-1], "sort": sorted(given)}[operation]
            assert json.loads(sample.label) == given


@pytest.mark.parametrize("name,last", [("insert_index", 0), ("remove_index", -1), ("replace_index", -1)])
def test_every_index_comes_up(name, last):
    found = {sample.facts["index"] for sample in make(name, 200, 0, 3)}
    assert found == set(range(3 + last + 1))


@pytest.mark.parametrize("name", LINE)
def test_wrong_lists_score_nothing(name):
    for sample in make(name, 24, 4):
        answer = json.loads(sample.label)
        if len(answer) > 2 and name != "shuffle":
            assert score(name, [answer[-1], *answer[1:-1], answer[0]], sample) == 0.0
        assert score(name, answer[:-1], sample) == score(name, answer[1:], sample) == 0.0
        for i in range(len(answer)):
            assert score(name, [*answer[:i], "Some Body", *answer[i + 1 :]], sample) == 0.0
            assert score(name, [*answer[: i + 1], *answer[i:]], sample) == 0.0
        if name != "copy" and sorted(sample.facts["given"]) != list(sample.facts["given"]):
            assert score(name, sample.facts["given"], sample) == 0.0


@pytest.mark.parametrize("operation", ["insert", "remove", "replace"])
def test_a_place_is_free_or_it_is_not(operation):
    """Of all places where the change could happen, the index task takes one and the random task every one."""
    for at_random in make(f"{operation}_random", 8, 6):
        given, word = list(at_random.facts["given"]), at_random.facts["word"]
        n = len(given) + (operation == "insert")
        new, skip = [] if operation == "remove" else [word], operation != "insert"
        every = [[*given[:i], *new, *given[i + skip :]] for i in range(n)]
        assert [score(f"{operation}_random", answer, at_random) for answer in every] == [1.0] * n
        for i in range(n):
            named = Sample("", as_list(every[i]))
            assert [score(f"{operation}_index", answer, named) for answer in every] == [float(i == j) for j in range(n)]


def test_random_places_at_their_edges():
    sample = Sample("", "", {"given": ("a", "b", "c"), "word": "w"})
    assert metrics.replace_random('["a", "b", "c", "w"]', sample) == 0.0  # beyond the end: appended, not put in
    assert metrics.replace_random('["a", "w", "w"]', sample) == 0.0
    assert metrics.insert_random('["w", "a", "b", "c", "w"]', sample) == 0.0
    assert metrics.insert_random('["w", "b", "a", "c"]', sample) == 0.0
    assert metrics.remove_random('["a", "a"]', sample) == metrics.remove_random('["c", "a"]', sample) == 0.0
    assert metrics.remove_random('["a"]', sample) == 0.0
    assert metrics.shuffle('["b", "a", "a"]', sample) == metrics.shuffle('["a", "b", "c"]', sample) == 0.0
    assert metrics.shuffle('["c", "b", "a"]', sample) == 1.0


def test_how_lists_are_read():
    assert metrics.items('First ["x"], then [ "a b", \'c\' ,d] and ] more') == ["a b", "c", "d"]
    assert metrics.items('["a", "b') == ["a", "b"]  # an answer that ran into its cap
    assert metrics.items('"a", "b"') == metrics.items("") == metrics.items("so: [ ]") == []
    assert metrics.items('["a", , "b"]') == ["a", "", "b"]


@pytest.mark.parametrize("text", ["['a', 'b']", "[a, b]", '["a", b]', '["a", "b"', '[" a", "b"]', '["a" "b"]'])
def test_strict_scores_need_exact_quotes(text):
    strict, sample = score_strict(metrics.list_match), Sample("", '["a", "b"]')
    assert strict('So: ["a","b"] it is.', sample) == 1.0 and strict('["b", "a"]', sample) == 0.0
    assert strict(text, sample) == 0.0
    if "," in text:
        assert metrics.list_match(text, sample) == 1.0


@pytest.mark.parametrize("name", TASKS)
def test_samples_follow_from_the_seed(name):
    assert make(name, 12) == make(name, 20)[:12] == make(name, 12, tasks.default_seed(name))
    assert make(name, 12, 1) != make(name, 12, 2)
    assert len({sample.prompt for sample in make(name, 100)}) >= 99


def test_default_seeds():
    assert tasks.default_seed("copy") == 31940 and tasks.default_seed("shuffle") == 30142
    assert len({tasks.default_seed(name) for name in TASKS}) == 15


@pytest.mark.parametrize("name", LINE)
def test_lengths_have_equal_shares(name):
    lengths = collections.Counter(len(sample.facts["given"]) for sample in make(name))
    assert lengths == {3: 25, 4: 25, 5: 25, 6: 25}


def test_latin_squares():
    for sample in make("latin_square_n4", 40):
        symbols, table = sample.facts["symbols"], np.array([line.split(",") for line in sample.label.splitlines()])
        assert table.shape == (4, 4) and len(set(symbols)) == 4
        assert all(sorted(line) == sorted(symbols) for line in (*table, *table.T))
        rows = sample.label.splitlines()
        assert score("latin_square_n4", "Sure:\n" + "\n".join(r.replace(",", " , ") for r in rows[::-1]), sample) == 1.0
        wrong = [rows[:3], [rows[0], *rows[:3]], [r.replace(",", "") for r in rows], ["A"] * 4]
        wrong.append([f"{r},{r[0]}" for r in rows])
        wrong.append([r.replace(symbols[0], "?") for r in rows])
        swapped = rows[0].split(",")
        wrong.append([",".join([swapped[1], swapped[0], *swapped[2:]]), *rows[1:]])
        assert [score("latin_square_n4", "\n".join(lines), sample) for lines in wrong] == [0.0] * 7


def solutions(puzzle):
    """By trying every filling of the empty cells."""
    cells = [int(c) for c in puzzle.replace("\n", "")]
    empty = [i for i, c in enumerate(cells) if c == 0]
    for digits in itertools.product((1, 2, 3, 4), repeat=len(empty)):
        grid = np.array(cells)
        grid[empty] = digits
        grid = grid.reshape(4, 4)
        blocks = grid.reshape(2, 2, 2, 2).swapaxes(1, 2).reshape(4, 4)
        if all(len(set(line)) == 4 for line in (*grid, *grid.T, *blocks)):
            yield "\n".join("".join(map(str, row)) for row in grid)


def test_sudokus_have_twelve_clues_and_one_solution():
    for sample in make("sudoku_n4_12", 108):
        puzzle = sample.facts["puzzle"]
        assert sum(c in "1234" for c in puzzle) == 12 and sample.prompt.endswith(f"{puzzle}\nSolution:\n")
        assert list(solutions(puzzle)) == [sample.label]
    assert len(tasks.completions((0,) * 16)) == 288
    for sample in make("sudoku_n4_12", 1500, 1):  # fewer than 1 puzzle in 100 would have a second solution by chance
        cells = tuple(int(c) for c in sample.facts["puzzle"].replace("\n", ""))
        assert tasks.completions(cells) == [tuple(int(c) for c in sample.label.replace("\n", ""))]


def test_wrong_sudokus_score_nothing():
    for sample in make("sudoku_n4_12", 10):
        rows = sample.label.splitlines()
        turned = sample.label.translate(str.maketrans("1234", "2341"))  # a valid grid, but not of these clues
        wrong = [sample.facts["puzzle"], turned, "\n".join(rows[:3]), "\n".join(rows[::-1]), "".join(rows)]
        wrong.append("\n".join(" ".join(row) for row in rows))
        assert [score("sudoku_n4_12", text, sample) for text in wrong] == [0.0] * 6
        assert score("sudoku_n4_12", f"```\n{sample.label}\n```", sample) == 1.0


@pytest.mark.parametrize("name", WORDS)
def test_words_of_sentences(name):
    for count in range(1, 8):
        for sample in make(name, 10, 5, count):
            found = sample.facts["words"]
            assert len(set(found)) == count and ", ".join(found) in sample.prompt
            assert score(name, sample.label, sample) == 1.0
            assert score(name, sample.label.replace(found[-1], "thing"), sample) == 0.0
    subjects = {word: subject for subject, group in words.RELATED.items() for word in group}
    for sample in make(name, 30):
        groups = {subjects.get(word) for word in sample.facts["words"]}
        assert len(groups) == (4 if name.endswith("medium") else 1) and (None in groups) == name.endswith("hard")


@pytest.mark.parametrize(
    "text,plain",
    [
        ("The dog saw a bone.", True), ("  Was it the DOG's bone?\n", True), ("Élan moved the dog, bone too!", True),
        ("The dogs are bony: bones!", True), ("the dog saw a bone.", False), ("The dog saw a bone", False),
        ("The dog ran. It saw a bone.", False), ("The dog saw.\nA bone.", False), ("Here:\nThe dog saw a bone.", False),
        ("The the dog saw a bone.", False), ("The dog saw saw a bone.", False), ("The dog saw a cat.", False),
        ("", False), (".", False), ('"The dog saw a bone."', False), ("1 dog saw a bone.", False),
        ("The dog had had-on bone.", True), ("Tree the of, dog go bone.", True),
    ],
)  # fmt: skip
def test_plain_sentences(text, plain):
    assert metrics.plain_sentence(text, ["dog", "bone"]) is plain


def test_word_lists():
    flat = [word for group in words.RELATED.values() for word in group] + list(words.RARE)
    assert not [(a, b) for a, b in itertools.permutations(flat, 2) if a in b]
    assert all(len(group) == 8 for group in words.RELATED.values()) and len(words.RELATED) >= tasks.MOST_WORDS
    people = words.FIRST_NAMES + words.LAST_NAMES
    assert len(set(people)) == len(people) and all(name.isalpha() for name in people)


@pytest.mark.parametrize(
    "arguments,said",
    [
        (dict(name="copy", count=0), "ask for 1 or more, not 0"),
        (dict(name="copy", items=1), "takes 2 to 100 items; choose from these, not 1"),
        (dict(name="sort", items=101), "choose from these, not 101"),
        (dict(name="words_to_sentence_easy", items=8), "takes 1 to 7 items"),
        (dict(name="sudoku_n4_12", items=4), "one size only; leave items away"),
    ],
)
def test_bad_input(arguments, said):
    with pytest.raises(InputError, match=said):
        make(**arguments)


def test_unknown_tasks():
    with pytest.raises(UnknownName, match="no ParallelBench task named 'shufle'. Did you mean 'shuffle'"):
        make("shufle")
    for name, reason in tasks.LEFT_OUT.items():
        with pytest.raises(UnknownName, match=reason):
            make(name)


@settings(max_examples=60, deadline=None)
@given(NAMES, st.sampled_from(LINE), st.data())
def test_a_list_is_read_back_as_written(names, operation, data):
    """For any names without commas, quotes and brackets; and a shuffle is any other order and nothing else."""
    assert metrics.items("x [y] " + as_list(names)) == names
    assert score(operation, as_list(names), Sample("", as_list(names), {"given": names, "word": "w"})) == float(
        operation in ONE_ANSWER
    )
    mixed = data.draw(st.permutations(names))
    assert score("shuffle", mixed, Sample("", "", {"given": tuple(names)})) == float(mixed != names)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=2, max_size=24))
def test_order_is_what_scipy_says(settled):
    found = metrics.order(settled)
    if len(set(settled)) == 1:
        assert found == metrics.Order(0.0, 0.0)
        return
    from scipy import stats  # a second to import

    place = range(len(settled))
    np.testing.assert_allclose(found.kendall, stats.kendalltau(settled, place).statistic, atol=1e-12)
    np.testing.assert_allclose(found.spearman, stats.spearmanr(settled, place).statistic, atol=1e-12)
    assert type(found.kendall) is type(found.spearman) is float


def test_orders_known_without_scipy():
    assert metrics.order([]) == metrics.order([5]) == metrics.order([2, 2, 2]) == metrics.Order(0.0, 0.0)
    for settled, way in ((range(8), 1.0), (range(8, 0, -1), -1.0)):
        found = metrics.order(settled)
        assert found.kendall == way and abs(found.spearman - way) < 1e-12 and abs(found.spearman) <= 1.0
    assert metrics.order(np.array([1, 1, 2, 2], np.int32)) == metrics.order([1, 1, 2, 2])
    assert abs(metrics.order([1, 1, 2, 2]).kendall - 4 / np.sqrt(6 * 4)) < 1e-12
