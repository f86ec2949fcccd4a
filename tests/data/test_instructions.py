"""Prompts that are made up: many, different, and the same every time."""

import pytest

from paradec.data.instructions import instructions, retold
from paradec.errors import InputError


def test_instructions_are_different_and_begin_alike():
    some, more = instructions(300), instructions(900)
    assert len(set(more)) == 900 and more[:300] == some
    assert instructions(300, seed=1) != some
    assert not any("{" in prompt for prompt in more)
    assert len({prompt.split()[0] for prompt in more}) > 15
    with pytest.raises(InputError, match="5000"):
        instructions(5001)


def test_retold_prompts_hold_the_answers_and_their_questions():
    asked, answers = ["What is a?", "What is b?", "What is c?"], [" An a. ", "A b.", "A c."]
    prompts = retold(asked, answers, 60)
    assert prompts[:20] == retold(asked, answers, 20) != retold(asked, answers, 20, seed=1)
    for prompt in prompts:
        assert any(answer.strip() in prompt for answer in answers) and "{" not in prompt
        for question, answer in zip(asked, answers, strict=True):
            assert question not in prompt or answer.strip() in prompt
    assert any("Question: What is b?" in prompt for prompt in prompts)


def test_prompts_cannot_be_retold_from_one_answer():
    assert retold(["What is a?"], ["A."], 0) == []
    with pytest.raises(InputError, match="from 2 answers each, and there are 1"):
        retold(["What is a?"], ["A."], 3)
