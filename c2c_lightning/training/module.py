"""Trains the fusers of a communicator."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import MeanMetric
from transformers import PreTrainedModel

from c2c_lightning.communicator import Communicator
from c2c_lightning.errors import UserError
from c2c_lightning.formats.config import FORMAT
from c2c_lightning.fuser import PART_NAMES, C2CFuser, FuserFactory, GateConfig, LayerMap, Layers
from c2c_lightning.models import Batch, FrozenModels, PromptStore, Reading, load_aligner, load_models
from c2c_lightning.models.alignment import Alignment
from c2c_lightning.nested import flatten
from c2c_lightning.training.acceleration import Compiled, compile_parts, recompute_fusers
from c2c_lightning.training.closed_form import ClosedForm
from c2c_lightning.training.exact_answers import ExactAnswers
from c2c_lightning.training.held_out import STATE
from c2c_lightning.training.sharding import clip_gradients, shard
from c2c_lightning.training.trained_run import TrainedRun

FUSERS = "communicator.fusers."


@dataclass
class OptimizerConfig:
    """AdamW with linear warm-up and decay.

    Attributes:
        lr: peak learning rate (published: 1e-4).
        gate_lr: the same for gate logits; None for `lr`.
        weight_decay: of everything but gate logits.
        warmup: share of the run's steps.
    """

    lr: float = 1e-4
    gate_lr: float | None = None
    weight_decay: float = 0.01
    warmup: float = 0.1

    def __post_init__(self) -> None:
        for key, rate in {"lr": self.lr, "gate_lr": self.gate_lr}.items():
            if rate is not None and not 0 < rate < math.inf:
                raise UserError(f"model.optimizer.{key} is {rate}: it must be positive.")
        if not 0 <= self.weight_decay < math.inf:
            raise UserError(f"model.optimizer.weight_decay is {self.weight_decay}: it must not be negative.")
        if not 0 <= self.warmup < 1:
            raise UserError(f"model.optimizer.warmup is {self.warmup}: give the share of the steps, in [0, 1).")


class C2CModule(L.LightningModule):
    """Frozen receiver and sharers, and the fusers that are trained between them.

    Args:
        receiver: the LM that answers: a folder or a hub id.
        sharers: the LMs whose caches are handed over.
        alignment: `spans`, or `published` for the re-encoding of the published code.
        layer_map: `terminal`, `depth`, or {receiver layer: sharer layer}.
        layers: the receiver layers that may be fused: `all`, `first:K`, `last:K`, `every:K` or a list.
        fuser: the fuser's class and sizes.
        gate: the layer-gating configuration.
        optimizer: learning rates and their schedule.
        dtype: of the frozen models; `auto` for the one they were saved in. Fusers are always fp32.
        template_kwargs: handed to every chat template.
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
        fuser: FuserFactory = C2CFuser,
        gate: GateConfig = GateConfig(),  # noqa: B008 (the command line shows its defaults)
        optimizer: OptimizerConfig = OptimizerConfig(),  # noqa: B008
        dtype: str = "auto",
        template_kwargs: dict[str, Any] | None = None,
        prompt_store: PromptStore | None = None,
        compile: Compiled = "none",
        recompute_fusers: bool = False,
    ):
        super().__init__()
        if not sharers:
            raise UserError("model.sharers is empty: name at least one model whose cache is to be read.")
        self.receiver, self.sharers, self.dtype_name = receiver, sharers, dtype
        self.fuser, self.gate, self.optimizer = fuser, gate, optimizer
        self.layer_map, self.layers, self.prompt_store = layer_map, layers, prompt_store
        self.compiled, self.recompute_fusers = compile, recompute_fusers
        self.aligner = load_aligner(receiver, sharers, alignment, template_kwargs)
        self.communicator: Communicator | None = None
        self.strict_loading = False  # checkpoints hold the fusers only
        self.seed = torch.initial_seed()
        self.val_loss = MeanMetric()
        self.exact_answers = ExactAnswers(len(sharers))
        self.label = ""  # see TrainedRun
        self._clock = 0.0
        self.validated_at: int | None = None
        self.fuser_sizes: list[int] = []
        self.closed_form: ClosedForm | None = None

    def configure_model(self) -> None:
        if self.communicator is None:
            self.make_communicator(*load_models(self.receiver, self.sharers, self.dtype_name))
            if self.closed_form:
                self.closed_form.check(self.trainer)
            if self.device_mesh is not None:
                shard(self.communicator, self.device_mesh["data_parallel"])

    def make_communicator(self, receiver: PreTrainedModel, sharers: list[PreTrainedModel]) -> None:
        """Puts fresh fusers between models."""
        models = FrozenModels(receiver, sharers, self.aligner, self.prompt_store)
        self.communicator = Communicator.fresh(
            models, fuser=self.fuser, layer_map=self.layer_map, layers=self.layers, gate=self.gate
        )
        # Counted now: of what is sharded later a device has a part.
        self.fuser_sizes = [sum(p.numel() for p in fuser.parameters()) for fuser in self.communicator.fusers]
        self.closed_form = ClosedForm(self.communicator)
        compile_parts(self.communicator, self.compiled)
        if self.recompute_fusers:
            recompute_fusers(self.communicator)

    def runs(self) -> list[TrainedRun]:
        """What the trainer trains: this."""
        return [TrainedRun(self.trainer, self, Path(self.trainer.default_root_dir), self.trainer.loggers)]

    def configure_optimizers(self) -> dict[str, Any]:
        return adamw([self], self.trainer.precision)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The fusers' parameters as an optimizer takes them: weights, and gate logits if they learn."""
        config = self.optimizer
        logits, weights = [], []
        for name, parameter in self.communicator.fusers.named_parameters():
            if parameter.requires_grad:
                (logits if name.endswith("gate.logit") else weights).append(parameter)
        groups = [{"name": "fuser", "params": weights, "lr": config.lr, "weight_decay": config.weight_decay}]
        if logits:
            gate_lr = config.lr if config.gate_lr is None else config.gate_lr
            groups.append({"name": "gates", "params": logits, "lr": gate_lr, "weight_decay": 0.0})
        return [{**group, "name": f"{self.label}{group['name']}"} for group in groups]

    def num_steps(self) -> int:
        """The run's number of optimizer steps.

        Raises:
            UserError: nobody knows it, as of a stream without `trainer.max_steps`.
        """
        steps = self.trainer.estimated_stepping_batches
        if steps == float("inf") or steps < 1:
            raise UserError(
                "the run has no known number of steps, which the learning rate and the gates are scheduled "
                "over: set trainer.max_steps."
            )
        return int(steps)

    def on_fit_start(self) -> None:
        communicator = self.communicator
        if not any(gate.learns or gate.active() for gate in communicator.gates):
            raise UserError("model.gate leaves every layer closed, so there is nothing to train: open some.")
        if any(parameter.dtype != torch.float32 for parameter in communicator.fusers.parameters()):
            raise UserError(
                f"trainer.precision {self.trainer.precision} would train fusers in half precision: give bf16-mixed; "
                "model.dtype is for the frozen models."
            )
        models = [(self.receiver, communicator.receiver), *zip(self.sharers, communicator.sharers)]
        if self.prompt_store is not None:
            self.prompt_store.check(model for _, model in models)
        for name, model in models:
            rank_zero_info(f"frozen: {name}, {model.num_parameters():,} parameters")
        for fuser, size in zip(communicator.fusers, self.fuser_sizes):
            layers = fuser.gate.receiver_layers
            name = fuser.class_path.rpartition(".")[2]
            rank_zero_info(f"trained: {name} on receiver layers {layers}, {size:,} parameters")

    def on_train_start(self) -> None:
        self._steps = self.num_steps()
        if self.closed_form:
            self.closed_form.check_validation(self.trainer)
        self._new_window()
        self._clock = time.perf_counter()

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        # Dropout depends on the batch's place in the run and not on what was drawn before it, so a
        # resumed run draws what an uninterrupted one does.
        place = (self.seed, batch.epoch, batch.index, self.global_rank)
        torch.manual_seed(int(np.random.SeedSequence(place).generate_state(1)[0]))
        for gate in self.communicator.gates:
            gate.anneal(self.global_step, self._steps)
        if self.closed_form:
            self.closed_form.see(batch)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self.account(batch, *self.communicator(self.communicator.read(batch)))

    def account(self, batch: Batch, loss: Tensor, supervised: Tensor) -> Tensor:
        """Notes what came out of a micro-batch, and says what is to become less: loss and penalty."""
        self._window += torch.stack(
            [loss.detach(), supervised, batch.prompt_mask.sum() + batch.response_mask.sum()]
        ).to(self._window)
        # Summed here and divided by the supervised tokens of the whole step in
        # `on_before_optimizer_step`, so that every token counts the same in whatever micro-batch it is.
        return loss + sum(gate.penalty() for gate in self.communicator.gates) * supervised

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        window = self.trainer.strategy.reduce(self._window, reduce_op="sum")
        loss, supervised, tokens = window.unbind()
        # Lightning divides by the micro-batches of a step, and the gradients are averaged over ranks.
        averaged_over = self.trainer.accumulate_grad_batches * self.trainer.world_size
        scale = averaged_over / supervised.clamp(min=1)
        for parameter in self.communicator.fusers.parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(scale)
        now = time.perf_counter()
        self.log("train/loss", loss / supervised.clamp(min=1), prog_bar=True)
        self.log("train/tokens_per_second", tokens / (now - self._clock))
        self._clock = now
        self._new_window()
        for part, share in self.open_gates().items():
            self.log(f"gate/open_{part}", share)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        # Not Lightning's own clipping: it refuses a fused AdamW under bf16-mixed, where nothing is unscaled.
        limit = {"max_value" if gradient_clip_algorithm == "value" else "max_norm": gradient_clip_val or math.inf}
        self.log("train/grad_norm", clip_gradients(self.communicator.fusers, **limit))

    def on_validation_start(self) -> None:
        self._paused = time.perf_counter()
        if self.closed_form and self.trainer.state.fn == "fit" and not self.trainer.sanity_checking:
            self.log("fuser/update_scale", self.closed_form.fit(self.trainer))

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.validate_on(self.communicator.read(batch))

    def validate_on(self, reading: Reading, alone: dict[str, list[str]] | None = None) -> None:
        """Adds a batch to the validation.

        Args:
            reading: of the batch.
            alone: see `ExactAnswers.update`.
        """
        loss, supervised = self.communicator(reading)
        self.val_loss.update(loss / supervised.clamp(min=1), supervised)
        if reading.batch.references is not None:
            self.exact_answers.update(self.communicator, reading, alone)

    def on_validation_epoch_end(self) -> None:
        loss = self.val_loss.compute()
        self.val_loss.reset()
        self.log("val/loss", loss, prog_bar=True)
        self.log("val/perplexity", loss.exp())
        for method, accuracy in self.exact_answers.compute(not self.trainer.sanity_checking).items():
            self.log(f"val/accuracy/{method}", accuracy, prog_bar=method == "c2c")
        self.log("fuser/parameters", float(sum(self.fuser_sizes)))
        for reason, count in getattr(self.trainer.datamodule, "left_out", {}).items():
            self.log(f"data/{reason}", float(count), sync_dist=True, reduce_fx="sum")
        self.validated_at = self.global_step

    def on_validation_end(self) -> None:
        self._clock += time.perf_counter() - self._paused

    def open_gates(self) -> dict[str, Tensor]:
        """The share of the mapped layers (or heads) whose gate is open, for keys and for values."""
        gates = self.communicator.gates
        shares = {}
        for part, name in enumerate(PART_NAMES):
            rows = [gate.is_open()[gate.parts.index(part)].flatten() for gate in gates if part in gate.parts]
            shares[name] = torch.cat(rows).float().mean() if rows else torch.zeros(())
        return shares

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        state = super().state_dict(*args, **kwargs)
        return {name: value for name, value in state.items() if FUSERS in name}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["c2c"] = self.settings()
        if self.closed_form:
            checkpoint[STATE] = self.closed_form.held_out.state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuses a checkpoint that was trained under other settings than this run's.

        Lightning would otherwise restore the old learning rate over the one that the user typed.
        """
        if checkpoint.get("c2c", {}).get("format", 1) != FORMAT:
            raise UserError(
                "the checkpoint is of an earlier version, whose optimizer state was laid out otherwise, so it cannot be "
                "resumed: go on with that version, or start without --ckpt_path. As a fuser it can still be loaded."
            )
        now, then = flatten(self.settings(), "model"), flatten(checkpoint.get("c2c", {}), "model")
        fitting = self.trainer.state.fn == "fit"
        for key in now.keys() & then.keys():
            if then[key] != now[key] and (fitting or not key.startswith("model.optimizer.")):
                raise UserError(
                    f"the checkpoint was trained with {key} {then[key]}, but this run says {now[key]}. "
                    "Give the same value to resume, or start without --ckpt_path."
                )
        if self.closed_form:
            self.closed_form.held_out.load(checkpoint.get(STATE, []))

    def settings(self) -> dict[str, Any]:
        """What must be the same for a checkpoint to fit."""
        return {
            "format": FORMAT,
            **self.communicator.config(),
            "dtype": self.dtype_name,
            "optimizer": asdict(self.optimizer),
        }

    def _new_window(self) -> None:
        """Loss, supervised tokens and all of the receiver's tokens since the last optimizer step."""
        self._window = torch.zeros(3, device=self.device)


def adamw(modules: Sequence[C2CModule], precision: str) -> dict[str, Any]:
    """AdamW on the fusers of one or several modules, each with its own rates, as Lightning wants it."""
    groups = [(group, module) for module in modules for group in module.parameter_groups()]
    # A fused step would unscale fp16's gradients only after they were clipped.
    optimizer = torch.optim.AdamW([group for group, _ in groups], fused=precision != "16-mixed")
    schedule = LambdaLR(
        optimizer, [partial(share_of_rate, module.optimizer.warmup, module.num_steps()) for _, module in groups]
    )
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def share_of_rate(warmup: float, total_steps: int, step: int) -> float:
    """What of its peak the learning rate is at a step: it rises to all of it, then falls to 0, each in a line."""
    rising = round(warmup * total_steps)
    if step < rising:
        return step / rising
    return max(0.0, (total_steps - step) / max(1, total_steps - rising))
