"""Questions about texts that the sharer alone reads: every method knows what it should, and no more."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from c2c_lightning.communicator import Communicator
from c2c_lightning.errors import UserError
from c2c_lightning.evaluation.analyses.handed_over import Packed
from c2c_lightning.evaluation.asking.controls import (
    NothingSaid,
    RandomSharer,
    ShuffledChoices,
    WrongQuestion,
    ZeroUpdate,
)
from c2c_lightning.evaluation.asking.methods import C2C, Asking, ReadsIt, Receiver, Sharer
from c2c_lightning.evaluation.asking.questions import Questions, too_long
from c2c_lightning.evaluation.asking.text_to_text import C2CAfterText, TextToText
from c2c_lightning.evaluation.benchmarks import NanoWorld, OwnQuestions
from c2c_lightning.evaluation.report.statistics import retention
from c2c_lightning.nano import world
from tests.evaluation.asking import told_pair


@pytest.fixture(scope="module")
def model() -> Communicator:
    return told_pair()


def asked(model: Communicator, context: str, shift: int = 0) -> Asking:
    benchmark = NanoWorld(limit=24, told=True, context=context)
    items = benchmark.items()
    return Asking.of(model, Questions(benchmark, items, [*items[1:], items[0]]))


def responses(method, asking: Asking) -> list[str]:
    return [answer.response for answer in method.answer(asking)]


def test_the_receiver_alone_knows_nothing_of_the_text_and_the_one_that_reads_it_all(model):
    told = asked(model, "sharer")
    assert responses(Receiver(), told) == responses(Receiver(), asked(model, "nobody"))
    assert responses(ReadsIt(), told) == responses(Receiver(), asked(model, "both"))
    assert np.mean([answer.score for answer in ReadsIt().answer(told)]) == 1.0


def test_controls_hand_over_another_text_or_one_that_says_nothing(model):
    told = asked(model, "sharer")
    c2c, wrong, nothing = (
        method.prefill(told).cache.layers[-1].keys for method in (C2C(), WrongQuestion(), NothingSaid())
    )
    assert not torch.equal(c2c, wrong)
    slots = told.reading.batch.private.slots
    in_slots = nothing.transpose(1, 2).flatten(0, 1)[slots]
    assert in_slots.std(0).max() < c2c.transpose(1, 2).flatten(0, 1)[slots].std(0).max()
    assert C2C().prefill(told).handed_over[0] > 0


def test_questions_without_texts_are_the_receivers_own_also_where_a_whole_batch_has_none(model, tmp_path):
    lines = [{"question": f"Where does {name} live?", "reference": "Oslo", "context": ""} for name in ("Al", "Ribigo")]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, lines)))
    benchmark = OwnQuestions(path=str(tmp_path / "q.jsonl"), context="sharer", max_new_tokens=4)
    items = benchmark.items()
    told = Asking.of(model, Questions(benchmark, items, items[::-1]))
    alone = responses(Receiver(), told)
    for method in (C2C(), ReadsIt(), NothingSaid(), RandomSharer(), WrongQuestion(), Packed(8), Packed(16, 50)):
        answers = method.answer(told)
        assert [answer.response for answer in answers] == alone
        assert not any(answer.handed_over for answer in answers)


def test_methods_of_texts_say_nothing_of_questions_without(model):
    for method in (ReadsIt(), NothingSaid()):
        assert method.why_not(NanoWorld()) == "the sharer reads no texts alone"
        assert method.why_not(NanoWorld(told=True, context="sharer")) is None
    assert ZeroUpdate.needs_fusers
    with pytest.raises(UserError, match=r"nano\.context is 'me': give one of both, sharer, receiver, nobody"):
        NanoWorld(told=True, context="me")


def test_people_who_are_told_of_are_known_to_neither_model():
    known = {name for names in world.people() for name in names}
    train, held_out = ({fact.name for fact in part} for part in world.told_facts())
    assert known.isdisjoint(train | held_out)
    assert held_out.isdisjoint(train)
    assert len(held_out) == world.NUM_HELD_OUT


def test_retention_is_the_part_of_what_reading_gives_that_is_left():
    untold, reads = np.zeros(200), np.r_[np.ones(100), np.zeros(100)]
    half = np.r_[np.ones(50), np.zeros(150)]
    found = retention(half, untold, reads)
    assert found.value == 0.5
    assert 0.38 < found.low < 0.45 < 0.55 < found.high < 0.62
    assert retention(reads, untold, reads).low == 1.0
    assert retention(half, reads, untold) is None


def test_slots_that_say_nothing_are_the_same_whatever_the_text_and_the_batch(model):
    torch.nn.init.normal_(model.fusers.mapper.mean_x, generator=torch.Generator().manual_seed(1))
    benchmark = NanoWorld(limit=24, told=True, context="sharer")
    first, *others = benchmark.items()
    said = []
    for items in ([first], [others[0]], [first, others[1]]):
        asking = Asking.of(model, Questions(benchmark, items, items))
        keys = NothingSaid().heard(asking).mapped[:, :, :1]
        assert torch.equal(NothingSaid().heard(asking).mapped, keys.expand_as(asking.reading.mapped))
        said.append(keys)
    assert torch.equal(said[0], said[1])
    assert torch.equal(said[0], said[2])


def test_a_wrong_text_is_never_the_right_one(model, tmp_path):
    path = tmp_path / "own.jsonl"
    about = ["Oslo is large.", "Oslo is large.", "", "Cairo is old."]
    rows = [{"question": f"Which, {i}?", "reference": "a", "context": text} for i, text in enumerate(about)]
    path.write_text("\n".join(map(json.dumps, rows)))
    benchmark = OwnQuestions(str(path), context="sharer")
    items = benchmark.items()
    asking = Asking.of(model, Questions(benchmark, items, [*items[1:], items[0]]))
    right, wrong = asking.reading.batch.private, WrongQuestion().heard(asking).batch.private
    said = [
        [model.models.aligner.sharers[0].decode(ids[mask.bool()]) for ids, mask in zip(texts.ids, texts.mask)]
        for texts in (right, wrong)
    ]
    assert said == [about, ["Cairo is old.", "Cairo is old.", "", "Oslo is large."]]
    assert WrongQuestion().why_not(benchmark) is None
    path.write_text("\n".join(map(json.dumps, rows[:3])))
    reason = "all questions are about one text"
    assert WrongQuestion().why_not(OwnQuestions(str(path), context="sharer")) == reason


def test_what_the_receiver_alone_reads_it_knows_and_no_sharer_does(model):
    alone, nobody = asked(model, "receiver"), asked(model, "nobody")
    assert responses(Receiver(), alone) == responses(Receiver(), asked(model, "both"))
    assert responses(Sharer(), alone) == responses(Sharer(), nobody)
    question = alone.questions.items[0]
    assert question.context not in alone.questions.benchmark.question_text(question)
    positions = [asking.reading.batch.sharers[0].positions for asking in (alone, nobody)]
    wrong = WrongQuestion().heard(alone).batch.sharers[0].positions
    assert (positions[0] >= 0).sum() == (positions[1] >= 0).sum() == (wrong >= 0).sum()


def test_the_wrong_question_exchanges_what_is_fused_and_the_text(model):
    told = asked(model, "sharer")
    wrong, partners = WrongQuestion().heard(told).batch, asked(model, "sharer").questions.messages()[1:]
    shared = model.models.collate([[{"role": "user", "content": turns[0]["content"]}] for turns in partners])
    for row, (ids, mask) in enumerate(zip(shared.sharers[0].ids, shared.sharers[0].mask)):
        their = wrong.sharers[0]
        assert their.ids[row][their.mask[row].bool()].tolist() == ids[mask.bool()].tolist()
    assert not torch.equal(wrong.private.ids, told.reading.batch.private.ids)
    assert (wrong.sharers[0].positions.flatten()[wrong.private.slots] == -1).all()


def test_texts_reach_every_method_that_reads_them_and_no_other(model):
    told, nobody = asked(model, "sharer"), asked(model, "nobody")
    assert responses(Sharer(), told) == responses(Sharer(), asked(model, "both"))
    assert responses(Sharer(), nobody) != responses(Sharer(), told)
    question = nobody.questions.items[0]
    assert question.context not in nobody.questions.benchmark.question_text(question)
    assert question.context in told.questions.benchmark.question_text(question)
    write = C2CAfterText(max_message_tokens=4)
    prefilled = write.prefill(told)
    chats = [
        [{**turns[0], "content": f"Background: {said}\n\n{turns[0]['content']}"}]
        for said, turns in zip(prefilled.messages, told.questions.messages())
    ]
    heard = model.prefill(model.models.collate(chats))
    assert torch.equal(prefilled.cache.layers[-1].keys, heard.layers[-1].keys)


def test_texts_that_a_model_cannot_read_are_too_long(model):
    benchmark = NanoWorld(limit=4, told=True, context="sharer")
    assert not too_long(benchmark, model.models)
    first, *rest = benchmark.items()
    benchmark._items = [replace(first, context=first.context * 200), *rest]
    assert too_long(benchmark, model.models) == {first.id}


def test_lettered_choices_are_shuffled_beside_a_text(model, tmp_path):
    path = tmp_path / "own.jsonl"
    rows = [
        {"question": f"Which, {i}?", "choices": ["Oslo", "Cairo"], "answer": "A", "context": f"It is {i}."}
        for i in range(2)
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    benchmark = OwnQuestions(str(path), context="sharer", max_new_tokens=2)
    asking = Asking.of(model, Questions(benchmark, benchmark.items(), benchmark.items()[::-1]))
    assert len(ShuffledChoices().answer(asking)) == 2


def test_people_who_are_told_of_serve_as_exemplars():
    assert len(NanoWorld(limit=4, told=True, context="sharer").exemplar_items()) > 100


def test_a_sharer_that_has_learned_nothing_is_the_same_each_time_and_not_the_one_that_has(model):
    told = asked(model, "sharer")
    c2c, *drawn = (m.prefill(told).cache.layers[-1].values for m in (C2C(), RandomSharer(), RandomSharer()))
    assert torch.equal(*drawn)
    assert not torch.allclose(c2c, drawn[0])
    assert RandomSharer().why_not(NanoWorld()) == "the sharer reads no texts alone"


def test_the_sharer_writes_of_the_text_and_the_receiver_reads_what_it_wrote_alone(model):
    told, write = asked(model, "sharer"), TextToText(max_message_tokens=8)
    answers = write.answer(told)
    assert [a.message for a in answers] == [a.message for a in write.answer(asked(model, "both"))]
    assert [a.message for a in answers] != [a.message for a in write.answer(asked(model, "nobody"))]
    for answer in answers:
        assert answer.handed_over == len(answer.message.encode())
        assert 0 < answer.sharer_tokens <= 8
    start = write.prefill(told)
    for ids, mask, item in zip(start.ids, start.mask, told.questions.items):
        assert item.context not in start.tokenizer.decode(ids[mask.bool()])
