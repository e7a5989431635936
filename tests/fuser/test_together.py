"""Fusers that run as one give what each gives alone, and learn what each learns alone."""

from __future__ import annotations

import pytest
import torch

from c2c_lightning.fuser import C2CFuser, Gate, GateConfig, KVShape
from c2c_lightning.fuser.together import Fusion, fuse_together, likeness

SHARER, RECEIVER = KVShape(5, 2, 8), KVShape(4, 3, 4)
B, N = 2, 5
EXACT = {"atol": 0.0, "rtol": 0.0}
CONFIGS = [  # (layers, gate)
    ([0, 1, 2, 3], {}),
    ([0, 1, 2, 3], {"granularity": "head", "noise": "gumbel"}),
    ([1, 3], {"parts": "values"}),
    ([2], {"kind": "open"}),
    ([0, 2, 3], {"kind": "fixed", "open_layers": [0, 3], "parts": "keys"}),
]


def make(layers, gate, seed=0, hidden=10, dropout=0.0) -> C2CFuser:
    torch.manual_seed(seed)
    gates = Gate(GateConfig(**gate), layers, RECEIVER.num_kv_heads, seed)
    return C2CFuser(SHARER, RECEIVER, gates, hidden=hidden, dropout=dropout).train()


def stacks(layers) -> tuple[torch.Tensor, torch.Tensor]:
    shapes = (SHARER, RECEIVER)
    return tuple(torch.randn(2, len(layers), B, shape.num_kv_heads, N, shape.head_dim) for shape in shapes)


def fusions(fusers: list[C2CFuser]) -> list[Fusion]:
    torch.manual_seed(99)
    aligned = torch.tensor([0, 1, 3, 4, 6, 7, 8])
    return [Fusion(f, *(s := stacks(f.gate.receiver_layers)), torch.randn_like(s[1]), aligned) for f in fusers]


def gradients(fusers: list[C2CFuser], outputs: list[torch.Tensor]) -> list[torch.Tensor | None]:
    for fuser in fusers:
        fuser.zero_grad(set_to_none=True)
    sum((out.square() * (i + 1)).sum() for i, out in enumerate(outputs)).backward()
    return [parameter.grad for fuser in fusers for parameter in fuser.parameters()]


def of_every_kind() -> list[C2CFuser]:
    fusers = [make(layers, gate, seed) for seed, (layers, gate) in enumerate(CONFIGS)]
    return [*fusers, make(*CONFIGS[0], seed=7, hidden=6), make(*CONFIGS[2], seed=8, hidden=6)]


@pytest.mark.parametrize("merge", [True, False, None], ids=["merged", "one by one", "as a CPU does"])
def test_fusers_of_other_layers_parts_and_gates_give_and_learn_what_they_do_alone(merge):
    fusers = of_every_kind()
    calls = fusions(fusers)
    alone = [call.fuser(call.sharer, call.receiver, call.onto, call.aligned) for call in calls]
    expected = gradients(fusers, alone)
    together = fuse_together(calls, merge)
    # One large matmul may round otherwise than small ones.
    of_output, of_gradient = ({"atol": 1e-6, "rtol": 1e-5}, {"atol": 1e-5, "rtol": 1e-4}) if merge else [EXACT] * 2
    for ours, theirs in zip(together, alone):
        torch.testing.assert_close(ours, theirs, **of_output)
    for ours, theirs in zip(gradients(fusers, together), expected):
        torch.testing.assert_close(ours, theirs, **of_gradient)
    assert any(gradient is not None for gradient in expected)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("how", "expected"),
    [({"merge": True}, [5, 6]), ({"merge": False}, [1, 4, 6]), ({}, [1, 4, 6])],
    ids=["merged", "one by one", "as a CPU does"],
)
def test_merged_fusers_of_one_shape_are_one_call_and_those_of_another_another(how, expected, training, monkeypatch):
    widths = []
    update = C2CFuser.update
    monkeypatch.setattr(
        C2CFuser, "update", lambda self, s, r, groups: (widths.append(len(s)), update(self, s, r, groups))[1]
    )
    fusers = [make([0, 1], {}), make([3], {"parts": "keys"}), make([0, 1, 2], {}, hidden=6)]
    fuse_together(fusions([fuser.train(training) for fuser in fusers]), **how)
    assert sorted(widths) == expected  # 2 x 2 + 1 groups of one shape, 2 x 3 of the other


@pytest.mark.parametrize("merge", [True, False])
@torch.no_grad()
def test_a_fuser_whose_gates_are_closed_gets_back_what_it_would_have_added_to(merge):
    closed, other = make([0, 1], {"init": -1.0}).eval(), make([0, 1], {}).eval()
    first, second = fusions([closed, other])
    ours = fuse_together([first, second], merge)
    assert ours[0] is first.onto
    assert not torch.equal(ours[1], second.onto)


def test_a_fuser_that_fuses_in_a_way_of_its_own_is_never_laid_beside_others():
    class Own(C2CFuser):
        def forward(self, sharer, receiver, onto=None, aligned=None):
            return onto + 1

    gate = Gate(GateConfig(), [0, 1], RECEIVER.num_kv_heads)
    own = Own(SHARER, RECEIVER, gate, hidden=10, dropout=0.0)
    assert likeness(own) is None
    calls = fusions([own, make([0, 1], {}), own])
    ours = fuse_together(calls, merge=True)
    assert torch.equal(ours[0], calls[0].onto + 1)
    assert torch.equal(ours[2], calls[2].onto + 1)
