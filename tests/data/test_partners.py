"""The other question whose caches validation's control fuses."""

from __future__ import annotations

from some_data import LONG, examples, pairs, write_jsonl

from c2c_lightning.data import InstructionData, NanoData
from c2c_lightning.data.batch_maker import BatchMaker, Partners
from c2c_lightning.data.records import Example, to_examples

PASSAGE = "The ferry to the island of Hven leaves from Landskrona at noon. "


def ask(prompt: str, source: str) -> Example:
    return Example([{"role": "user", "content": prompt}, {"role": "assistant", "content": "yes"}], source)


def first_partners(examples: list[Example], seed: int = 0) -> list[Example | None]:
    partners = Partners(examples, seed)
    return [next(partners.of(i), None) for i in range(len(examples))]


def test_every_question_has_another_and_is_the_partner_of_one():
    some = examples(20)
    partners = first_partners(some)
    assert sorted(p.source for p in partners) == sorted(e.source for e in some)
    assert not any(p is e for p, e in zip(partners, some))
    assert partners != first_partners(some, seed=1)


def test_a_turn_of_the_same_conversation_is_no_partner():
    turns = [{"role": role, "content": f"{role} {i}"} for i in range(3) for role in ("user", "assistant")]
    chats = [[{"role": "system", "content": f"chat {i}"}, *turns] for i in range(3)]
    every = [example for i, chat in enumerate(chats) for example in to_examples(chat, f"line {i}", "every")]
    for example, partner in zip(every, first_partners(every)):
        assert example.source != partner.source


def test_the_same_prompt_in_another_record_is_no_partner():
    some = [ask("Is it cold?", f"line {i}") for i in range(9)] + [ask("Is it hot?", "line 9")]
    partners = first_partners(some)
    assert {p.source for p in partners[:9]} == {"line 9"}
    assert first_partners(some[:9]) == [None] * 9


def test_a_question_about_the_same_passage_is_a_partner_only_where_there_is_no_other():
    task = "Read the passage below and answer the question. "
    some = [ask(f"{task}{PASSAGE}Question {i}?", f"line {i}") for i in range(4)]
    others = [ask(f"{task}Nothing is known of place {i}.", f"line {4 + i}") for i in range(5)]
    partners = first_partners([*some, *others])
    assert all(PASSAGE not in partner.prompt[0]["content"] for partner in partners[:4])
    assert all(partner is not None for partner in first_partners(some))


def test_validation_batches_carry_their_partners_as_the_models_read_them(aligner):
    data = NanoData(aligner=aligner)
    held_out = data.val_examples()
    prompts = {aligner.prompt(example.prompt).text: example for example in held_out}
    batch = next(iter(data.val_dataloader()))
    assert len(batch.partners) == len(batch) == 100
    assert not batch.partners.num_supervised
    ids = [row[mask.bool()] for row, mask in zip(batch.partners.prompt_ids, batch.partners.prompt_mask)]
    asked = [prompts[text] for text in aligner.receiver.batch_decode(ids)]
    assert not any(mine.source == other.source for mine, other in zip(held_out, asked))
    assert batch.to("meta").partners.sharers[0].ids.device.type == "meta"
    assert next(iter(data.train_dataloader())).partners is None


def test_a_partner_that_is_too_long_gives_way_to_the_next(aligner, tmp_path):
    file = write_jsonl(tmp_path / "val.jsonl", [*pairs(3), *[LONG] * 3])
    train = write_jsonl(tmp_path / "train.jsonl", pairs(9))
    data = InstructionData(train, val_path=file, max_length=200, exact_answers=True, aligner=aligner)
    (batch,) = data.val_dataloader()
    assert len(batch) == len(batch.partners) == 3
    assert batch.partners.prompt_ids.shape[1] < 200


def test_data_of_one_question_have_no_partners(aligner, tmp_path):
    train, val = (write_jsonl(tmp_path / f"{name}.jsonl", pairs(n)) for name, n in (("train", 9), ("val", 1)))
    (batch,) = InstructionData(train, val_path=val, exact_answers=True, aligner=aligner).val_dataloader()
    assert batch.partners is None


def test_the_partner_of_a_question_about_a_private_text_tells_another(aligner):
    texts = ["Oslo is large.", "Oslo is large.", None, "Cairo is old."]
    some = [ask(f"Which of the {i}?", f"line {i}") for i in range(4)]
    for example, text in zip(some, texts):
        example.messages[0] |= {"private": text} if text else {}
    make = BatchMaker(aligner, max_length=200, exact_answers=True)
    batch = make(some[:2], [[some[1], some[2], some[3]], [some[2], some[0], some[3]]])
    said = [
        aligner.sharers[0].decode(ids[mask.bool()])
        for ids, mask in zip(batch.partners.private.ids, batch.partners.private.mask)
    ]
    assert all("Cairo is old." in text for text in said)
    assert batch.partners.partners.private is None
    asked = [aligner.sharers[0].decode(ids) for ids in batch.partners.partners.sharers[0].ids]
    assert all(some[3].prompt[0]["content"] in text for text in asked)
    assert first_partners([some[0], some[3]]) == [some[3], some[0]]
