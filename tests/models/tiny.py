"""Tiny random models of several families, and tokenizers that cut the same text differently."""

from __future__ import annotations

import json
import math
import unicodedata
from collections import Counter
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from c2c_lightning.communicator import Communicator
from c2c_lightning.fuser import C2CFuser, GateConfig
from c2c_lightning.models import Aligner, Batch, FrozenModels, exchange_questions, load_aligner, load_models
from c2c_lightning.models.batch import SharerPrompt

TEXT = [
    "The user asks where Ribigo lives, and the assistant says that Ribigo lives in Oslo.",
    "Which country is the capital Oslo in? It is in Norway, of course; everybody knows that.",
    "system user assistant message question answer",
    "def add(first, second):\n    return first + second\n\nfor i in range(10):\n    print(add(i, 2))\n",
    "北京是中国的首都。上海是一个很大的城市，人口很多。",
    "दिल्ली भारत की राजधानी है। वहाँ बहुत लोग रहते हैं।",
    "I like it 👍🏽 and the family 👨‍👩‍👧 too 😀 café naïve ﬁne",
]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
INST = (  # strips contents, has no words for roles, passes over an empty system message
    "<s>{% for m in messages %}{% if m.role == 'assistant' %} {{ m.content | trim }}</s>"
    "{% elif m.role == 'user' %}[INST] {{ m.content | trim }} [/INST]"
    "{% elif m.content %}[SYS] {{ m.content | trim }} [/SYS]{% endif %}{% endfor %}"
)
TURNS = (  # plain words around contents
    "{% for m in messages %}{{ m.role }} message: {{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}assistant message: {% endif %}"
)
BARE = (  # nothing before the content
    "{% for m in messages %}{{ m.content }}{{ '<eos>' if m.role == 'assistant' else '\\n' }}{% endfor %}"
)


def _train(tokenizer: Tokenizer, texts: list[str], vocab_size: int, special: list[str], **kwargs) -> Tokenizer:
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=special, show_progress=False, **kwargs)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def byte_level(vocab_size: int, special: list[str]) -> Tokenizer:
    """As Qwen's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return _train(tokenizer, TEXT, vocab_size, special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())


def pieces(vocab_size: int, special: list[str]) -> Tokenizer:
    """As Llama 2's: SentencePiece BPE with byte fallback and a space put before the text."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    # A small alphabet, so that Chinese, Hindi and emoji fall back to bytes; the trainer's own limit falls
    # differently from run to run where characters are equally frequent.
    ascii_texts = ["".join(c for c in text if c.isascii()) for text in TEXT]
    state = json.loads(_train(tokenizer, ascii_texts, vocab_size, [*special, "<unk>"]).to_str())
    vocabulary = state["model"]["vocab"]
    for i in range(256):
        vocabulary[f"<0x{i:02X}>"] = len(vocabulary)
    return Tokenizer.from_str(json.dumps(state))


def unigram(vocab_size: int, special: list[str]) -> Tokenizer:
    """As T5's: its normaliser changes the number of characters.

    The vocabulary is counted and not trained, for what the trainer finds differs from run to run.
    """
    words = ["▁" + word for text in TEXT for word in unicodedata.normalize("NFKC", text).split(" ")]
    count = Counter(word[i:j] for word in words for i in range(len(word)) for j in range(i + 1, i + 7) if word[i:j])
    characters = sorted(piece for piece in count if len(piece) == 1)
    longer = sorted(count.keys() - characters, key=lambda piece: (-count[piece] * len(piece), piece))
    room = vocab_size - len(characters) - len(special) - 1
    scored = [(piece, math.log(count[piece] / len(words))) for piece in [*characters, *longer[:room]]]
    vocabulary = [(name, 0.0) for name in (*special, "<unk>")] + scored
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=len(special)))
    tokenizer.add_special_tokens(special)
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


TOKENIZERS = {  # name: (kind, vocabulary, template, end of turn, other special tokens)
    "chatml": (byte_level, 400, CHATML, "<|im_end|>", ["<|im_start|>", "<|pad|>"]),
    "inst": (pieces, 160, INST, "</s>", ["<s>", "<|pad|>"]),
    "turns": (unigram, 230, TURNS, "</s>", ["<|pad|>"]),
    "bare": (byte_level, 330, BARE, "<eos>", ["<|pad|>"]),
}


@cache
def tokenizer(name: str) -> PreTrainedTokenizerFast:
    kind, vocab_size, template, end, other = TOKENIZERS[name]
    return PreTrainedTokenizerFast(
        tokenizer_object=kind(vocab_size, [end, *other]),
        eos_token=end,
        pad_token="<|pad|>",
        additional_special_tokens=[token for token in other if token != "<|pad|>"],
        chat_template=template,
        name_or_path=f"tiny-{name}",
    )


def _common(name: str, layers: int, hidden: int, heads: int, kv_heads: int) -> dict:
    tokens = tokenizer(name)
    return {
        "vocab_size": len(tokens),
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": 512,
        "initializer_range": 0.3,  # so that different prompts give different answers
        "bos_token_id": None,
        "eos_token_id": tokens.eos_token_id,
        "pad_token_id": tokens.pad_token_id,
    }


WINDOW = 8
FAMILIES = {  # name: (tokenizer, makes the model)
    "qwen3": ("chatml", lambda c: Qwen3ForCausalLM(Qwen3Config(**c(4, 32, 4, 2), head_dim=16))),
    "qwen2": ("bare", lambda c: Qwen2ForCausalLM(Qwen2Config(**c(3, 48, 4, 2), tie_word_embeddings=True))),
    "llama": ("inst", lambda c: LlamaForCausalLM(LlamaConfig(**c(2, 24, 3, 3)))),
    "mistral": ("inst", lambda c: MistralForCausalLM(MistralConfig(**c(3, 32, 4, 1), sliding_window=WINDOW))),
    "gemma3": (
        "turns",
        lambda c: Gemma3ForCausalLM(
            Gemma3TextConfig(
                **c(4, 32, 2, 1),
                head_dim=12,
                sliding_window=WINDOW,
                layer_types=["sliding_attention", "full_attention"] * 2,
            )
        ),
    ),
    "gpt_neox": (
        "chatml",
        lambda c: GPTNeoXForCausalLM(
            GPTNeoXConfig(**{k: v for k, v in c(2, 64, 4, 4).items() if k != "num_key_value_heads"})
        ),
    ),
    "phi": ("turns", lambda c: PhiForCausalLM(PhiConfig(**c(3, 48, 4, 4)))),
}
# Every family as receiver of two others and as sharer to two others.
_NAMES = list(FAMILIES)
PAIRS = [(r, _NAMES[(i + k) % len(_NAMES)]) for i, r in enumerate(_NAMES) for k in (1, 3)]


def build(family: str) -> PreTrainedModel:
    """A model of its own, the same at every call."""
    name, make = FAMILIES[family]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(list(FAMILIES).index(family))
        made = make(partial(_common, name)).eval()
    made.generation_config.max_new_tokens = 8
    made.name_or_path = f"tiny-{family}"
    return made


model = cache(build)
"""The same model object at every call: tests must not change it."""


def save(family: str, folder: Path) -> Path:
    """A model's folder, with its tokenizer."""
    model(family).save_pretrained(folder)
    tokenizer(FAMILIES[family][0]).save_pretrained(folder)
    return folder


def communicator(receiver: str, *sharers: str, seed: int = 0, gate: GateConfig | None = None, **kwargs) -> Communicator:
    """A communicator whose random fusers change much (open gates, unless told otherwise)."""
    names = [FAMILIES[family][0] for family in (receiver, *sharers)]
    aligner = Aligner(tokenizer(names[0]), [tokenizer(name) for name in names[1:]])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Communicator.fresh(
            FrozenModels(model(receiver), [model(sharer) for sharer in sharers], aligner),
            fuser=partial(C2CFuser, hidden=16, dropout=0.0),
            gate=gate or GateConfig(kind="open"),
            **kwargs,
        ).eval()


def with_template(name: str, template: str) -> PreTrainedTokenizerFast:
    """A tokenizer of a model called strange-model, which has a chat template of its own."""
    plain = tokenizer(name)
    made = PreTrainedTokenizerFast(
        tokenizer_object=plain.backend_tokenizer, eos_token=plain.eos_token, pad_token=plain.pad_token
    )
    made.chat_template, made.name_or_path = template, "strange-model"
    return made


def between(receiver: str, sharers: list[str], aligner: Aligner | None = None, **fusers) -> Communicator:
    """A communicator with fresh fusers between models named by their folders."""
    aligner = aligner or load_aligner(receiver, sharers)
    return Communicator.fresh(FrozenModels(*load_models(receiver, sharers), aligner), **fusers)


CONVERSATIONS = [
    [{"role": "user", "content": "Where does Ribigo live?"}],
    [
        {"role": "system", "content": "You know every country and its capital."},
        {"role": "user", "content": "Which country is Oslo in? Say it in one word, please."},
        {"role": "assistant", "content": "Norway"},
        {"role": "user", "content": "And what does the assistant like 👍🏽?"},
    ],
    [{"role": "user", "content": "北京是中国的首都。"}],
]
ANSWERS = ["Ribigo lives in Oslo.", "It likes the user.", "是"]


def next_questions(batch: Batch) -> Batch:
    """Every prompt with the sharers' reading of the next one in the batch."""
    sharers = [SharerPrompt(*(t.roll(-1, dims=0) for t in (s.ids, s.mask, s.positions))) for s in batch.sharers]
    return exchange_questions(batch, replace(batch, prompt_mask=batch.prompt_mask.roll(-1, dims=0), sharers=sharers))
