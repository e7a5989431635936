"""Trains fusers between frozen models: where a batch becomes a loss, and a loss becomes a step."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from transformers import DynamicCache

from c2c_lightning.errors import UserError
from c2c_lightning.formats.checkpoint import FUSERS
from c2c_lightning.fuser import C2CFuser, FuserFactory, GateConfig, LayerMap, Layers, fuse_all
from c2c_lightning.mapper import MapperFactory
from c2c_lightning.models import Batch, ChatConfig, FrozenModels, PromptStore, Reading, load_aligner, load_models
from c2c_lightning.models.alignment import Alignment
from c2c_lightning.training.acceleration import Compiled, compile_parts
from c2c_lightning.training.exact_answers import ExactAnswers
from c2c_lightning.training.mappers import (
    TextTraining,
    begin_prefixes,
    check_prefix,
    check_told,
    nothing_of,
    solve_mappers,
)
from c2c_lightning.training.optimizer import OptimizerConfig, Schedule, adamw
from c2c_lightning.training.run import Run, own
from c2c_lightning.training.sharding import FSDP1, clip_gradients, shard


class C2CModule(L.LightningModule):
    """Frozen receiver and sharers, and the fusers that are trained between them.

    As a rule it trains one run, of the fuser that is configured. `runs` may hold several, each with fusers of its own:
    the frozen models then read every batch once for all of them.

    Args:
        receiver: the LM that answers: a folder or a hub id.
        sharers: the LMs whose caches are handed over.
        alignment: `spans`, or `published` for the re-encoding of the published code.
        layer_map: `terminal`, `depth`, or {receiver layer: sharer layer}.
        layers: the receiver layers that may be fused: `all`, `first:K`, `last:K`, `every:K` or a list.
        fuser: the fuser's class and sizes; null for no fusion.
        mapper: class and sizes of the mapper of texts that the first sharer alone reads; null for none.
        texts: how the mapper is trained.
        gate: the layer-gating configuration.
        optimizer: learning rates and their schedule.
        dtype: of the frozen models; `auto` for the one they were saved in. Fusers are always fp32.
        template_kwargs: handed to every chat template.
        chat: chat templates other than the models' own, what is done with turns that one refuses, and today's date.
        prompt_store: folder and budget of what the frozen models make of prompts, for data that are seen more than
            once; null to compute it every time.
        compile: what torch.compile makes faster: `fusers`, or `all` for the frozen models' layers too.
        recompute_fusers: activation checkpointing of the fusers: less memory for a third more of their FLOPs.
    """

    def __init__(
        self,
        receiver: str,
        sharers: list[str],
        alignment: Alignment = "spans",
        layer_map: LayerMap = "terminal",
        layers: Layers = "all",
        fuser: FuserFactory | None = C2CFuser,
        mapper: MapperFactory | None = None,
        texts: TextTraining = TextTraining(),  # noqa: B008
        gate: GateConfig = GateConfig(),  # noqa: B008 (the command line shows its defaults)
        optimizer: OptimizerConfig = OptimizerConfig(),  # noqa: B008
        dtype: str = "auto",
        template_kwargs: dict[str, Any] | None = None,
        chat: ChatConfig = ChatConfig(),  # noqa: B008
        prompt_store: PromptStore | None = None,
        compile: Compiled = "none",
        recompute_fusers: bool = False,
    ):
        super().__init__()
        if not sharers:
            raise UserError("model.sharers is empty: name at least one model whose cache is to be read.")
        if fuser is None and mapper is None:
            raise UserError("model.fuser and model.mapper are both null, so nothing would be communicated: give one.")
        self.receiver, self.sharers, self.dtype_name = receiver, sharers, dtype
        self.prompt_store, self.compiled, self.recompute_fusers = prompt_store, compile, recompute_fusers
        self.date = chat.date
        self.aligner = load_aligner(receiver, sharers, alignment, template_kwargs, chat)
        self.runs = [Run(optimizer, texts, fuser=fuser, layer_map=layer_map, layers=layers, gate=gate, mapper=mapper)]
        self.failed: dict[Path, UserError] = {}  # of several runs those that were stopped, by folder
        self.exact_answers = ExactAnswers(len(sharers), private=mapper is not None)
        self.schedule = Schedule()
        self.strict_loading = False  # checkpoints hold the fusers only
        self.seed = torch.initial_seed()
        self.validated_at: int | None = None
        self._clock = 0.0

    @property
    def models(self) -> FrozenModels:
        return self.runs[0].communicator.models

    def setup(self, stage: str) -> None:
        if self.runs[0].fuser_settings.get("mapper") and isinstance(self.trainer.strategy, FSDP1):
            # It gathers what is at the models' roots within a step alone, and the closed form is solved before.
            raise UserError("model.mapper is not trained by the older FSDP: set trainer.strategy to FSDP2, or to ddp.")
        for run in self.runs:
            if run.folder is None:  # the only one
                run.folder, run.loggers = Path(self.trainer.default_root_dir), self.trainer.loggers

    def configure_model(self) -> None:
        if self.runs[0].communicator is not None:
            return
        loaded = load_models(self.receiver, self.sharers, self.dtype_name)
        models = FrozenModels(*loaded, self.aligner, self.prompt_store)
        for run in self.runs:
            with isolate_rng():  # the fusers of every run begin as they would alone
                run.make_fusers(models)
            compile_parts(run.communicator, self.compiled)
            for fuser in run.fusers:
                fuser.recomputes = self.recompute_fusers
            if run.closed_form or not run.has_steps:
                run.check_strategy(self.trainer)
            # Where checkpoints have its weights, and where metrics are moved to the device.
            for name in ("communicator", "val_loss", "accuracy"):
                self.add_module(f"{run.label}{name}", getattr(run, name))
        if self.device_mesh is not None:
            shard(self.communicator, self.device_mesh["data_parallel"])

    def configure_optimizers(self) -> dict[str, Any]:
        self.schedule.lengths = self.schedule.lengths or [(0, self.num_steps())]
        groups, warmups = [], []
        for run in self.runs:
            for group in run.optimizer.parameter_groups(run.fusers):
                groups.append({**group, "name": f"{run.label}{group['name']}"})
                warmups.append(run.optimizer.warmup)
        return adamw(groups, warmups, self.schedule.total_at, self.trainer.precision)

    def num_steps(self) -> int:
        """The number of optimizer steps; a UserError if nobody knows it, as of a stream without `trainer.max_steps`."""
        steps = self.trainer.estimated_stepping_batches
        if steps == float("inf") or steps < 1:
            raise UserError(
                "the run has no known number of steps, which the learning rate and the gates are scheduled "
                "over: set trainer.max_steps."
            )
        return int(steps)

    def on_fit_start(self) -> None:
        for run in self.runs:
            check_prefix(run.fusers, run.texts)
            if len(run.fusers) and not any(gate.learns or gate.active() for gate in run.fusers.gates):
                raise UserError("model.gate leaves every layer closed, so there is nothing to train: open some.")
            if any(parameter.dtype != torch.float32 for parameter in run.fusers.parameters()):
                raise UserError(
                    f"trainer.precision {self.trainer.precision} would train fusers in half precision: give "
                    "bf16-mixed; model.dtype is for the frozen models."
                )
        models = [(self.receiver, self.models.receiver), *zip(self.sharers, self.models.sharers)]
        if self.prompt_store is not None:
            self.prompt_store.check(model for _, model in models)
        for name, model in models:
            rank_zero_info(f"frozen: {name}, {model.num_parameters():,} parameters")
        for run in self.runs:
            for fuser, size in zip(run.fusers, run.fuser_sizes):
                layers, name = fuser.gate.receiver_layers, fuser.class_path.rpartition(".")[2]
                rank_zero_info(f"trained: {name} on receiver layers {layers}, {size:,} parameters")
            if run.fusers.mapper:
                name = run.fusers.mapper.class_path.rpartition(".")[2]
                rank_zero_info(f"trained: {name}, {run.fuser_sizes[-1]:,} parameters")

    def on_train_start(self) -> None:
        for run in self.runs:
            if run.closed_form:
                run.closed_form.check_validation(self.trainer)
        if not self.global_step:  # a run that goes on has them in its checkpoint
            mappers = [run.fusers.mapper for run in self.runs]
            solve_mappers(self.trainer, self.models, mappers, self.runs[0].texts.observed)
            begin_prefixes(self.trainer, self.models, mappers)
        if not any(run.has_steps for run in self.runs):
            rank_zero_info("No step is made: the mapper is in closed form, and nothing is left to train.")
            self.trainer.should_stop = True
        self._clock = time.perf_counter()

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        # Dropout depends on the batch's place in the run and not on what was drawn before it, so a
        # resumed run draws what an uninterrupted one does.
        place = (self.seed, batch.epoch, batch.index, self.global_rank)
        torch.manual_seed(int(np.random.SeedSequence(place).generate_state(1)[0]))
        for run in self.runs:
            for gate in run.fusers.gates:
                gate.anneal(self.global_step, self.schedule.total_at(self.global_step))
            if run.closed_form:
                run.closed_form.see(batch)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        reading = self.read(batch)
        caches = fuse_all([run.fusers for run in self.runs], reading)
        # One response after the other: as one large batch they would be rounded otherwise than alone.
        losses = [run.training_loss(batch, *self.loss_of(run, cache, reading)) for run, cache in zip(self.runs, caches)]
        return torch.stack(losses).sum()

    def read(self, batch: Batch) -> Reading:
        """What the frozen models make of a batch."""
        check_told(self.trainer, self.models, batch)
        return self.models.read(batch)

    def loss_of(self, run: Run, cache: DynamicCache, reading: Reading) -> tuple[Tensor, Tensor]:
        """What a run is to make small, summed over the supervised tokens, and their number."""
        if reading.batch.private is None:
            loss, supervised = self.models.response_loss(cache, reading.batch)
            return loss + (nothing_of(run.fusers.mapper, loss.device) if run.fusers.mapper else 0), supervised
        loss = self.models.text_loss(cache, reading.with_mapper(run.fusers.mapper), **run.texts.losses)
        return loss, reading.batch.num_supervised

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        now = time.perf_counter()
        # Lightning divides by the micro-batches of a step, and the gradients are averaged over ranks.
        averaged_over = self.trainer.accumulate_grad_batches * self.trainer.world_size
        for run in self.runs:
            loss, supervised, tokens = self.trainer.strategy.reduce(run.sums, reduce_op="sum").unbind()
            supervised = supervised.clamp(min=1)
            for parameter in run.fusers.parameters():
                if parameter.grad is not None:
                    parameter.grad.mul_(averaged_over / supervised)
            run.loss = loss / supervised
            self.log_of(run, "train/loss", run.loss, prog_bar=True)
            self.log_of(run, "train/tokens_per_second", tokens / (now - self._clock))
            for part, share in run.open_gates().items():
                self.log_of(run, f"gate/open_{part}", share)
            run.sums = 0.0
        self._clock = now

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        # Not Lightning's own clipping: it refuses a fused AdamW under bf16-mixed, where nothing is unscaled.
        limit = {"max_value" if gradient_clip_algorithm == "value" else "max_norm": gradient_clip_val or math.inf}
        for run in self.runs:
            norm = clip_gradients(run.fusers, **limit)
            self.log_of(run, "train/grad_norm", norm)
            # fp16's scaler looks for its scale by gradients that overflow, and leaves out those steps.
            scaled = self.trainer.precision == "16-mixed"
            run.see_step(self.global_step + 1, torch.zeros_like(norm) if scaled else norm)
        # Reading a result makes a GPU wait, so only where metrics are read anyway.
        if self.device.type == "cpu" or (self.global_step + 1) % self.trainer.log_every_n_steps == 0:
            self.check_finite()

    def check_finite(self, weights_of: str = "") -> None:
        """Stops runs whose numbers are not finite any more; see `Run.check_finite`."""
        for run in list(self.runs):
            try:
                run.check_finite(self.trainer, weights_of)
            except UserError as error:
                self.stop(run, error)

    def stop(self, run: Run, error: UserError) -> None:
        """Ends a run that failed. Others go on without it; the last one raises its error."""
        if len(self.runs) == 1:
            raise error
        run.note_failure(error)
        for logger in run.loggers:
            logger.finalize("failed")
        self.failed[run.folder] = error
        self.runs.remove(run)

    def on_validation_start(self) -> None:
        self._paused = time.perf_counter()
        if self.trainer.state.fn == "fit" and not self.trainer.sanity_checking:
            for run in self.runs:
                if run.closed_form:
                    self.log_of(run, "fuser/update_scale", run.closed_form.fit(self.trainer))
        self.check_finite("before the validation")

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        reading = self.read(batch)
        for run in self.runs:
            loss, supervised = run.communicator(reading)
            run.val_loss.update(loss / supervised.clamp(min=1), supervised)
        if batch.references is not None:
            self.exact_answers.update(reading, [(run.communicator, run.accuracy) for run in self.runs])

    def on_validation_epoch_end(self) -> None:
        asked, self.exact_answers.asked = self.exact_answers.asked, False
        alone = self.exact_answers.alone.compute() if asked else {}
        self.exact_answers.alone.reset()
        for run in list(self.runs):
            # The mean is NaN also where no rank had a token to validate on; the sum is not.
            total = self.trainer.strategy.reduce(run.val_loss.mean_value.clone(), reduce_op="sum")
            loss = run.val_loss.compute()
            accuracy = {**run.accuracy.compute(), **alone} if asked else {}
            run.val_loss.reset()
            run.accuracy.reset()
            if not total.isfinite():
                self.stop(run, run.not_finite(f"val/loss is {loss:g} at step {self.global_step}"))
                continue
            self.log_of(run, "val/loss", loss, prog_bar=True)
            self.log_of(run, "val/perplexity", loss.exp())
            for method, share in accuracy.items():
                self.log_of(run, f"val/accuracy/{method}", share, prog_bar=method == "c2c")
            self.log_of(run, "fuser/parameters", float(sum(run.fuser_sizes)))
            for reason, count in getattr(self.trainer.datamodule, "left_out", {}).items():
                self.log_of(run, f"data/{reason}", float(count), sync_dist=True, reduce_fx="sum")
        self.validated_at = self.global_step

    def on_validation_end(self) -> None:
        self._clock += time.perf_counter() - self._paused

    def log_of(self, run: Run, name: str, value: Any, prog_bar: bool = False, **kwargs: Any) -> None:
        """Logs a metric of a run."""
        # The bar has no room for several runs.
        self.log(f"{run.label}{name}", value, prog_bar=prog_bar and not run.label, **kwargs)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        state = super().state_dict(*args, **kwargs)
        return {name: value for name, value in state.items() if FUSERS in name}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.check_finite("in the checkpoint that was to be written")
        checkpoint["schedule"] = self.schedule.lengths
        for run in self.runs:
            saved = run.save(self.dtype_name, self.trainer)
            checkpoint |= {f"{run.label}{name}": value for name, value in saved.items()}
        if self.trainer.world_size == 1:
            checkpoint["answered_alone"] = self.exact_answers.known

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        fitting = self.trainer.state.fn == "fit"
        if self.date is None:  # prompts stay those of the day on which the run began
            kept = own(checkpoint, self.runs[0].label).get("c2c", {}).get("chat", {})
            if kept.get("date"):
                self.aligner.pin(kept["date"])
        for run in self.runs:
            run.load(own(checkpoint, run.label), self.dtype_name, fitting)
        if self.trainer.world_size == 1:
            self.exact_answers.known = checkpoint.get("answered_alone", {})
        if fitting:
            self._go_on(checkpoint["global_step"], [tuple(length) for length in checkpoint.get("schedule", [])])

    def _go_on(self, step: int, lengths: list[tuple[int, int]]) -> None:
        """Takes a checkpoint's schedule over, spread over the steps that are left if their number was changed."""
        self.schedule.lengths = lengths
        if not lengths or lengths[-1][1] == (steps := self.num_steps()) or steps <= step:
            return
        if step >= lengths[-1][1]:
            if all(run.closed_form for run in self.runs):
                return
            raise UserError(
                f"trainer.max_steps: the run has ended, and its learning rate is 0 since step {step}, so that {steps} "
                "steps would change nothing. Begin a new run with so many, or go on from an earlier checkpoint by "
                "--ckpt_path, so that what is left of the schedule is spread over the steps that are left."
            )
        lengths.append((step, steps))
        rank_zero_warn(
            f"The run had {lengths[-2][1]} steps and now has {steps}: what is left of the schedules of learning rates "
            f"and gates is spread over the {steps - step} steps that are left."
        )
