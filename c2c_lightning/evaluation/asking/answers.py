"""Answers, and the files that keep them as they come.

answers/<benchmark>/<method>.jsonl has one line for every answer. A line that was cut off by a kill is
dropped when the file is opened again, so a rerun goes on after the last whole answer. Responses are graded again
then, so that a report never mixes the grades of two versions.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import Field

from c2c_lightning.errors import UserError
from c2c_lightning.evaluation.benchmarks import Benchmark
from c2c_lightning.files import cut_unfinished_line, read_json_lines, write_whole

ANSWERS = "answers"


@dataclass
class Answer:
    """What a method answered to one question, and what that cost."""

    id: str  # of the question
    response: str
    confidence: float  # mean log-probability of the response's tokens, in nats
    letters: list[float] | None  # log-probability that the response begins with each choice's letter; None if open
    truncated: bool  # whether the response was cut off by the token limit
    prefill_seconds: float  # until decoding began: this question's share of its batch
    decode_seconds: float  # of the response, likewise
    receiver_tokens: int  # that the receiver generated
    sharer_tokens: int  # that the sharer generated
    handed_over: int  # bytes that the sharer handed to the receiver
    message: str = ""  # what the sharer wrote for the receiver; empty if nothing
    extracted: str | None = None  # what was read out of the response; None if nothing could be
    score: Annotated[float, Field(ge=0, le=1)] = 0.0  # of what was read out
    choices: list[float] | None = None  # log-likelihood of each choice's text in nats, where that is what ranks them
    margin: float | None = None  # how near a token came to another one, in roundings of its logit
    metrics: dict[str, float] = field(default_factory=dict)  # the scores by name, where there are several


class AnswerFile:
    """The answers of one method to one benchmark in an evaluation's folder; the file need not exist yet."""

    def __init__(self, folder: Path, benchmark: str, method: str):
        self.path = folder / ANSWERS / benchmark / f"{method}.jsonl"

    def read(self) -> dict[str, Answer]:
        """The whole answers so far, by question id.

        Raises:
            UserError: a line is damaged, and which, or the file cannot be read.
        """
        if not self.path.exists():
            return {}
        remedy = "Remove the line, and the question is asked again."
        answers: dict[str, Answer] = {}
        for answer in read_json_lines(self.path, Answer, "answers", remedy):
            answers.setdefault(answer.id, answer)
        return answers

    def resume(self, benchmark: Benchmark, grade: Callable[..., Answer]) -> dict[str, Answer]:
        """The whole answers so far, graded again, and a file that the next ones can be appended to.

        Raises:
            UserError: it has an answer to something that the benchmark does not ask.
        """
        before, items = self.read(), {item.id: item for item in benchmark.items()}
        answers = {}
        for id, answer in before.items():
            item, ranked = items.get(id), answer.choices if benchmark.by_likelihood else answer.letters
            if item is None or len(ranked or ()) != len(item.choices):
                reason = "no such question" if item is None else f"another number of letters than {len(item.choices)}"
                raise UserError(
                    f"{self.path} has an answer to {id!r}, but {benchmark.name} has {reason}: remove its line."
                )
            answers[id] = grade(answer, item=item)
        if answers != before:
            write_whole(self.path, "".join(map(to_line, answers.values())))
        elif self.path.exists():
            cut_unfinished_line(self.path, "answers")
        return answers

    def append(self, answers: Sequence[Answer]) -> None:
        """Adds answers; when this returns they outlive the process."""
        if not answers:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(map(to_line, answers))
            file.flush()
            os.fsync(file.fileno())


def to_line(answer: Answer) -> str:
    return json.dumps(asdict(answer), ensure_ascii=False) + "\n"
