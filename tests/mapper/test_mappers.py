"""What mappers promise: the relation that is there, the mean where a layer is told nothing, and the closed form first."""

from __future__ import annotations

import pytest
import torch

from c2c_lightning.errors import UserError
from c2c_lightning.fuser import KVShape
from c2c_lightning.fuser.ridge import STATISTICS
from c2c_lightning.mapper import NetworkMapper, RidgeMapper
from c2c_lightning.mapper.ridge import Statistics

SHARER, RECEIVER = KVShape(3, 1, 4), KVShape(4, 2, 2)
INPUTS, OUTPUTS, T = 24, 32, 400


def draw(tokens: int = T, seed: int = 0, offset: float = 3.0) -> torch.Tensor:
    """A sharer's stack with correlated features, and means that are larger than what varies."""
    torch.manual_seed(seed)
    x_TI = torch.randn(tokens, INPUTS, generator=torch.Generator().manual_seed(seed + 1))
    torch.manual_seed(99)
    return (x_TI @ torch.randn(INPUTS, INPUTS) + offset * torch.randn(INPUTS)).view(tokens, 2, 3, 1, 4).movedim(0, 2)


def linear(sharer: torch.Tensor) -> torch.Tensor:
    torch.manual_seed(98)
    y_TO = sharer.movedim(2, 0).flatten(1) @ torch.randn(INPUTS, OUTPUTS) / 5 + 7 * torch.randn(OUTPUTS)
    return y_TO.view(-1, 2, 4, 2, 2).movedim(0, 2)


def fitted(kind=RidgeMapper, relation=linear, **options):
    torch.manual_seed(0)
    mapper = kind(SHARER, RECEIVER, **options)
    mapper.begin()
    mapper.observe(draw(), relation(draw()))
    mapper.solve()
    return mapper


def formula(x_TI: torch.Tensor, y_TO: torch.Tensor, penalty: float) -> torch.Tensor:
    x, y = (t.double() - t.double().mean(0) for t in (x_TI, y_TO))
    return torch.linalg.inv(x.T @ x + penalty * (x * x).sum(0).mean() * torch.eye(x.shape[1])) @ x.T @ y


def test_a_linear_relation_is_recovered_with_its_offset():
    mapper, unseen = fitted(penalty=1e-9), draw(seed=5)
    torch.testing.assert_close(mapper(unseen), linear(unseen), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(mapper.r_squared(unseen, linear(unseen)), torch.ones(2, 4).double(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("penalty", [1e-3, 1.0])
def test_weights_are_those_of_the_ridge_regression(penalty):
    noisy = linear(draw()) + torch.randn(2, 4, T, 2, 2, generator=torch.Generator().manual_seed(3))
    mapper = fitted(relation=lambda _: noisy, penalty=penalty)
    expected = formula(draw().movedim(2, 0).flatten(1), noisy.movedim(2, 0).flatten(1), penalty)
    # Products in fp32 are off by 1e-7, and the smaller penalty lets a thousand times that through.
    torch.testing.assert_close(mapper.weight[0].double(), expected, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", [RidgeMapper, NetworkMapper])
@pytest.mark.parametrize("reads", ["all", "one"])
def test_a_layer_left_out_gets_its_mean_in_every_slot_and_the_others_what_they_would_get_anyway(kind, reads):
    some, every = fitted(kind, layers=[3, 1], reads=reads), fitted(kind, reads=reads)
    out, told = some(draw(seed=5)), every(draw(seed=5))
    mean = linear(draw()).mean(2, keepdim=True).expand_as(out)
    torch.testing.assert_close(out[:, [0, 2]], mean[:, [0, 2]])
    torch.testing.assert_close(out[:, [1, 3]], told[:, [1, 3]], atol=1e-4, rtol=1e-4)
    assert some.weight.numel() < every.weight.numel()


def of_layers(sources: list[list[int]]):
    """Receiver layer r is a sum of what the sharer layers sources[r] have, each less than the one before."""

    def relation(sharer):
        layers = [sum(sharer[:, s] / (k + 1) for k, s in enumerate(of)) for of in sources]
        return torch.stack(layers, 1).reshape(2, 4, -1, 2, 2)

    return relation


def independent(seed: int = 0) -> torch.Tensor:
    return torch.randn(2, 3, T, 1, 4, generator=torch.Generator().manual_seed(seed)) + 5


@pytest.mark.parametrize(
    ("reads", "sources", "layers"),
    [
        ("one", [[2], [0], [1], [0]], "all"),
        ("best:2", [[0, 2], [1, 2], [0, 1], [1, 2]], "all"),
        ("one", [[2], [0], [1], [0]], [2]),
    ],
)
def test_each_layer_reads_those_that_explain_most_of_it(reads, sources, layers):
    mapper, relation = RidgeMapper(SHARER, RECEIVER, layers, reads, 1e-6), of_layers(sources)
    mapper.begin()
    mapper.observe(independent(), relation(independent()))
    mapper.solve()
    assert mapper.reads.tolist() == [sources[r] for r in mapper.heard]
    r_squared = mapper.r_squared(independent(4), relation(independent(4)))
    torch.testing.assert_close(r_squared[:, mapper.heard], torch.ones(2, len(mapper.heard)).double())


def test_one_of_several_is_the_regression_on_that_layer_alone():
    mapper = fitted(reads="one")
    y_TLF = linear(draw()).movedim(2, 0).flatten(3)
    for r, (layer,) in enumerate(mapper.reads.tolist()):
        expected = formula(draw()[:, layer].movedim(1, 0).flatten(1), y_TLF[:, :, r].flatten(1), 1e-3)
        torch.testing.assert_close(mapper.weight[r].double(), expected, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("sizes", [[1] * T, [0, 7, 250, 143]])
def test_statistics_are_the_same_in_any_batches(sizes):
    whole, streamed = RidgeMapper(SHARER, RECEIVER), RidgeMapper(SHARER, RECEIVER)
    for mapper in (whole, streamed):
        mapper.begin()
    whole.observe(draw(), linear(draw()))
    for sharer, receiver in zip(draw().split(sizes, 2), linear(draw()).split(sizes, 2)):
        streamed.observe(sharer, receiver)
    for own, other in zip(streamed.statistics.buffers(), whole.statistics.buffers()):
        torch.testing.assert_close(own, other, rtol=0, atol=1e-6 * other.abs().max().item())


def test_what_two_ranks_saw_adds_up_to_what_one_would_have_seen():
    first, second, whole = (RidgeMapper(SHARER, RECEIVER, reads="best:2") for _ in range(3))
    for mapper, part in ((first, slice(0, 150)), (second, slice(150, None)), (whole, slice(None))):
        mapper.begin()
        mapper.observe(draw()[:, :, part], linear(draw())[:, :, part])
    for own, other in zip(first.statistics.buffers(), second.statistics.buffers()):
        own += other
    first.solve(), whole.solve()
    for name, buffer in first.state_dict().items():
        torch.testing.assert_close(buffer, whole.get_buffer(name), rtol=1e-4, atol=1e-5)


def test_statistics_of_means_a_hundred_times_what_varies_are_those_of_double_precision(monkeypatch):
    monkeypatch.setattr("c2c_lightning.mapper.ridge.ROWS", 10)  # so that there are several blocks
    x_TI = torch.randn(T, INPUTS, generator=torch.Generator().manual_seed(0)) + 100 * torch.randn(INPUTS)
    statistics = Statistics(INPUTS, INPUTS, INPUTS)
    for batch in x_TI.split(40):
        with torch.autocast("cpu", torch.bfloat16):  # which a training step may have on
            statistics.add(batch, batch, torch.arange(INPUTS))
    x = x_TI.double()
    torch.testing.assert_close(statistics.variance_x(), x.var(0, unbiased=False), rtol=1e-5, atol=0)
    statistics.centre(torch.arange(INPUTS))
    expected = (x - x.mean(0)).T @ (x - x.mean(0))
    for product in (statistics.xx.triu(), statistics.xy.triu()):
        torch.testing.assert_close(product, expected.triu(), rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(statistics.yy, expected.diagonal(), rtol=1e-5, atol=0)


def squared(sharer):
    features = sharer.square().mean(1, keepdim=True)
    return features.expand(-1, 4, -1, -1, -1).reshape(2, 4, -1, 2, 2)


def test_a_network_starts_as_the_closed_form_and_learns_what_no_line_can():
    ridge, network = fitted(relation=squared), fitted(NetworkMapper, relation=squared, width=64)
    assert torch.equal(network(draw(seed=5)), ridge(draw(seed=5)))
    before = network.weight.clone()
    sharer, target = draw(), squared(draw())
    start = network.r_squared(sharer, target).mean()
    optimizer = torch.optim.AdamW(network.parameters(), 1e-2)
    for _ in range(200):
        optimizer.zero_grad()
        ((network(sharer) - target) / target.std()).square().mean().backward()
        optimizer.step()
    assert torch.equal(network.weight, before)
    assert {name for name, _ in network.named_parameters()} == {"w1.weight", "w1.bias", "w2.weight", "w2.bias"}
    assert start < 0.5
    assert network.r_squared(sharer, target).mean() > 0.9


def test_a_feature_that_never_varies_is_no_trouble():
    mapper = NetworkMapper(SHARER, RECEIVER)
    mapper.begin()
    sharer = draw()
    sharer[0, 1] = 12.5
    mapper.observe(sharer, linear(sharer))
    mapper.solve()
    assert mapper(sharer).isfinite().all()
    assert mapper.std_x.min() > 0


@pytest.mark.parametrize("kind", [RidgeMapper, NetworkMapper])
@pytest.mark.parametrize("options", [{}, {"layers": "last:2", "reads": "best:2"}], ids=["all", "some"])
def test_half_precision_is_near_single_under_autocast_and_throughout(kind, options):
    mapper = fitted(kind, **options)
    exact = mapper(draw())
    with torch.autocast("cpu", torch.bfloat16):
        near = mapper(draw().bfloat16())
    assert near.dtype == torch.bfloat16
    assert exact.dtype == torch.float32
    torch.testing.assert_close(near.float(), exact, atol=0.4, rtol=0.05)
    throughout = mapper.bfloat16()(draw().bfloat16())
    assert throughout.dtype == torch.bfloat16
    assert (throughout.float() - exact).square().mean() < 0.01 * exact.var()


@pytest.mark.parametrize("kind", [RidgeMapper, NetworkMapper])
def test_a_saved_mapper_is_made_again_by_its_class_and_options_and_has_no_statistics(kind):
    mapper = fitted(kind, layers="every:2", reads="one")
    assert mapper.class_path == f"c2c_lightning.mapper.{kind.__name__}"
    again = kind(SHARER, RECEIVER, **mapper.init_args)
    again.load_state_dict(mapper.state_dict())
    assert torch.equal(again(draw()), mapper(draw()))


def test_a_checkpoint_before_the_solution_goes_on_where_it_was():
    cut, whole, again = (RidgeMapper(SHARER, RECEIVER) for _ in range(3))
    for mapper in (cut, whole, again):
        mapper.begin()
    for mapper in (cut, whole):
        mapper.observe(draw(), linear(draw()))
    assert any(name.startswith(STATISTICS) for name in cut.state_dict())
    again.load_state_dict(cut.state_dict())
    for mapper in (again, whole):
        mapper.observe(draw(seed=5), linear(draw(seed=5)))
        mapper.solve()
    assert torch.equal(again.weight, whole.weight)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": "frist:2"}, "mapper layers is 'frist:2'"),
        ({"layers": [4]}, "mapper layers names receiver layer 4"),
        ({"layers": []}, "mapper layers is"),
        ({"reads": "two"}, "mapper reads is 'two'"),
        ({"reads": "best:4"}, "sharer's 3 layers"),
        ({"reads": "best:0"}, "mapper reads is 'best:0'"),
        ({"penalty": 0.0}, "mapper penalty is 0.0"),
        ({"penalty": "much"}, "mapper penalty is 'much': give a number"),
        ({"width": 0}, "mapper width is 0"),
        ({"width": 1.5}, "mapper width is 1.5: give a number"),
    ],
)
def test_options_that_mean_nothing_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        NetworkMapper(SHARER, RECEIVER, **options)


def test_stacks_of_other_models_are_refused():
    mapper = fitted()
    with pytest.raises(
        UserError, match=r"a sharer whose stacks are \(2, 3, tokens, 1, 4\), and got one of \(2, 2, 400"
    ):
        mapper(draw()[:, :2])
    with pytest.raises(UserError, match="use the sharer that"):
        mapper(draw()[:, :, 0])
    mapper.begin()
    with pytest.raises(UserError, match="a receiver whose stacks"):
        mapper.observe(draw(), draw())
    with pytest.raises(UserError, match="400 tokens of the sharer beside 3"):
        mapper.observe(draw(), linear(draw())[:, :, :3])


@pytest.mark.parametrize(
    ("sharer", "penalty", "message"),
    [
        (None, 1e-3, "solved from texts that the sharer alone reads, and saw none: set data.context"),
        (draw() * float("inf"), 1e-3, "cannot be fitted: keys or values"),
        (draw(tokens=10), 1e-9, "too little for 10 tokens, with 24"),
        (draw()[:, :1].expand(-1, 3, -1, -1, -1), 1e-17, "no solution"),
    ],
    ids=["nothing", "overflow", "too few", "no rank"],
)
def test_what_cannot_be_fitted_is_refused(sharer, penalty, message):
    mapper = RidgeMapper(SHARER, RECEIVER, penalty=penalty)
    mapper.begin()
    if sharer is not None:
        mapper.observe(sharer, linear(sharer))
    with pytest.raises(UserError, match=message):
        mapper.solve()
