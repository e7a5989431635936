"""The parts that fusers are made of."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from c2c_lightning.fuser.stacked import EPS, RMSNorm, rms_norm


def inputs(dtype):
    torch.manual_seed(0)
    x = torch.randn(3, 5, 7, dtype=torch.float64).to(dtype).requires_grad_()
    weight = torch.randn(3, 1, 7, dtype=torch.float64).to(torch.promote_types(dtype, torch.float32)).requires_grad_()
    return x, weight


def test_the_norms_gradient_is_that_of_its_formula():
    x, weight = inputs(torch.float64)
    expected = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight
    torch.testing.assert_close(rms_norm(x, weight), expected)
    assert torch.autograd.gradcheck(RMSNorm.apply, (x, weight))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_norm_is_torchs_own_in_every_dtype(dtype):
    x, weight = inputs(dtype)
    theirs = F.rms_norm(x, x.shape[-1:], eps=EPS) * weight.to(dtype)
    ours = rms_norm(x, weight)
    assert ours.dtype == theirs.dtype == dtype
    torch.testing.assert_close(ours, theirs)
    gradients = [torch.autograd.grad(out.float().square().sum(), (x, weight)) for out in (ours, theirs)]
    for own, expected in zip(*gradients):
        assert own.dtype == expected.dtype
        torch.testing.assert_close(own, expected, atol=0.1 if dtype == torch.bfloat16 else 1e-5, rtol=1e-2)
