"""What stacking a fuser's networks gives: C2CFuser beside a loop over (part, layer) pairs that does the same maths.

    python -m benchmarks.fuser
    python -m benchmarks.fuser --hiddens [1024] --layers [28] --dtypes [bf16] --device cuda

Forward and backward of `C2CFuser.update` take turns with those of plain networks of `nn.Linear`, one for each pair.
The two must agree, or it ends: outputs within 1e-5, in fp32.
"""

from __future__ import annotations

import itertools
import statistics
from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jsonargparse import auto_cli
from torch import Tensor, nn

from benchmarks.rounds import ratio, taking_turns
from c2c_lightning.fuser import C2CFuser, Gate, GateConfig, KVShape

AGREE = 1e-5
# Of a pair's network, in hidden^2: three blocks of two matrices each, the input of both models and the update's head.
WEIGHTS = 8.25


class Block(nn.Module):
    """x + W2 gelu(W1 RMSNorm(x))."""

    def __init__(self, hidden: int):
        super().__init__()
        self.norm = nn.RMSNorm(hidden, eps=1e-6)
        self.w1, self.w2 = nn.Linear(hidden, hidden, bias=False), nn.Linear(hidden, hidden, bias=False)

    def forward(self, x_TM: Tensor) -> Tensor:
        return x_TM + self.w2(F.gelu(self.w1(self.norm(x_TM))))


class Pair(nn.Module):
    """The network of one (part, layer) pair, as the paper writes it (arXiv 2510.03215)."""

    def __init__(self, sharer: KVShape, receiver: KVShape, hidden: int):
        super().__init__()
        self.num_heads = receiver.num_kv_heads
        self.input = nn.Linear(sharer.features + receiver.features, hidden)
        self.trunk, self.weight_block, self.update_blocks = Block(hidden), Block(hidden), nn.ModuleList([Block(hidden)])
        self.weight_head, self.update_head = nn.Linear(hidden, self.num_heads), nn.Linear(hidden, receiver.features)

    def forward(self, sharer_TF: Tensor, receiver_TF: Tensor) -> Tensor:
        h_TM = self.trunk(self.input(torch.cat([sharer_TF, receiver_TF], dim=-1)))
        weight_TH = torch.sigmoid(self.weight_head(self.weight_block(h_TM)))
        update_THD = self.update_head(self.update_blocks[0](h_TM)).unflatten(-1, (self.num_heads, -1))
        return (weight_TH[..., None] * update_THD).flatten(-2)


class Compared:
    """A fuser, a loop with the same weights, and what both are given.

    Args:
        layers: of the receiver, all of them fused.
        tokens: in a step.
        hidden: width of the fuser; the receiver has as many features, the sharer a fourth of them.
        dtype: fp32, or bf16 for caches in bf16 and bf16-mixed networks.
        device: cpu, cuda.
    """

    def __init__(self, layers: int, tokens: int, hidden: int, dtype: str, device: str):
        torch.manual_seed(0)
        self.dtype, self.device = dtype, device
        sharer, receiver = KVShape(layers, 2, hidden // 8), KVShape(layers, 4, hidden // 4)
        with torch.device(device):
            self.fuser = C2CFuser(
                sharer, receiver, Gate(GateConfig(), list(range(layers)), 4), hidden=hidden, dropout=0.0
            )
            self.pairs = nn.ModuleList(Pair(sharer, receiver, hidden) for _ in range(self.fuser.num_groups))
            widths = sharer.features, receiver.features, receiver.features
            self.sharer, self.receiver, self.grad = (
                torch.randn(self.fuser.num_groups, tokens, width, dtype=torch.bfloat16 if dtype == "bf16" else None)
                for width in widths
            )
        with torch.no_grad():
            for i, pair in enumerate(self.pairs):
                for name, own in pair.named_parameters():
                    stacked = self.fuser.get_parameter(name.replace("norm.weight", "norm"))[i]
                    own.copy_(stacked.mT if own.ndim == 2 else stacked.view_as(own))

    def autocast(self):
        return torch.autocast(self.device, torch.bfloat16) if self.dtype == "bf16" else nullcontext()

    def stacked(self) -> Tensor:
        return self.fuser.update(self.sharer, self.receiver, None)

    def loop(self) -> list[Tensor]:
        return [pair(*inputs) for pair, *inputs in zip(self.pairs, self.sharer, self.receiver)]

    def train_stacked(self) -> None:
        with self.autocast():
            out = self.stacked()
        self.fuser.zero_grad()
        out.backward(self.grad)

    def train_loop(self) -> None:
        with self.autocast():
            outs = self.loop()
        self.pairs.zero_grad()
        torch.autograd.backward(outs, list(self.grad))

    @torch.no_grad()
    def difference(self) -> float:
        """The largest between the outputs of the two, in fp32."""
        inputs = self.sharer, self.receiver
        self.sharer, self.receiver = (x.float() for x in inputs)
        out = (self.stacked() - torch.stack(self.loop())).abs().max().item()
        self.sharer, self.receiver = inputs
        return out

    @property
    def flops(self) -> int:
        """Of the matmuls of a step."""
        weights = sum(p[0].numel() for name, p in self.fuser.named_parameters() if name.endswith("weight"))
        return 6 * weights * self.sharer.shape[0] * self.sharer.shape[1]


@dataclass
class Comparison:
    """Attributes:
    ratio: the loop's time by the stacked one's: above 1 stacking is faster.
    seconds: of a stacked step.
    difference: of the outputs.
    rate: FLOP/s of a stacked step's matmuls.
    """

    ratio: float
    seconds: float
    difference: float
    rate: float


def compared(
    layers: int,
    tokens: int,
    hidden: int,
    dtype: str = "fp32",
    device: str = "cpu",
    rounds: int = 5,
    seconds: float = 1.0,
) -> Comparison:
    """Stacked beside loop, at one size.

    Raises:
        AssertionError: they differ by more than 1e-5.
    """
    both = Compared(layers, tokens, hidden, dtype, device)
    difference = both.difference()
    assert difference <= AGREE, f"stacked and loop differ by {difference:.1g}"
    times = taking_turns({"stacked": both.train_stacked, "loop": both.train_loop}, rounds, seconds)
    taken = statistics.median(times["stacked"])
    return Comparison(ratio(times, "loop", "stacked"), taken, difference, both.flops / taken)


def measure(
    layers: list[int] = [4, 8, 28],  # noqa: B006
    tokens: list[int] = [16, 64, 256, 1024],  # noqa: B006
    hiddens: list[int] = [128, 256, 512, 1024],  # noqa: B006
    dtypes: list[str] = ["fp32", "bf16"],  # noqa: B006
    device: str = "cpu",
    rounds: int = 5,
    most: float = 1e12,
) -> None:
    """Prints a table.

    Args:
        layers: of the receiver.
        tokens: in a step.
        hiddens: widths of the fuser.
        dtypes: fp32, bf16.
        device: cpu, cuda.
        rounds: at least so many, and for at least a second.
        most: FLOPs of a step; larger sizes are left out, and named.
    """
    print(f"{device}, {torch.get_num_threads()} threads\n")
    print("| dtype | hidden | layers | tokens | times as fast as a loop | stacked, ms | GFLOP/s | outputs differ by |")
    print("|---|---|---|---|---|---|---|---|")
    left_out, slower = [], []
    for dtype, hidden, num_layers, count in itertools.product(dtypes, hiddens, layers, tokens):
        size = f"| {dtype} | {hidden} | {num_layers} | {count} "
        if 6 * 2 * num_layers * count * WEIGHTS * hidden**2 > most:
            left_out.append(size)
            continue
        found = compared(num_layers, count, hidden, dtype, device, rounds)
        if found.ratio < 1:
            slower.append(found.ratio)
        figures = f"{found.ratio:.2f} | {1e3 * found.seconds:.1f} | {found.rate / 1e9:.0f} | {found.difference:.1g}"
        print(f"{size}| {figures} |", flush=True)
    print(f"\nslower than the loop at {len(slower)} sizes" + (f", by {min(slower):.2f} at most" if slower else ""))
    if left_out:
        print(f"left out, as they need more than {most:.0g} FLOPs: " + "; ".join(s.strip("| ") for s in left_out))


if __name__ == "__main__":
    auto_cli(measure)
