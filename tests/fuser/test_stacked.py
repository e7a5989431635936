"""The layers that fusers are made of, beside their formulas for every group by itself."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from c2c_lightning.fuser.stacked import StackedBlock, StackedLinear, matrices, transposed

G, T, M, WIDTH = 3, 5, 6, 8


def made(dropout=0.0, dtype=torch.float64) -> StackedBlock:
    torch.manual_seed(0)
    block = StackedBlock(G, M, WIDTH, dropout)
    torch.nn.init.normal_(block.norm)
    return block.to(dtype)


def formula(block, x_GTM):
    normed = x_GTM / (x_GTM.square().mean(-1, keepdim=True) + 1e-6).sqrt() * block.norm
    inner = normed @ block.w1.weight
    return x_GTM + (inner * 0.5 * (1 + torch.erf(inner / 2**0.5))) @ block.w2.weight


@pytest.mark.parametrize("groups", [None, [2, 0]])
def test_a_block_and_its_gradients_are_the_formulas_of_the_groups_that_are_asked_for(groups):
    block, x_GTM = made(), torch.randn(G, T, M, dtype=torch.float64, requires_grad=True)
    index = None if groups is None else torch.tensor(groups)
    read = x_GTM if groups is None else x_GTM[index]
    plain = formula(block, x_GTM)
    out, expected = block(read, index), plain if groups is None else plain[index]
    torch.testing.assert_close(out, expected)
    inputs = [x_GTM, *block.parameters()]
    for own, other in zip(*(torch.autograd.grad(o.square().sum(), inputs) for o in (out, expected))):
        torch.testing.assert_close(own, other)


def test_dropped_updates_have_no_gradient_and_the_others_are_scaled():
    block, x_GTM = made(dropout=0.4), torch.randn(G, T, M, dtype=torch.float64, requires_grad=True)
    out = block(x_GTM)
    kept = (out - x_GTM).detach() != 0
    assert 0 < kept.sum() < kept.numel()
    expected = x_GTM + (formula(block, x_GTM) - x_GTM) * kept / 0.6
    torch.testing.assert_close(out, expected)
    for own, other in zip(*(torch.autograd.grad(o.square().sum(), [x_GTM]) for o in (out, expected))):
        torch.testing.assert_close(own, other)


@pytest.mark.parametrize("autocast", [True, False], ids=["autocast", "half precision throughout"])
def test_in_half_precision_values_and_gradients_are_near_those_in_single(autocast):
    single, block = made(dtype=torch.float32), made(dtype=torch.float32 if autocast else torch.bfloat16)
    x_GTM = torch.randn(G, T, M)
    expected = formula(single, x_GTM)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = block(x_GTM.bfloat16())
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), expected, atol=0.05, rtol=0.05)
    out.float().sum().backward()
    expected.sum().backward()
    for own, plain in zip(block.parameters(), single.parameters()):
        assert own.grad.dtype == own.dtype  # fp32 parameters stay so under autocast
        torch.testing.assert_close(own.grad.float(), plain.grad, atol=0.03 * plain.grad.abs().max().item(), rtol=0.1)


def test_no_tokens_are_no_trouble():
    block = made(dtype=torch.float32)
    out = block(torch.randn(G, 0, M))
    out.sum().backward()
    assert out.shape == (G, 0, M)
    assert not block.w1.weight.grad.any()


@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_layer_is_that_of_torch_for_every_group_and_its_gradient_lies_as_its_weight_does(bias):
    torch.manual_seed(0)
    layer, x_GTF = StackedLinear(G, M, WIDTH, bias), torch.randn(G, T, M)
    out = layer(x_GTF)
    for g in range(G):
        torch.testing.assert_close(out[g], F.linear(x_GTF[g], layer.weight[g].mT, layer.bias[g, 0] if bias else None))
    out.square().sum().backward()
    assert layer.weight.is_contiguous()
    assert layer.weight.grad.stride() == layer.weight.stride()


def test_a_state_of_format_1_has_every_matrix_the_other_way_round_and_nothing_else():
    block = made(dtype=torch.float32)
    first = transposed(block.state_dict(), matrices(block))
    assert {name: tuple(t.shape) for name, t in first.items()} == {
        "norm": (G, 1, M),
        "w1.weight": (G, WIDTH, M),
        "w2.weight": (G, M, WIDTH),
    }
    again = transposed(first, matrices(block))
    assert all(torch.equal(again[name], tensor) for name, tensor in block.state_dict().items())
