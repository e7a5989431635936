from __future__ import annotations

import json

import pytest

from c2c_lightning.communicator import Communicator
from c2c_lightning.evaluation.asking.methods import C2C, Receiver, Sharer
from c2c_lightning.evaluation.asking.questions import Questions
from c2c_lightning.evaluation.asking.text_to_text import C2CAfterText
from c2c_lightning.evaluation.benchmarks import OwnQuestions
from c2c_lightning.evaluation.report.findings import BenchmarkResults, collect
from tests.evaluation.analyses.every_analysis import ANALYSES
from tests.evaluation.asking import EXEMPLARS, MORE_TEXTS, PROMPTS, TEXTS, TOLD, ask
from tests.models import tiny


@pytest.fixture(scope="session")
def benchmark(tmp_path_factory) -> OwnQuestions:
    folder = tmp_path_factory.mktemp("questions")
    asked = [
        {"question": text, "reference": "Oslo", "subject": ("towns", "rest")[i % 2]}
        for i, text in enumerate([*TEXTS, *MORE_TEXTS])
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


@pytest.fixture(scope="session")
def communicator() -> Communicator:
    """Its sharer's template has nothing before the content, so some receiver tokens have no token opposite."""
    return tiny.communicator("qwen3", "qwen2")


@pytest.fixture(scope="session")
def answered(communicator, benchmark) -> BenchmarkResults:
    """Every method's and every analysis's answers to all questions."""
    items = benchmark.items()
    questions = Questions(benchmark, items, items[1:] + items[:1])
    further = [method for make in ANALYSES.values() for method in make().methods(communicator)]
    methods = [Receiver(), Sharer(), TOLD, C2C(), C2CAfterText(**PROMPTS), *further]
    kept = {m.name: {a.id: a for a in ask(m, communicator, questions)} for m in methods}
    return collect(benchmark, methods, kept, seed=0)
