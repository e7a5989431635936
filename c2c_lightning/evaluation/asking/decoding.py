"""From a prefilled cache to responses: the models' own `generate`, or the likelihood of given ones.

Dimensions: B questions, N prompt tokens, R response tokens, T scored tokens, V vocabulary, C choices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache, LogitsProcessor, LogitsProcessorList, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from c2c_lightning.evaluation.asking.questions import StageClock
from c2c_lightning.models import Aligner, Message
from c2c_lightning.models.alignment import MARK
from c2c_lightning.models.batch import pad
from c2c_lightning.models.cache import branch, logits_at, position_ids
from c2c_lightning.models.decoding import GREEDY, end_ids, generate

# Two logits that are this many roundings apart or fewer may change places with the batch size.
ROUNDING = 64
Continuation = tuple[list[int], int]  # ids of a response's beginning, and how many of them are given and not scored


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
class Response:
    """What a model said, and what was noted on the way; for the values that may be None see `Answer`."""

    text: str
    tokens: int  # how many, the end of turn included
    truncated: bool  # whether it was cut off by the limit
    confidence: float  # mean log-probability of its tokens, in nats
    letters: list[float] | None = None
    margin: float | None = None
    choices: list[float] | None = None


class Recorder(LogitsProcessor):
    """Notes confidence and letters while `generate` goes on, and changes nothing."""

    def __init__(self, clock: StageClock, letter_ids: Sequence[Sequence[int]], rounding: float):
        self.clock, self.letter_ids, self.rounding = clock, letter_ids, rounding
        self.log_probs: list[Tensor] = []
        self.margins: list[Tensor] = []
        self.letters: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.clock.mark("first token")
        log_probs_BV = scores.float().log_softmax(-1)
        if self.letter_ids and self.letters is None:
            self.letters = torch.stack([log_probs_BV[:, ids].logsumexp(-1) for ids in self.letter_ids], dim=-1)
        self.log_probs.append(log_probs_BV.amax(-1))
        first, second = scores.float().topk(2).values.unbind(-1)
        self.margins.append((first - second) / (first.abs() * self.rounding).clamp(min=1e-30))
        return scores


@torch.no_grad()
def decode(
    prefill: Prefill,
    limits: Sequence[int],
    clock: StageClock,
    letters: str = "",
    stops: Sequence[Sequence[str]] = (),
) -> list[Response]:
    """Greedy responses by transformers' `generate`.

    Args:
        prefill: where to start; its cache is used up.
        limits: how many tokens each response may have.
        clock: times the stage `decode` and marks the `first token`.
        letters: whose log-probability as the response's beginning to note.
        stops: for each response the strings before which it ends; none for none at all.
    """
    model, tokenizer, width = prefill.model, prefill.tokenizer, prefill.ids.shape[1]
    recorder = Recorder(
        clock, [letter_token_ids(tokenizer, letter) for letter in letters], torch.finfo(model.dtype).eps
    )
    stops = stops or [()] * len(limits)
    stop_strings = sorted({stop for of_one in stops for stop in of_one})
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
            **GREEDY | {"stop_strings": stop_strings or None},
        )
    # Behind a stop string there is padding.
    ends = {*end_ids(model, tokenizer), *([tokenizer.pad_token_id] if stop_strings else [])}
    log_probs_BT = torch.stack(recorder.log_probs, dim=1).tolist()
    margins_BT = torch.stack(recorder.margins, dim=1).tolist()
    responses = []
    for i, (row, limit) in enumerate(zip(sequences[:, width:].tolist(), limits)):
        end = next((k + 1 for k, token in enumerate(row[:limit]) if token in ends), None)
        used = row[: end or limit]
        said = tokenizer.decode(used, skip_special_tokens=True)
        at = min((said.index(stop) for stop in stops[i] if stop in said), default=None)
        response = Response(
            text=said[:at].strip(),
            tokens=len(used),
            truncated=end is None and at is None,
            confidence=sum(log_probs_BT[i][: len(used)]) / len(used),
            letters=None if recorder.letters is None else recorder.letters[i].tolist(),
            margin=min(margins_BT[i][: len(used)]),
        )
        responses.append(response)
    return responses


@lru_cache(maxsize=1024)
def letter_token_ids(tokenizer: Tokenizer, letter: str) -> tuple[int, ...]:
    """The tokens by which a response may begin with a letter: as it stands, and after a space.

    The last one counts, for some tokenizers make a token of the space itself.
    """
    written = (tokenizer(text, add_special_tokens=False).input_ids for text in (letter, f" {letter}"))
    return tuple(sorted({ids[-1] for ids in written}))


def beginnings(aligner: Aligner, tokenizer: Tokenizer, messages: list[Message]) -> Callable[[str, str], Continuation]:
    """A function that gives the ids of responses to a conversation that begin with a text.

    It takes the response's first words, which are given, and how it goes on, which is scored. No end of turn follows.
    Where the given words and the rest merge in a token, that token is scored.
    """
    prompt, mark = aligner.render(tokenizer, messages), MARK.format(0)
    full = aligner.render(tokenizer, [*messages, {"role": "assistant", "content": mark}], add_generation_prompt=False)
    # What the template puts between prompt and response, such as Llama 2's space.
    lead = full[len(prompt) :].partition(mark)[0] if full.startswith(prompt) else ""
    asked = tokenizer(prompt, add_special_tokens=False).input_ids

    def ids(said: str) -> list[int]:
        whole = tokenizer(prompt + lead + said, add_special_tokens=False).input_ids
        if whole[: len(asked)] == asked:
            return whole[len(asked) :]
        return tokenizer(lead + said, add_special_tokens=False).input_ids  # prompt and response merge in a token

    def begun(first_words: str, rest: str) -> Continuation:
        if not first_words:  # between prompt and response stands the template, not the space that joins them in a text
            rest = rest.lstrip() or rest
        given, whole = ids(first_words), ids(first_words + rest)
        return whole, common(given, whole)

    return begun


def common(first: Sequence[int], second: Sequence[int]) -> int:
    """How many ids two sequences begin with alike."""
    return next((i for i, (a, b) in enumerate(zip(first, second)) if a != b), min(len(first), len(second)))


@torch.no_grad()
def likelihoods(
    prefill: Prefill, responses: Sequence[Sequence[Continuation]], clock: StageClock
) -> list[list[tuple[float, bool]]]:
    """How likely each of several responses to each prompt is.

    The first ones of all prompts go through the model together, then the second ones, each time on a branch of the
    cache: prompts are not read again, and no more rows than prompts are in memory.

    Returns:
        For each prompt the responses' log-likelihoods in nats, and whether they are what greedy decoding would say.
    """
    model, start = prefill.model, prefill.mask
    positions = position_ids(start) if prefill.position_ids is None else prefill.position_ids
    found: list[list[tuple[float, bool]]] = [[] for _ in responses]
    with clock("decode"):
        for k in range(max(map(len, responses))):
            chosen = [of_prompt[min(k, len(of_prompt) - 1)] for of_prompt in responses]
            # One column at least: an empty response goes through the model like any other.
            ids, mask = pad([ids for ids, _ in chosen], prefill.tokenizer.pad_token_id, left=False, least=1)
            scored = (mask == 1) & (mask.cumsum(-1) > torch.tensor([num_given for _, num_given in chosen])[:, None])
            ids, mask, at = ids.to(model.device), mask.to(model.device), tuple(scored.nonzero().T.to(model.device))
            with logits_at(model, at):
                logits_TV = model(
                    input_ids=torch.cat([prefill.ids[:, -1:], ids[:, :-1]], dim=1),
                    attention_mask=torch.cat([start, mask[:, :-1]], dim=1),
                    position_ids=positions[:, -1:] + torch.arange(ids.shape[1], device=model.device),
                    past_key_values=branch(prefill.cache),
                    use_cache=True,
                ).logits[0]
            clock.mark("first token")
            log_probs = -F.cross_entropy(logits_TV.float(), ids[at], reduction="none")
            sizes, greedy = scored.sum(-1).tolist(), logits_TV.argmax(-1) == ids[at]
            for row, (log_prob, is_greedy) in enumerate(zip(log_probs.cpu().split(sizes), greedy.cpu().split(sizes))):
                if k < len(responses[row]):
                    found[row].append((log_prob.sum().item(), bool(is_greedy.all())))
    return found
