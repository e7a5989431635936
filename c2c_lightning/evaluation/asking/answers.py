"""Answers, the files that keep them as they come, and digests of what they depend on.

answers/<benchmark>/<method>.jsonl has one line for every answer. A line that was cut off by a kill is
dropped when the file is opened again, so a rerun goes on after the last whole answer. Responses are graded again
then, so that a report never mixes the grades of two versions.
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from c2c_lightning.errors import UserError
from c2c_lightning.evaluation.benchmarks import Benchmark
from c2c_lightning.files import cut_unfinished_line, json_digest, read_json_lines, write_whole
from c2c_lightning.formats.config import located
from c2c_lightning.formats.fuser_folder import fingerprint, read_fuser
from c2c_lightning.models.identity import fingerprint_of_files

ANSWERS = "answers"
# Fuser and models count by their weights, not by their paths.
CANNOT = {"model": ("fuser", "receiver", "sharers", "trust_remote_code"), "data": ("batch_size",)}


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
        """The whole answers so far, by question id; a UserError if a line is damaged or the file cannot be read."""
        if not self.path.exists():
            return {}
        remedy = "Remove the line, and the question is asked again."
        answers: dict[str, Answer] = {}
        for answer in read_json_lines(self.path, Answer, "answers", remedy):
            answers.setdefault(answer.id, answer)
        return answers

    def resume(self, benchmark: Benchmark, grade: Callable[..., Answer]) -> dict[str, Answer]:
        """The whole answers so far, graded again, and a file that the next ones can be appended to.

        A UserError if it has an answer to something that the benchmark does not ask.
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


def digest(settings: dict[str, Any]) -> str:
    """The same for evaluations whose answers are the same, so that one can go on in the other's folder.

    It is of the whole configuration, as plain values, but for how many questions are read together, on which devices,
    and what is drawn in the end.
    """
    counted = {
        part: {key: value for key, value in settings[part].items() if key not in CANNOT[part]} for part in CANNOT
    }
    counted["precision"] = settings["trainer"]["precision"]
    model = settings["model"]
    config, state = read_fuser(model["fuser"], model.get("receiver"), model.get("sharers"))
    config = located(config, model["fuser"])
    # Receiver and sharers by what their folders hold: one that was trained on under its old name answers anew.
    models = [fingerprint_of_files(name) for name in (config["receiver"], *config["sharers"])]
    prefixes = [method.get("init_args", {}).get("prefix") for method in model.get("methods") or []]
    further = [fingerprint(*read_fuser(prefix)) for prefix in prefixes if prefix]
    return json_digest([fingerprint(config, state), models, counted, sources(counted), *further])


def sources(settings: Any) -> list[str]:
    """The code of the classes that settings name and that are not ours, for an edit of it changes answers too."""
    if isinstance(settings, list):
        return [source for value in settings for source in sources(value)]
    if not isinstance(settings, dict):
        return []
    found = sources(list(settings.values()))
    name = settings.get("class_path")
    if isinstance(name, str) and not name.startswith(f"{__package__.partition('.')[0]}."):
        found.append(inspect.getsource(importlib.import_module(name.rpartition(".")[0])))
    return found


def questions_digest(benchmark: Benchmark) -> str:
    """The same for benchmarks that ask the same questions, by the same prompts, after the same exemplars."""
    items = [*benchmark.items(), *(benchmark.exemplar_items() if benchmark.exemplars else [])]
    asked = [[asdict(item), benchmark.messages(item), benchmark.response(item)] for item in items]
    return json_digest([asdict(benchmark.prompt), asked])
