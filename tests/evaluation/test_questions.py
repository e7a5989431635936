"""Who is given whose cache, and in which order choices stand."""

import numpy as np
import pytest

from c2c_lightning.evaluation.asking.questions import Questions, derangement, shuffled_choices
from c2c_lightning.evaluation.benchmarks import NanoWorld
from c2c_lightning.evaluation.benchmarks.item import Item

ITEMS = [
    Item("a", "One?", ("B",), ("w", "x", "y", "z")),
    Item("b", "Two?", ("A", "C"), ("p", "q", "r")),
    Item("c", "Three?", ("B",), ("yes", "no")),
]


@pytest.mark.parametrize("number", [2, 3, 10, 401])
def test_every_question_gets_another_ones_cache_and_every_cache_serves_once(number):
    other = derangement(number, seed=3)
    assert (other != np.arange(number)).all()
    assert sorted(other) == list(range(number))
    assert (other == derangement(number, seed=3)).all()


def test_another_seed_gives_other_partners():
    assert (derangement(50, 0) != derangement(50, 1)).any()


def test_shuffled_choices_keep_what_is_right():
    shuffled, orders = zip(*(shuffled_choices(item, 0) for item in ITEMS))
    for item, other, order in zip(ITEMS, shuffled, orders):
        assert other.choices != item.choices
        assert sorted(other.choices) == sorted(item.choices)
        right = {item.choices[item.letters.index(letter)] for letter in item.answers}
        assert {other.choices[other.letters.index(letter)] for letter in other.answers} == right
        assert [item.choices[i] for i in order] == list(other.choices)


def test_questions_that_are_done_are_left_out_with_their_partners():
    questions = Questions(None, ITEMS, ITEMS[::-1])
    left = questions.without({"b"})
    assert [item.id for item in left.items] == ["a", "c"]
    assert [item.id for item in left.partners] == ["c", "a"]
    assert questions.without({"elsewhere"}) is questions


def test_the_built_in_questions_are_about_people_that_no_fuser_was_trained_on():
    benchmark = NanoWorld()
    trained = {item.question for item in benchmark.exemplar_items()}
    assert len(benchmark.items()) == 400
    assert not trained & {item.question for item in benchmark.items()}
