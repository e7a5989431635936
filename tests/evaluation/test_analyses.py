"""What each analysis promises, on tiny models whose caches and answers differ from prompt to prompt."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist
from transformers import DynamicCache

from c2c_lightning.communication import Communicator
from c2c_lightning.communication.alignment import UNALIGNED
from c2c_lightning.communication.cache import read_stack
from c2c_lightning.errors import UserError
from c2c_lightning.evaluation.analyses import (
    CacheEnrichment,
    EffectiveRank,
    FusedFraction,
    FusionWeights,
    Latency,
    LayerAblation,
    SolvedVenn,
    SubjectAccuracy,
    TransformationOracle,
)
from c2c_lightning.evaluation.analyses.cache_enrichment import Enriched, EnrichedLayer, FewShot
from c2c_lightning.evaluation.analyses.cache_mapping import train, unexplained
from c2c_lightning.evaluation.analyses.fused_fraction import PartlyFused
from c2c_lightning.evaluation.analyses.layer_ablation import OnlyLayer, WithoutLayer, closed_gates
from c2c_lightning.evaluation.analyses.solved_venn import regions_of
from c2c_lightning.evaluation.analyses.transformation_oracle import padded
from c2c_lightning.evaluation.benchmarks import OwnQuestions
from c2c_lightning.evaluation.clock import StageClock
from c2c_lightning.evaluation.methods import C2C, Answering, C2CAfterText, Method, Receiver, Sharer, TextToText
from c2c_lightning.evaluation.observing import Observer, read_caches
from c2c_lightning.evaluation.questions import Questions
from c2c_lightning.evaluation.results import BenchmarkResults, collect
from c2c_lightning.fuser import GateConfig
from tests.communication import tiny
from tests.evaluation.invented import results as invented_results
from tests.evaluation.invented import right

TEXTS = [
    "Where does Ribigo live?",
    "Which country is the capital Oslo in? Say it in one word, please.",
    "What does the assistant like 👍🏽?",
    "北京是中国的首都。",
    "Is it in Norway?",
    "Who says that Ribigo lives in Oslo, and why does everybody know that?",
]
EXEMPLARS = [("What is of course in Norway?", "Oslo"), ("Who lives in Oslo?", "Ribigo"), ("Is it 上海?", "no")]
TOLD = {"sharer_prompt": "Tell me: {question}", "receiver_prompt": "{message} {prompt}", "max_message_tokens": 5}
ANALYSES = {
    "effective_rank": EffectiveRank,
    "fusion_weights": FusionWeights,
    "layer_ablation": LayerAblation,
    "fused_fraction": lambda: FusedFraction((50,)),
    "solved_venn": SolvedVenn,
    "subjects": SubjectAccuracy,
    "cache_enrichment": lambda: CacheEnrichment(shots=2),
    "transformation_oracle": lambda: TransformationOracle(tokens=120, hidden=16, epochs=2),
    "latency": lambda: Latency(prompts=2, batch_size=2, repeats=1),
}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """On models this small a second thread only makes the first wait, for long where the machine is busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory) -> OwnQuestions:
    folder = tmp_path_factory.mktemp("questions")
    asked = [
        {"question": text, "reference": "Oslo", "subject": ("towns", "rest")[i % 2]} for i, text in enumerate(TEXTS)
    ]
    solved = [{"question": question, "reference": answer} for question, answer in EXEMPLARS]
    for name, rows in (("asked", asked), ("solved", solved)):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return OwnQuestions(
        path=str(folder / "asked.jsonl"), exemplars=str(folder / "solved.jsonl"), prompt="plain", max_new_tokens=6
    )


@pytest.fixture
def questions(benchmark) -> Questions:
    items = benchmark.items()
    return Questions(benchmark, items, items[1:] + items[:1])


@pytest.fixture(scope="module")
def communicator() -> Communicator:
    """Its sharer's template has nothing before the content, so some receiver tokens have no token opposite."""
    return tiny.communicator("qwen3", "qwen2")


def part_of(questions: Questions, places: list[int]) -> Questions:
    items = [questions.items[i] for i in places]
    return Questions(questions.benchmark, items, items)


def one_by_one(questions: Questions) -> list[Questions]:
    return [part_of(questions, [i]) for i in range(len(questions))]


def measure(observer: Observer, communicator: Communicator, batches: list[Questions]):
    metric = observer.metric(communicator)
    for batch in batches:
        metric.update(read_caches(communicator, batch))
    return metric.compute()


def prefilled(method: Answering, communicator: Communicator, questions: Questions) -> torch.Tensor:
    """The receiver's whole stack after a method's prefill, padding blanked."""
    with torch.no_grad():
        start = method.prefill(communicator, questions, StageClock(torch.device("cpu")))
    stack = read_stack(start.cache, range(communicator.receiver.config.num_hidden_layers))
    return stack * start.mask[:, None, :-1, None]


def ask(method: Answering, communicator: Communicator, questions: Questions) -> list[str]:
    return [answer.response for answer in method.answer(communicator, questions, StageClock(torch.device("cpu")))]


# Effective rank


def test_effective_rank_is_that_of_all_real_tokens_together(communicator, questions):
    measured = measure(EffectiveRank(), communicator, [part_of(questions, [0, 1, 2]), part_of(questions, [3, 4, 5])])
    tokens = {"receiver": [], "fused": [], "sharer_0": []}
    for alone in one_by_one(questions):
        caches = read_caches(communicator, alone)
        aligned = caches.batch.sharers[0].positions[0] != UNALIGNED
        assert caches.mask.all()
        for name, stack in (("receiver", caches.receiver), ("fused", caches.fused), ("sharer_0", caches.sharers[0])):
            x_2LNF = stack[:, :, 0].transpose(2, 3).flatten(3)
            tokens[name].append(x_2LNF[:, :, aligned] if name == "sharer_0" else x_2LNF)
    assert sum(x.shape[2] for x in tokens["sharer_0"]) < sum(x.shape[2] for x in tokens["receiver"])
    assert measured.keys() == tokens.keys()
    for name, parts in tokens.items():
        for part in range(2):
            for layer in range(parts[0].shape[1]):
                values = np.linalg.svd(torch.cat([x[part, layer] for x in parts]).double().numpy(), compute_uv=False)
                share = values / values.sum()
                expected = np.exp(-(share * np.log(share)).sum())
                assert measured[name][part, layer].item() == pytest.approx(expected, rel=1e-4)


# Gates, weights and updates


def test_weights_and_update_sizes_are_means_over_real_aligned_tokens(questions):
    communicator = tiny.communicator("qwen3", "qwen2", gate=GateConfig())
    with torch.no_grad():
        communicator.gates[0].logit[1, 0] = -1.0  # the values of the first mapped layer
    measured = measure(FusionWeights(), communicator, [part_of(questions, [0, 1]), part_of(questions, [2, 3, 4, 5])])
    fuser, closed = communicator.fusers[0], 3
    weights, sizes = [], []
    for alone in one_by_one(questions):
        caches = read_caches(communicator, alone)
        aligned = caches.batch.sharers[0].positions[0] != UNALIGNED
        layers = [communicator.fused_layers.index(layer) for layer in communicator.gates[0].receiver_layers]
        features = [
            s[:, :, 0].flatten(0, 1).transpose(1, 2).flatten(2) for s in (caches.sharers[0], caches.receiver[:, layers])
        ]
        with torch.no_grad():
            hidden = fuser.trunk(fuser.input(torch.cat(features, dim=-1)))
            weights.append(torch.sigmoid(fuser.weight_head(fuser.weight_block(hidden)))[:, aligned])
        own, fused = (x[:, :, 0].transpose(2, 3).flatten(3)[:, :, aligned] for x in (caches.receiver, caches.fused))
        sizes.append((fused - own).norm(dim=-1) / own.norm(dim=-1))
    expected = torch.cat(weights, dim=1).mean(1)
    expected[closed] = torch.nan
    torch.testing.assert_close(measured["weight_0"].flatten(0, 1), expected, equal_nan=True)
    torch.testing.assert_close(measured["update"], torch.cat(sizes, dim=2).mean(2))
    assert measured["update"][1, 0] == 0


# Layer ablation


def test_only_one_layer_is_what_a_gate_fixed_to_it_gives(communicator, questions):
    for layer in communicator.fused_layers:
        fixed = tiny.communicator("qwen3", "qwen2", gate=GateConfig(kind="fixed", open_layers=[layer]))
        expected = prefilled(C2C(), fixed, questions)
        assert torch.equal(prefilled(OnlyLayer(layer), communicator, questions), expected)
        assert not torch.equal(prefilled(C2C(), communicator, questions), expected)


def test_without_a_layer_its_cache_is_the_receivers_and_the_others_are_fused(communicator, questions):
    own, fused = prefilled(Receiver(), communicator, questions), prefilled(C2C(), communicator, questions)
    without = prefilled(WithoutLayer(2), communicator, questions)
    assert torch.equal(without[:, 2], own[:, 2])
    torch.testing.assert_close(without[:, [0, 1, 3]], fused[:, [0, 1, 3]])
    assert not torch.equal(without[:, 3], own[:, 3])


def test_gates_are_as_they_were_afterwards_even_after_an_exception(questions):
    communicator = tiny.communicator("qwen3", "qwen2", "llama", gate=GateConfig(granularity="head"))
    with torch.no_grad():
        for gate in communicator.gates:
            gate.logit.copy_(torch.randn_like(gate.logit) / 3)
    before = [gate.logit.clone() for gate in communicator.gates]
    with closed_gates(communicator, {2, 3}):
        assert communicator.gates[1].active() == []
        assert {communicator.gates[0].receiver_layers[layer] for _, layer in communicator.gates[0].active()} == {1}
    with pytest.raises(ZeroDivisionError), closed_gates(communicator, {2}):
        raise ZeroDivisionError
    prefilled(OnlyLayer(3), communicator, questions)
    assert all(torch.equal(gate.logit, kept) for gate, kept in zip(communicator.gates, before))


def test_a_layer_that_is_not_fused_is_refused(communicator):
    with pytest.raises(UserError, match=r"\[0\], but the fuser's receiver layers are \[1, 2, 3\]"):
        LayerAblation([0, 2]).methods(communicator)


# Fused fraction


@pytest.mark.parametrize("end", ["front", "back"])
def test_all_of_the_prompt_fused_is_c2c_and_nothing_is_the_receiver(communicator, questions, end):
    for percentage, method in ((100, C2C()), (0, Receiver())):
        partly = prefilled(PartlyFused(end, percentage), communicator, questions)
        assert torch.equal(partly, prefilled(method, communicator, questions))


def test_half_of_every_prompts_own_tokens_is_fused(communicator, questions):
    own, fused = prefilled(Receiver(), communicator, questions), prefilled(C2C(), communicator, questions)
    before = questions.batch(communicator).sharers[0].positions.clone()
    front, back = (prefilled(PartlyFused(end, 50), communicator, questions) for end in ("front", "back"))
    assert torch.equal(questions.batch(communicator).sharers[0].positions, before)
    for row, length in enumerate(questions.batch(communicator).prompt_mask[:, :-1].sum(1).tolist()):
        half = (length + 1) // 2
        start = own.shape[4] - length
        assert torch.equal(front[:, :, row, :, start : start + half], fused[:, :, row, :, start : start + half])
        assert torch.equal(front[:, :, row, :, start + half :], own[:, :, row, :, start + half :])
        assert torch.equal(back[:, :, row, :, -half:], fused[:, :, row, :, -half:])
        assert torch.equal(back[:, :, row, :, start:-half], own[:, :, row, :, start:-half])


# Cache enrichment


def few_shot_ids(communicator: Communicator, benchmark: OwnQuestions, item, shots: int) -> list[int]:
    messages = []
    for place in np.random.default_rng(0).permutation(len(EXEMPLARS))[:shots]:
        question, answer = EXEMPLARS[place]
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    tokenizer = communicator.aligner.receiver
    text = communicator.aligner.render(tokenizer, [*messages, *benchmark.messages(item)])
    return tokenizer(text, add_special_tokens=False).input_ids


@torch.no_grad()
def greedy(communicator: Communicator, cache: DynamicCache, last: int, position: int, steps: int) -> str:
    """A response, token by token, from the last prompt token at its position."""
    model, tokenizer, said = communicator.receiver, communicator.aligner.receiver, []
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
    communicator.receiver(torch.tensor([ids]), position_ids=torch.tensor([positions]), past_key_values=cache)
    return cache


@pytest.mark.parametrize("receiver", ["qwen3", "llama"])  # llama's template begins with a token of its own
def test_enriched_is_the_few_shot_cache_without_the_exemplars_columns(questions, receiver):
    communicator = tiny.communicator(receiver, "qwen2")
    answers = ask(Enriched(2, 0), communicator, questions)
    assert answers != ask(FewShot(2, 0), communicator, questions)
    assert answers != ask(Receiver(), communicator, questions)
    for item, answer in zip(questions.items, answers):
        long = few_shot_ids(communicator, questions.benchmark, item, 2)
        direct = communicator.aligner.prompt(questions.benchmark.messages(item)).receiver_ids
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
    answers = ask(EnrichedLayer(1, 2, 0), communicator, questions)
    first = {"qwen3": 0, "llama": 1}[receiver]
    for item, answer in zip(questions.items, answers):
        long = few_shot_ids(communicator, questions.benchmark, item, 2)
        direct = communicator.aligner.prompt(questions.benchmark.messages(item)).receiver_ids
        own = [*range(first), *range(len(long) - len(direct) + first, len(long))]
        rich = read_at(communicator, long[:-1], list(range(len(long) - 1))).layers[1]
        cache = read_at(communicator, direct[:-1], own[:-1])
        cache.layers[1].keys, cache.layers[1].values = rich.keys[:, :, own[:-1]], rich.values[:, :, own[:-1]]
        assert answer == greedy(communicator, cache, long[-1], len(long) - 1, 6)


def test_without_exemplars_there_is_no_enrichment(communicator, benchmark, tmp_path):
    alone = OwnQuestions(path=benchmark.path, prompt="plain")
    for method in CacheEnrichment().methods(communicator):
        assert method.why_not(alone, communicator) == "the benchmark has no exemplars"
        assert method.why_not(benchmark, communicator) is None
    assert CacheEnrichment().section(communicator, BenchmarkResults(alone, {}, {}), tmp_path) is None


def test_answers_after_other_exemplars_have_another_name(communicator):
    names = [
        {m.name for m in CacheEnrichment(shots, seed=seed).methods(communicator)}
        for shots, seed in ((5, 0), (3, 0), (5, 1))
    ]
    assert names[0] == {"few_shot", "enriched", *(f"enriched_layer_{layer}" for layer in range(4))}
    assert not names[0] & names[1] and not names[0] & names[2] and not names[1] & names[2]  # noqa: PT018


# Transformation oracle


def test_the_sample_does_not_depend_on_how_questions_are_read_together(communicator, questions):
    together = measure(TransformationOracle(tokens=30), communicator, [part_of(questions, [0, 1, 2, 3, 4, 5])])
    apart = measure(
        TransformationOracle(tokens=30), communicator, [part_of(questions, [5, 2]), part_of(questions, [4, 0, 3, 1])]
    )
    assert len(together["source"]) == 30
    assert torch.equal(together["held_out"], apart["held_out"])
    for name in ("source", "target"):
        torch.testing.assert_close(together[name], apart[name])


def test_no_question_is_in_both_parts_of_the_sample(communicator, questions):
    sample = measure(TransformationOracle(tokens=2000), communicator, [questions])
    lengths = (questions.batch(communicator).sharers[0].positions != UNALIGNED).sum(1)
    assert len(sample["held_out"]) == lengths.sum()
    for alone, length in zip(one_by_one(questions), lengths):
        held_out = measure(TransformationOracle(tokens=2000), communicator, [alone])["held_out"]
        assert len(held_out) == length
        assert held_out.all() or not held_out.any()


def test_the_oracle_tells_what_can_be_mapped_from_what_cannot():
    generator = torch.Generator().manual_seed(0)
    source = torch.randn(1200, 2, 8, generator=generator)
    target = torch.randn(1200, 2, 6, generator=generator)
    target[:, 0] = 3 + 5 * source[:, 0] @ torch.randn(8, 6, generator=generator)
    mapping = train(source[:900], target[:900], hidden=32, epochs=40, seed=0)
    with torch.no_grad():
        mapped, noise = unexplained(mapping(source[900:]), target[900:])
    assert mapped < 0.05
    assert noise > 0.9


def test_padding_changes_no_distance_within_a_set():
    narrow, wide = np.random.default_rng(0).normal(size=(4, 5)), np.random.default_rng(1).normal(size=(3, 8))
    for before, after in zip((narrow, wide), padded([narrow, wide])):
        assert after.shape == (len(before), 8)
        np.testing.assert_allclose(pdist(after), pdist(before))


# Who solves what


def test_every_question_is_in_one_region_of_the_diagram():
    solved = {"receiver": {0, 1}, "sharer": set(), "c2c": {1, 2, 3}}
    regions = regions_of(solved)
    assert len(regions) == 7
    assert {members: n for members, n in regions.items() if n} == {
        (True, False, False): 1,
        (False, False, True): 2,
        (True, False, True): 1,
    }


def test_real_scores_are_not_called_accuracy(tmp_path, communicator):
    results = invented_results({"receiver": np.linspace(0, 1, 40), "c2c": np.linspace(0.2, 1, 40)})
    assert "Score by subject" in SubjectAccuracy().section(communicator, results, tmp_path).tables
    right_or_wrong = invented_results({"receiver": right(10, 40), "c2c": right(30, 40)})
    assert "Accuracy by subject" in SubjectAccuracy().section(communicator, right_or_wrong, tmp_path).tables


def test_without_subjects_there_is_nothing_to_say(tmp_path, communicator):
    results = invented_results({"receiver": right(10, 40), "c2c": right(30, 40)})
    items = [replace(item, subject="") for item in results.items]
    results.benchmark._items = items
    assert SubjectAccuracy().section(communicator, results, tmp_path) is None


# Latency


def all_methods(communicator: Communicator, *analyses) -> list[Method]:
    asked = [Receiver(), Sharer(), TextToText(**TOLD), C2C(), C2CAfterText(**TOLD)]
    return asked + [method for analysis in analyses for method in analysis.methods(communicator)]


@pytest.fixture(scope="module")
def answered(communicator, benchmark) -> BenchmarkResults:
    """Every method's and every analysis's answers to all questions."""
    items = benchmark.items()
    questions = Questions(benchmark, items, items[1:] + items[:1])
    methods = all_methods(communicator, *(make() for make in ANALYSES.values()))
    clock = StageClock(torch.device("cpu"))
    kept = {m.name: {a.id: a for a in m.answer(communicator, questions, clock)} for m in methods}
    return collect(benchmark, methods, kept, {}, seed=0)


def test_the_stages_of_an_answer_add_up_to_its_total(communicator, answered):
    latency = Latency(prompts=6, repeats=3)
    methods = latency.chosen(answered)
    assert [m.name for m in methods] == ["receiver", "sharer", "text_to_text", "c2c", "c2c_after_text"]
    for by_method in (latency.measure(communicator, answered, methods, size) for size in (1, 6)):
        for timings in by_method.values():
            sums = [sum(t.stages.values()) / t.total for t in timings]
            assert 0.95 < np.median(sums) <= 1.0
            assert all(0 < t.first_token < t.total for t in timings)


def test_a_method_that_the_evaluation_lacks_cannot_be_timed(answered):
    with pytest.raises(UserError, match="'receivr'"):
        Latency(methods=["receivr"]).chosen(answered)


# All of them


@pytest.mark.parametrize("name", ANALYSES)
def test_every_section_has_words_a_table_and_pictures(communicator, answered, questions, tmp_path, name):
    analysis = ANALYSES[name]()
    if isinstance(analysis, Observer):
        analysis.measured[answered.benchmark.name] = measure(analysis, communicator, [questions])
    section = analysis.section(communicator, answered, tmp_path / "figures")
    assert section.title
    assert "arXiv 2510.03215" in section.text
    assert "{" not in section.text
    assert section.tables and section.figures  # noqa: PT018
    for table in section.tables.values():
        assert len(table)
        assert table.map(lambda cell: isinstance(cell, str)).all(axis=None)
    for figure in section.figures.values():
        assert figure.parent == tmp_path / "figures"
        assert figure.read_bytes()[:4] == b"\x89PNG"


def test_pictures_are_drawn_of_several_sharers_gates_by_head_and_one_part_only(questions, tmp_path):
    gate = GateConfig(granularity="head", parts="keys")
    communicator = tiny.communicator("qwen3", "qwen2", "llama", gate=gate)
    with torch.no_grad():
        communicator.gates[0].logit[0, 0, 1] = -1.0
        communicator.gates[1].logit[0, 1] = -1.0
    results = invented_results({"receiver": right(3, 6), "c2c": right(5, 6)})
    for analysis in (EffectiveRank(), FusionWeights()):
        analysis.measured[results.benchmark.name] = measure(analysis, communicator, [questions])
        section = analysis.section(communicator, results, tmp_path)
        assert all(figure.exists() for figure in section.figures.values())
