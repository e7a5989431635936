"""What every fuser promises, and each one's formula written out for one token at a time."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import Ridge

from c2c_lightning.errors import UserError
from c2c_lightning.fuser import (
    C2CCFuser,
    C2CFuser,
    Gate,
    GateConfig,
    IdenticalFuser,
    KVShape,
    LowRankFuser,
    ProjectingFuser,
    ReplacingFuser,
    RidgeFuser,
    UnweightedFuser,
)
from tests.fuser.test_c2c import block, linear

SHARER, RECEIVER = KVShape(9, 2, 4), KVShape(3, 3, 2)
B, N, L = 2, 4, RECEIVER.num_layers
SIZES = {
    C2CFuser: {"hidden": 10, "num_layers": 4},
    UnweightedFuser: {"hidden": 10},
    ReplacingFuser: {"hidden": 10},
    ProjectingFuser: {"hidden": 10},
    C2CCFuser: {"hidden": 10},
    IdenticalFuser: {"hidden": 10},
    LowRankFuser: {"rank": 5},
    RidgeFuser: {},
}
every_fuser = pytest.mark.parametrize("kind", SIZES, ids=lambda kind: kind.__name__)
every_part = pytest.mark.parametrize("parts", ["both", "keys", "values"])


def make(fuser_class, layers=range(L), **gate):
    """A fuser in eval mode with parameters that no default leaves at 0 or 1, all of whose gates are open."""
    torch.manual_seed(1)
    gates = Gate(GateConfig(**gate), list(layers), RECEIVER.num_kv_heads)
    fuser = fuser_class(SHARER, RECEIVER, gates, **SIZES[fuser_class])
    with torch.no_grad():
        for name, parameter in fuser.named_parameters():
            if name != "gate.logit":
                parameter.add_(0.3 * torch.randn_like(parameter))
    if fuser_class is RidgeFuser:
        fuser.begin()
    return fuser.eval()


def stacks(layers=L, seed=0):
    torch.manual_seed(seed)
    return tuple(torch.randn(2, layers, B, s.num_kv_heads, N, s.head_dim) for s in (SHARER, RECEIVER))


def weights(fuser):
    return {name: p for name, p in fuser.named_parameters() if not name.startswith("gate.")}


@every_fuser
@torch.no_grad()
def test_closed_gates_leave_the_receivers_cache_as_it_is_to_the_bit(kind):
    fuser = make(kind)
    sharer, receiver = stacks()
    fuser.gate.logit[0, 1] = fuser.gate.logit[1, 1] = fuser.gate.logit[1, 2] = -1.0
    closed = (fuser.gate.logit <= 0)[..., 0]
    out = fuser(sharer, receiver)
    assert torch.equal(out[closed], receiver[closed])
    assert all(not torch.equal(out[p, n], receiver[p, n]) for p, n in (~closed).nonzero().tolist())
    fuser.gate.logit.fill_(-1.0)
    assert fuser(sharer, receiver) is receiver


@pytest.mark.parametrize("kind", [k for k in SIZES if getattr(k, "residual", True)], ids=lambda kind: kind.__name__)
@torch.no_grad()
def test_an_output_of_zero_leaves_the_receivers_cache_as_it_is(kind):
    fuser = make(kind)
    for name, parameter in weights(fuser).items():
        if name.startswith("update_head.") or kind is RidgeFuser:
            parameter.zero_()
    sharer, receiver = stacks()
    assert torch.equal(fuser(sharer, receiver), receiver)


@pytest.mark.parametrize("kind", [ReplacingFuser, ProjectingFuser], ids=lambda kind: kind.__name__)
@torch.no_grad()
def test_without_residual_nothing_of_an_open_layers_cache_is_left(kind):
    fuser = make(kind)
    for name, parameter in weights(fuser).items():
        if name.startswith("update_head."):
            parameter.zero_()
    torch.testing.assert_close(fuser(*stacks()), torch.zeros(2, L, B, 3, N, 2), atol=1e-6, rtol=0)


@every_fuser
@every_part
@torch.no_grad()
def test_stacked_equals_layer_by_layer(kind, parts):
    fuser = make(kind, parts=parts)
    sharer, receiver = stacks()
    fused = fuser(sharer, receiver)
    for layer in range(L):
        alone = make(kind, layers=[0], parts=parts)
        for name, parameter in weights(alone).items():
            stacked = weights(fuser)[name]
            parameter.copy_(stacked.view(len(parameter), -1, *stacked.shape[1:])[:, layer])
        own = alone(sharer[:, layer : layer + 1], receiver[:, layer : layer + 1])
        torch.testing.assert_close(fused[:, layer : layer + 1], own, atol=1e-5, rtol=0)


@every_fuser
@pytest.mark.parametrize("training", [False, True])
def test_where_no_token_has_one_opposite_nothing_is_done(kind, training):
    fuser = make(kind).train(training)
    sharer, receiver = stacks()
    fused = fuser(sharer, receiver, aligned=torch.tensor([], dtype=torch.long))
    assert torch.equal(fused, receiver)
    assert fuser(sharer[..., :0, :], receiver[..., :0, :]).shape == receiver[..., :0, :].shape
    if training:  # as ranks that share parameters wait for each other's gradients
        fused.sum().backward()
        assert all(not p.grad.any() for p in fuser.parameters() if p.requires_grad)


@every_fuser
@torch.no_grad()
def test_only_aligned_tokens_are_fused_and_as_if_all_were(kind):
    fuser = make(kind)
    fuser.gate.logit[1, 2] = -1.0
    sharer, receiver = stacks()
    aligned = torch.tensor([0, 2, 3, 7])
    some, every = fuser(sharer, receiver, aligned=aligned), fuser(sharer, receiver)
    is_aligned = torch.zeros(B * N, dtype=torch.bool).index_fill(0, aligned, True).view(1, 1, B, 1, N, 1)
    torch.testing.assert_close(some, torch.where(is_aligned, every, receiver))


@every_fuser
def test_every_weight_learns_or_is_fitted(kind):
    fuser = make(kind).train()
    fused = fuser(*stacks())
    (fused * torch.randn_like(fused)).sum().backward()
    if kind is RidgeFuser:
        before = fuser.weight.clone()
        fuser.solve()
        assert not torch.isclose(fuser.weight, before).any()
    else:
        assert all(parameter.grad.abs().sum() > 0 for parameter in fuser.parameters())


def two_routes(fuser, read, row):
    """The update of one token, all that is read of it laid end to end."""
    h = hidden = block(fuser.trunk, linear(fuser.input, read, row), row)
    for update_block in fuser.update_blocks:
        h = block(update_block, h, row)
    update = linear(fuser.update_head, h, row).view(3, 2)
    if fuser.weighted:
        update = torch.sigmoid(linear(fuser.weight_head, block(fuser.weight_block, hidden, row), row))[:, None] * update
    return update.flatten()


def mapped(fuser, s, row):
    first, second, third = fuser.map
    return linear(third, F.gelu(linear(second, F.gelu(linear(first, s, row)), row)), row)


def joint(fuser, s, part, layer):
    h = block(fuser.block, linear(fuser.down, torch.cat(s), layer), layer)
    row = part * L + layer
    update = linear(fuser.update_head, h, row).view(3, 2)
    return (torch.sigmoid(linear(fuser.weight_head, h, row))[:, None] * update).flatten()


FORMULAS = {  # fused token, of keys and values of the sharer, of the receiver, the part and the layer
    C2CFuser: lambda f, s, r, p, n: r[p] + two_routes(f, torch.cat([s[p], r[p]]), p * L + n),
    UnweightedFuser: lambda f, s, r, p, n: r[p] + two_routes(f, torch.cat([s[p], r[p]]), p * L + n),
    ReplacingFuser: lambda f, s, r, p, n: two_routes(f, torch.cat([s[p], r[p]]), p * L + n),
    ProjectingFuser: lambda f, s, r, p, n: two_routes(f, s[p], p * L + n),
    C2CCFuser: lambda f, s, r, p, n: r[p] + two_routes(f, torch.cat([mapped(f, s[p], p * L + n), r[p]]), p * L + n),
    IdenticalFuser: lambda f, s, r, p, n: r[p] + two_routes(f, torch.cat([r[p], r[p]]), p * L + n),
    LowRankFuser: lambda f, s, r, p, n: r[p] + joint(f, s, p, n),
    RidgeFuser: lambda f, s, r, p, n: r[p] + torch.cat([s[p], r[p], torch.ones(1)]) @ f.weight[p * L + n],
}


@every_fuser
@torch.no_grad()
def test_every_token_is_fused_by_the_formula(kind):
    fuser = make(kind)
    fuser.gate.logit[0, 1] = -1.0  # so that not every row is worked on
    sharer, receiver = stacks()
    fused = fuser(sharer, receiver)
    for part, layer, b, n in itertools.product((0, 1), range(L), range(B), range(N)):
        s, r = ([stack[p, layer, b, :, n].flatten() for p in (0, 1)] for stack in (sharer, receiver))
        expected = r[part] if (part, layer) == (0, 1) else FORMULAS[kind](fuser, s, r, part, layer)
        torch.testing.assert_close(fused[part, layer, b, :, n].flatten(), expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_what_the_sharer_says_makes_no_difference_to_the_receiver_fed_control_and_does_to_others():
    for kind in SIZES:
        fuser = make(kind)
        sharer, receiver = stacks()
        same = torch.equal(fuser(sharer, receiver), fuser(stacks(seed=5)[0], receiver))
        assert same == (kind is IdenticalFuser), kind


def test_the_low_rank_fuser_is_a_few_per_cent_of_c2cs_size_at_the_papers_pair():
    def size(kind):
        with torch.device("meta"):
            gate = Gate(GateConfig(), list(range(28)), 8)
            return sum(p.numel() for p in kind(KVShape(24, 2, 64), KVShape(28, 8, 128), gate).parameters())

    assert size(LowRankFuser) < 0.04 * size(C2CFuser)


def collected(fuser, steps=3):
    """Has a fuser collect in training; the sharers' and receivers' stacks and the gradients that there were."""
    fuser.train()
    seen = []
    for step in range(steps):
        sharer, receiver = stacks(seed=step)
        fused = fuser(sharer, receiver)
        assert torch.equal(fused, receiver)
        gradient = torch.randn_like(fused)
        fused.backward(gradient)
        seen.append((sharer, receiver, gradient))
    return [torch.cat(each, dim=2) for each in zip(*seen)]


def features(stack, part, layer):
    return stack[part, layer].transpose(1, 2).flatten(2).flatten(0, 1)


@pytest.mark.parametrize("kind", ["open", "learned"])
@pytest.mark.parametrize("parts", ["both", "values"])
def test_ridge_solves_the_regression_of_the_negative_gradient_on_both_caches(parts, kind):
    fuser = make(RidgeFuser, kind=kind, parts=parts)
    sharer, receiver, gradient = collected(fuser)
    fuser.solve()
    ours, theirs = [], []
    for group, (part, layer) in enumerate(itertools.product(fuser.gate.parts, range(L))):
        x = torch.cat([features(sharer, part, layer), features(receiver, part, layer)], dim=-1)
        x = torch.cat([x, torch.ones(len(x), 1)], dim=-1).double()
        penalty = 1e-4 * (x.mT @ x).diagonal().mean().item()
        regression = Ridge(alpha=penalty, fit_intercept=False).fit(x, -features(gradient, part, layer).double())
        theirs.append(torch.from_numpy(regression.coef_.T))
        ours.append(fuser.weight[group])
    ours, theirs = torch.stack(ours).double(), torch.stack(theirs)
    # One scale for all layers.
    torch.testing.assert_close(ours / ours.norm(), theirs / theirs.norm(), atol=1e-6, rtol=1e-4)
    fuser.eval()
    update = fuser(sharer, receiver) - receiver
    torch.testing.assert_close(update.norm(), receiver[list(fuser.gate.parts)].norm(), rtol=1e-4, atol=0)


def test_ridge_collects_the_same_from_one_batch_as_from_several_and_nothing_of_closed_layers():
    apart = make(RidgeFuser, kind="fixed", open_layers=[0, 2])
    sharer, receiver, gradient = collected(apart)
    at_once = make(RidgeFuser, kind="fixed", open_layers=[0, 2]).train()
    at_once(sharer, receiver).backward(gradient)
    for name, total in at_once.statistics.named_buffers():
        torch.testing.assert_close(apart.statistics.get_buffer(name), total)
    apart.solve()
    closed = torch.tensor([1, L + 1])
    assert not apart.weight[closed].any()
    assert apart.weight[[0, 2, L, L + 2]].abs().sum((1, 2)).min() > 0


def test_ridge_collects_nothing_of_batches_that_are_held_out_and_its_gates_do_not_learn():
    fuser = make(RidgeFuser)
    fuser.collects = False
    collected(fuser)
    assert not fuser.statistics.xx.any()
    assert fuser.gate.logit.grad is None
    assert not any(parameter.requires_grad for parameter in fuser.parameters())


def test_a_regression_that_has_no_solution_says_what_to_do():
    fuser = make(RidgeFuser)
    fuser.init_args["penalty"] = 1e-30
    collected(fuser, steps=1)
    with pytest.raises(UserError, match=r"penalty is 1e-30: with one so small there is no solution\. Raise it"):
        fuser.solve()


def test_ridge_without_calibration_data_says_so():
    with pytest.raises(UserError, match="RidgeFuser has no calibration data"):
        make(RidgeFuser).solve()


@pytest.mark.parametrize(
    ("kind", "sizes", "message"),
    [
        (RidgeFuser, {"penalty": 0.0}, "penalty is 0.0"),
        (LowRankFuser, {"rank": 0}, "rank is 0"),
        (LowRankFuser, {"dropout": 1.0}, "dropout is 1.0"),
        (UnweightedFuser, {"evaluate_in": "bfloat16"}, "only C2CFuser has published rounding, not UnweightedFuser"),
        (C2CCFuser, {"hidden": 0}, "hidden is 0"),
    ],
)
def test_a_size_that_no_network_has_is_refused(kind, sizes, message):
    with pytest.raises(UserError, match=message):
        kind(SHARER, RECEIVER, Gate(GateConfig(), [0], 3), **sizes)
