"""A run that was cut off goes on with exactly the batches that it would have had."""

from __future__ import annotations

from itertools import islice

import lightning as L
import pytest
import torch
from some_data import LONG, pairs, write_jsonl

from c2c_lightning.data import InstructionData
from c2c_lightning.data.loader import Loader
from c2c_lightning.models import Batch

# 40 records in batches of 6; of a stream, shuffled 12 at a time.
PER_EPOCH = 7
ways = pytest.mark.parametrize("streaming", [False, True], ids=["table", "stream"])


@pytest.fixture
def make_data(aligner, tmp_path):
    file = write_jsonl(tmp_path / "data.jsonl", pairs(40))
    held_out = write_jsonl(tmp_path / "val.jsonl", pairs(50)[40:])

    def make(**changes) -> InstructionData:
        settings = {"batch_size": 6, "buffer": 12, "seed": 1, "exact_answers": True}
        return InstructionData(file, val_path=held_out, aligner=aligner, **{**settings, **changes})

    return make


def epochs(loader: Loader, num: int) -> list[Batch]:
    return [batch for _ in range(num) for batch in loader]


def places(batches: list[Batch]) -> list[tuple[int, int, list[str]]]:
    return [(batch.epoch, batch.index, batch.references) for batch in batches]


@ways
@pytest.mark.parametrize(
    ("num_workers", "num_done"),
    [*((0, done) for done in (0, 1, 5, PER_EPOCH, PER_EPOCH + 2, 2 * PER_EPOCH)), (2, 1), (2, PER_EPOCH + 2)],
)
def test_a_fresh_loader_goes_on_where_the_model_was(make_data, streaming, num_workers, num_done):
    data = make_data(streaming=streaming)
    whole = epochs(data.train_dataloader(), 4)
    assert len(whole) == 4 * PER_EPOCH
    interrupted = make_data(streaming=streaming, num_workers=num_workers).train_dataloader()
    # The model was given `num_done` batches; one more was fetched, and workers have prepared others.
    fetched = (batch for _ in range(4) for batch in interrupted)
    for batch in islice(fetched, num_done):
        interrupted.mark(batch)
    next(fetched)
    state = interrupted.state_dict()
    fetched.close()

    resumed = make_data(streaming=streaming, num_workers=num_workers).train_dataloader()
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    rest = epochs(resumed, 2)
    expected = whole[num_done : num_done + len(rest)]
    assert len(rest) > PER_EPOCH
    assert places(rest) == places(expected)
    for batch, other in zip(rest, expected):
        assert torch.equal(batch.prompt_ids, other.prompt_ids)
        assert torch.equal(batch.response_ids, other.response_ids)


@ways
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 12}, "data.batch_size x devices is 12, but was 6 when the checkpoint was saved"),
        ({"seed": 2}, "data.seed is 2, but was 1 when the checkpoint was saved"),
    ],
)
def test_a_place_that_would_be_wrong_is_refused(make_data, streaming, changes, message):
    state = make_data(streaming=streaming).train_dataloader().state_dict()
    with pytest.raises(ValueError, match=message):
        make_data(streaming=streaming, **changes).train_dataloader().load_state_dict(state)


def test_the_buffer_of_a_stream_and_the_size_of_a_table_must_stay(make_data, tmp_path):
    stream, table = (make_data(streaming=streaming).train_dataloader().state_dict() for streaming in (True, False))
    with pytest.raises(ValueError, match=r"data\.buffer is 24, but was 12"):
        make_data(streaming=True, buffer=24).train_dataloader().load_state_dict(stream)
    make_data(buffer=24).train_dataloader().load_state_dict(table)
    write_jsonl(tmp_path / "data.jsonl", pairs(39))
    with pytest.raises(ValueError, match=r"data\.path's number of examples is 39, but was 40"):
        make_data().train_dataloader().load_state_dict(table)


class Recorder(L.LightningModule):
    """Writes down the batches that it is given, and saves a checkpoint after one of them."""

    def __init__(self, save_after: int | None = None, file: str | None = None):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.save_after, self.file = save_after, file
        self.given: list[Batch] = []
        self.validated: list[Batch] = []

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        self.given.append(batch)
        return self.weight * 0.0

    def on_train_batch_end(self, outputs, batch: Batch, batch_idx: int) -> None:
        if len(self.given) == self.save_after:
            self.trainer.save_checkpoint(self.file)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.validated.append(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(module: Recorder, data: InstructionData, ckpt_path: str | None = None) -> Recorder:
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=3 * PER_EPOCH,
        val_check_interval=4,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, datamodule=data, ckpt_path=ckpt_path)
    return module


@ways
@pytest.mark.parametrize("num_done", [1, 5, PER_EPOCH, PER_EPOCH + 1, 2 * PER_EPOCH])
def test_the_trainer_resumes_with_the_same_batches(make_data, streaming, num_done, tmp_path):
    file = str(tmp_path / "cut.ckpt")
    whole = fit(Recorder(num_done, file), make_data(streaming=streaming))
    assert [(batch.epoch, batch.index) for batch in whole.given] == [divmod(i, PER_EPOCH) for i in range(3 * PER_EPOCH)]
    assert places(fit(Recorder(), make_data(streaming=streaming), file).given) == places(whole.given[num_done:])
    assert {answer for batch in whole.validated for answer in batch.references} == {
        f"answer {i}" for i in range(40, 50)
    }


def test_a_resumed_run_has_left_out_as_many_examples_as_one_that_was_not_interrupted(make_data, tmp_path):
    file = str(tmp_path / "cut.ckpt")
    write_jsonl(tmp_path / "data.jsonl", [*pairs(32), *[LONG] * 8])
    whole, resumed = (make_data(max_length=200, bucket=False) for _ in range(2))
    saved_after = 4
    module = Recorder(saved_after, file)
    fit(module, whole)
    early = sum(batch.skipped.get("too_long", 0) for batch in module.given[:saved_after])
    assert 0 < early < 8, "some are left out before the cut, and some after it"
    fit(Recorder(), resumed, file)
    assert whole.left_out == resumed.left_out == {"too_long": 8, "refused": 0}
