"""What each method and each control does, on tiny models whose answers differ from prompt to prompt."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from c2c_lightning.communicator import Communicator
from c2c_lightning.errors import UserError
from c2c_lightning.evaluation.asking.answers import Answer
from c2c_lightning.evaluation.asking.controls import (
    CalibratedReceiver,
    MeanUpdate,
    ShuffledChoices,
    WrongQuestion,
    ZeroCache,
    ZeroUpdate,
)
from c2c_lightning.evaluation.asking.decoding import decode, letter_token_ids
from c2c_lightning.evaluation.asking.methods import C2C, Asking, OracleRouting, Receiver, Routing, Sharer
from c2c_lightning.evaluation.asking.module import Evaluation
from c2c_lightning.evaluation.asking.observing import read_caches
from c2c_lightning.evaluation.asking.questions import Questions, shuffled_choices
from c2c_lightning.evaluation.asking.text_to_text import C2CAfterText, TextToText
from c2c_lightning.evaluation.benchmarks import OwnQuestions
from c2c_lightning.models.cache import prefill, read_stack
from tests.evaluation.asking import PROMPTS, TEXTS, TOLD, ask, clock, fused_stack, observe, part_of, reads, texts
from tests.models import tiny


@pytest.fixture(scope="module")
def communicator() -> Communicator:
    return tiny.communicator("qwen3", "llama")


@pytest.fixture(scope="module")
def open_questions(tmp_path_factory) -> Questions:
    file = tmp_path_factory.mktemp("open") / "open.jsonl"
    rows = [{"question": text, "reference": "Oslo"} for text in TEXTS]
    file.write_text("\n".join(map(json.dumps, rows)))
    benchmark = OwnQuestions(path=str(file), max_new_tokens=8)
    return Questions(benchmark, benchmark.items(), benchmark.items()[1:] + benchmark.items()[:1])


@pytest.fixture(scope="module")
def lettered(tmp_path_factory) -> Questions:
    file = tmp_path_factory.mktemp("lettered") / "lettered.jsonl"
    rows = [
        {"question": text, "choices": ["user", "Oslo", "Norway", "everybody"][: 4 - i % 2], "answer": "B"}
        for i, text in enumerate(TEXTS)
    ]
    file.write_text("\n".join(map(json.dumps, rows)))
    benchmark = OwnQuestions(path=str(file), answer_mode="logits")
    return Questions(benchmark, benchmark.items(), benchmark.items()[1:] + benchmark.items()[:1])


def test_receiver_and_c2c_answer_as_generate_does(communicator, open_questions):
    conversations = [open_questions.benchmark.messages(item) for item in open_questions.items]
    for method, fuse in ((Receiver(), False), (C2C(), True)):
        said = communicator.generate(conversations, fuse=fuse, max_new_tokens=8, do_sample=False)
        assert texts(ask(method, communicator, open_questions)) == said


def test_the_sharer_answers_in_its_own_template_and_tokens(communicator, open_questions):
    sharer, tokenizer = communicator.models.sharers[0], communicator.models.aligner.sharers[0]
    for item, answer in zip(open_questions.items, ask(Sharer(), communicator, open_questions)):
        ids = tokenizer.apply_chat_template(
            open_questions.benchmark.messages(item), add_generation_prompt=True, return_tensors="pt", return_dict=True
        ).input_ids
        out = sharer.generate(ids, max_new_tokens=8, do_sample=False)
        assert answer.response == tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True).strip()
        assert (answer.receiver_tokens, answer.sharer_tokens > 0) == (0, True)


def test_in_text_to_text_the_receiver_reads_what_the_sharer_wrote(communicator, open_questions):
    sharer, tokenizer = communicator.models.sharers[0], communicator.models.aligner.sharers[0]
    for item, answer in zip(open_questions.items, ask(TOLD, communicator, open_questions)):
        asked = [{"role": "user", "content": f"Tell me: {item.question}"}]
        ids = tokenizer.apply_chat_template(
            asked, add_generation_prompt=True, return_tensors="pt", return_dict=True
        ).input_ids
        out = sharer.generate(ids, max_new_tokens=5, do_sample=False)[0, ids.shape[1] :]
        message = tokenizer.decode(out, skip_special_tokens=True).strip()
        assert answer.message == message
        assert answer.handed_over == len(message.encode())
        assert answer.sharer_tokens == len(out)
        prompt = open_questions.benchmark.messages(item)[0]["content"]
        read = [{"role": "user", "content": f"{message} {prompt}"}]
        assert answer.response == communicator.generate(read, fuse=False, max_new_tokens=8, do_sample=False)


def test_c2c_after_text_fuses_the_caches_of_message_and_question(communicator, open_questions):
    method = C2CAfterText(**PROMPTS)
    for item, answer in zip(open_questions.items, ask(method, communicator, open_questions)):
        prompt = open_questions.benchmark.messages(item)[0]["content"]
        read = [{"role": "user", "content": f"{answer.message} {prompt}"}]
        assert answer.response == communicator.generate(read, max_new_tokens=8, do_sample=False)
        assert answer.handed_over > len(answer.message.encode())


@pytest.mark.parametrize(
    "method",
    [Receiver(), Sharer(), TOLD, C2C(), C2CAfterText(**PROMPTS), WrongQuestion(), ZeroUpdate(), ZeroCache()],
    ids=lambda method: method.name,
)
@pytest.mark.parametrize("kind", ["open_questions", "lettered"])
def test_together_and_one_at_a_time_questions_get_the_same_answers(communicator, method, kind, request):
    questions = request.getfixturevalue(kind)
    together = ask(method, communicator, questions)
    for i, answer in enumerate(together):
        alone = ask(method, communicator, Questions(questions.benchmark, [questions.items[i]], [questions.partners[i]]))
        assert alone[0].response == answer.response
        assert alone[0].confidence == pytest.approx(answer.confidence, abs=1e-4)
        assert (alone[0].handed_over, alone[0].receiver_tokens) == (answer.handed_over, answer.receiver_tokens)


def test_all_methods_controls_and_measurements_ask_the_models_eight_times_together(communicator, lettered):
    questions, mean_update = part_of(lettered, range(4)), MeanUpdate()
    methods = [Receiver(), Sharer(), TOLD, C2C(), C2CAfterText(**PROMPTS), WrongQuestion(), ZeroUpdate(), ZeroCache()]
    receiver, sharer = communicator.models.receiver, communicator.models.sharers[0]
    with reads(receiver, sharer) as read:
        mean_update.measured[lettered.benchmark.name] = observe(mean_update, communicator, [questions])
        for method in [*methods, mean_update, ShuffledChoices()]:
            ask(method, communicator, questions)
    # The questions, with shuffled choices, and behind a message; the sharer also the partners, and asked for a message.
    assert (read.count(receiver), read.count(sharer)) == (3, 5)


@torch.no_grad()
def test_what_several_methods_share_counts_for_each_as_if_it_were_alone(communicator, lettered):
    questions, spans = part_of(lettered, range(4)), {}
    read_caches(communicator, questions)
    for method in (Receiver(), Sharer(), C2C(), TOLD, C2CAfterText(**PROMPTS)):
        asking = Asking.of(communicator, questions)
        method.prefill(asking)
        spans[method.name] = [span for span in asking.clock.spans if span[0] not in ("tokenization", "text", "fusion")]
    receiver, sharer, c2c, told, after = spans.values()
    assert [stage for stage, *_ in c2c] == ["receiver prefill", "sharer prefill", "sharer prefill"]
    assert c2c[:2] == receiver + sharer  # and then finds the tokens opposite
    assert [stage for stage, *_ in told] == ["sharer prefill", "sharer decode", "receiver prefill"]
    assert after[:3] == told
    assert receiver[0][2] - receiver[0][1] > 1e-4  # seconds: read, and not only looked up


def test_with_an_update_of_zero_c2c_is_the_receiver(communicator, lettered):
    alone, zero = (ask(method, communicator, lettered) for method in (Receiver(), ZeroUpdate()))
    assert [a.letters for a in alone] == [z.letters for z in zero]


def test_the_wrong_question_is_read_by_the_sharer_and_not_by_the_receiver(communicator, open_questions):
    same = Questions(open_questions.benchmark, open_questions.items, open_questions.items)
    right = fused_stack(C2C(), communicator, open_questions)
    torch.testing.assert_close(fused_stack(WrongQuestion(), communicator, same), right)
    wrong = fused_stack(WrongQuestion(), communicator, open_questions)
    assert not torch.allclose(wrong, right, atol=1e-2)
    # One at a time, so that the partner is in no other row of the batch.
    for i, (item, partner) in enumerate(zip(open_questions.items, open_questions.partners)):
        alone = fused_stack(WrongQuestion(), communicator, Questions(open_questions.benchmark, [item], [partner]))
        torch.testing.assert_close(wrong[:, :, i : i + 1, :, -alone.shape[4] :], alone, atol=1e-4, rtol=1e-3)


@torch.no_grad()
def test_a_zero_cache_is_what_the_fuser_adds_to_nothing(communicator, open_questions):
    batch = open_questions.read(communicator.models).batch
    own = read_stack(
        prefill(communicator.models.receiver, batch.prompt_ids[:, :-1], batch.prompt_mask[:, :-1]), [0, 1, 2, 3]
    )
    own = own[:, communicator.fusers.fused_layers]
    fuser = communicator.fusers[0]
    shape = (*own.shape[:3], fuser.sharer.num_kv_heads, own.shape[4], fuser.sharer.head_dim)
    nothing = fuser(torch.zeros(shape), own, aligned=batch.sharers[0].aligned)
    mask = batch.prompt_mask[:, None, :-1, None]
    torch.testing.assert_close(fused_stack(ZeroCache(), communicator, open_questions), nothing * mask)


def test_the_mean_update_is_that_of_all_other_questions(communicator, open_questions):
    control = MeanUpdate()
    metric = control.metric(communicator)
    benchmark, items, partners = open_questions.benchmark, open_questions.items, open_questions.partners
    updates = []
    for i in range(len(items)):
        caches = read_caches(communicator, Questions(benchmark, [items[i]], [partners[i]]))
        updates.append((caches.fused - caches.receiver)[:, :, 0])
    for half in (slice(0, 3), slice(3, 4)):  # padded batches
        metric.update(read_caches(communicator, Questions(benchmark, items[half], partners[half])))
    control.measured[benchmark.name] = metric.compute()

    mine, alone = (fused_stack(method, communicator, open_questions) for method in (control, Receiver()))
    width = mine.shape[4]
    for row, own in enumerate(updates):
        others = [update for k, update in enumerate(updates) if k != row]
        overall = torch.cat(others, dim=3).mean(3)
        for distance in range(1, own.shape[3] + 1):
            there = [update[:, :, :, -distance] for update in others if update.shape[3] >= distance]
            expected = torch.stack(there).mean(0) if there else overall
            changed = (mine - alone)[:, :, row, :, width - distance]
            torch.testing.assert_close(changed, expected, atol=1e-4, rtol=1e-3)


def test_a_letter_is_scored_by_the_first_token_of_the_response(communicator, lettered):
    benchmark, tokenizer = lettered.benchmark, communicator.models.aligner.receiver
    for item, answer in zip(lettered.items, ask(C2C(), communicator, lettered)):
        out = communicator.generate_ids(
            communicator.models.collate([benchmark.messages(item)]),
            max_new_tokens=1,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
        probabilities = out.logits[0][0].softmax(-1)
        scores = [probabilities[list(letter_token_ids(tokenizer, letter))].sum().log() for letter in item.letters]
        assert answer.letters == pytest.approx([float(score) for score in scores], abs=1e-4)
        assert answer.response == item.letters[int(torch.stack(scores).argmax())]


def test_shuffled_choices_are_answered_in_the_letters_that_the_question_had(communicator, lettered):
    shuffled, orders = zip(*(shuffled_choices(item, lettered.seed) for item in lettered.items))
    there = ask(C2C(), communicator, Questions(lettered.benchmark, shuffled, lettered.partners))
    back = ask(ShuffledChoices(), communicator, lettered)
    for item, other, order, new, old in zip(lettered.items, shuffled, orders, there, back):
        assert other.choices[other.letters.index(new.extracted)] == item.choices[item.letters.index(old.extracted)]
        assert [old.letters[i] for i in order] == new.letters
        assert old.score == new.score == float(old.extracted in item.answers)


def answer(name: str, letters: list[float] | None = None, **values) -> Answer:
    given = [name, "", -1.0, letters, False, 0.1, 0.2, 3, 0, 0]
    return replace(Answer(*given), **values)


def test_a_receiver_that_always_likes_one_letter_is_calibrated_to_what_it_says_of_the_question(lettered):
    items = [replace(item, choices=("user", "Oslo", "Norway"), answers=("B",)) for item in lettered.items]
    # Always C, and a little more of B or of A than usual.
    letters = [[-3.0, -2.5, -0.5], [-2.5, -3.0, -0.5], [-3.0, -2.4, -0.5], [-2.4, -3.0, -0.5]]
    answers = {"receiver": [answer(item.id, row) for item, row in zip(items, letters)]}
    derived = CalibratedReceiver().derive(lettered.benchmark, items, answers)
    assert [a.extracted for a in derived] == ["B", "A", "B", "A"]
    # A question that is alone in its number of choices has nothing to be calibrated by.
    alone = CalibratedReceiver().derive(lettered.benchmark, items[:1], {"receiver": answers["receiver"][:1]})
    assert [a.extracted for a in alone] == ["C"]
    assert [a.score for a in derived] == [1.0, 0.0, 1.0, 0.0]


def test_the_router_gives_the_sharer_its_budget_where_it_leads_in_confidence(open_questions):
    receiver = [answer(str(i), confidence=c, receiver_tokens=2) for i, c in enumerate([-0.1, -3.0, -2.0, -1.0])]
    sharer = [answer(str(i), confidence=-1.0, score=1.0, sharer_tokens=5, receiver_tokens=0) for i in range(4)]
    answers = {"receiver": receiver, "sharer": sharer}

    def routed(budget: float) -> list[float]:
        derived = Routing(budget).derive(open_questions.benchmark, open_questions.items, answers)
        assert all((a.receiver_tokens, a.sharer_tokens) == (2, 5) for a in derived)
        return [a.score for a in derived]

    assert routed(0.0) == [0.0, 0.0, 0.0, 0.0]
    assert routed(0.5) == [0.0, 1.0, 1.0, 0.0]
    assert routed(1.0) == [1.0, 1.0, 1.0, 1.0]


def test_no_router_is_better_than_the_oracle(open_questions):
    answers = {
        "receiver": [answer(str(i), score=s) for i, s in enumerate([1.0, 0.0, 1.0, 0.0])],
        "sharer": [answer(str(i), score=s) for i, s in enumerate([1.0, 1.0, 0.0, 0.0])],
    }
    derived = OracleRouting().derive(open_questions.benchmark, open_questions.items, answers)
    assert [a.score for a in derived] == [1.0, 1.0, 1.0, 0.0]


@torch.no_grad()
def test_each_response_keeps_to_its_own_limit_and_tells_how_sure_it_was(communicator, open_questions):
    start = Receiver().prefill(Asking.of(communicator, open_questions))
    limits = [1, 2, 3, 4]
    responses = decode(start, limits, clock())
    end = communicator.models.receiver.generation_config.eos_token_id
    for row, (item, limit) in enumerate(zip(open_questions.items, limits)):
        batch = communicator.models.collate([open_questions.benchmark.messages(item)])
        out = communicator.models.receiver.generate(batch.prompt_ids, max_new_tokens=limit, do_sample=False)
        said = out[0, batch.prompt_ids.shape[1] :].tolist()
        assert responses[row].tokens == len(said)
        assert responses[row].truncated == (end not in said)
        logits = communicator.models.receiver(out).logits[0, batch.prompt_ids.shape[1] - 1 : -1]
        log_probs = logits.log_softmax(-1)[range(len(said)), said]
        assert responses[row].confidence == pytest.approx(log_probs.mean().item(), abs=1e-4)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"sharer_prompt": "Tell me."}, "lacks {question}"),
        ({"receiver_prompt": "{message} {promt}"}, "promt"),
        ({"receiver_prompt": "{message"}, "receiver_prompt"),
        ({"max_message_tokens": 0}, "max_message_tokens"),
    ],
)
def test_a_prompt_that_cannot_be_filled_is_refused(arguments, says):
    with pytest.raises(UserError, match=says):
        TextToText(**arguments)


def test_a_budget_is_a_share():
    with pytest.raises(UserError, match=r"budget of Routing is 1\.5"):
        Routing(1.5)


@pytest.mark.parametrize("name", [None, "", "../c2c", "a b"])
def test_a_method_whose_name_is_none_for_files_is_refused(name):
    class Mine(C2C):
        pass

    Mine.name = name
    with pytest.raises(UserError, match="method Mine has no name for files"):
        Evaluation("no/fuser", methods=[Mine()])
