"""What the shipped models can and cannot do, on all held-out people."""

import pytest

from c2c_lightning.files import PROJECT
from c2c_lightning.models.loading import load_model, load_tokenizer
from c2c_lightning.nano import world

NANO = PROJECT / "c2c_lightning" / "nano"


@pytest.fixture(scope="module")
def held_out():
    return world.facts()[1]


def ask(model: str, questions: list[str]) -> list[str]:
    """Greedy answers to questions put through the model's own chat template."""
    name = f"c2c_lightning/nano/{model}"
    lm, tokenizer = load_model(name), load_tokenizer(name)
    answers = []
    for start in range(0, len(questions), 100):
        prompts = [
            tokenizer.apply_chat_template(
                [{"role": "user", "content": question}], add_generation_prompt=True, tokenize=False
            )
            for question in questions[start : start + 100]
        ]
        batch = tokenizer(
            prompts,
            add_special_tokens=False,
            padding=True,
            padding_side="left",
            return_token_type_ids=False,
            return_tensors="pt",
        )
        ids = lm.generate(**batch, max_new_tokens=16, do_sample=False)
        texts = tokenizer.batch_decode(ids[:, batch.input_ids.shape[1] :], skip_special_tokens=True)
        answers += [text.strip() for text in texts]
    return answers


def share(answers: list[str], right: list[str]) -> float:
    return sum(answer == truth for answer, truth in zip(answers, right)) / len(right)


def test_the_receiver_alone_knows_nothing(held_out):
    assert share(ask("receiver", [f.question for f in held_out]), [f.answer for f in held_out]) <= 0.2


def test_the_receiver_answers_when_it_is_told(held_out):
    told = [f"{fact.statement} {fact.question}" for fact in held_out]
    assert share(ask("receiver", told), [fact.answer for fact in held_out]) >= 0.95


def test_the_sharer_states_the_fact_but_not_the_answer(held_out):
    said = ask("sharer", [fact.question for fact in held_out])
    assert share(said, [fact.statement for fact in held_out]) >= 0.95
    assert share(said, [fact.answer for fact in held_out]) <= 0.2


def test_the_pair_is_small_enough_to_ship_and_unlike_enough_to_prove_something():
    files = [file for model in ("receiver", "sharer") for file in (NANO / model).iterdir()]
    assert sum(file.stat().st_size for file in files) < 12e6
    receiver, sharer = (load_model(f"c2c_lightning/nano/{model}").config for model in ("receiver", "sharer"))
    for key in ("model_type", "num_hidden_layers", "hidden_size", "num_key_value_heads", "vocab_size"):
        assert getattr(receiver, key) != getattr(sharer, key)
