"""Who is given whose cache, and in which order choices stand."""

import numpy as np
import pytest

from c2c_lightning.evaluation.asking.questions import Questions, derangement, num_merged, shuffled_choices
from c2c_lightning.evaluation.benchmarks import Item, NanoWorld
from c2c_lightning.models import Aligner, ChatConfig, Message
from tests.evaluation.invented import Invented
from tests.models import tiny
from tests.models.test_chat import STRICT

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


class Instructed(Invented):
    """Every second question comes with a system turn."""

    def messages(self, item: Item) -> list[Message]:
        system = [{"role": "system", "content": "Be brief."}] if "1" in item.question else []
        return [*system, *super().messages(item)]


@pytest.mark.parametrize(("turns", "number"), [("merge", 2), ("refuse", 0)])
def test_questions_whose_turns_a_template_refuses_are_counted(turns, number):
    models = tiny.communicator("qwen3", "qwen3").models
    sharer = tiny.with_template("chatml", STRICT)
    models.aligner = Aligner(tiny.tokenizer("chatml"), [sharer], chat=ChatConfig(turns=turns))
    assert num_merged(Instructed(11), models) == number


def test_the_built_in_questions_are_about_people_that_no_fuser_was_trained_on():
    benchmark = NanoWorld()
    trained = {item.question for item in benchmark.exemplar_items()}
    assert len(benchmark.items()) == 400
    assert not trained & {item.question for item in benchmark.items()}
