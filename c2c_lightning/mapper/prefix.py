"""A skyline for mappers: what the same training gives a receiver that reads the text itself.

Training also teaches the form of an answer, which is neither handed over nor lost on the way. So the receiver reads the
text behind learned entries, which are trained with the same data, losses and steps.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from c2c_lightning.errors import check_at_least
from c2c_lightning.fuser.base import KVShape
from c2c_lightning.mapper.base import Mapper, features

APART = 0.1  # of the way from the mean to a word, so that entries do not stay alike


class Prefix(Mapper):
    """N learned entries of the receiver before a text that it reads itself; no sharer is read.

    Slots stand where the text would have stood, as those of any mapper do, and the text follows them (prefix tuning,
    arXiv 2101.00190). Keys have no rotation, so that the entries are the same wherever the text stands.

    Args:
        sharer: see `Mapper`; it is not read.
        receiver: see `Mapper`.
        length: N, the number of entries.

    Raises:
        UserError: a length below 1.
    """

    def __init__(self, sharer: KVShape, receiver: KVShape, length: int = 16):
        super().__init__(sharer, receiver, length=length)
        check_at_least(1, "mapper {}", length=length)
        self.init_args, self.length = {"length": length}, length
        self.entries = nn.Parameter(torch.randn(length, 2 * receiver.num_layers * receiver.features))

    @torch.no_grad()
    def begin_with(self, receiver_stack: Tensor) -> None:
        """Begins near the mean of the receiver's entries of words, (2, Lr, T, Hr, Dr), keys without rotation.

        Entries unlike any that the receiver has seen, or those of single words, would take many steps to do no harm.
        """
        words_TO = features(receiver_stack, self.receiver, "receiver").float()
        chosen = torch.linspace(0, len(words_TO) - 1, self.length, device=words_TO.device).long()
        mean_O = words_TO.mean(0)
        self.entries.copy_(mean_O + APART * (words_TO[chosen] - mean_O))

    def map(self, x_TI: Tensor) -> Tensor:
        """The entries, repeated for each of T / N texts."""
        return self.entries.repeat(len(x_TI) // self.length, 1)
