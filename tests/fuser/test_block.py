"""The residual block of a fuser and its linear layers, beside their formulas in torch's single operations."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from c2c_lightning.fuser import block
from c2c_lightning.fuser.block import Block
from c2c_lightning.fuser.matmul import Linear

G, T, M, WIDTH = 3, 5, 6, 8


def inputs(dtype, device_dtype=None):
    """x, norm, W1 and W2; x in another dtype if need be, as parameters stay fp32 under autocast."""
    torch.manual_seed(0)
    shapes = (G, T, M), (G, 1, M), (G, WIDTH, M), (G, M, WIDTH)
    tensors = [torch.randn(shape, dtype=torch.float64).to(dtype) for shape in shapes]
    tensors[0] = tensors[0].to(device_dtype or dtype)
    return [tensor.requires_grad_() for tensor in tensors]


def formula(x, norm, w1, w2):
    normed = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm
    return x + F.gelu(normed @ w1.mT) @ w2.mT


@pytest.mark.parametrize("cached", [1, 2 * T * WIDTH, 10**9])
def test_value_and_gradients_are_the_formulas_however_many_groups_are_worked_on_at_a_time(cached, monkeypatch):
    monkeypatch.setattr(block, "CACHED", cached)
    tensors = inputs(torch.float64)
    torch.testing.assert_close(Block.apply(*tensors, 0.0), formula(*tensors))
    assert torch.autograd.gradcheck(lambda *t: Block.apply(*t, 0.0), tensors)


def test_dropped_updates_have_no_gradient_and_the_others_are_scaled():
    x, norm, w1, w2 = inputs(torch.float64)
    p = 0.4
    out = Block.apply(x, norm, w1, w2, p)
    whole = formula(x, norm, w1, w2) - x
    kept = (out - x).detach() != 0
    assert 0 < kept.sum() < kept.numel()
    expected = x + whole * kept / (1 - p)
    torch.testing.assert_close(out, expected)
    weight = torch.randn_like(out)
    for own, plain in zip(*(torch.autograd.grad((o * weight).sum(), (x, norm, w1, w2)) for o in (out, expected))):
        torch.testing.assert_close(own, plain)


def test_under_autocast_parameters_and_their_gradients_stay_fp32():
    exact = inputs(torch.float32)
    rounded = inputs(torch.float32, torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        out = Block.apply(*rounded, 0.0)
    expected = formula(*exact)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), expected, atol=0.05, rtol=0.05)
    gradients = [torch.autograd.grad(o.float().sum(), tensors) for o, tensors in ((out, rounded), (expected, exact))]
    for own, plain, tensor in zip(*gradients, rounded):
        assert own.dtype == tensor.dtype
        torch.testing.assert_close(own.float(), plain, atol=0.02 * plain.abs().max().item(), rtol=0.1)


def test_parameters_in_half_precision_have_gradients_in_it():
    tensors = inputs(torch.bfloat16)
    Block.apply(*tensors, 0.0).sum().backward()
    expected = inputs(torch.float32)
    formula(*expected).sum().backward()
    for own, plain in zip(tensors, expected):
        assert own.grad.dtype == torch.bfloat16
        torch.testing.assert_close(own.grad.float(), plain.grad, atol=0.03 * plain.grad.abs().max().item(), rtol=0.1)


def test_no_tokens_are_no_trouble():
    x, norm, w1, w2 = inputs(torch.float32)
    out = Block.apply(x[:, :0], norm, w1, w2, 0.0)
    out.sum().backward()
    assert out.shape == (G, 0, M)
    assert not w1.grad.any()


def test_no_more_is_kept_for_the_backward_pass_than_input_and_inner_activations():
    tensors = inputs(torch.float32)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        Block.apply(*tensors, 0.0)
    activations = sum(t.numel() for t in kept if not any(t is parameter for parameter in tensors[1:]))
    assert activations == G * T * (M + WIDTH + 1)


@pytest.mark.parametrize("with_bias", [True, False])
def test_a_linear_layers_gradients_are_the_formulas_and_lie_as_its_parameters_do(with_bias):
    torch.manual_seed(0)
    x, weight, bias = (torch.randn(s, dtype=torch.float64).requires_grad_() for s in ((G, T, M), (G, 4, M), (G, 1, 4)))
    bias = bias if with_bias else None
    out = Linear.apply(x, weight, bias)
    torch.testing.assert_close(out, x @ weight.mT + (0 if bias is None else bias))
    assert torch.autograd.gradcheck(Linear.apply, (x, weight, bias))
    [gradient] = torch.autograd.grad(out.sum(), [weight])
    assert gradient.stride() == weight.stride()


def test_a_linear_layer_under_autocast_has_its_dtype_and_gradients_of_the_parameters():
    torch.manual_seed(0)
    x, weight, bias = (torch.randn(s).requires_grad_() for s in ((G, T, M), (G, 4, M), (G, 1, 4)))
    with torch.autocast("cpu", torch.bfloat16):
        out = Linear.apply(x, weight, bias)
    assert out.dtype == torch.bfloat16
    plain = x @ weight.mT + bias
    torch.testing.assert_close(out.float(), plain, atol=0.1, rtol=0.05)
    gradients = [torch.autograd.grad(o.float().square().sum(), (x, weight, bias)) for o in (out, plain)]
    for own, expected in zip(*gradients):
        assert own.dtype == torch.float32
        torch.testing.assert_close(own, expected, atol=0.03 * expected.abs().max().item(), rtol=0.1)
