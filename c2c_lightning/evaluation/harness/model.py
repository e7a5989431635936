"""A fuser as a model of the lm-evaluation-harness: importing this file registers it under NAME.

C2C needs conversations, because receiver and sharer each read through their own chat template: a task's
context is what the user says, and what is scored or generated is the assistant's response.

Dimensions: B requests, R response tokens, T scored tokens, V vocabulary.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import Collator, normalize_gen_kwargs, postprocess_generated_text
from lm_eval.models.utils_hf import stop_sequences_criteria
from tqdm import tqdm

from c2c_lightning.communicator import Communicator
from c2c_lightning.errors import UserError, first_line
from c2c_lightning.evaluation.harness.context import ReadPrompt, conversation, to_context
from c2c_lightning.models import Message, Reading
from c2c_lightning.models.batch import pad

NAME = "c2c"
Request = tuple[tuple[str, str], list[int], list[int]]  # context and continuation, as texts and as ids


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
        # The choices of a question come one after the other, and need its context read only once.
        self._read = lru_cache(maxsize=8)(lambda context: ReadPrompt.read(context, aligner))

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

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Log-probability in nats of each continuation as the beginning of the response, and whether it is greedy."""
        arguments = tqdm([request.args for request in requests], desc="Tokenizing inputs", disable=disable_tqdm)
        encoded = [((context, said), *self._encode_pair(context, said)) for context, said in arguments]
        return self._loglikelihood_tokens(encoded, disable_tqdm=disable_tqdm)

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

    def _loglikelihood_tokens(self, requests: list[Request], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        # By prompt, longest first: what does not fit into memory fails at once, and choices stay together.
        ordered = Collator(requests, sort_fn=lambda request: (-len(request[1]), request[0][0]))
        bar = tqdm(total=len(requests), desc="Running loglikelihood requests", disable=disable_tqdm)
        scores = []
        for chunk in ordered.get_batched(n=self.batch_size):
            for (texts, _, _), score in zip(chunk, self._score(chunk)):
                self.cache_hook.add_partial("loglikelihood", texts, score)
                scores.append(score)
                bar.update()
        bar.close()
        return ordered.get_original(scores)

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """The receiver's ids of all that is given, prompt and first words, and of what is to be scored."""
        read = self._read(context)
        given, added = read.continued(continuation)
        return read.prompt.receiver_ids + given, added

    @torch.no_grad()
    def _score(self, requests: list[Request]) -> list[tuple[float, bool]]:
        """Scores a batch; each prompt is read and fused once, however many continuations it has."""
        contexts = list(dict.fromkeys(context for (context, _), _, _ in requests))
        reading = self._read_all(contexts)
        prompts, cache = reading.batch, self.communicator.prefill(reading, self.fuse)
        rows = torch.tensor([contexts.index(context) for (context, _), _, _ in requests], device=self.device)
        cache.batch_select_indices(rows)
        batch = replace(prompts, prompt_ids=prompts.prompt_ids[rows], prompt_mask=prompts.prompt_mask[rows])

        lengths = batch.prompt_mask.sum(-1).tolist()
        responses = [[*given, *said][length:] for (_, given, said), length in zip(requests, lengths)]
        num_given = torch.tensor([len(r) - len(said) for r, (_, _, said) in zip(responses, requests)])
        # One column at least: an empty continuation goes through the receiver like any other.
        padded = pad(responses, self.tokenizer.pad_token_id, left=False, least=1)
        ids, mask = (each.to(self.device) for each in padded)
        batch = replace(batch, response_ids=ids, response_mask=mask)
        scored = (batch.response_mask == 1) & (batch.response_mask.cumsum(-1) > num_given.to(self.device)[:, None])

        at = scored.nonzero(as_tuple=True)
        logits_TV = self.communicator.models.response_logits(cache, batch, at)
        log_probs = -F.cross_entropy(logits_TV.float(), batch.response_ids[at], reduction="none")
        greedy = logits_TV.argmax(-1) == batch.response_ids[at]
        sizes = scored.sum(-1).tolist()
        return [(p.sum().item(), bool(g.all())) for p, g in zip(log_probs.split(sizes), greedy.split(sizes))]

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
        return self._read(context).first_ids if conversation(context)[1] else []

    def _read_all(self, contexts: list[str]) -> Reading:
        return self.communicator.read([conversation(context)[0] for context in contexts])
