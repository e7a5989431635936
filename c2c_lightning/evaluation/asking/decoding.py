"""From a prefilled cache to responses: the models' own `generate`, and what is noted on the way.

Dimensions: B questions, N prompt tokens, V vocabulary, C choices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor
from transformers import DynamicCache, LogitsProcessor, LogitsProcessorList, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from c2c_lightning.evaluation.asking.clock import StageClock
from c2c_lightning.models.decoding import GREEDY, end_ids, generate


@dataclass
class Prefill:
    """All that is needed to go on to the response."""

    model: PreTrainedModel  # that responds
    tokenizer: Tokenizer
    ids: Tensor  # (B, N) the prompts, left-padded
    mask: Tensor  # (B, N) 1 for what may be attended to
    cache: DynamicCache  # of all prompt tokens but the last
    position_ids: Tensor | None = None  # (B, N) where they do not simply count the mask
    handed_over: list[int] = field(default_factory=list)  # for each question the bytes from another model
    sharer_tokens: list[int] = field(default_factory=list)  # for each question, written by the sharer on the way
    messages: list[str] = field(default_factory=list)  # for each question what it wrote


@dataclass
class Decoded:
    """Responses, and what was noted on the way."""

    responses: list[str]
    tokens: list[int]  # how many each has, the end of turn included
    truncated: list[bool]  # whether it was cut off by the limit
    confidence: list[float]  # mean log-probability of its tokens, in nats
    letters: Tensor | None  # (B, C) log-probability that the response begins with each letter, if asked for


class Recorder(LogitsProcessor):
    """Notes confidence and letters while `generate` goes on, and changes nothing."""

    def __init__(self, clock: StageClock, letter_ids: Sequence[Sequence[int]]):
        self.clock, self.letter_ids = clock, letter_ids
        self.log_probs: list[Tensor] = []
        self.letters: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.clock.mark("first token")
        log_probs_BV = scores.float().log_softmax(-1)
        if self.letter_ids and self.letters is None:
            self.letters = torch.stack([log_probs_BV[:, ids].logsumexp(-1) for ids in self.letter_ids], dim=-1)
        self.log_probs.append(log_probs_BV.amax(-1))
        return scores


@torch.no_grad()
def decode(prefill: Prefill, limits: Sequence[int], clock: StageClock, letters: str = "") -> Decoded:
    """Greedy responses by transformers' `generate`.

    Args:
        prefill: where to start; its cache is used up.
        limits: how many tokens each response may have.
        clock: times the stage `decode` and marks the `first token`.
        letters: whose log-probability as the response's beginning to note.
    """
    model, tokenizer, width = prefill.model, prefill.tokenizer, prefill.ids.shape[1]
    recorder = Recorder(clock, [letter_token_ids(tokenizer, letter) for letter in letters])
    with clock("decode"):
        sequences = generate(
            model,
            tokenizer,
            prefill.ids,
            prefill.mask,
            prefill.cache,
            prefill.position_ids,
            max_new_tokens=max(limits),
            logits_processor=LogitsProcessorList([recorder]),
            **GREEDY,
        )
    ends = set(end_ids(model, tokenizer))
    log_probs_BT = torch.stack(recorder.log_probs, dim=1).tolist()
    responses, tokens, truncated, confidence = [], [], [], []
    for row, limit, log_probs in zip(sequences[:, width:].tolist(), limits, log_probs_BT):
        end = next((i + 1 for i, token in enumerate(row[:limit]) if token in ends), None)
        used = row[: end or limit]
        responses.append(tokenizer.decode(used, skip_special_tokens=True).strip())
        tokens.append(len(used))
        truncated.append(end is None)
        confidence.append(sum(log_probs[: len(used)]) / len(used))
    return Decoded(responses, tokens, truncated, confidence, recorder.letters)


@lru_cache(maxsize=1024)
def letter_token_ids(tokenizer: Tokenizer, letter: str) -> tuple[int, ...]:
    """The tokens by which a response may begin with a letter: as it stands, and after a space.

    The last one counts, for some tokenizers make a token of the space itself.
    """
    written = (tokenizer(text, add_special_tokens=False).input_ids for text in (letter, f" {letter}"))
    return tuple(sorted({ids[-1] for ids in written}))
