"""Time to the receiver's first token: a text that was read once, from its file, beside reading it.

    python -m benchmarks.cached
    python -m benchmarks.cached --pair qwen3-0.6b+qwen2.5-0.5b --dtype bf16 --device cuda
    python -m benchmarks.cached --fuser runs/told

Both begin with the conversation as text and end with the first token. From a file means that it is opened, checked
and unpacked each time; the digests of models and mapper, which a process computes once, are there already. Random
models have the tokenizers of the built-in pair. The last row is the least that any way of handing over could take.
"""

from __future__ import annotations

import statistics
import tempfile
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from jsonargparse import auto_cli

from benchmarks.pairs import DTYPES, MID, random_model
from benchmarks.rounds import ratio, taking_turns
from c2c_lightning import Cached, Communicator
from c2c_lightning.fuser import Fusers
from c2c_lightning.mapper import NetworkMapper
from c2c_lightning.models import FrozenModels, load_aligner

TOKENIZERS = "c2c_lightning/nano/receiver", ["c2c_lightning/nano/sharer"]
SENTENCE, QUESTION = "The home town of Zoruba is Cairo. ", "In which country does Zoruba live?"
READS, FILE, ALONE = "reads it itself", "from a file", "the question alone"


def untrained(pair: str, dtype: str, device: str) -> Communicator:
    """Random models with a mapper that was not trained, which takes as long as one that was."""
    receiver, _, sharer = pair.partition("+")
    models = [random_model(name, DTYPES[dtype], device) for name in (receiver, sharer)]
    frozen = FrozenModels(models[0], models[1:], load_aligner(*TOKENIZERS))
    fusers = Fusers(frozen.receiver_shape, frozen.sharer_shapes, None, mapper=NetworkMapper)
    return Communicator(frozen, fusers).to(device).eval()


def text_of(model: Communicator, tokens: int) -> str:
    """A text of at most so many tokens of the sharer, and hardly fewer."""
    tokenizer = model.models.aligner.sharers[0]
    encoded = tokenizer(SENTENCE * tokens, add_special_tokens=False, return_offsets_mapping=True)
    return (SENTENCE * tokens)[: encoded.offset_mapping[tokens - 1][1]]


def measure(
    pair: str = MID,
    dtype: Literal["fp32", "bf16"] = "fp32",
    device: str = "cpu",
    fuser: str | None = None,
    tokens: int = 512,
    bits: list[int] = [8, 4],  # noqa: B006
    rounds: int = 9,
) -> None:
    """Prints a table.

    Args:
        pair: `receiver+sharer`.
        dtype: of the frozen models.
        device: cpu, cuda.
        fuser: with a mapper, whose models are taken in the place of `pair`.
        tokens: of the text, counted by the sharer.
        bits: of a number in further files, beside the one in which nothing is rounded.
        rounds: how many are measured.
    """
    if fuser is None:
        model = untrained(pair, dtype, device)
    else:
        model, pair = Communicator.from_pretrained(fuser, str(DTYPES[dtype]).removeprefix("torch.")).to(device), fuser
    text, asked = text_of(model, tokens), {"role": "user", "content": QUESTION}
    itself = {**asked, "content": f"{text}\n\n{QUESTION}"}
    with tempfile.TemporaryDirectory() as folder:
        ways = {READS: partial(model.generate, [itself], fuse=False, max_new_tokens=1)}
        sizes = {READS: len(text.encode())}
        for name, number in {FILE: None, **{f"{FILE}, {number} bits": number for number in bits}}.items():
            file = Path(folder, name)
            model.save_text(text, file, number)
            sizes[name] = file.stat().st_size
            ways[name] = lambda file=file: model.generate([asked], context=Cached(file), max_new_tokens=1)
        ways[ALONE], sizes[ALONE] = partial(model.generate, [asked], fuse=False, max_new_tokens=1), 0
        slots = Cached(Path(folder, FILE)).handed(model.made_with()).num_tokens
        times = taking_turns(ways, rounds)
    number, threads = len(model.models.aligner.prompt([itself]).receiver_ids), torch.get_num_threads()
    print(f"{pair}, {dtype} on {device}, {threads} threads: {slots} slots, or a prompt of {number} tokens")
    print("\n| | first token, ms | bytes | of reading |\n|---|---|---|---|")
    for name, taken in times.items():
        median = 1e3 * statistics.median(taken)
        print(f"| {name} | {median:.1f} | {sizes[name]:,} | {ratio(times, name, READS):.2f} |", flush=True)


if __name__ == "__main__":
    auto_cli(measure)
