"""Remakes the built-in pair from its seed: `python -m c2c_lightning.nano build`.

Two things make the sharer's cache worth reading (measured: without them a linear probe of the cache
finds 38% of the facts, with them 99%). A key or value of layer l is made from the output of layer
l - 1, so what only the last layer's output knows never enters the cache; and what the sharer works
out only while it writes its response is not in the cache of the prompt. Hence the sharer's upper
half is supervised layer by layer, and asked for the value at every prompt token after the name.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import lightning as L
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, IterableDataset
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    get_cosine_schedule_with_warmup,
)

from c2c_lightning.nano.world import RELATIONS, SEED, Fact, facts, invent_name, people

IGNORE = -100
LEARNING_RATE, BATCH_SIZE = 3e-3, 128
SIZES = {"num_attention_heads": 4, "max_position_embeddings": 512, "tie_word_embeddings": True}  # of both models
Sample = dict[str, torch.Tensor]

# The sharer's template is plain text: one line asks, the next line answers.
SHARER_TEMPLATE = (
    "{% for message in messages %}{{ message['content'] }}{% if message['role'] == 'assistant' %}"
    "{{ eos_token }}{% else %}{{ '\\n' }}{% endif %}{% endfor %}"
)
RECEIVER_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}"
    "{{ eos_token }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def sharer_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE, as Qwen has it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|pad|>"]
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=768,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=special[0], pad_token=special[1], chat_template=SHARER_TEMPLATE
    )


def receiver_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """SentencePiece-style BPE with byte fallback, as Llama 2 has it."""
    special = ["<s>", "</s>", "<pad>", "<|user|>", "<|assistant|>", "<|system|>"]
    byte_tokens = [f"<0x{i:02X}>" for i in range(256)]
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=True)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(vocab_size=900, special_tokens=[*special, "<unk>", *byte_tokens], show_progress=False),
    )
    # Training puts only special tokens first; in use a byte is text, which decoding must not drop.
    trained = json.loads(tokenizer.to_str())
    trained["added_tokens"] = [token for token in trained["added_tokens"] if token["content"] not in byte_tokens]
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(trained)),
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        additional_special_tokens=special[3:],
        chat_template=RECEIVER_TEMPLATE,
    )


def prompt_ids(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": text}], add_generation_prompt=True, tokenize=False
    )
    return tokenizer(prompt, add_special_tokens=False).input_ids


class Stream(IterableDataset):
    """Endless samples from `sample(rng)`."""

    def __init__(self, sample: Callable[[random.Random], Sample]):
        self.sample = sample

    def __iter__(self) -> Iterator[Sample]:
        rng = random.Random(SEED)
        while True:
            yield self.sample(rng)


def sharer_sampler(tokenizer: PreTrainedTokenizerFast) -> Callable[[random.Random], Sample]:
    known = [fact for part in facts() for fact in part]

    def sample(rng: random.Random) -> Sample:
        fact = rng.choice(known)
        if rng.random() < 0.2:
            ids = torch.tensor([*tokenizer(fact.plain_statement).input_ids, tokenizer.eos_token_id])
            return {"ids": ids, "labels": ids, "early": torch.full_like(ids, IGNORE)}
        question = rng.choice(fact.relation.questions).format(name=fact.name)
        prompt = prompt_ids(tokenizer, question)
        response = [*tokenizer(fact.statement).input_ids, tokenizer.eos_token_id]
        end_of_name = question.index(fact.name) + len(fact.name)
        offsets = tokenizer(question, return_offsets_mapping=True).offset_mapping
        first = next(i for i, (_, end) in enumerate(offsets) if end >= end_of_name)
        ids = torch.tensor(prompt + response)
        early = torch.full_like(ids, IGNORE)
        early[first : len(prompt)] = response[0]
        return {"ids": ids, "labels": ids, "early": early}

    return sample


def receiver_sampler(tokenizer: PreTrainedTokenizerFast) -> Callable[[random.Random], Sample]:
    """Reading and the second hop, about people made up on the spot; the world's people never occur."""
    world = {name for part in people() for name in part}

    def name(rng: random.Random) -> str:
        while (invented := invent_name(rng)) in world:
            pass
        return invented

    def fact(rng: random.Random, who: str) -> Fact:
        relation = rng.choice(RELATIONS)
        value = rng.choice(list(relation.second_hop))
        return Fact(who, relation, value, rng.choice(relation.questions).format(name=who))

    def sample(rng: random.Random) -> Sample:
        asked = fact(rng, name(rng))
        text = asked.question
        if rng.random() < 0.85:
            others = [fact(rng, name(rng)) for _ in range(rng.choice((0, 0, 1, 2)))]
            told = [rng.choice((f.statement, f.plain_statement)) for f in (asked, *others)]
            rng.shuffle(told)
            text = " ".join([*told, asked.question])
        prompt = prompt_ids(tokenizer, text)
        response = [*tokenizer(asked.answer).input_ids, tokenizer.eos_token_id]
        # It learns its response only: prompts hold facts that nothing could predict.
        labels = [IGNORE] * len(prompt) + response
        return {"ids": torch.tensor(prompt + response), "labels": torch.tensor(labels)}

    return sample


def collate(samples: list[Sample]) -> Sample:
    """Right-padded, (B, N)."""
    return {
        name: pad_sequence([sample[name] for sample in samples], True, 0 if name == "ids" else IGNORE)
        for name in samples[0]
    }


class Pretraining(L.LightningModule):
    """Next-token prediction; with `early` labels, also the upper half's layer-by-layer supervision."""

    def __init__(self, model: PreTrainedModel, steps: int):
        super().__init__()
        self.model, self.steps = model, steps

    def training_step(self, batch: Sample) -> torch.Tensor:
        out = self.model(input_ids=batch["ids"], output_hidden_states="early" in batch)
        loss = self._cross_entropy(out.logits[:, :-1], batch["labels"][:, 1:])
        if "early" in batch:
            # hidden_states[l] is what layer l reads, and so what its keys and values are made of.
            layers = out.hidden_states[len(out.hidden_states) // 2 : -1]
            early = [self._cross_entropy(self.model.lm_head(self.model.model.norm(h)), batch["early"]) for h in layers]
            loss = loss + torch.stack(early).mean()
        self.log("loss", loss, prog_bar=True)
        return loss

    def _cross_entropy(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORE)

    def configure_optimizers(self) -> dict:
        optimizer = torch.optim.AdamW(self.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
        schedule = get_cosine_schedule_with_warmup(optimizer, self.steps // 20, self.steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def train_and_save(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, sample: Callable, steps: int, folder: Path
) -> None:
    trainer = L.Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        gradient_clip_val=1.0,
    )
    trainer.fit(Pretraining(model, steps), DataLoader(Stream(sample), batch_size=BATCH_SIZE, collate_fn=collate))
    model.generation_config.max_new_tokens = 32
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def build_sharer(folder: Path, steps: int) -> None:
    texts = []
    for fact in (fact for part in facts() for fact in part):
        texts += [fact.statement, fact.plain_statement, fact.question + "\n"]
    tokenizer = sharer_tokenizer(texts)
    L.seed_everything(SEED, verbose=False)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=6,
        num_key_value_heads=2,
        head_dim=32,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **SIZES,
    )
    train_and_save(Qwen3ForCausalLM(config), tokenizer, sharer_sampler(tokenizer), steps, folder)


def build_receiver(folder: Path, steps: int) -> None:
    rng = random.Random(SEED)
    texts = []
    for relation in RELATIONS * 400:
        value = rng.choice(list(relation.second_hop))
        name = invent_name(rng)
        for question in relation.questions:
            fact = Fact(name, relation, value, question.format(name=name))
            texts += [f"{fact.statement} {fact.plain_statement} {fact.question}", fact.answer]
    tokenizer = receiver_tokenizer(texts)
    L.seed_everything(SEED, verbose=False)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=4,
        num_key_value_heads=4,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **SIZES,
    )
    train_and_save(LlamaForCausalLM(config), tokenizer, receiver_sampler(tokenizer), steps, folder)


def build(folder: Path = Path(__file__).parent, sharer_steps: int = 1500, receiver_steps: int = 2500) -> None:
    """Trains the sharer and the receiver from their seed; about 20 minutes on 2 cores.

    Args:
        folder: where `sharer/` and `receiver/` go.
        sharer_steps: optimizer steps of the sharer.
        receiver_steps: optimizer steps of the receiver.
    """
    folder.mkdir(parents=True, exist_ok=True)  # fails now rather than after 20 minutes
    print(f"sharer: {sharer_steps} steps")
    build_sharer(folder / "sharer", sharer_steps)
    print(f"receiver: {receiver_steps} steps")
    build_receiver(folder / "receiver", receiver_steps)
