"""Why a control may have nothing to say about a benchmark."""

from __future__ import annotations

from c2c_lightning.evaluation.benchmarks import Benchmark


def lacks_others(benchmark: Benchmark) -> str | None:
    """The reason, if there is no other question whose cache could be taken."""
    return "the benchmark has one question only" if len(benchmark.items()) < 2 else None


def lacks_choices(benchmark: Benchmark) -> str | None:
    """The reason, if there are open questions."""
    return None if benchmark.has_choices else "the questions have no lettered choices"
