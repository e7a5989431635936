"""Validation's exact answers: which question's caches are fused, and how often the frozen models are asked."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from c2c_lightning.fuser import GateConfig
from c2c_lightning.models.batch import collate
from c2c_lightning.training.exact_answers import ExactAnswers, accuracies, greedy_answers
from tests.models import tiny

ASKED = [[{"role": "user", "content": text}] for text in ("Where does Ribigo live?", "Is it in Oslo?")]
OTHERS = [[{"role": "user", "content": text}] for text in ("Which country is it?", "Everybody knows that.")]


@pytest.fixture(scope="module")
def communicator():
    torch.manual_seed(0)
    return tiny.communicator("qwen3", "qwen2", "llama", gate=GateConfig(kind="open")).eval()


@pytest.fixture
def batch(communicator):
    aligner = communicator.models.aligner
    prompts, others = ([aligner.prompt(m) for m in some] for some in (ASKED, OTHERS))
    batch = collate(prompts, [[3, 4], [5]], pad_ids=aligner.pad_ids)
    batch.references, batch.partners = ["yes", "no"], collate(others, pad_ids=aligner.pad_ids)
    return batch


def ask(communicator, batch, answers: ExactAnswers) -> tuple[dict[str, float], list[torch.Tensor]]:
    """Accuracy by method, and what the first sharer was given to read."""
    read: list[torch.Tensor] = []
    sharer, accuracy = communicator.models.sharers[0], accuracies(["c2c", "wrong_question"])
    hook = sharer.register_forward_pre_hook(lambda _, args, kwargs: read.append(kwargs["input_ids"]), with_kwargs=True)
    answers.update(communicator.read(batch), [(communicator, accuracy)])
    hook.remove()
    return {name: float(value) for part in (accuracy, answers.alone) for name, value in part.compute().items()}, read


def test_the_wrong_question_is_the_partner_and_not_the_next_of_the_batch(communicator, batch):
    read = ask(communicator, batch, ExactAnswers(2))[1]
    assert any(torch.equal(ids, batch.partners.sharers[0].ids) for ids in read)
    right = greedy_answers(communicator, communicator.read(batch))
    batch.partners.sharers, batch.partners.prompt_mask = batch.sharers, batch.prompt_mask
    same = communicator.read(batch).with_sharers_of(communicator.read(batch.partners))
    assert greedy_answers(communicator, same) == right, "the exchange changes nothing else"


def test_every_sharer_is_asked_once_in_a_run_also_after_a_resume(communicator, batch):
    answers, resumed = ExactAnswers(2), ExactAnswers(2)
    first, read = ask(communicator, batch, answers)
    assert first.keys() == {"c2c", "wrong_question", "receiver", "sharer", "sharer_1"}
    resumed.known = answers.known
    for later in (answers, resumed):
        again, read_again = ask(communicator, batch, later)
        assert again == first
        assert len(read_again) == 2 < len(read), "the caches of the question and of its partner"


def test_the_sharer_is_asked_with_the_text_that_it_alone_reads(communicator):
    aligner, sharer = communicator.models.aligner, communicator.models.sharers[0]
    told = [{**messages[0], "private": "Ribigo is in Oslo"} for messages in ASKED]
    batch = collate([aligner.prompt([message]) for message in told], [[3, 4], [5]], pad_ids=aligner.pad_ids)
    batch.references, read = ["yes", "no"], []
    hook = sharer.register_forward_pre_hook(lambda _, args, kwargs: read.append(kwargs["input_ids"]), with_kwargs=True)
    ExactAnswers(2, private=True)._alone(communicator.models, communicator.read(batch))
    hook.remove()
    said = [aligner.sharers[0].decode(ids[mask.bool()]) for ids, mask in zip(read[0], batch.private.asked_mask)]
    asked = [{"role": "user", "content": f"Ribigo is in Oslo\n\n{message['content']}"} for message in told]
    assert said == [aligner.render(aligner.sharers[0], [message]) for message in asked]


def test_the_same_question_about_another_text_is_asked(communicator, batch):
    answers, aligner = ExactAnswers(2, private=True), communicator.models.aligner
    for text, asked in (("Ribigo is in Oslo", True), ("Ribigo is in Oslo", False), ("Ribigo is in Rome", True)):
        prompts = [aligner.prompt([{**messages[0], "private": text}]) for messages in ASKED]
        told = replace(collate(prompts, [[3, 4], [5]], pad_ids=aligner.pad_ids), references=["yes", "no"])
        before = answers.known.get(0)
        answers._alone(communicator.models, communicator.read(told))
        assert (answers.known[0] is not before) == asked


def test_other_questions_in_the_same_place_are_asked(communicator, batch):
    answers = ExactAnswers(2)
    ask(communicator, batch, answers)
    batch.references = ["yes", "no, not at all"]
    assert len(ask(communicator, batch, answers)[1]) > 2
