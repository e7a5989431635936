"""Fusers as models of the harness, against the communicator's own loss and responses."""

from __future__ import annotations

import lm_eval
import pytest
import torch
from lm_eval.api.registry import get_model
from lm_eval.tasks import TaskManager

from c2c_lightning.communicator import Communicator
from c2c_lightning.errors import UserError
from c2c_lightning.evaluation.harness.model import C2CLM, conversation, to_context
from tests.evaluation.harness.some_requests import (
    CONTEXTS,
    CONTINUATIONS,
    LONG,
    TASKS,
    log_probability,
    requests,
    responses,
    scores,
    user,
)


@pytest.mark.parametrize("fuse", [True, False])
def test_loglikelihoods_are_those_of_the_communicators_loss(fuser, communicator, fuse):
    model = C2CLM(fuser, batch_size=7, device="cpu", fuse=fuse)
    pairs = [(context, said) for context in CONTEXTS for said in CONTINUATIONS]
    expected = [log_probability(communicator, user(context), said.lstrip(), fuse) for context, said in pairs]
    assert [p for p, _ in scores(model, pairs)] == pytest.approx(expected, abs=1e-4)


def test_a_continuation_is_greedy_if_the_receiver_would_say_it(model, communicator):
    said = communicator.generate([user(context) for context in CONTEXTS[:2]], do_sample=False)
    assert said[0] != said[1]
    assert all(said)
    pairs = [(context, response) for context in CONTEXTS[:2] for response in said]
    assert [greedy for _, greedy in scores(model, pairs)] == [True, False, False, True]


def test_requests_are_answered_in_batches_as_one_by_one(fuser, model):
    pairs = [(context, said) for said in CONTINUATIONS for context in CONTEXTS]
    one_by_one = C2CLM(fuser, batch_size="1", device="cpu")
    together, alone = scores(model, pairs), scores(one_by_one, pairs)
    assert [p for p, _ in together] == pytest.approx([p for p, _ in alone], abs=1e-4)
    assert [g for _, g in together] == [g for _, g in alone]
    kwargs = {"until": ["e"], "min_new_tokens": 6, "max_gen_toks": 6}
    assert responses(model, CONTEXTS, **kwargs) == responses(one_by_one, CONTEXTS, **kwargs)


def test_the_space_before_a_continuation_is_the_templates_to_say(model):
    (spaced, plain, newline) = scores(model, [(CONTEXTS[0], said) for said in (" Norway", "Norway", "\nNorway")])
    assert spaced == plain == newline


def test_an_empty_continuation_is_certain(model):
    empty, _ = scores(model, [(CONTEXTS[0], ""), (CONTEXTS[0], "Norway")])
    assert empty == (0.0, True)


@pytest.mark.parametrize("fuse", [True, False])
def test_responses_are_the_communicators_cut_at_the_first_stop(fuser, communicator, fuse):
    model = C2CLM(fuser, batch_size=3, device="cpu", fuse=fuse, max_gen_toks=12)
    full = [communicator.generate(user(context), fuse, **LONG) for context in CONTEXTS]
    assert [response.strip() for response in responses(model, CONTEXTS, until=[], min_new_tokens=12)] == full
    stop = full[0][len(full[0]) // 2 :][:2]
    cut = [response.split(stop)[0].strip() for response in full]
    assert cut != full
    assert [response.strip() for response in responses(model, CONTEXTS, until=["##", stop], min_new_tokens=12)] == cut


def test_generation_ends_once_every_response_has_its_stop(model, communicator, monkeypatch):
    lengths = []
    generate = Communicator.generate_ids

    def watched(self, reading, *args, **kwargs):
        ids = generate(self, reading, *args, **kwargs)
        lengths.append(ids.shape[1] - reading.batch.prompt_ids.shape[1])
        return ids

    stop = communicator.generate(user(CONTEXTS[0]), **LONG)[:2]
    monkeypatch.setattr(Communicator, "generate_ids", watched)
    assert responses(model, CONTEXTS[:1], until=[stop], min_new_tokens=100, max_gen_toks=100) == [""]
    assert lengths[-1] < 5


@torch.no_grad()
def test_without_fusion_it_is_the_receiver_alone(fuser, communicator):
    model, receiver = C2CLM(fuser, fuse=False, device="cpu"), communicator.models.receiver
    tokenizer = communicator.models.aligner.receiver
    for context, said in zip(CONTEXTS[:3], CONTINUATIONS):
        text = tokenizer.apply_chat_template(user(context), tokenize=False, add_generation_prompt=True)
        prompt = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
        ids = tokenizer(text + said.strip(), add_special_tokens=False, return_tensors="pt").input_ids
        logp = receiver(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[prompt.shape[1] - 1 :]
        assert scores(model, [(context, said)])[0][0] == pytest.approx(logp.sum().item(), abs=1e-4)
        alone = receiver.generate(prompt, max_new_tokens=6, do_sample=False)[0, prompt.shape[1] :]
        assert responses(model, [context], max_gen_toks=6) == [tokenizer.decode(alone, skip_special_tokens=True)]


def test_sampling_is_asked_for_by_the_task(model):
    torch.manual_seed(0)
    sampled = [responses(model, CONTEXTS[:1], do_sample=True, temperature=9.0, max_gen_toks=8)[0] for _ in range(4)]
    assert len(set(sampled)) > 1


def test_a_responses_first_words_are_given_and_not_scored(model, communicator):
    first, rest = "Oslo is the", " home town of Ribigo."
    messages = user(CONTEXTS[0])
    context = to_context([*messages, {"role": "assistant", "content": first}])
    expected = log_probability(communicator, messages, first + rest) - log_probability(communicator, messages, first)
    pairs = [(context, rest), (CONTEXTS[1], rest), (context, rest[:5])]
    assert scores(model, pairs)[0][0] == pytest.approx(expected, abs=1e-4)


def test_generation_goes_on_from_a_responses_first_words(model, communicator):
    messages = [user(context) for context in CONTEXTS[:2]]
    whole = communicator.generate(messages, **LONG)
    tokenizer = communicator.models.aligner.receiver
    firsts = [tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids[0]) for text in whole]
    begun = [[*m, {"role": "assistant", "content": first}] for m, first in zip(messages, firsts)]
    # Among contexts that give no first words, or more of them.
    contexts = [
        to_context(m) for m in (begun[0], [*messages[0], {"role": "assistant", "content": "Oslo is"}], begun[1])
    ]
    said = responses(model, [*contexts, CONTEXTS[0]], min_new_tokens=11, max_gen_toks=11)
    assert [first + rest for first, rest in zip(firsts, (said[0], said[2]))] == whole
    beams = {"num_beams": 3, "until": ["o"], "min_new_tokens": 4, "max_gen_toks": 4}
    assert responses(model, contexts, **beams) == [responses(model, [context], **beams)[0] for context in contexts]


@pytest.mark.parametrize("apply_chat_template", [True, False])
def test_exemplars_reach_both_models(fuser, communicator, apply_chat_template):
    results = lm_eval.simple_evaluate(
        model="c2c",
        model_args={"pretrained": fuser},
        tasks=["nano_choices"],
        task_manager=TaskManager(include_path=str(TASKS), include_defaults=False),
        num_fewshot=2,
        batch_size=4,
        device="cpu",
        apply_chat_template=apply_chat_template,
        bootstrap_iters=0,
    )
    right = []
    for sample in results["samples"]["nano_choices"]:
        messages, first_words = conversation(sample["arguments"][0][0])
        roles = ["user", "assistant", "user", "assistant", "user"] if apply_chat_template else ["user"]
        assert [message["role"] for message in messages] == roles
        assert messages[-1]["content"].endswith(sample["doc"]["question"])
        assert not first_words
        expected = [log_probability(communicator, messages, choice) for choice in sample["doc"]["choices"]]
        assert [resps[0][0] for resps in sample["resps"]] == pytest.approx(expected, abs=1e-4)
        right.append(max(range(4), key=expected.__getitem__) == sample["doc"]["answer"])
    assert results["results"]["nano_choices"]["acc,none"] == pytest.approx(sum(right) / len(right))


def test_what_the_model_cannot_do_is_said_in_one_message(fuser, model):
    for wrong, message in (({"batch_size": "auto"}, "batch_size is 'auto'"), ({"device": "gpu"}, "device is 'gpu'")):
        with pytest.raises(UserError, match=message):
            get_model("c2c")(fuser, **wrong)
    with pytest.raises(UserError, match="asks for the perplexity of whole texts"):
        model.loglikelihood_rolling(requests("loglikelihood_rolling", [("A text.",)]))
