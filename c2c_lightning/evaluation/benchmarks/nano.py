"""Questions of the built-in world about people whom fuser training never used."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

from c2c_lightning.evaluation.benchmarks.base import Benchmark, Row
from c2c_lightning.evaluation.benchmarks.item import Item
from c2c_lightning.nano import world


class NanoWorld(Benchmark):
    """The 400 held-out questions of the built-in pair, answered with a word; needs no files.

    Args:
        name: in file names and metrics.
        prompt: a shipped prompt's name or a path to a YAML file; the built-in pair knows no instructions.
        answer_mode: the questions are open, so responses are generated.
        max_new_tokens: of a response; answers are words of a few tokens.
        limit: only the first so many questions.
    """

    def __init__(
        self,
        name: str = "nano",
        prompt: str = "plain",
        answer_mode: Literal["generate", "logits"] = "generate",
        max_new_tokens: int = 16,
        limit: int | None = None,
    ):
        super().__init__([], "", name, prompt, answer_mode, max_new_tokens, limit)

    def rows(self) -> Iterator[Row]:
        return _rows(world.facts()[1])

    def exemplar_rows(self) -> Iterator[Row]:
        return _rows(world.facts()[0])

    def to_item(self, record: dict[str, Any], source: str) -> Item:
        fact: world.Fact = record["fact"]
        noun = fact.relation.noun
        return Item(f"{fact.name}/{noun}", fact.question, (fact.answer,), subject=noun)


def _rows(facts: Sequence[world.Fact]) -> Iterator[Row]:
    for number, fact in enumerate(facts):
        yield Row("nano", number, f"nano world: {fact.name}", {"fact": fact})
