"""Questions for tiny models whose caches and answers differ from prompt to prompt, and ways to ask them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from c2c_lightning.communicator import Communicator
from c2c_lightning.evaluation.asking.answers import Answer
from c2c_lightning.evaluation.asking.methods import Answering, Asking
from c2c_lightning.evaluation.asking.observing import Observer, read_caches
from c2c_lightning.evaluation.asking.questions import Questions, StageClock
from c2c_lightning.evaluation.asking.text_to_text import TextToText
from c2c_lightning.fuser import Fusers
from c2c_lightning.mapper import RidgeMapper
from c2c_lightning.models import FrozenModels, load_aligner, load_models
from c2c_lightning.models.cache import read_stack

TEXTS = [
    "Where does Ribigo live?",
    "Which country is the capital Oslo in? Say it in one word, please.",
    "What does the assistant like 👍🏽?",
    "北京是中国的首都。",
]
MORE_TEXTS = [
    "Is it in Norway?",
    "Who says that Ribigo lives in Oslo, and why does everybody know that?",
]
EXEMPLARS = [("What is of course in Norway?", "Oslo"), ("Who lives in Oslo?", "Ribigo"), ("Is it 上海?", "no")]
PROMPTS = {"sharer_prompt": "Tell me: {question}", "receiver_prompt": "{message} {prompt}", "max_message_tokens": 5}
TOLD = TextToText(**PROMPTS)


def part_of(questions: Questions, places: Sequence[int]) -> Questions:
    items = [questions.items[i] for i in places]
    return Questions(questions.benchmark, items, items[::-1])


def one_by_one(questions: Questions) -> list[Questions]:
    return [part_of(questions, [i]) for i in range(len(questions))]


@contextmanager
def reads(*models: torch.nn.Module) -> Iterator[list[torch.nn.Module]]:
    """Every time that one of the models reads prompts of several tokens, as against writing a response's next one."""
    noted: list[torch.nn.Module] = []

    def note(model: torch.nn.Module, _: Any, given: dict[str, Any]) -> None:
        if given["input_ids"].shape[1] > 1:
            noted.append(model)

    handles = [model.register_forward_pre_hook(note, with_kwargs=True) for model in models]
    try:
        yield noted
    finally:
        for handle in handles:
            handle.remove()


def clock() -> StageClock:
    return StageClock(torch.device("cpu"))


def ask(method: Answering, communicator: Communicator, questions: Questions) -> list[Answer]:
    return method.answer(Asking.of(communicator, questions))


def texts(answers: list[Answer]) -> list[str]:
    return [answer.response for answer in answers]


@torch.no_grad()
def prefilled(method: Answering, communicator: Communicator, questions: Questions) -> torch.Tensor:
    """The receiver's whole stack after a method's prefill, padding blanked."""
    start = method.prefill(Asking.of(communicator, questions))
    stack = read_stack(start.cache, range(communicator.models.receiver_shape.num_layers))
    return stack * start.mask[:, None, :-1, None]


def fused_stack(method: Answering, communicator: Communicator, questions: Questions) -> torch.Tensor:
    """The same of the fused layers only."""
    return prefilled(method, communicator, questions)[:, communicator.fusers.fused_layers]


def observe(observer: Observer, communicator: Communicator, batches: Sequence[Questions]) -> Any:
    """What an observer measures on these questions."""
    metric = observer.metric(communicator)
    for batch in batches:
        metric.update(read_caches(communicator, batch))
    return metric.compute()


def told_pair() -> Communicator:
    """The built-in pair with a mapper that makes something else of every text."""
    receiver, sharers = "c2c_lightning/nano/receiver", ["c2c_lightning/nano/sharer"]
    models = FrozenModels(*load_models(receiver, sharers), load_aligner(receiver, sharers))
    fusers = Fusers(models.receiver_shape, models.sharer_shapes, fuser=None, mapper=RidgeMapper)
    torch.nn.init.normal_(fusers.mapper.weight, std=0.05, generator=torch.Generator().manual_seed(0))
    return Communicator(models, fusers)
