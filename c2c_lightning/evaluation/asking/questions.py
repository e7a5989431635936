"""The questions of benchmarks in batches, dealt out to the ranks, what the models make of a batch, and how long it takes."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Container, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

import lightning as L
import numpy as np
import torch

from c2c_lightning.errors import UserError, check_at_least
from c2c_lightning.evaluation.benchmarks import Benchmark, Item
from c2c_lightning.models import Batch, FrozenModels, Message, Reading
from c2c_lightning.models.chat import merged
from c2c_lightning.models.loading import longest
from c2c_lightning.models.private_text import reads_all

T = TypeVar("T")
TEMPLATE = 1000  # bytes that no chat template exceeds
Mark = float | torch.cuda.Event
Span = tuple[str, Mark, Mark]


class StageClock:
    """Times named stages, which run on a device, without making it wait for the host.

    By CUDA events on a GPU, by a monotonic clock elsewhere.
    """

    def __init__(self, device: torch.device):
        self.on_gpu = device.type == "cuda"
        self.spans: list[Span] = []
        self.marks: dict[str, Mark] = {}
        self.begun = self.now()

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        begun = self.now()
        yield
        self.spans.append((stage, begun, self.now()))

    def mark(self, name: str) -> None:
        """Notes the moment at which something happens first."""
        if name not in self.marks:
            self.marks[name] = self.now()

    def now(self) -> Mark:
        if not self.on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def between(self, first: Mark, second: Mark) -> float:
        """Seconds from one moment to another; waits for the device."""
        if not self.on_gpu:
            return second - first
        second.synchronize()
        return first.elapsed_time(second) / 1000

    def seconds(self) -> dict[str, float]:
        """Seconds of every stage, summed over the times it was entered."""
        total: dict[str, float] = defaultdict(float)
        for stage, first, second in self.spans:
            total[stage] += self.between(first, second)
        return dict(total)


class Questions:
    """Items that are answered together, tokenized and read once for all methods.

    Each has a partner, another question of the benchmark, whose cache the control fuses. Choices are shuffled by `seed`.
    """

    def __init__(self, benchmark: Benchmark, items: Sequence[Item], partners: Sequence[Item], seed: int = 0):
        self.benchmark, self.items, self.partners, self.seed = benchmark, list(items), list(partners), seed
        self._models: FrozenModels | None = None
        self._batch: Batch | None = None
        self._parts: dict[tuple[str, ...], Questions] = {}
        self.forget()

    def __len__(self) -> int:
        return len(self.items)

    def messages(self) -> list[list[Message]]:
        """The chats that ask them."""
        return [self.benchmark.messages(item) for item in self.items]

    def read(self, models: FrozenModels) -> Reading:
        """The prompts as all models read them."""
        if self._models is not models:
            self._models = models
            self._batch = models.collate(self.messages())
            self.forget()
        if self._reading is None:
            self._reading = models.read(self._batch)
        return self._reading

    def once(self, clock: StageClock, stage: str, key: Hashable, make: Callable[[], T]) -> T:
        """What `make` gives for these questions, made when a method first asks for it.

        A method's time is what it would take alone, so the time counts as `stage` of every method that asks.
        """
        if key not in self._made:
            with clock(stage):
                made = make()
            self._made[key] = made, clock.spans[-1]
        else:
            clock.spans.append(self._made[key][1])
        return self._made[key][0]

    def forget(self) -> None:
        """Lets go of all that the models have made of them."""
        self._reading: Reading | None = None
        self._made: dict[Hashable, tuple[Any, Span]] = {}
        self._parts.clear()

    def without(self, done: Container[str]) -> Questions:
        """The questions whose ids are not among `done`; itself if there are none to leave out."""
        left = [i for i, item in enumerate(self.items) if item.id not in done]
        if len(left) == len(self.items):
            return self
        ids = tuple(self.items[i].id for i in left)
        if ids not in self._parts:
            items, partners = [self.items[i] for i in left], [self.partners[i] for i in left]
            self._parts[ids] = Questions(self.benchmark, items, partners, self.seed)
        return self._parts[ids]


def shuffled_choices(item: Item, seed: int) -> tuple[Item, np.ndarray]:
    """A question with its choices in another order, and the old place of the choice at each new place."""
    # Seeded by the question itself, so that the order does not depend on who is asked along with it.
    rng = np.random.default_rng([seed, *item.id.encode()])
    order = rng.permutation(len(item.choices))
    while len(order) > 1 and (order == np.arange(len(order))).all():
        order = rng.permutation(len(order))
    old_places = [item.letters.index(letter) for letter in item.answers]
    answers = tuple(item.letters[int(np.flatnonzero(order == place)[0])] for place in old_places)
    return replace(item, choices=tuple(item.choices[i] for i in order), answers=answers), order


def derangement(number: int, seed: int) -> np.ndarray:
    """For each of `number` things another one, every one being somebody's: one random cycle through all."""
    cycle = np.random.default_rng(seed).permutation(number)
    other = np.empty(number, dtype=np.int64)
    other[cycle] = np.roll(cycle, -1)
    return other


def too_long(benchmark: Benchmark, models: FrozenModels) -> set[str]:
    """Ids of the questions that, with the response, are longer than one of the models can read."""
    rooms = list(map(longest, (models.receiver, *models.sharers)))
    ids = set()
    for item in benchmark.items():
        messages, response = benchmark.messages(item), benchmark.max_new_tokens_of(item)
        # A token stands for a byte at least: most questions need not be tokenized.
        size = sum(len(message["content"].encode()) for message in reads_all(messages))
        if size + TEMPLATE + response <= min(rooms):
            continue
        prompt = models.aligner.prompt(messages)
        lengths = list(map(len, (prompt.receiver_ids, *prompt.sharer_ids)))
        if prompt.private is not None:
            lengths[0] = max(lengths[0], len(prompt.private.read_ids))
            # The sharer alone reads text and question together.
            lengths[1] += len(prompt.private.ids)
        if any(length + response > room for length, room in zip(lengths, rooms)):
            ids.add(item.id)
    return ids


def num_merged(benchmark: Benchmark, models: FrozenModels) -> int:
    """Questions whose turns were merged, because a chat template refused them as they are."""
    if models.aligner.chat.turns != "merge":
        return 0
    asked = (benchmark.messages(item) for item in benchmark.items())
    # Most questions have nothing to merge, and need not be tokenized.
    return sum(models.aligner.prompt(m).merged is not None for m in asked if next(merged(m), None))


def repeated(names: Iterable[str]) -> str | None:
    """The most frequent name if it is there more than once."""
    name, number = next(iter(Counter(names).most_common(1)), (None, 0))
    return name if number > 1 else None


class BenchmarkData(L.LightningDataModule):
    """Every benchmark's questions, twice: to be measured, and to be answered.

    Args:
        benchmarks: what to ask.
        batch_size: questions that a device reads together.
        seed: decides which other question's cache the control fuses, and how choices are shuffled.

    Raises:
        UserError: no benchmark, or two of the same name.
    """

    def __init__(self, benchmarks: list[Benchmark], batch_size: int = 16, seed: int = 0):
        super().__init__()
        twice = repeated(benchmark.name for benchmark in benchmarks)
        if not benchmarks or twice:
            problem = f"has {twice} twice: give one of them another name" if twice else "is empty: name one"
            raise UserError(f"data.benchmarks {problem}.")
        check_at_least(1, "data.{}", batch_size=batch_size)
        check_at_least(0, "data.{}", seed=seed)
        self.benchmarks, self.batch_size, self.seed = benchmarks, batch_size, seed

    def setup(self, stage: str) -> None:
        for benchmark in self.benchmarks:  # what is wrong with the data is said before models are loaded
            benchmark.items()

    def test_dataloader(self) -> list[QuestionLoader]:
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        loaders = [QuestionLoader(b, self.batch_size, rank, world_size, self.seed) for b in self.benchmarks]
        return [loader for loader in loaders for _ in ("measure", "answer")]


def is_measured(dataloader_idx: int) -> bool:
    """Whether a loader's questions are to be measured, and not to be answered."""
    return dataloader_idx % 2 == 0


class QuestionLoader:
    """A benchmark's questions in batches of like length, the longest first.

    Every rank gets the same number of batches, of which the last may be empty, and every question goes to
    one rank. Batches are the same objects each time, so that what was read to be measured can be answered.
    """

    def __init__(self, benchmark: Benchmark, batch_size: int, rank: int, world_size: int, seed: int):
        items, global_batch = benchmark.items(), batch_size * world_size
        partners = derangement(len(items), seed)
        lengths = [sum(len(m["content"]) for m in reads_all(benchmark.messages(item))) for item in items]
        places = np.argsort(-np.array(lengths), kind="stable")
        self.batches: list[Questions] = []
        for i in range(0, len(places), global_batch):
            mine = places[i : i + global_batch][rank::world_size]
            asked, others = [items[k] for k in mine], [items[partners[k]] for k in mine]
            self.batches.append(Questions(benchmark, asked, others, seed))

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Questions]:
        return iter(self.batches)
