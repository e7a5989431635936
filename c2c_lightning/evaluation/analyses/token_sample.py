"""A sample of the tokens of a benchmark, opposite each other in a sharer's and the receiver's cache.

Dimensions: L chosen layers, G = 2 * L groups (keys, then values, of every layer), B questions, N prompt tokens
but the last, T sampled tokens, F features.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from c2c_lightning.communicator import Communicator
from c2c_lightning.evaluation.asking.observing import Caches

HELD_OUT = 0.25  # share of the questions


class TokenSample(Metric):
    """A sample of tokens with a sharer token opposite, the same however questions are spread over ranks.

    Every token draws a number that depends on its question, and the lowest ones are kept; so does every
    question, for being held out.

    Args:
        sharer: whose tokens.
        layers: of the receiver.
        communicator: says which layers are fused, and the models' dtypes.
        features: of the sharer's and of the receiver's cache.
        tokens: the size of the sample.
        seed: of the draw.
    """

    full_state_update = False

    def __init__(
        self,
        sharer: int,
        layers: list[int],
        communicator: Communicator,
        features: tuple[int, int],
        tokens: int,
        seed: int,
    ):
        super().__init__()
        self.sharer, self.tokens, self.seed = sharer, tokens, seed
        mapped = list(communicator.fusers.layer_maps[sharer])
        self.sharer_rows = [mapped.index(layer) for layer in layers]
        self.receiver_rows = [communicator.fusers.fused_layers.index(layer) for layer in layers]
        groups, dtype = 2 * len(layers), communicator.models.receiver.dtype
        # Of fixed size, unlike torchmetrics' lists, so that memory is bounded and all ranks' are alike.
        self.add_state("drawn", torch.full((tokens,), torch.inf, dtype=torch.float64), dist_reduce_fx="cat")
        self.add_state("held_out", torch.zeros(tokens, dtype=torch.bool), dist_reduce_fx="cat")
        self.add_state("source", torch.zeros(tokens, groups, features[0], dtype=dtype), dist_reduce_fx="cat")
        self.add_state("target", torch.zeros(tokens, groups, features[1], dtype=dtype), dist_reduce_fx="cat")

    def update(self, caches: Caches) -> None:
        if self.sharer not in caches.sharers:
            return  # all its gates are closed
        mask_BN = caches.opposite(self.sharer)
        drawn, held_out = [], []
        for item, mask_N in zip(caches.questions.items, mask_BN.cpu()):
            rng = np.random.default_rng([self.seed, *item.id.encode()])
            number = int(mask_N.sum())
            held_out += [rng.random() < HELD_OUT] * number
            drawn.append(rng.random(number))
        sharer = caches.sharers[self.sharer][:, self.sharer_rows]
        receiver = caches.receiver[:, self.receiver_rows]
        self._keep(
            torch.from_numpy(np.concatenate(drawn)).to(mask_BN.device),
            torch.tensor(held_out, device=mask_BN.device),
            *(stack.flatten(0, 1).permute(1, 3, 0, 2, 4).flatten(3)[mask_BN] for stack in (sharer, receiver)),
        )

    def _keep(self, drawn: Tensor, held_out: Tensor, source_TGF: Tensor, target_TGF: Tensor) -> None:
        lowest = torch.cat([self.drawn, drawn]).argsort(stable=True)[: self.tokens]
        self.drawn, self.held_out = (
            torch.cat(pair)[lowest] for pair in ((self.drawn, drawn), (self.held_out, held_out))
        )
        self.source = torch.cat([self.source, source_TGF.to(self.source.dtype)])[lowest]
        self.target = torch.cat([self.target, target_TGF.to(self.target.dtype)])[lowest]

    def compute(self) -> dict[str, Tensor]:
        """`source` and `target` (T, G, F), and (T,) bool whether a token is `held_out`."""
        states = {name: getattr(self, name) for name in ("drawn", "held_out", "source", "target")}
        if states["drawn"].ndim > 1:  # of several ranks
            states = {name: state.flatten(0, 1) for name, state in states.items()}
        lowest = states["drawn"].argsort(stable=True)[: self.tokens]
        lowest = lowest[states["drawn"][lowest].isfinite()]
        return {name: states[name][lowest].cpu() for name in ("held_out", "source", "target")}
