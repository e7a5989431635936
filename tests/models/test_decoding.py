"""What a model's folder says of decoding changes nothing that is not to be changed, and callers get what they ask for."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from c2c_lightning.errors import UserError
from c2c_lightning.models import collate
from c2c_lightning.models.decoding import GREEDY, HARMLESS, ONLY_ON_A_FILLED_CACHE, end_ids, generate
from tests.models import tiny

LENGTH = {"max_new_tokens": 6}
FROM_A_FOLDER = {  # what a generation_config.json may have, and on which greedy decoding does not depend
    "use_cache": False,
    "cache_implementation": "static",
    "prompt_lookup_num_tokens": 2,
    "assistant_early_exit": 1,
    "use_mtp": True,
    "token_healing": True,
    "is_assistant": True,
    "prefill_chunk_size": 1,
    "do_sample": True,
    "num_beams": 3,
    "num_return_sequences": 2,
    "repetition_penalty": 3.0,
    "encoder_repetition_penalty": 3.0,
    "no_repeat_ngram_size": 1,
    "encoder_no_repeat_ngram_size": 1,
    "exponential_decay_length_penalty": (1, 9.0),
    "min_length": 200,
    "min_new_tokens": 6,
    "max_time": 0.0,
    "stop_strings": ["e", "a"],
    "suppress_tokens": list(range(100)),
    "begin_suppress_tokens": list(range(100)),
    "forced_bos_token_id": 3,
    "forced_eos_token_id": 3,
    "bad_words_ids": [[i] for i in range(3, 100)],
    "sequence_bias": {(5,): 50.0},
    "guidance_scale": 3.0,
    "watermarking_config": {"bias": 50.0},
    "return_dict_in_generate": True,
    "output_attentions": True,
    "penalty_alpha": 0.6,
    "dola_layers": "high",
    "temperature": 9.0,
    "top_k": 1,
    "max_length": 7,
    "renormalize_logits": True,
}


def start(communicator):
    batch = communicator.models.collate(tiny.CONVERSATIONS)
    return batch.prompt_ids, batch.prompt_mask, communicator.prefill(batch)


def said(receiver, **settings) -> list[list[int]]:
    """The receiver's new tokens on a fused cache, which settings of its folder have no part in."""
    communicator = tiny.communicator("qwen3", "llama")
    ids, mask, cache = start(communicator)
    out = generate(receiver, communicator.models.aligner.receiver, ids, mask, cache, **settings)
    return out[:, ids.shape[1] :].tolist()


@pytest.fixture(scope="module")
def expected():
    return said(tiny.model("qwen3"), **LENGTH, **GREEDY)


def test_every_setting_of_transformers_has_its_place_in_one_table():
    tables = [set(ONLY_ON_A_FILLED_CACHE), set(GREEDY), set(HARMLESS)]
    assert sum(map(len, tables)) == len(set.union(*tables))
    assert set(vars(GenerationConfig())) == set.union(*tables)


@pytest.mark.parametrize("name", FROM_A_FOLDER)
def test_greedy_decoding_is_the_same_whatever_the_models_folder_says(name, expected):
    receiver = tiny.build("qwen3")
    setattr(receiver.generation_config, name, FROM_A_FOLDER[name])
    assert said(receiver, **LENGTH, **GREEDY) == expected


@pytest.mark.parametrize("name", ONLY_ON_A_FILLED_CACHE)
def test_what_does_not_work_on_a_filled_cache_is_set_for_a_caller_who_asks_for_nothing(name, expected):
    receiver = tiny.build("qwen3")
    for other in {"top_k": 5, name: FROM_A_FOLDER.get(name, 2)}.items():
        setattr(receiver.generation_config, *other)
    assert said(receiver, **LENGTH, do_sample=False) == expected


@pytest.mark.parametrize("name", ["assistant_model", "input_ids", "past_key_values", *ONLY_ON_A_FILLED_CACHE])
def test_what_does_not_work_on_a_filled_cache_is_refused_to_a_caller_who_asks_for_it(name):
    value = FROM_A_FOLDER.get(name, 2)
    with pytest.raises(UserError, match=f"generate cannot take {name}="):
        said(tiny.model("qwen3"), **LENGTH, **{name: value})
    if name in ONLY_ON_A_FILLED_CACHE:
        with pytest.raises(UserError, match=f"generate cannot take {name}="):
            said(tiny.model("qwen3"), generation_config=GenerationConfig(**LENGTH, **{name: value}))


def test_what_is_set_anyhow_may_be_asked_for(expected):
    asked = {"use_cache": True, "token_healing": False, "cache_implementation": None, "do_sample": False}
    assert said(tiny.model("qwen3"), **LENGTH, **asked) == expected


@pytest.mark.parametrize("how", ["arguments", "configuration", "folder"])
@pytest.mark.parametrize(
    "settings",
    [
        {"repetition_penalty": 3.0},
        {"suppress_tokens": list(range(100))},
        {"sequence_bias": {(5,): 500.0}},
        {"guidance_scale": 3.0},
        {"stop_strings": ["e"]},
        {"num_beams": 3},
        {"min_new_tokens": 6, "exponential_decay_length_penalty": (1, 1.5)},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_what_works_on_a_filled_cache_is_done_as_transformers_does_it(settings, how):
    communicator, receiver = tiny.communicator("qwen3", "llama"), tiny.build("qwen3")
    ids, mask, _ = start(communicator)
    tokenizer = communicator.models.aligner.receiver
    plain = communicator.prefill(communicator.models.collate(tiny.CONVERSATIONS), fuse=False)
    own = tiny.build("qwen3").generate(ids, attention_mask=mask, tokenizer=tokenizer, **LENGTH, **settings)
    if how == "folder":
        receiver.generation_config.update(**settings)
        asked = LENGTH
    else:
        asked = {**LENGTH, **settings}
        asked = {"generation_config": GenerationConfig(**asked)} if how == "configuration" else asked
    assert torch.equal(generate(receiver, tokenizer, ids, mask, plain, **asked), own)


class Says(LogitsProcessor):
    """Makes a model say a token as soon as there are so many."""

    def __init__(self, token: int, from_length: int):
        self.token, self.from_length = token, from_length

    def __call__(self, input_ids, scores):
        if input_ids.shape[1] >= self.from_length:
            scores = scores.index_fill(1, torch.tensor([self.token]), 1e4)
        return scores


@pytest.mark.parametrize(("eos", "named"), [(None, []), (7, [7]), ([7, 8], [7, 8])])
def test_a_response_ends_at_the_templates_end_of_turn_whatever_the_generation_config_says(eos, named):
    communicator, receiver = tiny.communicator("qwen3", "llama"), tiny.build("qwen3")
    tokenizer = communicator.models.aligner.receiver
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    receiver.generation_config.eos_token_id = eos
    ids, mask, cache = start(communicator)
    says = LogitsProcessorList([Says(end, ids.shape[1] + 2)])
    out = generate(receiver, tokenizer, ids, mask, cache, logits_processor=says, **LENGTH, **GREEDY)
    assert out[:, ids.shape[1] + 2 :].tolist() == [[end]] * 3
    assert end_ids(receiver, tokenizer) == [*named, end]
    ids, mask, cache = start(communicator)
    asked = generate(receiver, tokenizer, ids, mask, cache, logits_processor=says, eos_token_id=9, **LENGTH, **GREEDY)
    assert asked[:, ids.shape[1] + 2 :].tolist() == [[end] * 4] * 3


@pytest.mark.parametrize(("receiver", "sharer"), tiny.PAIRS[:7])
def test_a_prompt_of_one_token_is_answered_alone_as_in_a_batch(receiver, sharer):
    communicator = tiny.communicator(receiver, sharer)
    aligned = [communicator.models.aligner.prompt(messages) for messages in tiny.CONVERSATIONS[:2]]
    one = replace(aligned[0], receiver_ids=aligned[0].receiver_ids[-1:], positions=[aligned[0].positions[0][:0]])
    answers = []
    for prompts in ([one], [one, aligned[1]]):
        batch = collate(prompts, pad_ids=communicator.models.aligner.pad_ids)
        ids = communicator.generate_ids(batch, max_new_tokens=5, min_new_tokens=5, do_sample=False)
        answers.append(ids[0, batch.prompt_ids.shape[1] :].tolist())
        loss, supervised = communicator(replace(batch, response_ids=ids[:, -5:], response_mask=torch.ones(len(ids), 5)))
        assert (loss / supervised).isfinite()
    assert answers[0] == answers[1]
