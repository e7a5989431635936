"""Puts every question of every benchmark to every method, in Lightning's test loop."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

import lightning as L
import torch
import torch.distributed
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch.callbacks import TQDMProgressBar
from torchmetrics import Metric

from c2c_lightning.communicator import Communicator
from c2c_lightning.errors import UserError
from c2c_lightning.evaluation.analyses.base import Analysis
from c2c_lightning.evaluation.asking.answers import Answer, AnswerFile, questions_digest
from c2c_lightning.evaluation.asking.controls import CONTROLS
from c2c_lightning.evaluation.asking.methods import (
    C2C,
    Answering,
    Asking,
    Method,
    OracleRouting,
    ReadsIt,
    Receiver,
    Routing,
    Sharer,
)
from c2c_lightning.evaluation.asking.observing import Observer, load_measured, read_caches
from c2c_lightning.evaluation.asking.questions import Questions, is_measured, num_merged, repeated, too_long
from c2c_lightning.evaluation.asking.text_to_text import C2CAfterText, TextToText
from c2c_lightning.evaluation.benchmarks import Benchmark
from c2c_lightning.evaluation.report.findings import BenchmarkResults, collect
from c2c_lightning.files import read_bytes, whole, write_whole
from c2c_lightning.mapper import Prefix
from c2c_lightning.runs import make_folder

T = TypeVar("T")
METHODS = (Receiver, ReadsIt, Sharer, TextToText, Routing, OracleRouting, C2C, C2CAfterText)
MEASURED, QUESTIONS = "measured", "questions-{}.sha256"
TOO_LONG = "longer than a model can read"
KEPT_BYTES = 2**28  # of caches that stay from being measured to being answered


class Evaluation(L.LightningModule):
    """A fuser with its models, the methods that are compared, and the controls that keep them honest.

    Args:
        fuser: a fuser's folder, a run's folder, a run's checkpoint or a hub id; `last` for the newest run.
        methods: ways to answer; None for all that there are.
        controls: what C2C has to be better than; None for all that there are, [] for none.
        dtype: of the frozen models; `auto` for the one they were saved in.
        receiver: folder or hub id of the receiver, where it is no longer where the fuser says.
        sharers: the same of all sharers.
        trust_remote_code: import a fuser class that is not one of this package, and so run its file.

    Raises:
        UserError: two methods of the same name, or one without.
    """

    def __init__(
        self,
        fuser: str,
        methods: list[Method] | None = None,
        controls: list[Method] | None = None,
        dtype: str = "auto",
        receiver: str | None = None,
        sharers: list[str] | None = None,
        trust_remote_code: bool = False,
    ):
        super().__init__()
        self.fuser = fuser
        self.load = partial(Communicator.from_pretrained, fuser, dtype, receiver, sharers, trust_remote_code)
        self.methods = [make() for make in METHODS] if methods is None else methods
        self.controls = [make() for make in CONTROLS] if controls is None else controls
        for method in self.compared:
            if not re.fullmatch(r"\w[\w.-]*", getattr(method, "name", None) or ""):
                raise UserError(
                    f"method {type(method).__name__} has no name for files: give its class a `name` of letters, digits, "
                    "'_', '-' and '.', and a `description`."
                )
        twice = repeated(method.name for method in self.compared)
        if twice:
            raise UserError(f"model.methods and model.controls have {twice!r} twice: leave one out.")
        self.communicator: Communicator | None = None
        self.asked: list[Method] = []
        self.answering: dict[str, list[Answering]] = {}
        self.answers: dict[tuple[str, str], dict[str, Answer]] = {}  # of all ranks, by benchmark and method
        self.measuring: dict[str, Metric] = {}

    @property
    def compared(self) -> list[Method]:
        """The methods and controls of the report's tables."""
        return [*self.methods, *self.controls]

    @property
    def analyses(self) -> list[Analysis]:
        """Those that have something to look at: without a fuser there are no caches before and after fusion."""
        found = [callback for callback in self.trainer.callbacks if isinstance(callback, Analysis)]
        return [analysis for analysis in found if not isinstance(analysis, Observer) or self._has_caches_for(analysis)]

    @property
    def observers(self) -> list[Observer]:
        return [each for each in (*self.compared, *self.analyses) if isinstance(each, Observer)]

    @property
    def benchmarks(self) -> list[Benchmark]:
        return self.trainer.datamodule.benchmarks

    @property
    def folder(self) -> Path:
        return Path(self.trainer.default_root_dir)

    def configure_model(self) -> None:
        if self.communicator is None:
            self.communicator = self.load()
            if isinstance(self.communicator.fusers.mapper, Prefix):
                raise UserError(
                    f"model.fuser {self.fuser} is a trained prefix, with which nothing is handed over: name a mapper's "
                    "run, and this one as the prefix of a ReadsIt."
                )
            for benchmark in self.benchmarks:
                benchmark.leave_out(too_long(benchmark, self.communicator.models), TOO_LONG)

    def on_test_start(self) -> None:
        if not any(benchmark.context == "sharer" for benchmark in self.benchmarks):
            self.methods, self.controls = (
                [method for method in methods if not method.needs_texts] for methods in (self.methods, self.controls)
            )
        twice = repeated(observer.name for observer in self.observers)
        if twice:
            raise UserError(f"trainer.callbacks has {twice} twice with the same arguments: leave one out.")
        further = [method for analysis in self.analyses for method in analysis.methods(self.communicator)]
        by_name: dict[str, Method] = {}
        for method in (*self.compared, *further):  # the first of a name counts
            by_name.setdefault(method.name, method)
        fuses = len(self.communicator.fusers) > 0
        self.asked = [method for method in by_name.values() if fuses or not method.needs_fusers]
        for method in self.asked:
            method.check(self.communicator.models)
        for analysis in self.analyses:
            analysis.check(self.communicator, [method.name for method in self.asked])
        for benchmark in self.benchmarks:
            self._check_questions(benchmark)
            self.answering[benchmark.name] = [
                method for method in self.asked if isinstance(method, Answering) and not method.why_not(benchmark)
            ]
            for method in self.answering[benchmark.name]:
                resume = partial(method.resume, self.folder, benchmark, self.trainer.datamodule.seed)
                self.answers[benchmark.name, method.name] = self._from_rank_zero(resume)
            for observer in self.observers:
                saved = self._from_rank_zero(partial(load_measured, self._measured_path(benchmark, observer)))
                if saved is not None:
                    observer.measured[benchmark.name] = saved

    def test_step(self, questions: Questions, batch_idx: int, dataloader_idx: int = 0) -> None:
        if is_measured(dataloader_idx):
            self._measure(questions, batch_idx == 0)
        else:
            self._answer(questions)

    def on_test_batch_end(self, outputs: Any, questions: Questions, batch_idx: int, dataloader_idx: int = 0) -> None:
        if not is_measured(dataloader_idx) or batch_idx + 1 < self.trainer.num_test_batches[dataloader_idx]:
            return
        for observer in self._unmeasured(questions.benchmark):
            measured = move_data_to_device(self.measuring.pop(observer.name).compute(), "cpu")
            observer.measured[questions.benchmark.name] = measured
            if self.trainer.is_global_zero:
                path = self._measured_path(questions.benchmark, observer)
                path.parent.mkdir(parents=True, exist_ok=True)
                with whole(path) as unfinished:
                    torch.save(measured, unfinished)

    def on_test_epoch_end(self) -> None:
        scores = {f"{r.benchmark.name}/{method}": r.scores(method) for r in self.results for method in r.answers}
        values = {f"accuracy/{key}": of_one.mean() for key, of_one in scores.items()}
        self.log_dict(values, sync_dist=True)  # they are the same on all ranks already, which Lightning cannot know

    @cached_property
    def results(self) -> list[BenchmarkResults]:
        """All answers by benchmark, with those derived from them; there once every question is answered."""
        results = []
        for benchmark in self.benchmarks:
            kept = {m.name: self.answers[benchmark.name, m.name] for m in self.answering[benchmark.name]}
            found = collect(benchmark, self.asked, kept, self.trainer.datamodule.seed)
            found.merged = num_merged(benchmark, self.communicator.models)
            results.append(found)
        return results

    def _check_questions(self, benchmark: Benchmark) -> None:
        """Refuses answers to other questions than are now asked, as of a file that was edited since."""
        now, path = questions_digest(benchmark), self.folder / QUESTIONS.format(benchmark.name)
        if not path.exists():
            if self.trainer.is_global_zero:
                make_folder(self.folder, "trainer.default_root_dir")
                write_whole(path, f"{now}\n")
        elif read_bytes(path, "digest of the questions").strip() != now.encode():
            raise UserError(
                f"{self.folder} has answers to other questions, prompts or exemplars than {benchmark.name} now has: "
                "remove that folder, or name another one as trainer.default_root_dir."
            )

    def _from_rank_zero(self, read: Callable[[], T]) -> T:
        """What rank zero reads, on every rank; what it refuses, all refuse, and none is left waiting."""
        found, refusal = None, None
        if self.trainer.is_global_zero:
            try:
                found = read()
            except UserError as error:
                refusal = str(error)
        found, refusal = self.trainer.strategy.broadcast((found, refusal))
        if refusal is not None:
            raise UserError(refusal)
        return found

    def _unmeasured(self, benchmark: Benchmark) -> list[Observer]:
        left = [observer for observer in self.observers if benchmark.name not in observer.measured]
        return [observer for observer in left if self._has_caches_for(observer)]

    def _has_caches_for(self, observer: Observer) -> bool:
        return len(self.communicator.fusers) > 0 or not observer.needs_fusers

    def _measured_path(self, benchmark: Benchmark, observer: Observer) -> Path:
        return self.folder / MEASURED / benchmark.name / f"{observer.name}.pt"

    def _measure(self, questions: Questions, first: bool) -> None:
        observers = self._unmeasured(questions.benchmark)
        if first:
            self.measuring = {o.name: o.metric(self.communicator).to(self.device) for o in observers}
            self.kept_bytes = 0
        if observers and len(questions):
            caches = read_caches(self.communicator, questions)
            for metric in self.measuring.values():
                metric.update(caches)
            self.kept_bytes += 2 * (caches.receiver.nbytes + sum(stack.nbytes for stack in caches.sharers.values()))
            # Of a text there are several readings, which are not counted.
            if self.kept_bytes > KEPT_BYTES or caches.batch.private is not None:
                questions.forget()

    def _answer(self, questions: Questions) -> None:
        benchmark = questions.benchmark
        for method in self.answering[benchmark.name]:
            key = benchmark.name, method.name
            left = questions.without(self.answers[key])
            answers = self._gather(method.answer(Asking.of(self.communicator, left)) if len(left) else [])
            self.answers[key] |= {answer.id: answer for answer in answers}
            if self.trainer.is_global_zero:
                AnswerFile(self.folder, *key).append(answers)
        questions.forget()

    def _gather(self, answers: list[Answer]) -> list[Answer]:
        """The answers of all ranks; every rank calls it equally often."""
        if self.trainer.world_size == 1:
            return answers
        of_ranks: list[Any] = [None] * self.trainer.world_size
        torch.distributed.all_gather_object(of_ranks, answers)
        return [answer for answers in of_ranks for answer in answers]


class EvaluationProgress(TQDMProgressBar):
    """Lightning's bar, with the benchmark's name and pass in place of a DataLoader's number."""

    def on_test_batch_start(
        self, trainer: L.Trainer, module: L.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        super().on_test_batch_start(trainer, module, batch, batch_idx, dataloader_idx)
        doing = "reading caches" if is_measured(dataloader_idx) else "answering"
        self.test_progress_bar.set_description(f"{batch.benchmark.name}: {doing}")
