"""The gates' history, which stands in every checkpoint, stays short however long a run is."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from c2c_lightning.fuser import C2CFuser, Fusers, GateConfig, KVShape
from c2c_lightning.training.optimizer import OptimizerConfig
from c2c_lightning.training.run import Run
from c2c_lightning.training.run_record import EVERY, MOST_COLUMNS, draw_gates, note_gates


@pytest.mark.parametrize("steps", [100, 20_000])
def test_a_long_run_has_a_history_of_bounded_length_at_even_distances(steps):
    run = Run(OptimizerConfig())
    shape = KVShape(2, 1, 2)
    run.communicator = type("Fused", (), {"fusers": Fusers(shape, [shape], C2CFuser, gate=GateConfig())})
    for step in range(1, steps + 1):
        run.fusers.gates[0].logit.data.fill_(step / steps)
        note_gates(run, step)
        note_gates(run, step)  # another micro-batch of the step
    assert len(run.gate_steps) == len(run.gate_history) == min(steps // EVERY, len(run.gate_steps)) <= MOST_COLUMNS
    [distance] = {later - earlier for earlier, later in pairwise(run.gate_steps)}
    assert run.gate_steps[0] == distance
    assert run.gate_steps[-1] > steps - distance
    for step, [column] in zip(run.gate_steps, run.gate_history):
        assert torch.allclose(column, torch.tensor(step / steps).sigmoid())
    assert draw_gates(run).axes
