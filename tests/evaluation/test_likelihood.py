"""Choices are ranked by the likelihood of their texts, by every method, and each prompt is read once."""

from __future__ import annotations

import json

import pytest
import torch

from c2c_lightning.communicator import Communicator
from c2c_lightning.errors import UserError
from c2c_lightning.evaluation.asking.controls import CalibratedReceiver, ShuffledChoices, WrongQuestion, ZeroUpdate
from c2c_lightning.evaluation.asking.decoding import Prefill, beginnings, likelihoods
from c2c_lightning.evaluation.asking.methods import C2C, Receiver, Routing, Sharer
from c2c_lightning.evaluation.asking.questions import Questions
from c2c_lightning.evaluation.asking.text_to_text import C2CAfterText
from c2c_lightning.evaluation.benchmarks import NanoWorld, OwnQuestions
from c2c_lightning.models.cache import prefill
from tests.evaluation.asking import PROMPTS, TEXTS, TOLD, ask, clock, one_by_one, reads
from tests.models import tiny

CHOICES = ["the user asks", "Oslo in Norway", "北京", "everybody knows that"]


@pytest.fixture(scope="module")
def communicator() -> Communicator:
    return tiny.communicator("qwen3", "llama")


@pytest.fixture(scope="module")
def questions(tmp_path_factory) -> Questions:
    file = tmp_path_factory.mktemp("choices") / "choices.jsonl"
    rows = [{"question": q, "choices": CHOICES[: 4 - i % 2], "answer": "B"} for i, q in enumerate(TEXTS)]
    file.write_text("\n".join(map(json.dumps, rows)))
    benchmark = OwnQuestions(str(file), answer_mode="likelihood")
    return Questions(benchmark, benchmark.items(), benchmark.items()[1:] + benchmark.items()[:1])


@torch.no_grad()
def log_likelihood(model, tokenizer, messages, said: str) -> float:
    """Of a response without its end of turn, in one forward pass of the model alone."""
    asked = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    whole = tokenizer.apply_chat_template([*messages, {"role": "assistant", "content": said}], tokenize=False)
    end = whole.rindex(said)  # INST has a space between prompt and response
    given, ids = (tokenizer(text, add_special_tokens=False).input_ids for text in (whole[:end], whole[:end] + said))
    assert whole.startswith(asked)
    start = next(i for i in range(len(ids)) if given[i : i + 1] != ids[i : i + 1])
    logits = model(torch.tensor([ids])).logits[0, :-1]
    return logits.log_softmax(-1).gather(1, torch.tensor(ids)[1:, None])[start - 1 :].sum().item()


def test_the_models_alone_rank_choices_as_one_forward_pass_over_each_does(communicator, questions):
    models, aligner = communicator.models, communicator.models.aligner
    alone = ((Receiver(), models.receiver, aligner.receiver), (Sharer(), models.sharers[0], aligner.sharers[0]))
    for method, model, tokenizer in alone:
        for item, answer in zip(questions.items, ask(method, communicator, questions)):
            messages = [{"role": "user", "content": item.question}]
            expected = [log_likelihood(model, tokenizer, messages, said) for said in item.choices]
            assert answer.choices == pytest.approx(expected, abs=1e-4)
            assert answer.response == item.choices[expected.index(max(expected))]
            assert answer.confidence == pytest.approx(torch.tensor(expected).log_softmax(0).max().item(), abs=1e-4)
            assert (answer.letters, answer.truncated, answer.receiver_tokens) == (None, False, 0)


def test_c2c_ranks_choices_by_the_loss_that_its_fuser_is_trained_on(communicator, questions):
    aligner = communicator.models.aligner
    for item, answer in zip(questions.items, ask(C2C(), communicator, questions)):
        prompt = aligner.prompt(questions.benchmark.messages(item))
        for said, found in zip(item.choices, answer.choices):
            messages = [*questions.benchmark.messages(item), {"role": "assistant", "content": said}]
            ids = aligner.response_ids(messages, prompt)[:-1]
            batch = communicator.models.collate([questions.benchmark.messages(item)])
            batch.response_ids, batch.response_mask = torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.long)
            batch.__post_init__()
            assert found == pytest.approx(-communicator(batch)[0].item(), abs=1e-4)


@pytest.mark.parametrize("method", [TOLD, C2CAfterText(**PROMPTS), WrongQuestion(), ZeroUpdate()], ids=lambda m: m.name)
def test_every_method_ranks_a_batch_as_one_by_one(communicator, questions, method):
    together = ask(method, communicator, questions)
    alone = []
    for i, one in enumerate(one_by_one(questions)):
        one.partners = [questions.partners[i]]
        alone += ask(method, communicator, one)
    for a, b in zip(together, alone):
        assert a.choices == pytest.approx(b.choices, abs=1e-4)
        assert len(set(a.choices)) == len(a.choices)


def test_an_update_of_zero_ranks_as_the_receiver_does(communicator, questions):
    own, zero = ask(Receiver(), communicator, questions), ask(ZeroUpdate(), communicator, questions)
    assert [a.choices for a in own] == [a.choices for a in zero]


def test_prompts_are_read_once_and_choices_in_a_pass_each(communicator, questions):
    receiver, sharer = communicator.models.receiver, communicator.models.sharers[0]
    questions.forget()
    with reads(receiver, sharer) as noted:
        ask(Receiver(), communicator, questions)
        ask(C2C(), communicator, questions)
        ask(ZeroUpdate(), communicator, questions)
    # One prefill each, and then each method's passes over the first, second, third and fourth choices.
    assert noted.count(sharer) == 1
    assert noted.count(receiver) == 1 + 3 * len(CHOICES)


def test_whole_and_per_character_are_both_graded_and_the_mode_says_which_counts(questions, tmp_path):
    file = tmp_path / "own.jsonl"
    file.write_text(json.dumps({"question": "Why?", "choices": ["so", "because it is"], "answer": "B"}))
    values = [-2.0, -6.5]  # the short one is likelier, the long one per character
    for mode, extracted, score in (("likelihood", "A", 0.0), ("likelihood_per_character", "B", 1.0)):
        benchmark = OwnQuestions(str(file), answer_mode=mode)
        (item,) = benchmark.items()
        grade = benchmark.grade_choices(item, values)
        assert (grade.extracted, grade.score, grade.metrics) == (extracted, score, {"acc": 0.0, "acc_norm": 1.0})
        assert benchmark.messages(item) == [{"role": "user", "content": "Why?"}]
        assert benchmark.response(item) == "because it is"


def test_methods_that_need_letters_are_left_out_and_routing_is_not(communicator, questions):
    for method in (CalibratedReceiver(), ShuffledChoices()):
        assert method.why_not(questions.benchmark) == "the questions have no lettered choices"
    own, other = ask(Receiver(), communicator, questions), ask(Sharer(), communicator, questions)
    routed = Routing(1.0).derive(questions.benchmark, questions.items, {"receiver": own, "sharer": other})
    assert [a.choices for a in routed] == [a.choices for a in other]


def test_open_questions_cannot_be_ranked():
    with pytest.raises(UserError, match=r"nano.answer_mode is 'likelihood', which ranks choices, .* open questions"):
        NanoWorld(answer_mode="likelihood").items()


@torch.no_grad()
def test_first_words_are_given_and_not_scored(communicator):
    receiver, aligner = communicator.models.receiver, communicator.models.aligner
    messages = [{"role": "user", "content": TEXTS[0]}]
    begun = beginnings(aligner, aligner.receiver, messages)
    ids = torch.tensor([aligner.prompt(messages).receiver_ids])
    mask = torch.ones_like(ids)
    start = Prefill(receiver, aligner.receiver, ids, mask, prefill(receiver, ids[:, :-1], mask[:, :-1]))
    [[(rest, _), (whole, _), (first, _)]] = likelihoods(
        start, [[begun("Oslo is", " in Norway"), begun("", "Oslo is in Norway"), begun("", "Oslo is")]], clock()
    )
    assert rest == pytest.approx(whole - first, abs=1e-4)
