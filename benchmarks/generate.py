"""What fusion costs when answers are generated: beside the receiver alone, and beside text-to-text (T2T).

    python -m benchmarks.generate
    python -m benchmarks.generate --pair qwen3-0.6b+qwen2.5-0.5b --dtype bf16 --device cuda

To the receiver's time to first token fusion must add the sharer's prefill and the fuser, and nothing else: these parts
are timed by themselves, and their sum is set beside the difference. From then on the receiver decodes as it does alone.
T2T has the sharer write a message; the receiver reads it, and the prompt, and answers. Every response has the same
number of tokens, for models of random weights end theirs anywhere.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jsonargparse import auto_cli
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList

from benchmarks.pairs import MID, random_batch, random_communicator
from benchmarks.rounds import clock
from c2c_lightning.communicator import Communicator
from c2c_lightning.models import Batch


class TokenClock(StoppingCriteria):
    """Stops nothing, and notes when each token was there."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: object) -> Tensor:
        self.times.append(clock())
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


@dataclass
class Answer:
    """Seconds to the first token of a batch, and for each further one (the median of them)."""

    first: float
    further: float


@dataclass
class Generation:
    """What was measured at one batch size.

    Attributes:
        answers: by way of answering, one for each round.
        parts: seconds of the sharer's prefill and of the fuser, by round.
    """

    answers: dict[str, list[Answer]]
    parts: dict[str, list[float]]

    def first(self, way: str) -> float:
        return statistics.median(answer.first for answer in self.answers[way])

    def further(self, way: str) -> float:
        return statistics.median(answer.further for answer in self.answers[way])

    @property
    def decode_ratio(self) -> float:
        """Fused by alone, seconds for a further token; 1 is the receiver's own speed."""
        return self.ratio("further")

    @property
    def first_ratio(self) -> float:
        """The same of the seconds to the first token."""
        return self.ratio("first")

    def ratio(self, name: str) -> float:
        pairs = zip(self.answers["fused"], self.answers["alone"])
        return statistics.median(getattr(fused, name) / getattr(alone, name) for fused, alone in pairs)

    @property
    def added(self) -> float:
        """Seconds that fusion adds to the time to first token."""
        return statistics.median(f.first - a.first for f, a in zip(self.answers["fused"], self.answers["alone"]))

    @property
    def sum_of_parts(self) -> float:
        return statistics.median(map(sum, zip(*self.parts.values())))


def timed(answer: Callable[[StoppingCriteriaList], object]) -> Answer:
    tokens, start = TokenClock(), clock()
    answer(StoppingCriteriaList([tokens]))
    steps = [later - sooner for sooner, later in zip(tokens.times, tokens.times[1:])]
    return Answer(tokens.times[0] - start, statistics.median(steps))


@torch.no_grad()
def measured_generation(
    communicator: Communicator, batch: Batch, message: int, response: int, rounds: int
) -> Generation:
    """All ways of answering in turns, after a round to warm up.

    Args:
        communicator: in evaluation.
        batch: prompts without padding.
        message: tokens of T2T's message.
        response: tokens of a response, at least 2.
        rounds: how many.
    """

    def length(tokens: int) -> dict[str, int]:
        return {"min_new_tokens": tokens, "max_new_tokens": tokens, "pad_token_id": 0}

    def text_to_text(criteria: StoppingCriteriaList) -> None:
        read, vocabulary = batch.sharers[0], communicator.models.receiver.config.vocab_size
        out = communicator.models.sharers[0].generate(input_ids=read.ids, attention_mask=read.mask, **length(message))
        ids = torch.cat([out[:, read.ids.shape[1] :] % vocabulary, batch.prompt_ids], dim=1)
        told = replace(batch, prompt_ids=ids, prompt_mask=torch.ones_like(ids))
        communicator.generate_ids(told, fuse=False, stopping_criteria=criteria, **length(response))

    ways = {
        "alone": lambda c: communicator.generate_ids(batch, False, stopping_criteria=c, **length(response)),
        "fused": lambda c: communicator.generate_ids(batch, stopping_criteria=c, **length(response)),
        "T2T": text_to_text,
    }
    found = Generation({way: [] for way in ways}, {"sharer prefill": [], "fuser": []})
    for number in range(rounds + 1):
        seconds = fusion_parts(communicator, batch)
        answers = {way: timed(ways[way]) for way in (list(ways) if number % 2 else list(ways)[::-1])}
        if number:  # the first one is to warm up
            for part, taken in seconds.items():
                found.parts[part].append(taken)
            for way, answer in answers.items():
                found.answers[way].append(answer)
    return found


def fusion_parts(communicator: Communicator, batch: Batch) -> dict[str, float]:
    """Seconds of what fusion adds to a prefill."""
    reading = communicator.read(batch)
    reading.receiver_cache()
    start = clock()
    stacks = communicator.fusers.sharer_stacks(reading)
    read = clock()
    communicator.fusers.fuse(reading, stacks)
    return {"sharer prefill": read - start, "fuser": clock() - read}


def measure(
    pair: str = MID,
    dtype: Literal["fp32", "bf16"] = "fp32",
    device: str = "cpu",
    hidden: int = 512,
    batches: list[int] = [1, 32],  # noqa: B006
    prompt: int = 128,
    message: int = 64,
    response: int = 32,
    rounds: int = 5,
) -> None:
    """Prints a table for each batch size.

    Args:
        pair: `receiver+sharer`.
        dtype: of the frozen models; fusers are fp32.
        device: cpu, cuda.
        hidden: width of the fuser.
        batches: conversations in a batch.
        prompt: tokens of a prompt.
        message: tokens that the sharer writes in T2T.
        response: tokens of a response.
        rounds: how many are measured.
    """
    communicator = random_communicator(pair, hidden, dtype, device).eval()
    print(
        f"{pair}, fuser {hidden} wide, {dtype} on {device}, {torch.get_num_threads()} threads: prompt {prompt}, ",
        end="",
    )
    print(f"message {message}, response {response}")
    for size in batches:
        batch = random_batch(communicator, size, prompt, 1)
        found = measured_generation(communicator, batch, message, response, rounds)
        print(f"\nbatch {size}\n\n| | first token, ms | further token, ms | tokens/s when decoding | tokens/s in all |")
        print("|---|---|---|---|---|")
        for way in found.answers:
            first, further = found.first(way), found.further(way)
            in_all = size * response / (first + (response - 1) * further)
            print(f"| {way} | {1e3 * first:.1f} | {1e3 * further:.2f} | {size / further:.0f} | {in_all:.0f} |")
        parts = " + ".join(f"{part} {1e3 * statistics.median(taken):.1f}" for part, taken in found.parts.items())
        print(
            f"\nfusion adds {1e3 * found.added:.1f} ms to the first token; {parts} = {1e3 * found.sum_of_parts:.1f} ms"
        )
        print(
            f"fused by alone: first token {found.first_ratio:.2f}, further token {found.decode_ratio:.3f}", flush=True
        )


if __name__ == "__main__":
    auto_cli(measure)
