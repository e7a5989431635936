"""Questions of the built-in world about people whom fuser training never used."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from c2c_lightning.evaluation.benchmarks.base import Benchmark, Row
from c2c_lightning.evaluation.benchmarks.item import Item
from c2c_lightning.nano import world


class NanoWorld(Benchmark):
    """The 400 held-out questions of the built-in pair, answered with a word; needs no files.

    Args:
        max_new_tokens: of a response; answers are words of a few tokens.
        limit: only the first so many questions.
        **kwargs: as for every benchmark; there are no files to name.
    """

    default_name, default_prompt = "nano", "plain"  # the built-in pair knows no instructions

    def __init__(self, max_new_tokens: int = 16, limit: int | None = None, **kwargs: Any):
        super().__init__([], max_new_tokens=max_new_tokens, limit=limit, **kwargs)

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
