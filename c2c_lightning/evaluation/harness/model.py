"""A fuser as a model of the lm-evaluation-harness: importing this file registers it under NAME.

C2C needs conversations, because receiver and sharer each read through their own chat template: a task's
context is what the user says, and what is scored or generated is the assistant's response. With
`--apply_chat_template` the harness makes conversations (exemplars as turns, a system prompt, a response's first
words), but its tasks hand texts on: there the conversation travels as JSON.
"""

from __future__ import annotations

import json
from collections import defaultdict
from functools import lru_cache
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import Collator, normalize_gen_kwargs, postprocess_generated_text
from lm_eval.models.utils_hf import stop_sequences_criteria
from tqdm import tqdm

from c2c_lightning.communicator import Communicator
from c2c_lightning.errors import UserError, first_line
from c2c_lightning.evaluation.asking.decoding import Continuation, beginnings, likelihoods
from c2c_lightning.evaluation.asking.methods import of_receiver
from c2c_lightning.evaluation.asking.questions import StageClock
from c2c_lightning.models import Message, Reading

NAME = "c2c"
BEGINNING = '{"c2c_messages": '


@register_model(NAME)
class C2CLM(TemplateLM):
    """Receiver, sharers and fuser, answering the harness's requests.

    Args:
        pretrained: as `Communicator.from_pretrained` takes it.
        batch_size: requests at once.
        dtype: of the frozen models; `auto` for the one they were saved in.
        device: where they run; None for the GPU if there is one.
        fuse: False for the receiver alone.
        max_gen_toks: new tokens where a task does not say.
        receiver: as `Communicator.from_pretrained` takes it.
        sharers: the same.
        trust_remote_code: the same.
        **ignored: what the harness hands to every model, such as `max_batch_size`.

    Raises:
        UserError: the fuser cannot be loaded, the batch size is not a number, or there is no such device.
    """

    def __init__(
        self,
        pretrained: str,
        batch_size: int | str = 8,
        dtype: str = "auto",
        device: str | None = None,
        fuse: bool = True,
        max_gen_toks: int = 256,
        receiver: str | None = None,
        sharers: list[str] | str | None = None,
        trust_remote_code: bool = False,
        **ignored: Any,
    ):
        super().__init__()
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise UserError(f"batch_size is {batch_size!r}: give a number of requests, such as 8.")
        self.pretrained, self.batch_size, self.fuse, self.max_gen_toks = pretrained, int(batch_size), fuse, max_gen_toks
        try:
            self._device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
            torch.empty(0, device=self._device)
        except (RuntimeError, AssertionError) as error:  # torch asserts that it was built for it
            raise UserError(f"device is {device!r}, which is not here: {first_line(error)}.") from error
        self.communicator = Communicator.from_pretrained(
            pretrained, dtype, receiver, [sharers] if isinstance(sharers, str) else sharers, trust_remote_code
        ).to(self._device)
        aligner = self.communicator.models.aligner
        self.tokenizer = aligner.receiver
        # The choices of a question come one after the other, and need its context rendered only once.
        self._beginnings = lru_cache(maxsize=8)(
            lambda context: beginnings(aligner, aligner.receiver, conversation(context)[0])
        )

    @property
    def eot_token_id(self) -> int:
        return self.tokenizer.eos_token_id

    @property
    def tokenizer_name(self) -> str:
        """Tells apart the harness's cached requests, which are the same texts for every fuser."""
        return NAME

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        return self.tokenizer(string, add_special_tokens=bool(add_special_tokens)).input_ids

    def apply_chat_template(self, chat_history: list[Message], add_generation_prompt: bool = True) -> str:
        """The conversation as JSON: each model applies its own template when the request is answered."""
        return to_context(chat_history)

    def get_model_info(self) -> dict[str, Any]:
        """What the harness writes into its results: which models talked, and how."""
        return {"fuse": self.fuse, **self.communicator.config()}

    @torch.no_grad()
    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Log-probability in nats of each continuation as the beginning of the response, and whether it is greedy.

        Contexts are read together, the longest first: what does not fit into memory fails at once. Each is read and
        fused once, however many continuations it has.
        """
        of_context = defaultdict(list)
        for i, request in enumerate(requests):
            of_context[request.args[0]].append(i)
        contexts = sorted(of_context, key=len, reverse=True)
        scores: list[tuple[float, bool]] = [(0.0, True)] * len(requests)
        bar = tqdm(total=len(requests), desc="Running loglikelihood requests", disable=disable_tqdm)
        for k in range(0, len(contexts), self.batch_size):
            chunk = contexts[k : k + self.batch_size]
            reading = self._read_all(chunk)
            start = of_receiver(reading, self.communicator.prefill(reading, self.fuse))
            continued = [[self._continued(c, requests[i].args[1]) for i in of_context[c]] for c in chunk]
            found = likelihoods(start, continued, StageClock(self.device))
            for i, score in ((i, s) for c, of_one in zip(chunk, found) for i, s in zip(of_context[c], of_one)):
                self.cache_hook.add_partial("loglikelihood", requests[i].args, score)
                scores[i] = score
                bar.update()
        bar.close()
        return scores

    def _loglikelihood_tokens(self, requests: list, disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        raise NotImplementedError("requests are texts, since each model has tokens of its own")

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        raise UserError(
            "this task asks for the perplexity of whole texts, and C2C cannot say it: a sharer hands over its "
            "cache of a prompt, and a text alone has none. Choose tasks that ask a question."
        )

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """The responses, each cut before the first of its stop strings; greedy, unless its task samples."""
        ordered = Collator(
            [request.args for request in requests],
            sort_fn=lambda args: (-len(self.tok_encode(args[0])), args[0]),
            group_by="gen_kwargs",
            # The same first words, so that those of a batch have the same length.
            group_fn=lambda args: {**args[1], "first_ids": self._first_ids(args[0])},
        )
        bar = tqdm(total=len(requests), desc="Running generate_until requests", disable=disable_tqdm)
        responses = []
        for chunk in ordered.get_batched(n=self.batch_size):
            gen_kwargs = chunk[0][1]
            for (context, _), response in zip(chunk, self._generate([context for context, _ in chunk], gen_kwargs)):
                self.cache_hook.add_partial("generate_until", (context, gen_kwargs), response)
                responses.append(response)
                bar.update()
        bar.close()
        return ordered.get_original(responses)

    def _continued(self, context: str, said: str) -> Continuation:
        return self._beginnings(context)(conversation(context)[1], said)

    @torch.no_grad()
    def _generate(self, contexts: list[str], gen_kwargs: dict[str, Any]) -> list[str]:
        """Answers a batch whose contexts all give equally many of the response's first tokens, or none."""
        kwargs: dict[str, Any] = {"num_beams": 1, **normalize_gen_kwargs(gen_kwargs, self.max_gen_toks)}
        until, kwargs["max_new_tokens"] = kwargs.pop("until"), kwargs.pop("max_gen_toks")
        if not kwargs["do_sample"]:
            kwargs.pop("temperature", None)
        reading = self._read_all(contexts)
        batch = reading.batch
        first_ids = torch.tensor([self._first_ids(c) for c in contexts], dtype=torch.long, device=self.device)
        width = batch.prompt_ids.shape[1] + first_ids.shape[1]
        if kwargs["num_beams"] == 1:  # the criterion follows rows, and beams change theirs; the text is cut anyway
            kwargs["stopping_criteria"] = stop_sequences_criteria(self.tokenizer, until, width, len(batch))
        ids = self.communicator.generate_ids(reading, self.fuse, first_ids=first_ids, **kwargs)
        texts = self.tokenizer.batch_decode(ids[:, width:], skip_special_tokens=True)
        return [postprocess_generated_text(text, until, think_end_token=None) for text in texts]

    def _first_ids(self, context: str) -> list[int]:
        return self._continued(context, "")[0] if conversation(context)[1] else []

    def _read_all(self, contexts: list[str]) -> Reading:
        return self.communicator.read([conversation(context)[0] for context in contexts])


def to_context(messages: list[Message]) -> str:
    """A conversation as a context; `conversation` reads it again."""
    return BEGINNING + json.dumps(messages, ensure_ascii=False) + "}"


def conversation(context: str) -> tuple[list[Message], str]:
    """The messages up to the response, and the response's first words if the task gives them."""
    if not context.startswith(BEGINNING):
        return [{"role": "user", "content": context}], ""
    (messages,) = json.loads(context).values()
    if messages[-1]["role"] != "assistant":
        return messages, ""
    return messages[:-1], messages[-1]["content"]
