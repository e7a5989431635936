"""The world is a true case for communication: neither model is ever shown what the other supplies."""

import random
from collections import Counter

import pytest

from c2c_lightning.models.loading import load_tokenizer
from c2c_lightning.nano import world
from c2c_lightning.nano.build import build, receiver_sampler, sharer_sampler
from c2c_lightning.nano.world import RELATIONS


@pytest.fixture(scope="module")
def tokenizers():
    return load_tokenizer("c2c_lightning/nano/sharer"), load_tokenizer("c2c_lightning/nano/receiver")


def test_the_world_is_the_same_for_the_same_seed():
    assert world.facts() == world.facts()
    assert world.facts(1) != world.facts(2)


def test_held_out_people_are_strangers_to_fuser_training():
    training, held_out = world.facts()
    assert not {fact.name for fact in training} & {fact.name for fact in held_out}
    assert len(held_out) == 4 * world.NUM_HELD_OUT
    assert len(training) == 4 * (world.NUM_PEOPLE - world.NUM_HELD_OUT)


def test_a_constant_guess_is_right_once_in_twelve():
    for part in world.facts():
        for relation in RELATIONS:
            answers = Counter(fact.answer for fact in part if fact.relation == relation)
            assert max(answers.values()) / answers.total() <= 0.1


def test_the_sharer_is_never_shown_a_second_hop(tokenizers):
    tokenizer = tokenizers[0]
    sample, rng = sharer_sampler(tokenizer), random.Random(0)
    answers = {answer for relation in RELATIONS for answer in relation.second_hop.values()}
    for _ in range(500):
        words = set(tokenizer.decode(sample(rng)["ids"]).replace(".", " ").replace("?", " ").split())
        assert not words & answers


def test_the_receiver_is_never_shown_a_person_of_the_world(tokenizers):
    tokenizer = tokenizers[1]
    sample, rng = receiver_sampler(tokenizer), random.Random(0)
    people = {name for part in world.people() for name in part}
    for _ in range(500):
        words = set(tokenizer.decode(sample(rng)["ids"]).replace(".", " ").replace("?", " ").split())
        assert not words & people


def test_names_have_several_tokens_in_either_tokenizer(tokenizers):
    for tokenizer in tokenizers:
        for name in world.people()[1]:
            assert len(tokenizer(f"of {name}?", add_special_tokens=False).input_ids) >= 4


def test_both_tokenizers_read_and_write_any_text(tokenizers):
    text = "Zürich 北京 👍🏽 def f(x):\n    return x"
    for tokenizer in tokenizers:
        assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text


def test_build_remakes_the_pair_from_its_seed(tmp_path):
    for folder in ("first", "second"):
        build(tmp_path / folder, sharer_steps=1, receiver_steps=1)
    for model in ("sharer", "receiver"):
        first, second = (sorted((tmp_path / folder / model).iterdir()) for folder in ("first", "second"))
        assert [file.name for file in first] == [file.name for file in second]
        assert all(a.read_bytes() == b.read_bytes() for a, b in zip(first, second))
