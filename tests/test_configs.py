"""Every shipped configuration parses, and its model can be built."""

from pathlib import Path

import pytest
import yaml

from c2c_lightning.cli import C2CCLI, WIRING
from c2c_lightning.training import C2CModule

PROJECT = Path(__file__).parents[1]
CONFIGS = sorted((PROJECT / "conf").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_model_part_can_be_built_with_tiny_models_in_place_of_hub_names(path, monkeypatch):
    monkeypatch.chdir(PROJECT)
    sharers = yaml.safe_load(path.read_text())["model"]["sharers"]
    monkeypatch.setattr("sys.argv", ["c2c_lightning"])
    built = C2CCLI(
        **WIRING,
        run=False,
        args=[
            f"--config={path}",
            "--model.receiver=c2c_lightning/nano/receiver",
            f"--model.sharers={['c2c_lightning/nano/sharer'] * len(sharers)}",
            "--model.fuser.init_args.hidden=16",
            "--trainer.accelerator=cpu",
            "--trainer.devices=1",
        ],
    )
    assert isinstance(built.model, C2CModule)
    built.model.configure_model()
    assert built.model.communicator.fused_layers
