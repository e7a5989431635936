"""How a train step grows with batch, prompt and layers, in time and in memory.

    OMP_NUM_THREADS=1 python -m benchmarks.scaling
    python -m benchmarks.scaling --pair qwen3-0.6b+qwen2.5-0.5b --dtype bf16 --device cuda

Time is set beside linear growth: 1.00 is as many times as long as the step has more of what is varied. The floor (see
floor.py) has a column of its own, since attention grows with the square of the prompt, and logits do not grow with
layers.

Memory is what a step needs beyond models, fusers and optimizer: with T = batch * (prompt - 1) tokens, and per token and
each of the 2 L (part, layer) pairs of L mapped layers, in numbers

    16 M            kept by the fuser: what its three blocks and two heads read, and of every block the normed input
                    with and without the norm's weight, and the inner activations before and after GELU
    2 (Fs + Fr)     the stacks that it reads, and both together as its first layer's input
    3 Fr            its update, the same weighted, and the fused stack
    2 Fr            the receiver's own cache, and the fused one with the response behind it
    Fs              the sharer's own cache, of which the stack is a copy
    Q               keys or values repeated for every query head, as attention keeps them
    4 Fr + 3 M      with bf16 only: the gated update and its gradient, which are in fp32 as the gates are, and what
                    RMSNorm keeps in fp32 (found by measurement)

M is the fuser's width, Fr and Fs are the models' features (kv heads * head_dim), and Q is the receiver's query heads *
head_dim. To this come 2 M per token and pair that a block works on in its backward pass, beyond what goes meanwhile, and
the logits with their gradient, in fp32. The gradients of the fusers' parameters come while
activations go, and count only where they are more than all of these. Responses are taken to be short beside prompts.
Numbers are in the dtype of the networks (fp32, or bf16 under autocast).
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable
from typing import Literal

import torch
from jsonargparse import auto_cli

from benchmarks.pairs import MID, MODELS
from benchmarks.rounds import Times, ratio, taking_turns
from benchmarks.train_step import TrainStep
from c2c_lightning.communicator import Communicator


def with_layers(pair: str, layers: int) -> str:
    """A pair of the same models with another number of layers."""
    names = []
    for name in pair.split("+"):
        config = copy.deepcopy(MODELS[name])
        config.num_hidden_layers, config.layer_types = layers, ["full_attention"] * layers
        names.append(f"{name}, {layers} layers")
        MODELS[names[-1]] = config
    return "+".join(names)


def growth(times: Times, steps: dict[str, TrainStep], sizes: list[int]) -> list[dict[str, float]]:
    """Seconds of every size, and how they and the floor grow beside what is varied, from the first size on."""
    first = str(sizes[0])
    floor = {name: sum(step.floor.values()) for name, step in steps.items()}
    rows = []
    for size in sizes:
        linear, name = size / sizes[0], str(size)
        rows.append(
            {
                "size": size,
                "seconds": statistics.median(times[name]),
                "growth": ratio(times, name, first) / linear,
                "floor": floor[name] / floor[first] / linear,
            }
        )
    return rows


def peak_memory(step: Callable[[], object], device: str) -> int:
    """Bytes that torch allocates during a step, at its peak, beyond what there was before."""
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(profile_memory=True) as profile:
        step()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def predicted_memory(
    communicator: Communicator, hidden: int, dtype: str, batch: int, prompt: int, response: int
) -> int:
    """The same by the formula above."""
    receiver, number = communicator.models.receiver.config, 2 if dtype == "bf16" else 4
    queries = receiver.num_attention_heads * communicator.fusers[0].receiver.head_dim
    tokens, kept, working = batch * (prompt - 1), 0, 0
    for fuser, mapped in zip(communicator.fusers, communicator.fusers.layer_maps):
        own, other = fuser.receiver.features, fuser.sharer.features
        per_pair = 16 * hidden + 2 * (other + own) + 3 * own + 2 * own + other + queries
        per_pair += 4 * own + 3 * hidden if dtype == "bf16" else 0
        groups = 2 * len(mapped)
        kept += groups * per_pair
        working = max(working, 2 * hidden * groups)
    gradients = sum(p.numel() for p in communicator.fusers.parameters()) * 4
    logits = 2 * batch * response * receiver.vocab_size * 4
    return max(tokens * (kept + working) * number + logits, gradients)


def measure(
    pair: str = MID,
    dtype: Literal["fp32", "bf16"] = "fp32",
    device: str = "cpu",
    hidden: int = 256,
    batches: list[int] = [1, 2, 4, 8],  # noqa: B006
    prompts: list[int] = [512, 1024, 2048, 4096],  # noqa: B006
    layers: list[int] = [2, 4, 8, 16],  # noqa: B006
    prompt: int = 256,
    response: int = 32,
    rounds: int = 3,
) -> None:
    """Prints a table for each of batch, prompt and layers, and one for memory.

    Args:
        pair: `receiver+sharer`.
        dtype: fp32, or bf16 for frozen models in bf16 and bf16-mixed fusers.
        device: cpu, cuda.
        hidden: width of the fuser.
        batches: conversations in a step.
        prompts: tokens of a prompt, in batches of 1.
        layers: of both models.
        prompt: tokens of a prompt where something else is varied.
        response: tokens of a response, all supervised.
        rounds: of which the median counts.
    """
    print(f"{pair}, fuser {hidden} wide, {dtype} on {device}, {torch.get_num_threads()} threads, response {response}")
    varied = {
        "batch": (batches, lambda size: (pair, size, prompt)),
        "prompt": (prompts, lambda size: (pair, 1, size)),
        "layers": (layers, lambda size: (with_layers(pair, size), 1, prompt)),
    }
    for what, (sizes, at) in varied.items():
        steps = {}
        for size in sizes:
            models, batch, length = at(size)
            steps[str(size)] = TrainStep(models, hidden, dtype, device, batch, length, response)
        print(f"\n| {what} | step, ms | growth by linear | the floor's |\n|---|---|---|---|")
        for row in growth(taking_turns(steps, rounds), steps, sizes):
            print(
                f"| {row['size']} | {1e3 * row['seconds']:.0f} | {row['growth']:.2f} | {row['floor']:.2f} |", flush=True
            )
    print("\n| prompt | memory of a step, MiB | predicted | measured by predicted |\n|---|---|---|---|")
    for length in prompts:
        step = TrainStep(pair, hidden, dtype, device, 1, length, response)
        step()  # the optimizer's state is no part of a step
        measured = peak_memory(step, device)
        expected = predicted_memory(step.communicator, hidden, dtype, *step.size)
        print(f"| {length} | {measured / 2**20:.1f} | {expected / 2**20:.1f} | {measured / expected:.2f} |", flush=True)


if __name__ == "__main__":
    auto_cli(measure)
