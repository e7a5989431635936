"""Small data for the tests of c2c_lightning.data."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from c2c_lightning.data.records import Example

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
