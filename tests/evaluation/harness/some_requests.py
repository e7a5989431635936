"""Requests to the harness's model, and what they must be answered with."""

from __future__ import annotations

from pathlib import Path

import torch
from lm_eval.api.instance import Instance

from c2c_lightning.communicator import Communicator
from c2c_lightning.evaluation.harness.model import C2CLM
from c2c_lightning.models import collate

TASKS = Path(__file__).parent / "tasks"
PAIR = "c2c_lightning/nano/receiver", ["c2c_lightning/nano/sharer"]
CONTEXTS = [
    "In which country does Ribigo live?",
    "Question: What is the workplace of Fuguli? He has worked there for years.\nAnswer:",
    "Oslo",
    "",
]
# Responses that do not end at once, so that there is something to cut.
LONG = {"min_new_tokens": 12, "max_new_tokens": 12, "do_sample": False}
CONTINUATIONS = [" Norway", "a ship in the field", "Oslo is the home town of Ribigo.", " pit"]


def user(context: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": context}]


def requests(kind: str, arguments: list[tuple]) -> list[Instance]:
    return [Instance(kind, {}, each, i) for i, each in enumerate(arguments)]


def scores(model: C2CLM, pairs: list[tuple[str, str]]) -> list[tuple[float, bool]]:
    return model.loglikelihood(requests("loglikelihood", pairs), disable_tqdm=True)


def responses(model: C2CLM, contexts: list[str], **gen_kwargs) -> list[str]:
    arguments = [(context, gen_kwargs) for context in contexts]
    return model.generate_until(requests("generate_until", arguments), disable_tqdm=True)


@torch.no_grad()
def log_probability(communicator: Communicator, messages: list[dict[str, str]], said: str, fuse: bool = True) -> float:
    """Of a response without its end of turn, by the loss that fusers are trained on."""
    aligner = communicator.models.aligner
    prompt = aligner.prompt(messages)
    ids = aligner.response_ids([*messages, {"role": "assistant", "content": said}], prompt)
    assert ids[-1] == aligner.receiver.eos_token_id
    loss, num_tokens = communicator(collate([prompt], [ids[:-1]], aligner.pad_ids), fuse)
    assert num_tokens == len(ids) - 1
    return -loss.item()
