"""Small data for the tests of c2c_lightning.data."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

from c2c_lightning.data.records import Example

# Beside the checkout, where somebody has put it: real text, which is no part of this project.
SHARED = Path(__file__).parents[3] / "shared" / "data"
LONG = {"prompt": "Repeat: " + "so " * 3000, "response": "long"}


def pairs(num: int) -> list[dict[str, str]]:
    """Prompt/response records of various lengths, each with a response of its own."""
    return [{"prompt": f"Repeat: {'so ' * (i * 7 % 23)}{i}", "response": f"answer {i}"} for i in range(num)]


def examples(num: int) -> list[Example]:
    """The same as examples."""
    return [
        Example(
            [{"role": "user", "content": pair["prompt"]}, {"role": "assistant", "content": pair["response"]}],
            f"pair {i}",
        )
        for i, pair in enumerate(pairs(num))
    ]


def write_jsonl(file: Path, records: Iterable[Any]) -> str:
    """Writes one record a line; bytes as they are."""
    lines = [record if isinstance(record, bytes) else json.dumps(record).encode() for record in records]
    file.write_bytes(b"\n".join(lines) + b"\n")
    return str(file)


def word_problems(split: str, num: int) -> list[dict[str, str]]:
    """The first records of GSM8K's `train` or `test`, or invented ones of the same columns where it is not there."""
    file = SHARED / f"gsm8k_{split}.jsonl"
    if file.exists():
        with file.open(encoding="utf-8") as lines:
            return [json.loads(line) for line in islice(lines, num)]
    rng = random.Random(f"{split} {num}")
    problems = []
    for i in range(num):
        price, count, steps = rng.randint(2, 9), rng.randint(2, 99), rng.randint(1, 6)
        extra = "".join(f" Every {k}th is sold for half the price." for k in range(2, 2 + steps))
        question = f"In {split} {i} Ida sells {count} pots for {price} crowns each.{extra} What would she get at most?"
        lines = [f"She has {count} pots."] * steps + [
            f"That is {count}*{price}=<<{count}*{price}={count * price}>>crowns."
        ]
        problems.append({"question": question, "answer": "\n".join([*lines, f"#### {count * price}"])})
    return problems
