"""Any task of the lm-evaluation-harness as a benchmark: asked by every method and control, graded by the task itself."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from c2c_lightning.errors import UserError, check_at_least, meant
from c2c_lightning.evaluation.benchmarks.base import Benchmark, Row
from c2c_lightning.evaluation.benchmarks.extraction import without_thinking
from c2c_lightning.evaluation.benchmarks.item import LETTERS, Grade, Item
from c2c_lightning.evaluation.benchmarks.prompt import Prompt
from c2c_lightning.models import Message

log = logging.getLogger(__name__)

EXEMPLAR_SEED = 1234  # the harness's own
# Of choices they need what is not kept: the likelihood without a prompt, and what greedy decoding would say.
NOT_KEPT = ("acc_mutual_info", "exact_match")

FILES = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}


@dataclass(frozen=True)
class HarnessItem(Item):
    """A document of a task."""

    task: str = ""  # its name
    turns: tuple[tuple[str, str], ...] = ()  # the conversation up to the response, as roles and contents
    begun: str = ""  # the response's first words, which the task gives
    continued: tuple[str, ...] = ()  # what they go on with, for each choice


class HarnessTask(Benchmark):
    """A task, a tag or a group of the lm-evaluation-harness, with its own prompts, exemplars, filters and metrics.

    Choices are ranked by likelihood, and other responses are generated greedily up to the task's own stop strings.

    Args:
        task: its name, in the harness or in `include_path`; the tasks of a tag or group become subjects.
        path: JSON lines, Parquet or CSV with the columns that the task reads, in the place of its data set.
        name: in file names and metrics; None for the task's.
        metric: the task's metric that counts as the score, such as `acc_norm`, or `exact_match,flexible-extract` where
            there are several filters; None for its first. The others stand in the report beside it.
        num_fewshot: exemplars before each question, as earlier turns; None for what the task says.
        exemplars: a file with those for a `path`.
        include_path: a folder with YAML files of tasks of your own.
        system_instruction: a system prompt, before the task's description.
        apply_chat_template: hand system prompt, exemplars and the response's first words over as a conversation;
            otherwise all of them stand in one message of the user, as text.
        max_new_tokens: of a response; None for what the task says.
        max_context_characters: cut the middle out of longer questions, as LongBench does; None to cut nothing.
        limit: only the first so many questions.

    Raises:
        UserError: the harness is not installed, there is no such task or metric, the task or its data cannot be
            loaded, or it asks for what a fused cache cannot say.
    """

    def __init__(
        self,
        task: str,
        path: str | None = None,
        name: str | None = None,
        metric: str | None = None,
        num_fewshot: int | None = None,
        exemplars: str | None = None,
        include_path: str | None = None,
        system_instruction: str | None = None,
        apply_chat_template: bool = True,
        max_new_tokens: int | None = None,
        max_context_characters: int | None = None,
        limit: int | None = None,
    ):
        super().__init__([], name=name or task, max_new_tokens=max_new_tokens or 256, limit=limit)
        check_at_least(2, f"{self.name}.{{}}", max_context_characters=max_context_characters)
        if path and num_fewshot and not exemplars:
            raise UserError(
                f"{self.name}.num_fewshot is {num_fewshot}: name a file for exemplars beside that for path."
            )
        self.path, self.task, self.include_path = path or task, task, include_path
        self.changes = {} if path is None else local(path, exemplars)
        self.metric, self.num_fewshot, self.system_instruction = metric, num_fewshot, system_instruction
        self.chat, self.same_limit, self.cut_to = apply_chat_template, max_new_tokens, max_context_characters
        self.tasks: dict[str, Any] = {}
        self.documents: dict[str, Any] = {}

    def rows(self) -> Iterator[Row]:
        self._load()
        for name, task in self.tasks.items():
            task.set_fewshot_seed(EXEMPLAR_SEED)
            for number, document in enumerate(task.eval_docs):
                yield Row(name, number, f"{name} document {number}", {"task": name, "number": number, "doc": document})

    def exemplar_rows(self) -> None:
        """None: the task's own exemplars stand in its prompts."""

    def to_item(self, record: dict[str, Any], source: str) -> HarnessItem | None:
        name, document = record["task"], record["doc"]
        task, id = self.tasks[name], f"{name}/{record['number']}"
        context = task.fewshot_context(
            document,
            (task.config.num_fewshot or 0) if self.num_fewshot is None else self.num_fewshot,
            self.system_instruction,
            self.chat,
            fewshot_as_multiturn=True,
            chat_template=lambda messages, add_generation_prompt: messages,
            gen_prefix=task.doc_to_prefix(document),
        )
        turns = context if self.chat else [{"role": "user", "content": context}]
        begun = turns.pop()["content"] if turns[-1]["role"] == "assistant" else ""
        gold, choices, continued = task.doc_to_target(document), (), ()
        golds = gold if isinstance(gold, list) else [gold]
        if task.OUTPUT_TYPE == "multiple_choice":
            choices = tuple(task.doc_to_choice(document))
            requests = task.construct_requests(document, "", apply_chat_template=self.chat, chat_template=None)
            continued = tuple(request.args[1] for request in requests)
            places = [choices.index(each) if each in choices else each for each in golds]
            answers = tuple(LETTERS[place] for place in places if place in range(min(len(choices), len(LETTERS))))
            if not answers:
                return self.drop("no right choice", source)
        else:
            if task.config.doc_to_choice is not None:
                golds = [task.doc_to_choice(document)[each] for each in golds]
            answers = tuple(str(each) for each in golds if str(each).strip()) or ("(none)",)
        asked = tuple((turn["role"], self._cut(turn["content"])) for turn in turns)
        self.documents[id] = document
        subject = name if len(self.tasks) > 1 else ""
        return HarnessItem(id, asked[-1][1], answers, choices, subject, "", name, asked, begun, continued)

    def question_text(self, item: HarnessItem) -> str:
        return item.question

    def messages(self, item: HarnessItem) -> list[Message]:
        return [{"role": role, "content": content} for role, content in item.turns]

    def response(self, item: HarnessItem) -> str:
        from lm_eval.api.utils import maybe_delimit

        said = super().response(item)
        # Exemplars have the given words too, joined like this.
        return said if self.by_likelihood else maybe_delimit(item.begun, said)

    def first_words(self, item: HarnessItem) -> str:
        return item.begun

    def continuations(self, item: HarnessItem) -> tuple[str, ...]:
        return item.continued

    def stops(self, item: HarnessItem) -> list[str]:
        until = self._generation(item).get("until") or []
        return [stop for stop in ([until] if isinstance(until, str) else until) if stop]

    def max_new_tokens_of(self, item: HarnessItem) -> int:
        return self.same_limit or self._generation(item).get("max_gen_toks") or self.max_new_tokens

    def grade(self, item: HarnessItem, response: str) -> Grade:
        """By the task's filters and metrics."""
        from lm_eval.api.instance import Instance

        task, document = self.tasks[item.task], self.documents[item.id]
        instance = Instance("generate_until", document, ("", {}), 0, resps=[without_thinking(response)])
        metrics, read = {}, {}
        for each in task._filters:
            each.apply([instance])
            filtered = instance.filtered_resps[each.name]
            for metric, value in task.process_results(document, [filtered]).items():
                metrics[_named(metric, each.name)] = value
                read[_named(metric, each.name)] = filtered
        read_out = str(read.get(self.metric, ""))
        return self._grade(None if read_out in ("", "[invalid]") else read_out, metrics)

    def grade_choices(self, item: HarnessItem, log_likelihoods: list[float]) -> Grade:
        task, document = self.tasks[item.task], self.documents[item.id]
        metrics = task.process_results(document, [(value, False) for value in log_likelihoods])
        return self._grade(super().grade_choices(item, log_likelihoods).extracted, metrics)

    def _grade(self, extracted: str | None, metrics: dict[str, Any]) -> Grade:
        numbers = {name: float(value) for name, value in metrics.items() if isinstance(value, (bool, int, float))}
        if not 0 <= numbers.get(self.metric, -1) <= 1:
            fit = ", ".join(name for name, value in numbers.items() if 0 <= value <= 1)
            raise UserError(
                f"{self.name}.metric {self.metric!r} gave {metrics.get(self.metric)!r}, and a question's score is in "
                f"[0, 1]: give one of {fit or 'another task’s'}."
            )
        return Grade(extracted, numbers[self.metric], numbers)

    def _load(self) -> None:
        """Loads the tasks with their data, which say how the answer is read and by what it is scored."""
        from c2c_lightning.evaluation.harness.tasks import load_tasks

        self.tasks = load_tasks(self.task, self.include_path, self.changes)
        kinds = {self._kind(each) for each in self.tasks.values()}
        if len(kinds) > 1:
            raise UserError(
                f"{self.name}: some tasks of {self.task!r} rank choices and others do not; name them apart."
            )
        self.answer_mode = "likelihood" if kinds == {"multiple_choice"} else "generate"
        versions = {str(each.VERSION) for each in self.tasks.values()}
        version = int(float(max(versions))) if all(v.replace(".", "", 1).isdigit() for v in versions) else 0
        self.prompt = Prompt(f"{self.task} of lm-evaluation-harness", version, "{question}", "{text}")
        known = list(dict.fromkeys(metric for each in self.tasks.values() for metric in self._metrics(each)))
        self.metric = self.metric or known[0]
        if self.metric not in known:
            hint = meant(self.metric, known, f"There are {', '.join(known)}.")
            raise UserError(f"{self.name}.metric is {self.metric!r}, which the task has not. {hint}")

    def _kind(self, task: Any) -> str:
        """What a task asks for; refuses what cannot be had."""
        kind, name = task.OUTPUT_TYPE, task.config.task
        if kind not in ("multiple_choice", "generate_until"):
            raise UserError(
                f"{self.name}: {name} asks for {kind}, and a sharer hands over its cache of a prompt, which a text alone "
                "has not. Choose tasks of the output types multiple_choice and generate_until."
            )
        if task.multiple_input or getattr(task, "MULTIMODAL", False):
            what = "gives each choice a prompt of its own" if task.multiple_input else "shows images or plays sounds"
            raise UserError(f"{self.name}: {name} {what}, which cannot be asked here. Try the command lm-eval.")
        if kind == "multiple_choice":
            for metric in NOT_KEPT:
                task._metric_fn_list.pop(metric, None)
        elif (task.config.generation_kwargs or {}).get("do_sample"):
            log.warning("%s: %s samples its responses; here they are decoded greedily", self.name, name)
        return kind

    def _metrics(self, task: Any) -> list[str]:
        if task.OUTPUT_TYPE == "multiple_choice":
            return list(task._metric_fn_list)
        return [_named(metric, each.name) for each in task._filters for metric in task._metric_fn_list]

    def _generation(self, item: HarnessItem) -> dict[str, Any]:
        return self.tasks[item.task].config.generation_kwargs or {}

    def _cut(self, text: str) -> str:
        limit = self.cut_to
        return text if limit is None or len(text) <= limit else text[: limit - limit // 2] + text[-(limit // 2) :]


def local(path: str, exemplars: str | None) -> dict[str, Any]:
    """What a task's configuration says where its documents are in files."""
    files, kinds = {"test": path, **({"train": exemplars} if exemplars else {})}, set()
    for split, file in files.items():
        key, files[split] = "path" if split == "test" else "exemplars", str(Path(file).expanduser())
        if not Path(files[split]).exists():
            raise UserError(f"{key} {file!r}: no such file.")
        kind = next((FILES[suffix] for suffix in Path(file).suffixes if suffix in FILES), None)
        if kind is None or not Path(files[split]).is_file():
            raise UserError(f"{key} {file!r}: give one file of {', '.join(FILES)}.")
        kinds.add(kind)
    if len(kinds) > 1:
        raise UserError(f"path {path!r} and exemplars {exemplars!r}: give files of one kind.")
    from_files = "train" if exemplars else None
    return {
        "dataset_path": kinds.pop(),
        "dataset_name": None,
        "dataset_kwargs": {"data_files": files},
        "test_split": "test",
        "validation_split": None,
        "training_split": from_files,
        "fewshot_split": from_files or "test",
    }


def _named(metric: str, filter: str) -> str:
    """A metric as the harness's results call it, without the filter that does nothing."""
    return metric if filter == "none" else f"{metric},{filter}"
