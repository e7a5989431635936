"""Training batches to which fusers with a closed form are not fitted, and on which they are scaled."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

from c2c_lightning.models import Batch
from c2c_lightning.models.batch import SharerPrompt

EVERY, FIRST, MOST = 5, 1, 8
STATE = "held_out"  # in a checkpoint


class HeldOut:
    """The newest of every fifth batch of the first epoch, from the second on.

    Later epochs have the same records in another order. A checkpoint keeps the batches, so that a resumed run is scaled
    on the same.
    """

    def __init__(self) -> None:
        self._batches: deque[Batch] = deque(maxlen=MOST)

    def takes(self, batch: Batch) -> bool:
        """Keeps a batch if it is one to hold out, and says so."""
        held_out = batch.epoch == 0 and batch.index % EVERY == FIRST
        if held_out:
            self._batches.append(batch)
        return held_out

    def __iter__(self) -> Iterator[Batch]:
        return iter(self._batches)

    def state(self) -> list[dict[str, Any]]:
        """Tensors, as a checkpoint has them."""
        return [
            {
                "prompt_ids": batch.prompt_ids,
                "prompt_mask": batch.prompt_mask,
                "sharers": [[sharer.ids, sharer.mask, sharer.positions] for sharer in batch.sharers],
                "response_ids": batch.response_ids,
                "response_mask": batch.response_mask,
            }
            for batch in self._batches
        ]

    def load(self, state: list[dict[str, Any]]) -> None:
        """Takes over what `state` gave."""
        batches = [
            Batch(**{**tensors, "sharers": [SharerPrompt(*sharer) for sharer in tensors["sharers"]]})
            for tensors in state
        ]
        self._batches = deque(batches, maxlen=MOST)
