"""`fit-shared`: what several `fit` commands would train, in one process and with one prefill."""

from __future__ import annotations

import json
import warnings
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch.strategies import SingleDeviceStrategy

from c2c_lightning.cli.fit import C2CCLI, WIRING
from c2c_lightning.errors import UserError
from c2c_lightning.runs import CHECKPOINTS, LAST, TRIAL_FILE, held
from c2c_lightning.sweep.configuration import differing_keys
from c2c_lightning.training.shared import SharedCheckpointIO, SharedLogger, StopFiles, join


class TrialCLI(C2CCLI):
    """`fit` as far as it goes without a trainer: configuration, model, data and loggers of one trial."""

    def hold(self, folder: Path) -> None:
        """Held by `fit_shared`, which goes on with it."""

    def instantiate_trainer(self, **kwargs: Any) -> None:
        return None

    def _run_subcommand(self, subcommand: str) -> None:
        pass


def fit_shared(runs: list[str] | str, progress_bar: bool = True) -> None:
    """Trains fusers that differ in nothing but the fuser and its gating, from the same prefill.

    What each run leaves is what `fit` with its configuration leaves, and can be resumed by `fit`. Runs
    that have a checkpoint are resumed. A file `stop` in a run's folder ends that run at its next validation.

    Args:
        runs: folders of the runs, with commas between them, or a list if one has a comma in its name. In each lies
            trial.yaml, a configuration of `fit`.
        progress_bar: show how far they are.

    Raises:
        UserError: a configuration that is missing, or with which nothing can be shared.
    """
    names = [name for name in runs.split(",") if name] if isinstance(runs, str) else runs
    folders = [Path(name) for name in names]
    if not folders or len({folder.resolve() for folder in folders}) < len(folders):
        raise UserError(f"runs is {runs!r}: name the folder of every run once.")
    missing = [str(folder / TRIAL_FILE) for folder in folders if not (folder / TRIAL_FILE).is_file()]
    if missing:
        message = f"runs: there is no {', '.join(missing)}, a configuration as `fit --config` takes it."
        cut = [name for name in map(",".join, pairwise(names)) if Path(name).is_dir()]
        if cut:
            message += f" The folder {cut[0]} has a comma in its name: give a list, --runs '{json.dumps(cut[:1])}'."
        raise UserError(message)
    with ExitStack() as at_end:
        for folder in folders:
            at_end.enter_context(held(folder, "run"))
        fit_together(folders, progress_bar)


def fit_together(folders: list[Path], progress_bar: bool) -> None:
    """Trains the runs of folders that are held; see `fit_shared`."""
    begun = [(folder / CHECKPOINTS / LAST).exists() for folder in folders]
    if any(begun) and not all(begun):
        fresh = ", ".join(str(folder) for folder, has in zip(folders, begun) if not has)
        raise UserError(f"trials go on together only from the same step, and these have no checkpoint yet: {fresh}.")
    clis = [parse(folder, progress_bar) for folder in folders]
    configs = [yaml.safe_load(cli._parser("fit").dump(cli.config["fit"], skip_none=False)) for cli in clis]
    different = differing_keys(configs)
    if different:
        raise UserError(
            f"these runs differ in {', '.join(different)}, and only fuser, gate, layers, layer_map, optimizer and "
            "prompt_store may differ where the prefill is shared: train them apart."
        )
    first = clis[0]
    module = join([cli.model for cli in clis], folders, [cli.loggers() for cli in clis])
    first.save_config_kwargs = {
        "configs": {run.label: cli.config["fit"] for run, cli in zip(module.runs, clis, strict=True)}
    }
    plugins = first.config_init["fit"].trainer.plugins or []
    trainer = C2CCLI.instantiate_trainer(
        first,
        callbacks=[StopFiles()],
        logger=SharedLogger(module.runs),
        plugins=[*(plugins if isinstance(plugins, list) else [plugins]), SharedCheckpointIO(module.runs)],
    )
    if trainer.world_size > 1 or not isinstance(trainer.strategy, SingleDeviceStrategy):
        raise UserError(
            f"trainer.devices is {trainer.num_devices} and trainer.strategy {type(trainer.strategy).__name__}: "
            "a shared prefill is for one device (trainer.devices 1); train apart on several."
        )
    if trainer.precision == "16-mixed":
        raise UserError(
            "trainer.precision 16-mixed scales the losses of all trials together, so that one trial's overflow would "
            "cost the others a step: give bf16-mixed, or train apart."
        )
    trainer.fit(module, datamodule=first.datamodule, ckpt_path=first.config["fit"].ckpt_path)
    if module.failed:
        raise UserError(" ".join(f"{folder}: {error}" for folder, error in module.failed.items()))


def parse(folder: Path, progress_bar: bool) -> TrialCLI:
    """A trial's configuration, built as `fit` builds it in that folder."""
    args = ["fit", "--config", str(folder / TRIAL_FILE), "--trainer.default_root_dir", str(folder)]
    if (folder / CHECKPOINTS / LAST).exists():
        args += ["--ckpt_path", str(folder / CHECKPOINTS / LAST)]
    if not progress_bar:
        args += ["--trainer.enable_progress_bar", "false"]
    with warnings.catch_warnings():
        # That there is a command line too, of which these are not the arguments.
        warnings.filterwarnings("ignore", message=".*LightningCLI's args parameter.*")
        return TrialCLI(**WIRING, args=args)
