"""Questions of the built-in world as training and validation data."""

from __future__ import annotations

import re

from c2c_lightning.data import NanoData
from c2c_lightning.data.records import Example


def people(examples: list[Example]) -> set[str]:
    """Whom the questions are about: their only capitalised words but the first."""
    return {name for e in examples for name in re.findall(r" ([A-Z]\w+)", e.prompt[0]["content"])}


def test_no_held_out_person_is_trained_on(aligner):
    data = NanoData(aligner=aligner)
    training, held_out = data.train_examples(), data.val_examples()
    assert (len(training), len(held_out)) == (3200, 400)
    assert (len(people(training)), len(people(held_out))) == (400, 100)
    assert not people(training) & people(held_out)


def test_references_are_the_answers_to_compare_word_for_word(aligner):
    data = NanoData(aligner=aligner)
    assert data.exact_answers
    batches = list(data.val_dataloader())
    assert [len(batch) for batch in batches] == [100] * 4
    references = [reference for batch in batches for reference in batch.references]
    assert references == [example.response for example in data.val_examples()]
    for batch in batches:
        learned = [row[mask.bool()] for row, mask in zip(batch.response_ids, batch.response_mask)]
        assert aligner.receiver.batch_decode(learned, skip_special_tokens=True) == batch.references


def test_an_epoch_has_every_training_question_once(aligner):
    data = NanoData(seed=3, aligner=aligner)
    loader = data.train_dataloader()
    sizes = [len(batch) for batch in loader]
    assert len(loader) == len(sizes) == 50
    assert sum(sizes) == 3200
