"""Generation on the fused cache: transformers' own `generate`, in every way that it can be asked."""

from __future__ import annotations

import pytest
import torch
from transformers import GenerationConfig, TextStreamer

from c2c_lightning.errors import UserError
from c2c_lightning.fuser import GateConfig
from c2c_lightning.models.cache import position_ids
from tests.models import tiny

CLOSED = GateConfig(kind="fixed", open_layers=[])
GREEDY = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}


def new_tokens(communicator, conversations, fuse=True, **kwargs) -> list[list[int]]:
    batch = communicator.models.collate(conversations)
    return communicator.generate_ids(batch, fuse, **kwargs)[:, batch.prompt_ids.shape[1] :].tolist()


@pytest.mark.parametrize("family", tiny.FAMILIES)
@torch.no_grad()
def test_with_closed_gates_generation_is_the_receivers_own(family):
    communicator = tiny.communicator(family, "qwen2", gate=CLOSED)
    batch = communicator.models.collate(tiny.CONVERSATIONS)
    alone = tiny.model(family).generate(
        input_ids=batch.prompt_ids,
        attention_mask=batch.prompt_mask,
        output_logits=True,
        return_dict_in_generate=True,
        pad_token_id=communicator.models.aligner.receiver.pad_token_id,
        **GREEDY,
    )
    kwargs = {"output_logits": True, "return_dict_in_generate": True, **GREEDY}
    closed = communicator.generate_ids(batch, **kwargs)
    unfused = communicator.generate_ids(batch, fuse=False, **kwargs)
    assert torch.equal(closed.sequences, alone.sequences)
    for ours, plain, receivers in zip(closed.logits, unfused.logits, alone.logits):
        assert torch.equal(ours, plain)
        torch.testing.assert_close(ours, receivers, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize(("receiver", "sharer"), tiny.PAIRS)
@torch.no_grad()
def test_greedy_generation_is_a_greedy_loop_on_the_fused_cache(receiver, sharer):
    communicator = tiny.communicator(receiver, sharer)
    batch = communicator.models.collate(tiny.CONVERSATIONS)
    cache, mask = communicator.prefill(batch), batch.prompt_mask
    token, said = batch.prompt_ids[:, -1:], []
    for _ in range(6):
        logits = tiny.model(receiver)(
            input_ids=token,
            attention_mask=mask,
            position_ids=mask.sum(-1, keepdim=True) - 1,
            past_key_values=cache,
            use_cache=True,
        ).logits[:, -1]
        logits[:, communicator.models.aligner.receiver.eos_token_id] = float("-inf")
        token = logits.argmax(-1, keepdim=True)
        mask = torch.cat([mask, torch.ones_like(token)], dim=1)
        said.append(token)
    assert new_tokens(communicator, tiny.CONVERSATIONS, **GREEDY) == torch.cat(said, dim=1).tolist()


@pytest.mark.parametrize(("receiver", "sharer"), tiny.PAIRS)
def test_prompts_of_different_lengths_are_answered_in_a_batch_as_one_by_one(receiver, sharer):
    communicator = tiny.communicator(receiver, sharer)
    together = new_tokens(communicator, tiny.CONVERSATIONS, **GREEDY)
    assert together == [new_tokens(communicator, [messages], **GREEDY)[0] for messages in tiny.CONVERSATIONS]


def test_fusing_changes_what_the_receiver_would_say():
    communicator = tiny.communicator("qwen3", "llama")
    batch = communicator.models.collate(tiny.CONVERSATIONS)
    kwargs = {"output_logits": True, "return_dict_in_generate": True, **GREEDY}
    fused, alone = (communicator.generate_ids(batch, fuse, **kwargs).logits[0] for fuse in (True, False))
    # Every conversation's, by far more than rounding could.
    assert (fused - alone).abs().amax(-1).min() > 1e-3


@torch.no_grad()
def test_beam_search_finds_what_scoring_every_continuation_finds():
    communicator = tiny.communicator("llama", "qwen3")
    vocabulary = communicator.models.receiver.config.vocab_size
    batch = communicator.models.collate(tiny.CONVERSATIONS[:2])
    beams = communicator.generate_ids(
        batch, num_beams=vocabulary, num_return_sequences=2, max_new_tokens=2, min_new_tokens=2, do_sample=False
    )[:, batch.prompt_ids.shape[1] :]
    eos = communicator.models.aligner.receiver.eos_token_id

    def log_probabilities(rows, tokens):  # (rows, len(tokens[0]) + 1 predictions)
        cache = communicator.prefill(rows)
        ids = torch.cat([rows.prompt_ids[:, -1:], tokens], dim=1)
        mask = torch.cat([rows.prompt_mask, torch.ones_like(tokens)], dim=1)
        logits = communicator.models.receiver(
            input_ids=ids,
            attention_mask=mask,
            position_ids=position_ids(mask)[:, -ids.shape[1] :],
            past_key_values=cache,
            use_cache=True,
        ).logits
        logp = logits.log_softmax(-1)
        logp[..., eos] = float("-inf")
        return logp

    for row, messages in enumerate(tiny.CONVERSATIONS[:2]):
        every = communicator.models.collate([messages] * vocabulary)
        logp = log_probabilities(every, torch.arange(vocabulary)[:, None])
        score = logp[:, 0].diagonal()[:, None] + logp[:, 1]
        best = score.flatten().topk(2).indices
        expected = torch.stack([best // vocabulary, best % vocabulary], dim=1)
        assert torch.equal(beams[2 * row : 2 * row + 2], expected)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"num_return_sequences": 3, "do_sample": True},
        {"num_beams": 4, "num_return_sequences": 3, "do_sample": False},
        {"generation_config": GenerationConfig(num_beams=3, num_return_sequences=3, max_new_tokens=4)},
    ],
)
def test_several_answers_to_each_conversation_come_one_after_the_other(kwargs):
    communicator = tiny.communicator("qwen3", "llama")
    torch.manual_seed(0)
    answers = communicator.generate(tiny.CONVERSATIONS[:2], **kwargs)
    assert len(answers) == 6
    assert len(communicator.generate(tiny.CONVERSATIONS[0], **kwargs)) == 3
    if "num_beams" in kwargs:
        alone = [communicator.generate(messages, **kwargs) for messages in tiny.CONVERSATIONS[:2]]
        assert answers == alone[0] + alone[1]


def test_sampling_with_the_same_seed_says_the_same():
    communicator = tiny.communicator("qwen3", "llama")
    answers = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        answers.append(communicator.generate(tiny.CONVERSATIONS, do_sample=True, max_new_tokens=8))
    assert answers[0] == answers[1] != answers[2]


def test_one_conversation_gives_text_and_a_batch_a_list_of_texts():
    communicator = tiny.communicator("qwen3", "llama")
    one = communicator.generate(tiny.CONVERSATIONS[0], do_sample=False)
    assert isinstance(one, str)
    assert communicator.generate([tiny.CONVERSATIONS[0]], do_sample=False) == [one]
    assert communicator.generate(tiny.CONVERSATIONS, do_sample=False)[0] == one


def test_a_streamer_gets_the_answer_as_it_is_made(capsys):
    communicator = tiny.communicator("qwen3", "llama")
    streamer = TextStreamer(communicator.models.aligner.receiver, skip_prompt=True, skip_special_tokens=True)
    said = communicator.generate(tiny.CONVERSATIONS[0], streamer=streamer, **GREEDY)
    assert said
    assert capsys.readouterr().out.strip() == said


def test_generation_stops_at_the_end_of_turn_and_pads_after_it():
    communicator = tiny.communicator("qwen3", "llama")
    free = new_tokens(communicator, tiny.CONVERSATIONS, **GREEDY)
    stop = free[0][2]
    stopped = new_tokens(communicator, tiny.CONVERSATIONS, max_new_tokens=6, do_sample=False, eos_token_id=stop)
    pad = communicator.models.aligner.receiver.pad_token_id
    assert stopped[0][: free[0].index(stop) + 1] == free[0][: free[0].index(stop) + 1]
    assert set(stopped[0][free[0].index(stop) + 1 :]) <= {pad}


def test_a_receiver_whose_own_settings_name_a_cache_is_answered_for_all_the_same():
    # Gemma's generation_config.json has it.
    communicator = tiny.communicator("gemma3", "qwen2")
    expected = new_tokens(communicator, tiny.CONVERSATIONS, **GREEDY)
    communicator.models.receiver = tiny.build("gemma3")
    communicator.models.receiver.generation_config.cache_implementation = "hybrid"
    assert new_tokens(communicator, tiny.CONVERSATIONS, **GREEDY) == expected


def test_what_would_go_wrong_on_a_fused_cache_is_refused():
    communicator = tiny.communicator("qwen3", "llama")
    with pytest.raises(ValueError, match="prompt_lookup_num_tokens"):
        communicator.generate(tiny.CONVERSATIONS, prompt_lookup_num_tokens=3)
    with pytest.raises(ValueError, match="give a GenerationConfig"):
        communicator.generate(tiny.CONVERSATIONS, generation_config={"max_new_tokens": 3})
    for wrong in ("In which country?", [], [None]):
        with pytest.raises(ValueError, match="Give chat messages"):
            communicator.generate(wrong)
    for wrong in (
        [{"role": "user", "content": None}],
        [{"role": "user", "content": ["In which country?"]}],
        [{"role": "user"}],
        [{"content": "In which country?"}],
        [[{"role": "user", "content": "In which country?"}], [{"role": "user", "content": None}]],
        [[]],
        [["In which country?"]],
    ):
        with pytest.raises(UserError, match="generate was given"):
            communicator.generate(wrong)
