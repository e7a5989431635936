"""What a run leaves behind: its folder, and the same in MLflow.

runs/<date and time>/
  config.yaml       everything that was configured, resolved
  progress.jsonl    a line for every validation, for whoever follows the run
  checkpoints/      last.ckpt and the newest numbered ones; fusers and optimizer, no frozen weight
  fuser/            config.json and model.safetensors, for `Communicator.from_pretrained`
  gates.png         the gates over training
  summary.json      final metrics
  mlflow.json       where its MLflow run is
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import lightning as L
import matplotlib
import numpy as np
import torch
import yaml
from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.utilities import rank_zero_info
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from c2c_lightning.errors import user_message
from c2c_lightning.files import json_text, write_whole
from c2c_lightning.fuser import PART_NAMES, Gate
from c2c_lightning.models import Batch
from c2c_lightning.runs import CONFIG_FILE, FUSER, PROGRESS_FILE, SUMMARY_FILE
from c2c_lightning.training.checkpoints import save_last
from c2c_lightning.training.module import C2CModule
from c2c_lightning.training.run import Run, recorded, resumes
from c2c_lightning.training.sharding import whole_state

EVERY = 5  # optimizer steps between two columns of `gates.png`, doubled when there are too many of them
MOST_COLUMNS = 500  # more than the picture can show; they stand in every checkpoint


class RunRecord(L.Callback):
    """Keeps the record while the run goes on.

    It stands where `LightningCLI` has its SaveConfigCallback, which writes too early: until training
    starts a run may still be refused, and then must leave no trace. A `fast_dev_run` leaves none at all.
    Where several runs train together, `configs` has the configuration of each by its label.
    """

    def __init__(
        self, parser: LightningArgumentParser, config: Namespace, configs: Mapping[str, Namespace] | None = None
    ):
        self.parser, self.config, self.configs = parser, config, configs or {}
        self.started: float | None = None

    def setup(self, trainer: L.Trainer, module: C2CModule, stage: str) -> None:
        # The first rank has made it.
        trainer._default_root_dir = trainer.strategy.broadcast(trainer.default_root_dir)

    def on_train_start(self, trainer: L.Trainer, module: C2CModule) -> None:
        self.started = time.perf_counter()
        for run in recorded(trainer):
            self.begin(run, resumes(trainer))

    def begin(self, run: Run, resumed: bool) -> None:
        """Writes what is known of a run before its first step."""
        run.folder.mkdir(parents=True, exist_ok=True)
        # Without its own folder and checkpoint, so that the file can be run again as it is.
        config = self.configs.get(run.label, self.config).clone()
        config.trainer.default_root_dir, config.ckpt_path = None, None
        text = self.parser.dump(config, skip_none=False)
        write_whole(run.folder / CONFIG_FILE, text)
        tracker = run.tracker
        if tracker is None:
            return
        tracker.begin(run.folder)
        settings = yaml.safe_load(text)
        if not resumed:
            tracker.log_hyperparams({key: settings[key] for key in ("seed_everything", "model", "data", "trainer")})
        tracker.log_artifact(run.folder / CONFIG_FILE)
        sharers = " + ".join(Path(name).name for name in settings["model"]["sharers"])
        pair = f"{Path(settings['model']['receiver']).name} <- {sharers}"
        tracker.set_tags({"pair": pair, "fuser": run.name, "run_folder": str(run.folder.resolve())})

    def on_validation_end(self, trainer: L.Trainer, module: C2CModule) -> None:
        if not trainer.sanity_checking and trainer.state.fn == "fit":
            for run in recorded(trainer):
                add_progress(run, trainer, module.num_steps())

    def on_train_end(self, trainer: L.Trainer, module: C2CModule) -> None:
        """Sees to it that the last step is the one that is validated, saved and exported."""
        if module.validated_at != trainer.global_step:
            trainer.validating = True
            trainer.fit_loop.epoch_loop.val_loop.run()
            trainer.training = True
        module.check_finite("in the fuser that was to be exported")
        if trainer.fast_dev_run:
            return
        if trainer.checkpoint_callback is not None:
            save_last(trainer)
        for run in module.runs:
            state = whole_state(run.fusers)  # all ranks have to ask for it
            if trainer.is_global_zero:
                run.communicator.save_pretrained(run.folder / FUSER, state)
                run.track(run.folder / FUSER, FUSER)

    def on_fit_end(self, trainer: L.Trainer, module: C2CModule) -> None:
        # Cut off after its last step, and so before its end, for which Lightning sees no reason to train.
        unended = resumes(trainer) and any(not (run.folder / SUMMARY_FILE).exists() for run in recorded(trainer))
        if self.started is None and trainer.strategy.broadcast(unended):
            self.on_train_start(trainer, module)
            for callback in trainer.callbacks:
                if isinstance(callback, (RunRecord, GateMap)):  # others never saw a start
                    callback.on_train_end(trainer, module)
        if self.started is None:
            rank_zero_info(f"Nothing to do: the run is at step {trainer.global_step} already, and is left as it was.")
            return
        for run in recorded(trainer):
            summarize(run, trainer, time.perf_counter() - self.started)

    def on_exception(self, trainer: L.Trainer, module: C2CModule, exception: BaseException) -> None:
        refused = self.started is None and user_message(exception) is not None
        if not refused:
            module.setup("fit")  # which it may not have come to
            for run in recorded(trainer):
                run.note_failure(exception)


def add_progress(run: Run, trainer: L.Trainer, max_steps: int) -> None:
    """Adds a line to a run's `progress.jsonl`; a metric that is not finite becomes null."""
    row = {
        "time": round(time.time(), 1),
        "step": trainer.global_step,
        "max_steps": max_steps,
        "metrics": run.metrics(trainer),
        "gates": [open_shares(gate) for gate in run.fusers.gates],
    }
    with (run.folder / PROGRESS_FILE).open("a", encoding="utf-8") as file:
        file.write(json_text(row, indent=None))


def open_shares(gate: Gate) -> dict[str, dict[str, float]]:
    """For keys and for values the share of open heads by receiver layer, of the layers that may be fused."""
    shares = gate.is_open().float().mean(-1).tolist()
    return {
        PART_NAMES[part]: {str(layer): share for layer, share in zip(gate.receiver_layers, row)}
        for part, row in zip(gate.parts, shares)
    }


def is_share(metric: str) -> bool:
    """Whether a metric is shown in percent."""
    return metric.startswith(("val/accuracy", "gate/open"))


def summarize(run: Run, trainer: L.Trainer, seconds: float) -> None:
    """Writes `summary.json` and prints the same as a table; validation counts among the seconds."""
    steps, metrics = trainer.global_step, run.metrics(trainer)
    summary = {"steps": steps, "seconds": round(seconds, 1), "metrics": metrics}
    write_whole(run.folder / SUMMARY_FILE, json_text(summary))
    run.track(run.folder / SUMMARY_FILE)
    if run.tracker is not None:
        run.tracker.save_undelivered(run.folder)
    table = Table(title=f"{steps} steps in {seconds:.0f} s")
    table.add_column("metric")
    table.add_column("value", justify="right")
    for name, value in metrics.items():
        table.add_row(name, f"{value:.1%}" if is_share(name) else f"{value:,.4g}")
    console = Console(markup=False)  # folders may have brackets in their names
    console.print(table)
    console.print(f"fuser, checkpoints and summary.json: {run.folder}", soft_wrap=True)


class GateMap(L.Callback):
    """Notes the sigmoid of every gate logit and draws it as `gates.png` in the run's folder."""

    def on_train_batch_end(
        self, trainer: L.Trainer, module: C2CModule, outputs: object, batch: Batch, batch_idx: int
    ) -> None:
        for run in recorded(trainer):
            if run.fusers.gates:
                note_gates(run, trainer.global_step)

    def on_train_end(self, trainer: L.Trainer, module: C2CModule) -> None:
        for run in recorded(trainer):
            if run.gate_steps:
                file = run.folder / "gates.png"
                draw_gates(run).savefig(file, dpi=150)
                run.track(file)


def note_gates(run: Run, step: int) -> None:
    """Adds a run's gates at an optimizer step to its history, of which every second column goes when it is too long."""
    steps, history = run.gate_steps, run.gate_history
    while len(steps) >= MOST_COLUMNS:
        del steps[::2], history[::2]
    # Columns that were left are at multiples of the new distance.
    distance = max(EVERY, steps[1] - steps[0]) if len(steps) > 1 else EVERY
    if step % distance == 0 and step not in steps[-1:]:
        steps.append(step)
        history.append([gate.logit.detach().float().sigmoid().cpu() for gate in run.fusers.gates])


def draw_gates(run: Run) -> Figure:
    """Layers upwards, training to the right, one panel for keys and one for values of each sharer."""
    gates, steps, history = run.fusers.gates, run.gate_steps, run.gate_history
    num_layers = max(len(gate.receiver_layers) * gate.logit.shape[-1] for gate in gates)
    size = (10, 1.7 + len(gates) * max(1.6, 0.22 * num_layers))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(gates), 2, squeeze=False, sharex=True)
    edges = np.append(steps, 2 * steps[-1] - steps[-2] if len(steps) > 1 else steps[-1] + 1)
    # White is undecided; blue is open at evaluation, red closed.
    norm, colours = TwoSlopeNorm(0.5, 0.0, 1.0), matplotlib.colormaps["RdBu"]
    mesh = None
    for row, gate in enumerate(gates):
        heads = gate.logit.shape[-1]
        for part, name in enumerate(PART_NAMES):
            axis = axes[row, part]
            axis.set_title(name if len(gates) == 1 else f"sharer {row}: {name}")
            if part not in gate.parts:
                axis.text(0.5, 0.5, "not fused", ha="center", va="center", transform=axis.transAxes)
                axis.set_yticks([])
                continue
            open_GT = torch.stack([column[row][gate.parts.index(part)].flatten() for column in history], dim=1)
            mesh = axis.pcolormesh(edges, np.arange(len(open_GT) + 1), open_GT.numpy(), cmap=colours, norm=norm)
            is_open = gate.is_open()[gate.parts.index(part)].sum().item()
            axis.set_title(f"{axis.get_title()}: {is_open:.0f} of {len(open_GT)} open")
            ticks = np.arange(len(gate.receiver_layers))
            axis.set_yticks((ticks + 0.5) * heads, [str(layer) for layer in gate.receiver_layers])
            axis.set_xlabel("optimizer step")
        axes[row, 0].set_ylabel("receiver layer" if heads == 1 else f"receiver layer ({heads} heads each)")
    if mesh is not None:
        figure.colorbar(mesh, ax=axes, label="sigmoid(gate logit)", ticks=[0, 0.5, 1])
    return figure
