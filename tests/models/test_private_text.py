"""Texts that the sharer alone reads: slots stand where the text would have stood, and are read as it would be."""

from dataclasses import replace

import pytest
import torch

from c2c_lightning.communicator import Communicator
from c2c_lightning.errors import UserError
from c2c_lightning.fuser import Fusers
from c2c_lightning.mapper import RidgeMapper
from c2c_lightning.models import Aligner, FrozenModels
from tests.models import tiny

TEXTS = [
    "Ribigo lives in Oslo, and everybody knows that.",
    "The capital of Norway is a very large city. The user asks where it is.",
    "Oslo.",
]
ASKED = ["Where does Ribigo live?", "Is it large, then?", "Which capital?"]


def told(texts=TEXTS, asked=ASKED):
    return [[{"role": "user", "content": question, "private": text}] for question, text in zip(asked, texts)]


def to_itself(family: str, template: str | None = tiny.BARE) -> Communicator:
    """A model that hands texts to itself, by a mapper that gives back what it gets."""
    name = tiny.FAMILIES[family][0]
    tokenizer = tiny.tokenizer(name) if template is None else tiny.with_template(name, template)
    models = FrozenModels(tiny.model(family), [tiny.model(family)], Aligner(tokenizer, [tokenizer]))
    fusers = Fusers(models.receiver_shape, models.sharer_shapes, fuser=None, mapper=RidgeMapper)
    fusers.mapper.weight.copy_(torch.eye(fusers.mapper.weight.shape[1]))
    return Communicator(models, fusers).eval()


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_model_told_by_itself_answers_as_if_it_had_read_the_text(family):
    model = to_itself(family)
    # The text is read with nothing before it here, as there is nothing before the message.
    batch = model.models.collate(told())
    batch.response_ids, batch.response_mask = torch.arange(12).view(3, 4) + 5, torch.ones(3, 4, dtype=torch.long)
    supervised = tuple(batch.response_mask.nonzero().T)
    text = batch.private
    ids = batch.prompt_ids[:, :-1].flatten().index_copy(0, text.slots, text.ids.flatten()[text.tokens])
    ids = torch.cat([ids.view_as(batch.prompt_ids[:, :-1]), batch.prompt_ids[:, -1:]], dim=1)
    read = replace(batch, prompt_ids=ids, private=None)
    heard = model.models.response_logits(model.prefill(batch), batch, supervised).softmax(-1)
    itself = model.models.response_logits(model.models.read(read).receiver_cache(), read, supervised).softmax(-1)
    assert (heard - itself).abs().max() < 1e-3
    assert torch.isfinite(heard).all()


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_texts_of_a_batch_are_heard_as_one_at_a_time(family):
    model = to_itself(family, template=None)
    together = model.models.collate(told())
    cache = model.prefill(together)
    for row, conversation in enumerate(told()):
        alone = model.models.collate([conversation])
        one = model.prefill(alone)
        length = int(together.prompt_mask[row].sum()) - 1
        for layer, single in zip(cache.layers, one.layers):
            assert torch.allclose(layer.keys[row, :, -length:], single.keys[0], atol=1e-4)
            assert torch.allclose(layer.values[row, :, -length:], single.values[0], atol=1e-4)
        assert torch.isfinite(cache.layers[0].keys).all()


def test_a_text_stands_before_its_own_message_and_not_before_one_that_has_its_words():
    aligner = to_itself("llama").models.aligner
    asked = [{"role": "user", "content": f"Say it again. {ASKED[2]}"}, {"role": "assistant", "content": "Oslo."}]
    prompt = aligner.prompt([*asked, {"role": "user", "content": ASKED[2], "private": TEXTS[0]}])
    before = aligner.receiver.decode(prompt.receiver_ids[: prompt.private.at])
    assert ASKED[2] in before
    assert "Oslo." in before


def test_white_space_is_no_text():
    aligner = to_itself("llama").models.aligner
    for nothing in ("", " \n", None):
        assert aligner.prompt([{"role": "user", "content": ASKED[0], "private": nothing}]).private is None


def test_what_the_receiver_alone_reads_stands_before_its_question_and_opposite_nothing():
    aligner = Aligner(tiny.tokenizer("chatml"), [tiny.tokenizer("inst")])
    for turns, before in (("refuse", []), ("merge", [{"role": "user", "content": TEXTS[2]}])):
        aligner.chat = replace(aligner.chat, turns=turns)
        plain = aligner.prompt([*before, {"role": "user", "content": ASKED[0]}])
        prompt = aligner.prompt([*before, {"role": "user", "content": ASKED[0], "receiver_only": TEXTS[0]}])
        assert prompt.sharer_ids == plain.sharer_ids
        assert f"{TEXTS[0]}\n\n{ASKED[0]}" in prompt.text
        pairs, alone = (
            [(each.receiver_ids[i], int(n)) for i, n in enumerate(each.positions[0])] for each in (prompt, plain)
        )
        read = aligner.receiver(f"{TEXTS[0]}\n\n", add_special_tokens=False).input_ids
        shared = [pair for pair in pairs if pair[1] != -1]
        assert len(pairs) - len(shared) == len(read)
        assert shared == alone
        both = [
            {"role": "user", "content": ASKED[0], "receiver_only": TEXTS[0]},
            {"role": "assistant", "content": "Oslo"},
        ]
        assert aligner.response_ids(both, aligner.prompt(both[:1])) == aligner.response_ids(
            [{"role": "user", "content": ASKED[0]}, both[1]], aligner.prompt([{"role": "user", "content": ASKED[0]}])
        )


def test_blank_text_of_one_kind_beside_a_text_of_the_other_is_nothing():
    aligner = Aligner(tiny.tokenizer("chatml"), [tiny.tokenizer("inst")])
    asked = {"role": "user", "content": ASKED[0]}
    alone = aligner.prompt([{**asked, "receiver_only": TEXTS[0], "private": " "}])
    assert alone.private is None
    assert alone.text == aligner.prompt([{**asked, "receiver_only": TEXTS[0]}]).text
    told_so = aligner.prompt([{**asked, "receiver_only": " ", "private": TEXTS[0]}])
    assert told_so.private.ids == aligner.prompt([{**asked, "private": TEXTS[0]}]).private.ids


def test_two_texts_that_one_model_alone_reads_are_refused():
    aligner = to_itself("llama").models.aligner
    with pytest.raises(UserError, match="one user's message"):
        aligner.prompt([{"role": "user", "content": "A?", "receiver_only": TEXTS[0], "private": TEXTS[1]}])


def test_published_alignment_refuses_what_the_receiver_alone_reads():
    aligner = Aligner(tiny.tokenizer("chatml"), [tiny.tokenizer("inst")], alignment="published")
    with pytest.raises(UserError, match=r"model\.alignment published"):
        aligner.prompt([{"role": "user", "content": ASKED[0], "receiver_only": TEXTS[0]}])


def test_what_follows_a_text_is_found_in_both_prompts_and_nothing_else():
    model = to_itself("llama", template=None)
    own = [{"role": "user", "content": "Nobody tells me."}]
    batch = model.models.collate([*told(), own])
    ids = [each[:, :-1] for each in (batch.prompt_ids, batch.private.read_ids)]
    places = batch.behind_texts()
    assert torch.equal(*(each.flatten()[at] for each, at in zip(ids, places)))
    for each, at in zip(ids, places):
        rows = [each.flatten()[at[at // each.shape[1] == row]] for row in range(4)]
        texts = [model.models.aligner.receiver.decode(row) for row in rows]
        # The first token of a message may be another one where a text stands before it.
        assert all(text.startswith((asked, asked[1:], asked[3:])) for text, asked in zip(texts, ASKED)), texts
        assert not texts[3]


def test_a_prompt_is_read_the_more_as_with_the_text_the_more_the_slots_tell():
    model = to_itself("llama", template=None)
    batch = model.models.collate(told())
    batch.response_ids, batch.response_mask = torch.arange(12).view(3, 4) + 5, torch.ones(3, 4, dtype=torch.long)
    batch.supervised = batch.response_mask.nonzero().T
    found = []
    for share in (1.0, 0.5, 0.0):
        model.fusers.mapper.weight.copy_(share * torch.eye(model.fusers.mapper.weight.shape[1]))
        reading = model.models.read(batch).with_mapper(model.fusers.mapper)
        found.append(float(model.models.text_loss(reading.receiver_cache(), reading, 0.0, 0.0, 0.0, 1.0)))
    assert 0 < found[0] < found[1] < found[2]


def test_the_receiver_reads_a_text_once_for_distributions_and_entries():
    model = to_itself("llama", template=None)
    batch = model.models.collate(told())
    batch.response_ids, batch.response_mask = torch.arange(12).view(3, 4) + 5, torch.ones(3, 4, dtype=torch.long)
    batch.supervised = batch.response_mask.nonzero().T
    reading = model.models.read(batch).with_mapper(model.fusers.mapper)
    length, widths = batch.private.read_ids.shape[1] - 1, []
    hook = model.models.receiver.register_forward_pre_hook(
        lambda _, args, kwargs: widths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    cache = reading.receiver_cache()
    widths.clear()
    model.models.text_loss(cache, reading, 1.0, 1.0, 1.0, 1.0)
    hook.remove()
    assert widths.count(length) == 1
