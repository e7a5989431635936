"""What the frozen models make of a batch, computed once for any number of fusers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from c2c_lightning.models.batch import Batch, exchange_questions
from c2c_lightning.models.cache import branch, prefill, read_stack
from c2c_lightning.models.prompt_store import PromptStore


class Reading:
    """The receiver's and the sharers' caches of a batch of prompts; a model reads it when first asked for.

    Args:
        receiver: frozen.
        sharers: frozen.
        batch: the prompts.
        store: where to read back what was computed before; None to compute all.
    """

    def __init__(
        self,
        receiver: PreTrainedModel,
        sharers: Sequence[PreTrainedModel],
        batch: Batch,
        store: PromptStore | None = None,
    ):
        self.receiver, self.sharers, self.batch, self.store = receiver, sharers, batch, store
        self._prefill = prefill if store is None else store.prefill
        self._caches: dict[int, DynamicCache] = {}
        self._stacks: dict[tuple[int, ...], Tensor] = {}

    def receiver_cache(self) -> DynamicCache:
        """The receiver's own cache of all prompt tokens but the last, to be written to."""
        return branch(self._receiver_cache)

    def sharer_stack(self, sharer: int, layers: Sequence[int]) -> Tensor:
        """The KV stack (2, L, B, Hs, N - 1, Ds) of some of a sharer's layers opposite the receiver's tokens."""
        key = (sharer, *layers)
        if key not in self._stacks:
            prompt = self.batch.sharers[sharer]
            if sharer not in self._caches:
                self._caches[sharer] = self._prefill(self.sharers[sharer], prompt.ids, prompt.mask)
            self._stacks[key] = read_stack(self._caches[sharer], layers, prompt.positions.clamp(min=0))
        return self._stacks[key]

    @cached_property
    def exchanged(self) -> Reading:
        """The reading in which every question has the sharers' caches of another one."""
        other = Reading(self.receiver, self.sharers, exchange_questions(self.batch), self.store)
        other._receiver_cache = self._receiver_cache  # the receiver reads the same
        return other

    @cached_property
    def _receiver_cache(self) -> DynamicCache:
        return self._prefill(self.receiver, self.batch.prompt_ids[:, :-1], self.batch.prompt_mask[:, :-1])
