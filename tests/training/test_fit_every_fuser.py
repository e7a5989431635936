"""Every fuser trains on the built-in pair by one changed line of conf/base.yaml, and comes back as it was."""

from __future__ import annotations

import re

import pytest
import torch

from c2c_lightning import Communicator
from c2c_lightning.formats.config import import_class
from c2c_lightning.fuser import Fuser, Gate, GateConfig, KVShape
from c2c_lightning.fuser.ridge import STATISTICS
from tests.training.ranks import FSDP2, launch
from tests.training.runs import PROJECT, same

CLASSES = ["UnweightedFuser", "ReplacingFuser", "ProjectingFuser", "C2CCFuser", "IdenticalFuser", "LowRankFuser"]
RIDGE = "--model.fuser=c2c_lightning.fuser.RidgeFuser"


@pytest.mark.parametrize("name", [*CLASSES, "RidgeFuser"])
def test_a_fuser_is_named_trained_saved_and_loaded(fit, name):
    is_trained = [] if name == "RidgeFuser" else ["--trainer.callbacks+=tests.training.runs.CompareWithShipped"]
    run = fit("--trainer.max_steps=2", f"--model.fuser=c2c_lightning.fuser.{name}", *is_trained)
    assert run.tracked.data.tags["fuser"] == name
    saved = run.checkpoint()["state_dict"]
    fuser = Communicator.from_pretrained(run.folder, trust_remote_code=True).fusers[0]
    assert type(fuser).__name__ == name
    for key, parameter in fuser.named_parameters():
        assert torch.equal(parameter, saved[f"communicator.fusers.0.{key}"])
    assert name != "RidgeFuser" or fuser.weight.abs().sum() > 0


def test_ridge_learns_from_a_few_batches_and_its_statistics_stay_in_the_checkpoint(fit):
    run = fit("--trainer.max_steps=12", RIDGE, "--data.init_args.batch_size=64", "--trainer.limit_val_batches=4")
    metrics = run.summary["metrics"]
    assert metrics["val/loss"] < 0.95 * metrics["train/loss"]  # which is the receiver's own
    assert any(STATISTICS in key for key in run.checkpoint()["state_dict"])
    exported = Communicator.from_pretrained(str(run.folder / "fuser")).fusers[0]
    from_checkpoint = Communicator.from_pretrained(str(run.folder / "checkpoints" / "last.ckpt")).fusers[0]
    assert torch.equal(exported.weight, from_checkpoint.weight)
    assert not any(STATISTICS in name for name, _ in [*exported.named_buffers(), *from_checkpoint.named_buffers()])


def test_a_resumed_ridge_fuser_is_the_uninterrupted_one(fit, tmp_path):
    whole = fit("--trainer.max_steps=12", RIDGE).checkpoint()
    cut = [
        "--trainer.callbacks+=tests.training.runs.RaiseSignal",
        "--trainer.callbacks.step=7",
        "--trainer.callbacks.number=15",
    ]
    with pytest.raises(SystemExit):
        fit("--trainer.max_steps=12", RIDGE, *cut, workspace=tmp_path)
    resumed = fit("--trainer.max_steps=12", RIDGE, "--ckpt_path=last", workspace=tmp_path).checkpoint()
    assert resumed["global_step"] == 12
    assert same(resumed, whole)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--trainer.limit_val_batches=0"], r"fitted at each validation, and there is none: give validation data"),
        (["--model.gate.init=-1"], r"all of them are closed: set model\.gate\.kind to open"),
        (["--trainer.limit_train_batches=1"], r"scaled on others, and there was one alone"),
    ],
)
def test_ridge_is_refused_where_it_could_not_be_fitted(fit, options, says):
    with pytest.raises(SystemExit, match=says):
        fit("--trainer.max_steps=2", RIDGE, *options)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--trainer.strategy=ddp", "--model.gate.kind=open"], r"trainer\.strategy is DDPStrategy on 1: set"),
        ([*FSDP2, "--trainer.devices=1"], r"trainer\.strategy is FSDP2 on 1: set"),
    ],
)
def test_ridge_is_refused_under_what_shares_out_fusers(tmp_path, options, says):
    with pytest.raises(AssertionError, match=rf"\nerror: .*{says}") as failure:
        launch(tmp_path, "--trainer.max_steps=2", RIDGE, *options)
    assert "Traceback" not in str(failure.value)


def test_ridge_is_compiled_nowhere_and_recomputed_nowhere(fit):
    plain = fit("--trainer.max_steps=4", RIDGE).checkpoint()
    other = fit("--trainer.max_steps=4", RIDGE, "--model.compile=fusers", "--model.recompute_fusers=true").checkpoint()
    assert same(plain, other)


DOCS = (PROJECT / "docs" / "fusers.md").read_text(encoding="utf-8")


def test_the_docs_say_how_many_parameters_each_has_between_the_papers_models():
    stated = dict(re.findall(r"^\| `(\w+)` \|.*\| ([\d.]+)M \|$", DOCS, re.MULTILINE))
    assert set(stated) == {"C2CFuser", *CLASSES, "RidgeFuser"}
    for name, millions in stated.items():
        with torch.device("meta"):
            gate = Gate(GateConfig(), list(range(28)), 8)
            make = import_class({"class_path": f"c2c_lightning.fuser.{name}", "init_args": {}}, Fuser, name)
            fuser = make(KVShape(24, 2, 64), KVShape(28, 8, 128), gate)
        assert f"{sum(p.numel() for p in fuser.parameters()) / 1e6:.1f}" == millions


def test_the_docs_example_of_a_fuser_of_ones_own_trains_and_loads(fit, tmp_path, monkeypatch):
    [code] = re.findall(r"```python\n(# my_fuser.py\n.*?)```", DOCS, re.DOTALL)
    (tmp_path / "my_fuser.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    run = fit("--trainer.max_steps=2", "--model.fuser=my_fuser.LinearFuser", "--model.fuser.init_args.bias=false")
    fuser = Communicator.from_pretrained(run.folder, trust_remote_code=True).fusers[0]
    assert type(fuser).__name__ == "LinearFuser"
    assert fuser.map.bias is None
    assert torch.equal(fuser.map.weight, run.checkpoint()["state_dict"]["communicator.fusers.0.map.weight"])
