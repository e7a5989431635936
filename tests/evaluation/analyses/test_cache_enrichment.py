"""The oracle of cache enrichment."""

from __future__ import annotations

from c2c_lightning.evaluation.analyses import CacheEnrichment
from c2c_lightning.evaluation.benchmarks import OwnQuestions
from c2c_lightning.evaluation.report.results import BenchmarkResults


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
