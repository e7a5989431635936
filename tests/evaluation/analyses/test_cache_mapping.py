"""Networks that map one cache to another."""

from __future__ import annotations

import torch

from c2c_lightning.evaluation.analyses.cache_mapping import train, unexplained


def test_the_oracle_tells_what_can_be_mapped_from_what_cannot():
    generator = torch.Generator().manual_seed(0)
    source = torch.randn(1200, 2, 8, generator=generator)
    target = torch.randn(1200, 2, 6, generator=generator)
    target[:, 0] = 3 + 5 * source[:, 0] @ torch.randn(8, 6, generator=generator)
    mapping = train(source[:900], target[:900], hidden=32, epochs=40, seed=0)
    with torch.no_grad():
        mapped, noise = unexplained(mapping(source[900:]), target[900:])
    assert mapped < 0.05
    assert noise > 0.9


def test_training_gives_the_same_in_whatever_mode_the_caller_is():
    def trained() -> torch.Tensor:
        source, target = torch.linspace(0, 1, 240).view(2, 20, 2, 3)
        mapping = train(source, target, hidden=8, epochs=2, seed=0)
        with torch.no_grad():
            return mapping(source)

    with torch.inference_mode():
        in_inference_mode = trained()
    with torch.no_grad():
        without_gradients = trained()
    assert torch.equal(in_inference_mode, without_gradients)
