"""Answers, and the files that keep them as they come.

answers/<benchmark>/<method>.jsonl has one line for every answer. A line that was cut off by a kill is
dropped when the file is opened again, so a rerun goes on after the last whole answer.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from c2c_lightning.errors import UserError, first_line

ANSWERS = "answers"


@dataclass
class Answer:
    """What a method answered to one question, and what that cost.

    Attributes:
        id: of the question.
        response: as text.
        extracted: what was read out of it; None if nothing could be.
        score: in [0, 1].
        confidence: mean log-probability of the response's tokens, in nats.
        letters: log-probability of each choice's letter as the response's beginning; None if there are no choices.
        truncated: whether the response was cut off by the token limit.
        prefill_seconds: until decoding began: this question's share of its batch.
        decode_seconds: of the response, likewise.
        receiver_tokens: that the receiver generated.
        sharer_tokens: that the sharer generated.
        handed_over: bytes that the sharer handed to the receiver.
        message: what the sharer wrote for the receiver; empty if nothing.
    """

    id: str
    response: str
    extracted: str | None
    score: float
    confidence: float
    letters: list[float] | None
    truncated: bool
    prefill_seconds: float
    decode_seconds: float
    receiver_tokens: int
    sharer_tokens: int
    handed_over: int
    message: str = ""


class AnswerFile:
    """The answers of one method to one benchmark.

    Args:
        path: of the file; it need not exist yet.
    """

    def __init__(self, path: Path):
        self.path = path

    def read(self) -> dict[str, Answer]:
        """The whole answers so far, by question id.

        Raises:
            UserError: a line is damaged, and which.
        """
        if not self.path.exists():
            return {}
        answers = {}
        lines = self.path.read_bytes().split(b"\n")[:-1]  # what follows the last line break is cut off
        for number, line in enumerate(lines, start=1):
            try:
                answer = Answer(**json.loads(line))
                if not 0 <= answer.score <= 1:
                    raise ValueError(f"score {answer.score} does not lie in [0, 1]")
            except (ValueError, TypeError) as error:
                raise UserError(
                    f"{self.path}:{number} is no answer ({first_line(error)}): remove the line, and the question is "
                    "asked again."
                ) from error
            answers.setdefault(answer.id, answer)
        return answers

    def repair(self) -> None:
        """Drops a line that was cut off, so that the next one does not continue it."""
        if self.path.exists():
            whole = self.path.read_bytes().rfind(b"\n") + 1
            os.truncate(self.path, whole)

    def resume(self) -> dict[str, Answer]:
        """The whole answers so far, and a file that the next ones can be appended to."""
        self.repair()
        return self.read()

    def append(self, answers: Sequence[Answer]) -> None:
        """Adds answers; when this returns they outlive the process."""
        if not answers:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(asdict(answer), ensure_ascii=False) + "\n" for answer in answers)
            file.flush()
            os.fsync(file.fileno())


def answer_file(folder: Path, benchmark: str, method: str) -> AnswerFile:
    """Where an evaluation's folder has the answers of a method to a benchmark."""
    return AnswerFile(folder / ANSWERS / benchmark / f"{method}.jsonl")
