"""The C2C fuser against arXiv 2510.03215, written out for one (part, layer) pair at a time."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F

from c2c_lightning.fuser import C2CFuser, Gate, GateConfig, KVShape
from c2c_lightning.fuser.stacked import StackedLinear

B, N = 2, 3
PARTS = {"both": ["keys", "values"], "keys": ["keys"], "values": ["values"]}
SIZES = [  # (sharer, receiver, hidden, intermediate, num_layers)
    (KVShape(9, 2, 8), KVShape(4, 3, 4), 10, 6, 3),
    (KVShape(3, 1, 6), KVShape(3, 4, 6), 8, 24, 5),
    (KVShape(5, 4, 4), KVShape(2, 1, 12), 12, None, 3),
]


def make(sizes, seed=0, **gate) -> C2CFuser:
    """A fuser with random logits, parameters that no default leaves at 0 or 1, and its last layer closed."""
    sharer, receiver, hidden, intermediate, num_layers = sizes
    torch.manual_seed(seed)
    gates = Gate(GateConfig(**gate), list(range(receiver.num_layers)), receiver.num_kv_heads)
    fuser = C2CFuser(sharer, receiver, gates, hidden=hidden, intermediate=intermediate, num_layers=num_layers)
    with torch.no_grad():
        for name, parameter in fuser.named_parameters():
            if name != "gate.logit":
                parameter.add_(0.3 * torch.randn_like(parameter))
        if gates.learns:
            gates.logit.normal_()
            gates.logit[:, 0] = gates.logit[:, 0].abs()
            gates.logit[:, -1] = -gates.logit[:, -1].abs()
    return fuser


def stacks(fuser: C2CFuser) -> tuple[torch.Tensor, torch.Tensor]:
    num_layers = len(fuser.gate.receiver_layers)
    return tuple(
        torch.randn(2, num_layers, B, shape.num_kv_heads, N, shape.head_dim) for shape in (fuser.sharer, fuser.receiver)
    )


def block(module, x, group):
    """x + W2 gelu(W1 RMSNorm(x))."""
    normed = x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * module.norm[group, 0]
    inner = F.linear(normed, module.w1.weight[group].mT)
    inner = inner * 0.5 * (1 + torch.erf(inner / 2**0.5))
    return x + F.linear(inner, module.w2.weight[group].mT)


def linear(module, x, group):
    return F.linear(x, module.weight[group].mT, module.bias[group, 0])


def paper(fuser: C2CFuser, sharer, receiver, parts: str, gate) -> torch.Tensor:
    """fused_n = receiver_n + gate_n * weight_n * update_n, token by token through flat features."""
    fused = receiver.clone()
    num_layers = receiver.shape[1]
    H, D = fuser.receiver.num_kv_heads, fuser.receiver.head_dim
    for p, part in enumerate(PARTS[parts]):
        where = {"keys": 0, "values": 1}[part]
        for layer in range(num_layers):
            group = p * num_layers + layer
            for b, n in itertools.product(range(B), range(N)):
                s = torch.cat(list(sharer[where, layer, b, :, n]))
                r = torch.cat(list(receiver[where, layer, b, :, n]))
                h = block(fuser.trunk, linear(fuser.input, torch.cat([s, r]), group), group)
                weight = torch.sigmoid(linear(fuser.weight_head, block(fuser.weight_block, h, group), group))
                for update_block in fuser.update_blocks:
                    h = block(update_block, h, group)
                update = linear(fuser.update_head, h, group)
                for head in range(H):
                    g = gate[p, layer, head if gate.shape[-1] > 1 else 0]
                    fused[where, layer, b, head, n] += g * weight[head] * update[head * D : (head + 1) * D]
    return fused


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("granularity", ["layer", "head"])
@torch.no_grad()
def test_evaluation_is_the_papers_formula_with_gates_of_0_and_1(sizes, parts, granularity):
    fuser = make(sizes, parts=parts, granularity=granularity).eval()
    sharer, receiver = stacks(fuser)
    gate = (fuser.gate.logit > 0).float()
    assert 0 < gate.mean() < 1
    expected = paper(fuser, sharer, receiver, parts, gate)
    torch.testing.assert_close(fuser(sharer, receiver), expected, atol=1e-5, rtol=0)
    assert not torch.equal(expected, receiver)


@pytest.mark.parametrize("sizes", SIZES)
@torch.no_grad()
def test_training_is_the_papers_formula_with_noisy_gates(sizes):
    fuser = make(sizes, granularity="head").train()
    for module in fuser.modules():
        if hasattr(module, "dropout"):
            module.dropout = 0.0
    fuser.gate.anneal(3, 10)
    sharer, receiver = stacks(fuser)
    expected = paper(fuser, sharer, receiver, "both", fuser.gate())
    torch.testing.assert_close(fuser(sharer, receiver), expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_the_update_is_added_onto_another_stack_and_only_to_aligned_tokens():
    fuser = make(SIZES[0]).eval()
    sharer, receiver = stacks(fuser)
    onto = torch.randn_like(receiver)
    aligned = torch.tensor([[True, False, True], [False, True, True]])
    out = fuser(sharer, receiver, onto=onto, aligned=aligned.flatten().nonzero()[:, 0])
    update = paper(fuser, sharer, receiver, "both", (fuser.gate.logit > 0).float()) - receiver
    torch.testing.assert_close(out, onto + update * aligned[:, None, :, None], atol=1e-5, rtol=0)
    assert torch.equal(out[:, :, 0, :, 1], onto[:, :, 0, :, 1])


@torch.no_grad()
def test_closed_layers_stay_as_they_are_to_the_bit_and_their_parameters_are_not_read():
    fuser = make(SIZES[0]).eval()
    sharer, receiver = stacks(fuser)
    closed = (fuser.gate.logit <= 0)[..., 0]
    before = fuser(sharer, receiver)
    for name, parameter in fuser.named_parameters():
        if name != "gate.logit":
            parameter[closed.flatten()] = float("nan")
    out = fuser(sharer, receiver)
    assert torch.equal(out[closed], receiver[closed])
    assert torch.equal(out, before)
    assert not torch.equal(out[~closed], receiver[~closed])


@torch.no_grad()
def test_closed_layers_cost_no_work_at_evaluation_and_closed_gates_none_at_all():
    fuser = make(SIZES[0]).eval()
    sharer, receiver = stacks(fuser)
    groups = []
    for module in fuser.modules():
        if isinstance(module, StackedLinear):
            module.register_forward_hook(lambda _module, _inputs, out: groups.append(len(out)))
    fuser(sharer, receiver)
    assert set(groups) == {int((fuser.gate.logit > 0).sum())}
    groups.clear()
    fuser.gate.logit.fill_(-1.0)
    assert fuser(sharer, receiver) is receiver
    assert groups == []


def test_dropout_acts_in_training_only():
    fuser = make(SIZES[0], kind="open")
    sharer, receiver = stacks(fuser)
    assert not torch.equal(fuser.train()(sharer, receiver), fuser(sharer, receiver))
    assert torch.equal(fuser.eval()(sharer, receiver), fuser(sharer, receiver))


@pytest.mark.parametrize("autocast", [True, False])
def test_bf16_caches_are_fused_by_fp32_parameters_into_bf16(autocast):
    fuser = make(SIZES[1]).train()
    sharer, receiver = stacks(fuser)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = fuser(sharer.bfloat16(), receiver.bfloat16())
    assert out.dtype == torch.bfloat16
    out.float().pow(2).sum().backward()
    assert all(p.dtype == torch.float32 and p.grad.isfinite().all() for p in fuser.parameters())
    torch.testing.assert_close(
        fuser.eval()(sharer.bfloat16(), receiver.bfloat16()).float(), fuser(sharer, receiver), atol=0.15, rtol=0.05
    )


def test_a_fuser_of_bf16_parameters_takes_fp32_caches():
    fuser = make(SIZES[1]).bfloat16().eval()
    sharer, receiver = stacks(fuser)
    assert fuser(sharer, receiver).dtype == torch.float32


@torch.no_grad()
def test_a_state_dict_round_trip_gives_the_same_output():
    fuser, other = make(SIZES[0], seed=0).eval(), make(SIZES[0], seed=1).eval()
    sharer, receiver = stacks(fuser)
    assert not torch.equal(other(sharer, receiver), fuser(sharer, receiver))
    other.load_state_dict(fuser.state_dict())
    assert torch.equal(other(sharer, receiver), fuser(sharer, receiver))


def test_the_published_size_has_the_published_number_of_parameters():
    gate = Gate(GateConfig(), list(range(28)), 8)
    with torch.device("meta"):
        fuser = C2CFuser(KVShape(24, 2, 64), KVShape(28, 8, 128), gate)
    total = sum(p.numel() for p in fuser.parameters())
    assert round(total / 1e6) == 478
    assert round(total / 28 / 1e6, 1) == 17.1


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"num_layers": 2}, "num_layers is 2"),
        ({"hidden": 0}, "hidden is 0"),
        ({"intermediate": 0}, "intermediate 0"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"dropout": -0.1}, "dropout is -0.1"),
    ],
)
def test_a_size_that_no_network_has_is_refused_by_value(sizes, message):
    with pytest.raises(ValueError, match=message):
        C2CFuser(KVShape(2, 1, 4), KVShape(2, 1, 4), Gate(GateConfig(), [0, 1], 1), **sizes)
