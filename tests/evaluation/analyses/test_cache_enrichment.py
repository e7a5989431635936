"""Questions that have read exemplars."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import DynamicCache

from c2c_lightning.communicator import Communicator
from c2c_lightning.evaluation.analyses import CacheEnrichment
from c2c_lightning.evaluation.analyses.cache_enrichment import Enriched, EnrichedLayer, FewShot
from c2c_lightning.evaluation.asking.methods import Receiver
from c2c_lightning.evaluation.benchmarks import OwnQuestions
from c2c_lightning.evaluation.report.findings import BenchmarkResults
from tests.evaluation.asking import EXEMPLARS, ask, part_of, reads, texts
from tests.models import tiny


def few_shot_ids(communicator: Communicator, benchmark: OwnQuestions, item, shots: int) -> list[int]:
    messages = []
    for place in np.random.default_rng(0).permutation(len(EXEMPLARS))[:shots]:
        question, answer = EXEMPLARS[place]
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    tokenizer = communicator.models.aligner.receiver
    text = communicator.models.aligner.render(tokenizer, [*messages, *benchmark.messages(item)])
    return tokenizer(text, add_special_tokens=False).input_ids


@torch.no_grad()
def greedy(communicator: Communicator, cache: DynamicCache, last: int, position: int, steps: int) -> str:
    """A response, token by token, from the last prompt token at its position."""
    model, tokenizer, said = communicator.models.receiver, communicator.models.aligner.receiver, []
    for step in range(steps):
        logits = model(
            torch.tensor([[last]]), position_ids=torch.tensor([[position + step]]), past_key_values=cache
        ).logits
        last = logits[0, -1].argmax().item()
        said.append(last)
        if last == tokenizer.eos_token_id:
            break
    return tokenizer.decode(said, skip_special_tokens=True).strip()


@torch.no_grad()
def read_at(communicator: Communicator, ids: list[int], positions: list[int]) -> DynamicCache:
    cache = DynamicCache()
    communicator.models.receiver(torch.tensor([ids]), position_ids=torch.tensor([positions]), past_key_values=cache)
    return cache


@pytest.mark.parametrize("receiver", ["qwen3", "llama"])  # llama's template begins with a token of its own
def test_enriched_is_the_few_shot_cache_without_the_exemplars_columns(questions, receiver):
    communicator = tiny.communicator(receiver, "qwen2")
    answers = texts(ask(Enriched(2, 0), communicator, questions))
    assert answers != texts(ask(FewShot(2, 0), communicator, questions))
    assert answers != texts(ask(Receiver(), communicator, questions))
    for item, answer in zip(questions.items, answers):
        long = few_shot_ids(communicator, questions.benchmark, item, 2)
        direct = communicator.models.aligner.prompt(questions.benchmark.messages(item)).receiver_ids
        first = {"qwen3": 0, "llama": 1}[receiver]
        own = [*range(first), *range(len(long) - len(direct) + first, len(long))]
        assert [long[i] for i in own] == direct
        cache = read_at(communicator, long[:-1], list(range(len(long) - 1)))
        for layer in cache.layers:
            layer.keys, layer.values = layer.keys[:, :, own[:-1]], layer.values[:, :, own[:-1]]
        assert answer == greedy(communicator, cache, long[-1], len(long) - 1, 6)


@pytest.mark.parametrize("receiver", ["qwen3", "llama"])
def test_an_enriched_layer_is_alone_taken_from_the_few_shot_cache(questions, receiver):
    communicator = tiny.communicator(receiver, "qwen2")
    answers = texts(ask(EnrichedLayer(1, 2, 0), communicator, questions))
    first = {"qwen3": 0, "llama": 1}[receiver]
    for item, answer in zip(questions.items, answers):
        long = few_shot_ids(communicator, questions.benchmark, item, 2)
        direct = communicator.models.aligner.prompt(questions.benchmark.messages(item)).receiver_ids
        own = [*range(first), *range(len(long) - len(direct) + first, len(long))]
        rich = read_at(communicator, long[:-1], list(range(len(long) - 1))).layers[1]
        cache = read_at(communicator, direct[:-1], own[:-1])
        cache.layers[1].keys, cache.layers[1].values = rich.keys[:, :, own[:-1]], rich.values[:, :, own[:-1]]
        assert answer == greedy(communicator, cache, long[-1], len(long) - 1, 6)


def test_prompts_are_read_once_for_all_layers_and_count_for_each(communicator, questions):
    alone = [texts(ask(EnrichedLayer(n, 2, 0), communicator, part_of(questions, range(6)))) for n in range(4)]
    with reads(communicator.models.receiver) as read, torch.inference_mode():  # as in the test loop
        together = [texts(ask(EnrichedLayer(n, 2, 0), communicator, questions)) for n in range(4)]
    assert together == alone
    assert len({tuple(answers) for answers in alone}) > 1
    assert len(read) == 2  # after exemplars, and alone


def test_without_exemplars_there_is_no_enrichment(communicator, benchmark, tmp_path):
    alone = OwnQuestions(path=benchmark.path, prompt="plain")
    for method in CacheEnrichment().methods(communicator):
        assert method.why_not(alone) == "the benchmark has no exemplars"
        assert method.why_not(benchmark) is None
    assert CacheEnrichment().section(communicator, BenchmarkResults(alone, {}, {}), tmp_path) is None


def test_answers_after_other_exemplars_have_another_name(communicator):
    names = [
        {m.name for m in CacheEnrichment(shots, seed=seed).methods(communicator)}
        for shots, seed in ((5, 0), (3, 0), (5, 1))
    ]
    assert names[0] == {"few_shot", "enriched", *(f"enriched_layer_{layer}" for layer in range(4))}
    assert not names[0] & names[1] and not names[0] & names[2] and not names[1] & names[2]  # noqa: PT018
