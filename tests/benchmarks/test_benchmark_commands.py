"""Every benchmark at a tiny size: what it prints is sane, and what it compares with is true."""

from __future__ import annotations

import copy
import json
import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import cached, compare, data, fuser, generate, scaling, train_step
from benchmarks.floor import attention_flops, floor_flops, fuser_flops, prefill_flops, response_flops
from benchmarks.pairs import MODELS, random_batch, random_communicator
from benchmarks.rounds import ratio, taking_turns
from c2c_lightning.models import load_aligner
from tests.data.some_data import word_problems, write_jsonl

TINY = "qwen3-tiny+qwen2-tiny"


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def communicator(monkeypatch):
    for name in TINY.split("+"):  # whose configuration is about to be changed
        monkeypatch.setitem(MODELS, name, copy.deepcopy(MODELS[name]))
    communicator = random_communicator(TINY, 16, "fp32", "cpu")
    # Its matmuls are counted one by one; other attention is one operation, which no counter looks into on a CPU.
    for model in (communicator.models.receiver, *communicator.models.sharers):
        model.set_attn_implementation("eager")
    return communicator


def table(text: str) -> list[list[str]]:
    """The cells of the rows of all tables, without their heads."""
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return [cells for cells in lines if any(cell[:1].isdigit() for cell in cells[1:])]


def counted(function) -> int:
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


def beyond_causal(config, queries: int, before: int) -> int:
    """What eager attention multiplies only to mask it: later tokens."""
    every_pair = 4 * queries * (before + queries) * config.num_attention_heads * config.head_dim
    return every_pair - attention_flops(config, queries, before)


def test_the_floor_of_a_prefill_is_what_a_prefill_multiplies(communicator):
    config, batch = communicator.models.receiver.config, random_batch(communicator, 2, 24, 3)
    found = counted(lambda: communicator.read(batch).receiver_cache())
    masked = 2 * (config.num_hidden_layers - 1) * beyond_causal(config, 23, 0)
    # The last layer's queries are made before its keys and values are put into the cache, which ends the prefill.
    queries = 2 * 23 * 2 * config.hidden_size * config.num_attention_heads * config.head_dim
    assert found == pytest.approx(prefill_flops(config, 2, 23) + masked + queries, rel=1e-3)


def test_the_floor_of_a_response_is_what_it_multiplies_forward_and_backward(communicator):
    config, (batch_size, prompt, response) = communicator.models.receiver.config, (2, 24, 6)
    batch = random_batch(communicator, batch_size, prompt, response)
    cache = communicator.read(batch).receiver_cache()
    for layer in cache.layers:  # as if they were fused
        layer.keys, layer.values = layer.keys.clone().requires_grad_(), layer.values.clone().requires_grad_()
    losses = []
    forward = counted(lambda: losses.append(communicator.models.response_loss(cache, batch)[0]))
    backward = counted(losses[0].backward)
    floor_forward, floor_backward = response_flops(config, batch_size, prompt, response)
    masked = batch_size * config.num_hidden_layers * beyond_causal(config, response, prompt - 1)
    assert forward == pytest.approx(floor_forward + masked, rel=1e-3)
    # Of the first layer's attention nobody needs the queries' gradient, a quarter of what goes back through it.
    every_pair = 4 * response * (prompt - 1 + response) * config.num_attention_heads * config.head_dim
    assert backward == pytest.approx(floor_backward + 2 * masked - batch_size * every_pair // 2, rel=1e-3)


def test_the_floor_of_fusion_is_what_it_multiplies_forward_and_backward(communicator):
    (only,) = communicator.fusers
    groups, tokens = only.num_groups, 10
    sharer, receiver = (torch.randn(groups, tokens, shape.features) for shape in (only.sharer, only.receiver))
    outs = []
    forward = counted(lambda: outs.append(only.update(sharer, receiver, None)))
    backward = counted(outs[0].sum().backward)
    assert (forward, backward) == fuser_flops(only, tokens)


def test_the_floor_of_a_step_is_the_sum_of_its_stages(communicator):
    batch = random_batch(communicator, 2, 24, 6)
    optimizer = torch.optim.AdamW(communicator.fusers.parameters())
    found = counted(lambda: train_step.staged_step(communicator, batch, optimizer, "fp32"))
    # What eager attention masks makes it more.
    assert 1 < found / sum(floor_flops(communicator, 2, 24, 6).values()) < 1.2


def test_what_takes_turns_is_called_equally_often_and_compared_round_by_round():
    calls = []
    times = taking_turns({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=4)
    assert sorted(calls) == ["a"] * 5 + ["b"] * 5
    assert all(len(seconds) == 4 for seconds in times.values())
    assert ratio({"a": [1.0, 2.0, 9.0], "b": [1.0, 1.0, 3.0]}, "a", "b") == 2.0


def test_the_loop_beside_a_stacked_fuser_has_its_outputs_and_gradients():
    both = fuser.Compared(layers=2, tokens=8, hidden=16, dtype="fp32", device="cpu")
    assert both.stacked().abs().sum() > 0
    assert both.difference() < 1e-5
    both.train_stacked()
    both.train_loop()
    for i, pair in enumerate(both.pairs):
        for name, parameter in pair.named_parameters():
            stacked = both.fuser.get_parameter(name.replace("norm.weight", "norm")).grad[i]
            stacked = stacked.mT if parameter.ndim == 2 else stacked.view_as(parameter)
            torch.testing.assert_close(stacked, parameter.grad, atol=1e-5, rtol=1e-4)


def test_the_fuser_benchmark_has_a_row_for_every_size_that_is_not_too_large(capsys):
    fuser.measure(layers=[2], tokens=[4, 100_000], hiddens=[16], rounds=1, most=1e8)
    out = capsys.readouterr().out
    assert len(table(out)) == 2
    assert all(0 < float(row[4]) < 100 for row in table(out))
    assert "left out" in out
    assert "100000" in out


def test_the_generation_benchmark_splits_what_fusion_adds(capsys):
    communicator = random_communicator(TINY, 16, "fp32", "cpu").eval()
    found = generate.measured_generation(communicator, random_batch(communicator, 2, 48, 1), 3, 6, rounds=3)
    assert found.first("T2T") > found.first("fused") > found.first("alone") > found.further("alone") > 0
    assert found.added > 0
    assert 0.3 < found.sum_of_parts / found.added < 3
    assert 0.5 < found.decode_ratio < 2
    generate.measure(pair=TINY, hidden=16, batches=[1, 2], prompt=8, message=2, response=3, rounds=1)
    assert [row[0] for row in table(capsys.readouterr().out)] == ["alone", "fused", "T2T"] * 2


def test_the_cached_benchmark_compares_files_with_reading(capsys):
    cached.measure(pair=TINY, tokens=24, bits=[8], rounds=1)
    rows = table(capsys.readouterr().out)
    assert [row[0] for row in rows] == [cached.READS, "from a file", "from a file, 8 bits", cached.ALONE]
    assert int(rows[2][2].replace(",", "")) < int(rows[1][2].replace(",", ""))
    assert float(rows[0][3]) == 1.0


def test_the_data_benchmark_counts_examples_and_padding(tmp_path, capsys):
    found = data.delivered(data.built_in(load_aligner(data.RECEIVER, [data.SHARER]), batch_size=4, workers=0), most=5)
    assert found.examples_per_second > 1
    assert 5 < found.tokens < 50
    assert all(0 < share < 0.5 for share in found.padding.values())
    problems = write_jsonl(tmp_path / "problems.jsonl", word_problems("test", 20))
    data.measure(problems, workers=[0], batches=2, rounds=1)
    rows = table(capsys.readouterr().out)
    assert len(rows) == 3
    assert all(row[-1] == "0" for row in rows)


def test_growth_is_measured_beside_linear_growth():
    steps = {
        str(size): train_step.TrainStep(TINY, 16, "fp32", "cpu", batch=size, prompt=16, response=2) for size in (1, 2)
    }
    rows = scaling.growth({"1": [1.0, 1.0], "2": [2.0, 2.2]}, steps, [1, 2])
    assert [row["growth"] for row in rows] == pytest.approx([1.0, 1.05])
    assert [row["floor"] for row in rows] == pytest.approx([1.0, 1.0])


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize(("batch", "prompt", "hidden"), [(1, 4096, 32), (2, 512, 128)])
def test_the_memory_of_a_step_is_what_the_formula_says(dtype, batch, prompt, hidden):
    step = train_step.TrainStep(TINY, hidden, dtype, "cpu", batch, prompt, response=16)
    step()
    predicted = scaling.predicted_memory(step.communicator, hidden, dtype, *step.size)
    assert scaling.peak_memory(step, "cpu") == pytest.approx(predicted, rel=0.15)


def test_the_scaling_benchmark_has_its_four_tables(capsys):
    scaling.measure(TINY, hidden=16, batches=[1, 2], prompts=[16, 32], layers=[2, 3], prompt=16, response=2, rounds=1)
    rows = table(capsys.readouterr().out)
    assert [row[0] for row in rows] == ["1", "2", "16", "32", "2", "3", "16", "32"]
    assert all(math.isfinite(float(cell)) and float(cell) > 0 for row in rows for cell in row)


def test_a_train_step_is_beside_its_floor(capsys):
    train_step.measure(TINY, hidden=16, batch=1, prompt=16, response=4, steps=2)
    assert "| step |" in capsys.readouterr().out


def test_the_baseline_has_every_ratio():
    assert json.loads(compare.BASELINE.read_text())["ratios"].keys() == compare.MEASURES.keys()


def test_the_quick_measures_are_ratios():
    assert 0 < compare.of_floor(TINY, 16, "fp32", 1, 16, 4, rounds=2) < 1
    assert all(0 < value < 2 for value in compare.generation(TINY, 16, 1, rounds=2).values())


class TestCompare:
    @pytest.fixture
    def baseline(self, tmp_path, monkeypatch):
        monkeypatch.setattr(compare, "MEASURES", {"a": lambda rounds: 0.5, "b": lambda rounds: 2.0})
        file = tmp_path / "baseline.json"
        compare.compare(update=True, baseline=file)
        return file

    def test_what_is_within_a_tenth_passes(self, baseline, monkeypatch, capsys):
        monkeypatch.setattr(compare, "MEASURES", {"a": lambda rounds: 0.46, "b": lambda rounds: 3.0})
        compare.compare(baseline=baseline)
        assert [row[-1] for row in table(capsys.readouterr().out)[-2:]] == ["-8%", "+50%"]

    def test_a_regression_ends_with_its_name_and_both_ratios(self, baseline, monkeypatch):
        monkeypatch.setattr(compare, "MEASURES", {"a": lambda rounds: 0.44, "b": lambda rounds: 2.0})
        with pytest.raises(SystemExit, match=r"more than 10% slower than the baseline:\n  a: 0.440, was 0.500"):
            compare.compare(baseline=baseline)

    def test_what_falls_short_once_is_measured_again(self, baseline, monkeypatch):
        values = iter([0.1, 0.5])
        monkeypatch.setattr(compare, "MEASURES", {"a": lambda rounds: next(values), "b": lambda rounds: 2.0})
        compare.compare(baseline=baseline)

    def test_a_missing_baseline_says_how_to_make_one(self, tmp_path):
        with pytest.raises(SystemExit, match="--update"):
            compare.compare(baseline=tmp_path / "none.json")
