"""Benchmarks: where questions come from, how they are asked, and how responses are graded."""

from c2c_lightning.evaluation.benchmarks.base import Benchmark, BySubject
from c2c_lightning.evaluation.benchmarks.choices import ARCChallenge, CEval, MMLURedux, OpenBookQA
from c2c_lightning.evaluation.benchmarks.harness_task import HarnessTask
from c2c_lightning.evaluation.benchmarks.item import Grade, Item
from c2c_lightning.evaluation.benchmarks.open_questions import GSM8K, NanoWorld
from c2c_lightning.evaluation.benchmarks.own import OwnQuestions
from c2c_lightning.evaluation.benchmarks.prompt import Prompt
from c2c_lightning.evaluation.benchmarks.question_data import QuestionData

__all__ = [
    "GSM8K",
    "ARCChallenge",
    "Benchmark",
    "BySubject",
    "CEval",
    "Grade",
    "HarnessTask",
    "Item",
    "MMLURedux",
    "NanoWorld",
    "OpenBookQA",
    "OwnQuestions",
    "Prompt",
    "QuestionData",
]
