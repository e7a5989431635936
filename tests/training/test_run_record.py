"""A run's record is there as a whole or not at all."""

from types import SimpleNamespace

import pytest
from jsonargparse import ArgumentParser

from c2c_lightning.errors import UserError
from c2c_lightning.training.run_record import RunRecord
from tests.disk import full_disk


def test_a_configuration_that_cannot_be_written_leaves_the_one_that_is_there(tmp_path):
    parser = ArgumentParser()
    for key in ("trainer.default_root_dir", "trainer.max_steps", "ckpt_path"):
        parser.add_argument(f"--{key}")
    run = SimpleNamespace(folder=tmp_path / "run", label="", tracker=None)
    RunRecord(parser, parser.parse_args(["--trainer.max_steps=300", "--ckpt_path=last"])).begin(run, False)
    written = (run.folder / "config.yaml").read_text()
    assert "max_steps: '300'" in written
    assert "ckpt_path: null" in written, "so that the file can be run again as it is"
    other = RunRecord(parser, parser.parse_args(["--trainer.max_steps=500"]))
    with full_disk(5), pytest.raises(UserError, match="File too large"):
        other.begin(run, False)
    assert (run.folder / "config.yaml").read_text() == written
