"""A receiver that reads the text itself behind a trained prefix: trained, saved, and asked as a skyline."""

import json
import signal

import pytest
import torch

from c2c_lightning.communicator import Communicator
from c2c_lightning.errors import UserError
from c2c_lightning.evaluation.asking.methods import ReadsIt
from c2c_lightning.fuser import Fusers
from c2c_lightning.mapper import Prefix, RidgeMapper
from c2c_lightning.models import FrozenModels, load_aligner, load_models
from tests.training.runs import command, newest, same
from tests.training.test_mapper_training import PRIVATE, QUESTION, TOLD

PAIR = "c2c_lightning/nano/receiver", ["c2c_lightning/nano/sharer"]
PREFIX = [
    *(argument for argument in PRIVATE if "mapper" not in argument),
    "--model.mapper={class_path: c2c_lightning.mapper.Prefix, init_args: {length: 4}}",
    "--trainer.max_steps=2",
    "--trainer.val_check_interval=2",
]


@pytest.fixture(scope="module")
def models() -> FrozenModels:
    return FrozenModels(*load_models(*PAIR), load_aligner(*PAIR))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    workspace = tmp_path_factory.mktemp("prefix")
    command(workspace, "fit", *PREFIX)
    return newest(workspace)


def conversations(*texts: str | None):
    return [[{**QUESTION[0], "private": text}] for text in texts]


def test_the_receiver_reads_the_text_itself_behind_entries_that_the_text_does_not_change(models):
    prefix = Prefix(models.sharer_shapes[0], models.receiver_shape, length=4)
    batch = models.collate(conversations(TOLD, None, TOLD.replace("Cairo", "New Oslo")))
    reading = models.read(batch).with_mapper(prefix)
    told, own = reading.batch, batch.with_texts()
    lengths, longer = told.prompt_mask.sum(1), own.prompt_mask.sum(1)
    assert (lengths - longer).tolist() == [4, 0, 4]
    without = told.prompt_mask.clone().bool()
    without[:, :-1] = without[:, :-1].flatten().index_fill(0, told.private.slots, False).view(3, -1)
    assert torch.equal(told.prompt_ids[without], own.prompt_ids[own.prompt_mask.bool()])
    values = reading.receiver_cache().layers[0].values.transpose(1, 2).flatten(0, 1)[told.private.slots]
    assert torch.equal(values[:4], values[4:])
    # Alone and beside others, each is read as it is.
    one = models.read(models.collate(conversations(TOLD))).with_mapper(prefix).receiver_cache().layers[-1].keys
    torch.testing.assert_close(one[0], reading.receiver_cache().layers[-1].keys[0][:, -one.shape[2] :])


def test_it_trains_saves_and_answers_like_other_mappers(trained):
    model = Communicator.from_pretrained(trained.folder)
    prefix = model.fusers.mapper
    assert isinstance(prefix, Prefix)
    assert prefix.init_args == {"length": 4}
    metrics = trained.summary["metrics"]
    assert {"val/loss", "val/accuracy/c2c", "val/accuracy/reads_it"} <= metrics.keys()
    told = model.generate(QUESTION, context=TOLD, max_new_tokens=4)
    assert model.generate([QUESTION] * 2, context=[TOLD, TOLD], max_new_tokens=4) == [told, told]


def test_a_resumed_prefix_is_the_same_to_the_bit(trained, tmp_path):
    cut = [
        "--trainer.callbacks+=tests.training.runs.RaiseSignal",
        "--trainer.callbacks.step=1",
        f"--trainer.callbacks.number={int(signal.SIGTERM)}",
    ]
    with pytest.raises(SystemExit):
        command(tmp_path, "fit", *PREFIX, *cut)
    command(tmp_path, "fit", *PREFIX, "--ckpt_path=last")
    assert same(newest(tmp_path).checkpoint(), trained.checkpoint())


def test_retention_is_told_against_both_skylines(trained, tmp_path):
    command(tmp_path, "fit", *PRIVATE, "--trainer.max_steps=1", "--trainer.val_check_interval=1")
    mapper = newest(tmp_path)
    methods = (
        "[{class_path: Receiver}, {class_path: ReadsIt}, {class_path: ReadsIt, init_args: "
        f"{{prefix: {trained.folder}}}}}, {{class_path: C2C}}]"
    )
    questions = "[{class_path: NanoWorld, init_args: {told: true, context: sharer, limit: 8}}]"
    shared = ["--model.controls=[]", "--trainer.accelerator=cpu", f"--data.benchmarks={questions}"]
    command(tmp_path, "test", f"--model.fuser={mapper.folder}", f"--model.methods={methods}", *shared)
    [file] = mapper.folder.glob("evaluation-*/results.json")
    [found] = json.loads(file.read_text())["benchmarks"].values()
    assert list(found["methods"]) == ["receiver", "reads_it", "reads_it_trained", "c2c"]
    assert found["retention"].keys() == {"value", "low", "high"}
    assert "retention_trained" in found
    assert "retention against the trained skyline" in (file.parent / "report.md").read_text()
    with pytest.raises(SystemExit, match="is a trained prefix, with which nothing is handed over"):
        command(tmp_path, "test", f"--model.fuser={trained.folder}", *shared)


def test_what_is_no_prefix_for_this_receiver_is_refused(models, tmp_path):
    fusers = Fusers(models.receiver_shape, models.sharer_shapes, fuser=None, mapper=RidgeMapper)
    Communicator(models, fusers).save_pretrained(tmp_path / "ridge")
    with pytest.raises(UserError, match=r"whose model\.mapper is no Prefix"):
        ReadsIt(str(tmp_path / "ridge")).check(models)
    with pytest.raises(UserError, match="mapper length is 0: it must be at least 1"):
        Prefix(models.sharer_shapes[0], models.receiver_shape, length=0)


def test_what_a_prefix_cannot_do_is_refused_before_training(tmp_path):
    with pytest.raises(SystemExit, match=r"model\.texts\.entries is 1\.0, and model\.mapper is a Prefix"):
        command(tmp_path, "fit", *PREFIX, "--model.texts.entries=1")
    fuser = "{class_path: c2c_lightning.fuser.C2CFuser, init_args: {hidden: 16}}"
    with pytest.raises(SystemExit, match=r"a Prefix, with which the receiver reads alone: set model\.fuser to null"):
        command(tmp_path, "fit", *PREFIX, f"--model.fuser={fuser}")
    with pytest.raises(SystemExit, match=r"a Prefix, and the data have no texts that the sharer alone reads"):
        command(tmp_path, "fit", *PREFIX, "--data.init_args.told=false")
