"""Running: batches, out of memory, resume, chat templates, truncation, several turns, time left."""

from __future__ import annotations

import copy
import dataclasses

import accuracy_helpers as helpers
import pytest
import torch

from questbench.errors import CellError, UsageError
from questbench.experiments.accuracy import chat
from questbench.experiments.accuracy.batch import Batch
from questbench.experiments.accuracy.protocol import Prompt, Steps, shorten, split
from questbench.experiments.accuracy.records import WENT_ON
from questbench.experiments.accuracy.scripts import Decoding, converse
from questbench.experiments.costs import Forecast
from questbench.experiments.failures import out_of_memory
from questbench.models import hf
from questbench.tasks import _make
from questbench.tasks._base import Sample, Task, Turn

METHODS = ["dense", "quest", "h2o", "tova", "streaming_llm"]
SMALL = {"tasks": ["passkey"], "seq_lens": [384], "budgets": [64], "samples": 5, "methods": METHODS}


class Uneven(Task):
    """Prompts whose contexts, questions and answers all differ in length."""

    max_new_tokens = 6

    def sample(self, index, *, length, tokenizer, rng):
        """Random words."""
        words = [str(rng.randrange(100, 999)) for _ in range(length // 2 + 17 * index)]
        question = "".join(f" {rng.randrange(100, 999)}" for _ in range(2 + 3 * index))
        at = 20 + index
        first = len(" ".join(words[:at])) + 1
        return Sample(
            f"uneven-{index:04d}",
            " ".join(words),
            question,
            (words[at],),
            needles=((first, first + len(words[at])),),
            max_new_tokens=2 + index,
        )

    def score(self, sample, completion):
        """Something that depends on every character."""
        return (sum(map(ord, completion)) % 101) / 100


class Turns(Uneven):
    """Three questions about one context."""

    def sample(self, index, *, length, tokenizer, rng):
        """As uneven, asked again."""
        base = super().sample(index, length=length, tokenizer=tokenizer, rng=rng)
        first, last = base.needles[0]
        later = [
            Turn(f"\n{rng.randrange(100, 999)}" * (number + 1), base.answers, ((first, last),)) for number in "12"[:0]
        ]
        later = [Turn(f"\nmore {number} {index}", base.answers, ((first, last),)) for number in range(2)]
        return dataclasses.replace(base, turns=(Turn(base.question, base.answers, base.needles), *later))


@pytest.fixture
def uneven(monkeypatch):
    """Runs of :class:`Uneven` and :class:`Turns` on the random model."""
    helpers.use(helpers.random_model(), monkeypatch)
    kinds = {"uneven": Uneven, "turns": Turns}
    monkeypatch.setattr("questbench.experiments.accuracy.config.make_task", lambda spec, *_, **__: kinds[spec]())
    monkeypatch.setattr("questbench.experiments.accuracy.config.expand", lambda specs, **_: list(specs))
    monkeypatch.setattr(Uneven, "binary", False)


SHAPE = {"seq_lens": [200], "budgets": [32], "samples": 5, "methods": METHODS, "model": "random"}


@pytest.mark.parametrize("task", ["uneven", "turns"])
@pytest.mark.parametrize("protocol", ["stepwise", "quest-paper"])
def test_rows_of_any_length_are_in_a_batch_what_they_are_alone(uneven, task, protocol):
    settings = SHAPE | {"tasks": [task], "protocol": protocol, "samples": 3}
    records, rows, units = helpers.run(**settings)
    assert len({row["prompt_tokens"] for row in rows}) == 3
    assert len({row["steps"] for row in rows if row["method"] == "dense"}) == 3
    for batch in (2, 3):
        again, together, found = helpers.run(**settings | {"batch": batch})
        assert [helpers.plain(row) for row in together] == [helpers.plain(row) for row in rows]
        assert again == records
        assert [unit.key for unit in found] == [unit.key for unit in units]
        assert sum(unit.prefills for unit in found) == 3
    assert {row["batch"] for row in together} == {3}


def test_evicting_methods_evict_in_every_row_of_a_batch(uneven):
    _, rows, _ = helpers.run(**SHAPE | {"tasks": ["uneven"], "batch": 5})
    for row in rows:
        if row["method"] in ("h2o", "tova", "streaming_llm"):
            assert row["tokens_visible"] == row["tokens_read"] == row["tokens_resident"] == 32
            assert row["pages_read"] == 2
        elif row["method"] == "quest":
            assert 16 < row["tokens_visible"] <= 32 and row["pages_read"] == 2
            assert row["tokens_resident"] > 100
        assert not row["dense_fallback"]


def test_the_log_of_a_sample(uneven):
    _, rows, _ = helpers.run(**SHAPE | {"tasks": ["uneven"], "samples": 2})
    tokenizer = helpers.random_model().tokenizer
    for row in rows:
        assert len(row["prompt"]) == 16 and row["prompt_tokens"] > row["prefill_tokens"] > 0
        assert row["stop"] in ("eos", "stop", "length")
        if row["stop"] == "length":
            assert row["new_tokens"] == 2 + int(row["sample"][-1])
            assert len(tokenizer.encode(row["completion"], add_special_tokens=False)) >= 1
        # The last token of an answer is never fed: question and answer less one.
        question = row["prompt_tokens"] - row["prefill_tokens"]
        assert row["steps"] == question + row["new_tokens"] - (row["stop"] != "eos")
        assert 0 <= row["needle_read"] <= 1
        assert row["seconds"].keys() == {"prefill", "fork", "decode"}
    dense = [row for row in rows if row["method"] == "dense"]
    assert all(row["needle_read"] == 1 for row in dense)
    assert len({row["prompt"] for row in rows}) == 2


def test_turns_go_on_behind_the_answer(uneven):
    """What three turns on one cache decode is what one prompt of questions and answers decodes at its end."""
    _, rows, _ = helpers.run(**SHAPE | {"tasks": ["turns"], "samples": 2, "methods": ["dense", "quest"]})
    loaded = helpers.random_model()
    task = Turns()
    for row in rows:
        assert len(row["turns"]) == 3
        assert row["score"] == pytest.approx(sum(turn["score"] for turn in row["turns"]) / 3)
        assert row["completion"] == "\n".join(turn["completion"] for turn in row["turns"])
        assert row["stop"] == row["turns"][-1]["stop"]
    dense = next(row for row in rows if row["method"] == "dense")
    from questbench import seeding

    sample = task.sample(0, length=200, tokenizer=loaded.tokenizer, rng=seeding.generator(0, "turns", 200, 0))
    prompt = split(sample, loaded.tokenizer, "stepwise", 100)
    assert [len(turn.tokens) > 0 for turn in prompt.turns] == [True] * 3
    text = list(prompt.prefill)
    loaded.model.set_attn_implementation("eager")
    for turn, found in zip(prompt.turns, dense["turns"], strict=True):
        text += turn.tokens
        new = loaded.model.generate(torch.tensor([text]), max_new_tokens=2, do_sample=False)[0, len(text) :].tolist()
        ends = [place for place, token in enumerate(new) if "\n" in loaded.tokenizer.decode([token])]
        new = new[: ends[0] + 1] if ends else new
        assert loaded.tokenizer.decode(new, skip_special_tokens=True) == found["completion"]
        text += [token for token in new if token != loaded.tokenizer.eos_token_id]


def fail(monkeypatch, where, when, error):
    """Let ``hf.where`` raise ``error`` at the calls for which ``when(calls, args)`` holds."""
    original, calls = getattr(hf, where), []

    def broken(*args, **kwargs):
        calls.append(args)
        if when(len(calls), args):
            raise error
        return original(*args, **kwargs)

    monkeypatch.setattr(hf, where, broken)
    return calls


def rows_of(ids) -> int:
    return len(ids) if isinstance(ids, torch.Tensor) or not isinstance(ids[0], int) else 1


OOM = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
CPU_OOM = RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you tried")


@pytest.mark.parametrize("error", [OOM, CPU_OOM, MemoryError(), OSError(12, "Cannot allocate memory")])
def test_a_smaller_batch_is_tried_first(uneven, monkeypatch, error):
    settings = SHAPE | {"tasks": ["uneven"], "methods": ["dense", "tova"]}
    records, rows, _ = helpers.run(**settings)
    fail(monkeypatch, "prefill", lambda _, args: rows_of(args[1]) > 2, error)
    again, found, units = helpers.run(**settings | {"batch": 5})
    assert again == records
    assert [helpers.plain(row) for row in found] == [helpers.plain(row) for row in rows]
    assert max(row["batch"] for row in found) == 2
    assert sum(unit.prefills for unit in units) > 5, "what was tried is counted"


def test_a_cell_that_does_not_fit_alone_is_a_record_and_the_others_go_on(uneven, monkeypatch):
    settings = SHAPE | {"tasks": ["uneven"], "methods": ["dense", "quest", "tova"], "samples": 4}
    whole, all_rows, _ = helpers.run(**settings)
    with monkeypatch.context() as patch:
        fail(patch, "fork", lambda _, args: args[1].name == "quest", OOM)
        records, rows, units = helpers.run(**settings | {"batch": 2})
    by_method = {record.method: record for record in records if record.metric == "score"}
    quest = by_method["quest"]
    assert quest.status == "failed" and quest.value is None
    assert "4 of 4 samples failed. Out of memory at batch 1: CUDA out of memory" in quest.reason
    assert by_method["tova"] == next(r for r in whole if r.method == "tova" and r.metric == "score")
    assert {row["error"].partition(":")[0] for row in rows if "error" in row} == {"Out of memory at batch 1"}
    # Resuming runs what failed, and nothing else.
    calls = fail(monkeypatch, "fork", lambda *_: False, OOM)
    finished = {unit.key for unit in units if "|summary|" not in unit.key and "|holm|" not in unit.key}
    again, fresh, _ = helpers.run(finished=finished, stored=rows, **settings)
    assert {args[1].name for args in calls} == {"quest"} and len(calls) == 4
    assert [helpers.plain(r) for r in fresh] == [helpers.plain(r) for r in all_rows if r["method"] == "quest"]
    assert again == whole


def test_a_prefill_that_does_not_fit_fails_every_cell(uneven, monkeypatch):
    fail(monkeypatch, "prefill", lambda *_: True, OOM)
    records, rows, _ = helpers.run(**SHAPE | {"tasks": ["uneven"], "samples": 2, "batch": 2})
    assert {record.status for record in records} == {"failed"} and len(records) == len(METHODS)
    assert len(rows) == 2 * len(METHODS)


def test_other_errors_are_not_taken_for_it(uneven, monkeypatch):
    fail(monkeypatch, "fork", lambda *_: True, RuntimeError("shape mismatch"))
    with pytest.raises(RuntimeError, match="shape mismatch"):
        helpers.run(**SHAPE | {"tasks": ["uneven"], "samples": 1})
    assert not out_of_memory(OSError(2, "No such file")) and not out_of_memory(ValueError("out of memory"))


def test_resume_in_the_middle_of_batches(uneven):
    settings = SHAPE | {"tasks": ["uneven"], "methods": ["dense", "tova"], "batch": 2}
    records, rows, units = helpers.run(**settings)
    stored = [row for unit in units[:3] for row in unit.samples]
    again, _, rest = helpers.run(finished={unit.key for unit in units[:3]}, stored=stored, **settings)
    assert [unit.key for unit in rest] == [unit.key for unit in units[3:]]
    assert again == records
    everything = [unit.key for unit in units]
    assert helpers.run(finished=everything, stored=rows, **settings)[2] == []


def test_a_run_goes_on_with_more_samples(uneven):
    settings = SHAPE | {"tasks": ["uneven"], "methods": ["dense", "tova"]}
    whole, _, everything = helpers.run(**settings | {"samples": 5})
    _, rows, units = helpers.run(**settings | {"samples": 3})
    done = {unit.key for unit in units}
    more, _, rest = helpers.run(finished=done, stored=rows, **settings | {"samples": 5})
    assert [unit.key for unit in rest] == [unit.key for unit in everything[3:]], "two samples, their summary, p values"
    assert all(WENT_ON in record.warnings for record in more if record.metric == "score")
    assert [
        dataclasses.replace(record, warnings=[w for w in record.warnings if w != WENT_ON]) for record in more
    ] == whole
    with pytest.raises(UsageError, match="results of 3 samples of uneven, and 2 are fewer"):
        helpers.run(finished=done, stored=rows, **settings | {"samples": 2})
    with pytest.raises(UsageError, match="results of 5 samples of uneven, and 3 are fewer"):
        helpers.run(finished=done | {unit.key for unit in rest}, stored=rows, **settings | {"samples": 3})


def test_an_unfinished_run_ends_with_fewer_samples(uneven):
    settings = SHAPE | {"tasks": ["uneven"], "methods": ["dense", "tova"]}
    _, _, units = helpers.run(**settings | {"samples": 5})
    stopped = {
        "finished": {unit.key for unit in units[:4]},
        "stored": [row for unit in units[:4] for row in unit.samples],
    }
    fewer, _, rest = helpers.run(**stopped, **settings | {"samples": 3})
    assert fewer == helpers.run(**settings | {"samples": 3})[0]
    assert len(rest) == 2


def test_cells_in_another_order_give_the_same_records(uneven):
    axes = {
        "tasks": ["uneven", "turns"],
        "seq_lens": [120, 90],
        "methods": METHODS,
        "budgets": [32, 48],
        "page_sizes": [16, 8],
    }
    settings = SHAPE | {"samples": 1}
    records, rows, _ = helpers.run(**settings | axes)
    other, others, _ = helpers.run(**settings | {name: values[::-1] for name, values in axes.items()})
    key = lambda record: (record.cell(), record.metric)  # noqa: E731
    assert sorted(records, key=key) == sorted(other, key=key)
    place = lambda row: (row["unit"], row["cell"])  # noqa: E731
    assert sorted(map(helpers.plain, rows), key=place) == sorted(map(helpers.plain, others), key=place)


TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] | trim }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def chatty(template: str = TEMPLATE):
    tokenizer = copy.deepcopy(helpers.random_model().tokenizer)
    tokenizer.chat_template = template
    return tokenizer


def test_a_chat_template_is_read_off_and_put_around_the_prompt():
    tokenizer = chatty()
    found = chat.find(tokenizer, "auto")
    assert found == chat.find(tokenizer, "on")
    assert found == chat.Chat("<|user|>\n", "<|end|>\n<|assistant|>\n", "<|end|>\n<|user|>\n")
    turns = (Turn("\nWhat?", ("42",), ((5, 7),)), Turn("\nAnd?", ("43",), ((0, 4),)))
    sample = Sample("x", "The  42 is here.", "\nWhat?", ("42",), needles=((5, 7),), turns=turns)
    wrapped = found.wrap(sample)
    messages = [{"role": "user", "content": sample.context + sample.question}]
    assert wrapped.context + wrapped.question == tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    )
    first, last = wrapped.needles[0]
    assert wrapped.context[first:last] == sample.context[5:7]
    messages += [{"role": "assistant", "content": "42"}, {"role": "user", "content": "And?"}]
    whole = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert wrapped.context + wrapped.question + "42" + wrapped.turns[1].question == whole
    prompt = split(wrapped, tokenizer, "stepwise", 100, special=False)
    assert tokenizer.decode(prompt.prefill) == wrapped.context and prompt.needles
    assert len(prompt.prefill + prompt.steps) == len(found.tokenizer(tokenizer).encode("The  42 is here.\nWhat?"))


def test_modes_of_the_chat_template():
    plain = helpers.random_model().tokenizer
    assert chat.find(plain, "auto") is None and chat.find(chatty(), "off") is None
    for tokenizer, mode, message in (
        (plain, "on", "no chat template"),
        (chatty(), "maybe", "Unknown chat template mode"),
        (chatty("{{ messages[0]['content'] | upper }}"), "on", "more than wrap"),
        (chatty("{{ raise_exception('no roles') }}"), "on", "no roles"),
    ):
        with pytest.raises(UsageError, match=message):
            chat.find(tokenizer, mode)


def test_a_run_in_a_chat_template_says_so(monkeypatch):
    loaded = dataclasses.replace(helpers.random_model(), tokenizer=chatty())
    helpers.use(loaded, monkeypatch)
    settings = {"tasks": ["passkey"], "seq_lens": [256], "samples": 1, "methods": ["dense"], "model": "random"}
    on, off = (helpers.run(**settings, chat_template=mode) for mode in ("auto", "off"))
    assert on[0][0].params["chat_template"] == "on" and off[0][0].params["chat_template"] == "off"
    assert on[1][0]["prompt"] != off[1][0]["prompt"]
    assert 0.95 * 256 <= on[1][0]["prompt_tokens"] <= 256, "the template's tokens count"


def test_stop_tokens_are_all_that_the_model_and_its_tokenizer_name(monkeypatch):
    loaded = helpers.random_model()
    eos = loaded.tokenizer.eos_token_id
    before = loaded.model.generation_config.eos_token_id
    monkeypatch.setattr(loaded.model.generation_config, "eos_token_id", [eos, 7])
    helpers.use(loaded, monkeypatch)
    records, *_ = helpers.run(tasks=["passkey"], seq_lens=[200], samples=1, methods=["dense"], model="random")
    assert records[0].stats["stop_ids"] == sorted({eos, 7}) and before == eos
    # A stop token ends the answer and is no part of it.
    decoding = Decoding(loaded.tokenizer, frozenset({7}), ("!",), 5)
    script = converse([Steps((3, 4))], decoding)
    assert [next(script), script.send(torch.zeros(9))] == [3, 4]
    logits = torch.zeros(300)
    logits[7] = 1
    with pytest.raises(StopIteration) as ended:
        script.send(logits)
    assert ended.value.value[0].stop == "eos" and ended.value.value[0].tokens == ()


def test_truncation_keeps_both_ends_and_the_question():
    needles = ((1, 2), (50, 51), (97,))
    later = Steps((300,), (((98, 99),), ((44, 45),)))
    prompt = Prompt(tuple(range(100)), (200, 201), (needles,), (later,))
    cut = shorten(prompt, 42)
    assert cut.length == 42 and cut.removed == 60 and cut.steps == prompt.steps
    assert cut.prefill == tuple(range(20)) + tuple(range(80, 100))
    assert cut.needles == (((1, 2), (37,)),)
    assert cut.later[0] == Steps((300,), (((38, 39),), ())), "a needle that was cut away can be read by nobody"
    assert shorten(prompt, 102) == prompt
    with pytest.raises(CellError, match="does not fit"):
        shorten(prompt, 3)


def test_a_run_with_prompts_that_are_too_long_says_so(uneven, monkeypatch):
    monkeypatch.setattr(helpers.random_model().model.config, "max_position_embeddings", 80)
    records, rows, _ = helpers.run(**SHAPE | {"tasks": ["uneven"], "samples": 2, "methods": ["dense"]})
    assert [row["prompt_tokens"] + 2 + index for index, row in enumerate(rows)] == [80, 80]
    assert all(row["removed_tokens"] > 0 for row in rows)
    assert records[0].stats["truncated"] == 2
    assert "the middle of their context was cut" in " ".join(records[0].warnings)


def test_time_left():
    now = [0.0]
    a, b = ("a", 100), ("b", 200)
    counts = {a: 4, b: 2}
    left = Forecast({a: 100, b: 200}, seconds=False, counts=counts, kind=lambda part: part[0], clock=lambda: now[0])
    assert left.words() == "" and left.seconds() is None
    now[0] = 10.0
    left.finished(a)
    # Three of 100 tokens at 0.1 s, two of 200 at the same rate for want of a better one.
    assert left.seconds() == pytest.approx(30 + 40)
    assert left.words() == ", about 70 s left"
    now[0] = 50.0
    left.skip(a, 3)
    now[0] = 350.0
    left.finished(b)
    assert left.seconds() == pytest.approx(300) and left.words() == ", about 5 min left"
    now[0] = 351.0
    left.finished(b)
    assert left.words() == ""


def test_bad_settings():
    for settings, message in (
        ({"batch": 0}, "--batch 0"),
        ({"chat_template": "yes"}, "chat template mode"),
        ({"margin": 1.5}, "--margin 1.5"),
        ({"protocol": "guess"}, "guess"),
    ):
        with pytest.raises(UsageError, match=message):
            helpers.run(tasks=["passkey"], **settings)


def test_a_batch_that_ends_at_once():
    def nothing():
        return "done"
        yield 0

    assert Batch(None, None).play([nothing(), nothing()]) == ["done", "done"]  # type: ignore[arg-type]


def test_unknown_tasks_are_named():
    with pytest.raises(UsageError):
        _make.make_task("no_such_task")
