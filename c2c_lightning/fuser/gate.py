"""Gates: which layers (or heads) of the receiver are fused, learned or laid down.

Dimensions: P parts (keys, values), L mapped layers, H gates per layer (1, or one for each kv head).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args, get_origin, get_type_hints

import torch
from torch import Tensor, nn

from c2c_lightning.errors import UserError

PART_NAMES = ("keys", "values")
PARTS = {"both": (0, 1), "keys": (0,), "values": (1,)}


@dataclass
class GateConfig:
    """A layer-gating configuration.

    Attributes:
        kind: `learned` logits, always `open`, or `fixed` to `open_layers`.
        parts: whether keys, values or both are fused.
        granularity: one gate per layer, or one per kv head.
        noise: of a learned gate in training. `logistic` makes it a binary-concrete gate, for which a
            logit of 0 is open half the time; `gumbel` is one Gumbel sample, as in the published code,
            for which it is 63%.
        init: initial logit. At 0 the gradients are weak, hence +1 (LCF-X).
        temperature: first and last T of sigmoid((logit + noise) / T).
        schedule: how T falls between the two.
        anneal_steps: optimizer steps that the fall takes; None for all steps of the run.
        sparsity: weight of the penalty on the expected share of open gates.
        open_layers: the receiver layers that a `fixed` gate leaves open.
    """

    kind: Literal["learned", "open", "fixed"] = "learned"
    parts: Literal["both", "keys", "values"] = "both"
    granularity: Literal["layer", "head"] = "layer"
    noise: Literal["logistic", "gumbel", "none"] = "logistic"
    init: float = 1.0
    temperature: tuple[float, float] = (1.0, 0.001)
    schedule: Literal["exponential", "linear", "constant"] = "exponential"
    anneal_steps: int | None = None
    sparsity: float = 0.0
    open_layers: list[int] | None = None

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self)).items():
            words, value = get_args(hint), getattr(self, name)
            if get_origin(hint) is Literal and value not in words:
                raise UserError(f"gate.{name} is {value!r}: give {', '.join(words[:-1])} or {words[-1]}.")
        self.temperature = tuple(self.temperature)
        if len(self.temperature) != 2 or not all(0 < value < math.inf for value in self.temperature):
            raise UserError(f"gate.temperature is {list(self.temperature)}: give two positive numbers, first and last.")
        if not math.isfinite(self.init):
            raise UserError(f"gate.init is {self.init}: give a number.")
        if not 0 <= self.sparsity < math.inf:
            raise UserError(f"gate.sparsity is {self.sparsity}: it must not be negative.")
        if self.anneal_steps is not None and self.anneal_steps < 1:
            raise UserError(f"gate.anneal_steps is {self.anneal_steps}: give at least 1, or null for the whole run.")
        if (self.kind == "fixed") != (self.open_layers is not None):
            raise UserError(
                f"gate.kind is {self.kind} and gate.open_layers is {self.open_layers}: "
                "open_layers belongs to kind fixed, and kind fixed needs it."
            )

    def temperature_at(self, step: int, total_steps: int) -> float:
        """T at optimizer step `step` of a run of `total_steps`."""
        first, last = self.temperature
        done = min(step / (self.anneal_steps or total_steps), 1.0)
        if self.schedule == "constant":
            return first
        if self.schedule == "linear":
            return first + (last - first) * done
        return first * (last / first) ** done


class Gate(nn.Module):
    """Gate values in [0, 1] for every part and layer (arXiv 2510.03215).

    Args:
        config: the layer-gating configuration.
        receiver_layers: the L receiver layers that may be fused, ascending.
        num_kv_heads: kv heads of the receiver.
        seed: of the noise, which depends on it and on the optimizer step alone: every rank and every
            accumulated micro-batch of a step sees the same gates, and a resumed run the same as an
            uninterrupted one.

    Raises:
        UserError: a fixed gate names a layer that is not among `receiver_layers`.
    """

    def __init__(self, config: GateConfig, receiver_layers: list[int], num_kv_heads: int, seed: int = 0):
        super().__init__()
        self.config, self.receiver_layers, self.seed = config, list(receiver_layers), seed
        self.parts = PARTS[config.parts]
        self.step, self.temperature = 0, config.temperature[0]
        self.learns = config.kind == "learned"
        per_layer = num_kv_heads if config.granularity == "head" else 1
        logit_PLH = torch.full((len(self.parts), len(self.receiver_layers), per_layer), float(config.init))
        if self.learns:
            self.logit = nn.Parameter(logit_PLH)
            return
        open_layers = self.receiver_layers if config.kind == "open" else config.open_layers
        if strangers := sorted(set(open_layers) - set(self.receiver_layers)):
            raise UserError(
                f"gate.open_layers has {strangers}, but only the receiver layers "
                f"{self.receiver_layers} are mapped to a sharer layer."
            )
        # The sign of the logit is the gate at evaluation, for every kind alike.
        signs_L = torch.tensor([1.0 if layer in open_layers else -1.0 for layer in self.receiver_layers])
        self.register_buffer("logit", signs_L[:, None].expand_as(logit_PLH).clone())

    def anneal(self, step: int, total_steps: int) -> None:
        """Sets the temperature and the noise of optimizer step `step` of a run of `total_steps`."""
        self.step, self.temperature = step, self.config.temperature_at(step, total_steps)

    def is_open(self) -> Tensor:
        """The gates at evaluation, (P, L, H) bool."""
        return self.logit > 0

    def forward(self) -> Tensor:
        """(P, L, H): relaxed and noisy in training when learned, otherwise 0 or 1."""
        if not (self.training and self.learns):
            return self.is_open().to(torch.float32)
        return torch.sigmoid((self.logit + self._noise()) / self.temperature)

    def active(self) -> list[tuple[int, int]]:
        """The (part, layer index) pairs that now have work to do: all of them while gates are learned."""
        all_PL = torch.ones(self.logit.shape[:2], dtype=torch.bool)
        open_PL = all_PL if self.training and self.learns else self.is_open().any(-1)
        return [(p, layer) for p, layer in open_PL.nonzero().tolist()]

    def penalty(self) -> Tensor:
        """Sparsity penalty: its weight times the expected share of open gates; scalar."""
        if not self.learns or self.config.sparsity == 0:
            return self.logit.new_zeros(())
        gumbel = self.config.noise == "gumbel"
        probability = 1 - torch.exp(-torch.exp(self.logit)) if gumbel else torch.sigmoid(self.logit)
        return self.config.sparsity * probability.mean()

    def _noise(self) -> Tensor | float:
        if self.config.noise == "none":
            return 0.0
        # A seed that nobody set is any 64-bit number.
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + self.step) % 2**63)
        tiny = torch.finfo(torch.float32).tiny
        uniform = torch.rand(self.logit.shape, generator=generator).clamp(min=tiny)
        gumbel = self.config.noise == "gumbel"
        noise = -torch.log(-torch.log(uniform)) if gumbel else torch.log(uniform) - torch.log1p(-uniform)
        return noise.to(self.logit.device)
