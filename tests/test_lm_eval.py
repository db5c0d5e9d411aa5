"""The bridge to lm-evaluation-harness: values of the plain model, counted sparse steps, and a real run where it is."""

from __future__ import annotations

import builtins
import copy
import dataclasses
import json
import math
import sys
import types
from pathlib import Path

import pytest
import torch

from questbench import lm_eval as bridge
from questbench.errors import ExitCode, NotFiniteError, PrerequisiteError, UsageError
from questbench.experiments.accuracy.requests import Requests
from questbench.experiments.setup import thread_count
from questbench.kernels import load
from questbench.methods._make import make

sys.path.insert(0, str(Path(__file__).parent / "experiments"))
sys.path.insert(0, str(Path(__file__).parent / "tasks"))
import accuracy_helpers as helpers
from tokenizer_kinds import around, in_front

TEXT = " ".join(f"{number * 37 % 900 + 100} grass is green." for number in range(24))
PAIRS = [
    (TEXT, " The sky"),
    (TEXT, " blue"),
    (TEXT + " The ", "grass is 417 green"),
    (TEXT[:90], " sun"),
    ("", "The grass is green."),
]


@pytest.fixture(autouse=True)
def one_thread():
    """So small a model gains nothing by more."""
    with thread_count(1):
        yield


def requests(method: str = "dense", budget: int = 32, **settings) -> Requests:
    return Requests(helpers.random_model(), make(method, budget), load("cpu"), **settings)


def losses(ids: list[int]) -> torch.Tensor:
    """Of every token but the first, by the plain model in fp64."""
    model = helpers.random_model().model
    model.set_attn_implementation("eager")
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].double()
    return torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(ids[1:]), reduction="none")


@pytest.mark.parametrize("settings", [{}, {"batch": 4}, {"feed": 5}, {"feed": 3, "batch": 2}])
def test_loglikelihoods_are_the_plain_model_s(settings):
    found = requests(**settings).loglikelihood(PAIRS)
    tokenizer = helpers.random_model().tokenizer
    for (context, continuation), (value, greedy) in zip(PAIRS, found, strict=True):
        own = losses(tokenizer.encode(context + continuation))
        count = len(tokenizer.encode(context + continuation)) - len(tokenizer.encode(context.rstrip()))
        assert value == pytest.approx(-float(own[-count:].sum()), rel=1e-4)
        assert greedy is False


def test_a_greedy_continuation_is_known():
    asked = requests()
    text = asked.generate([(TEXT, [], 4)])[0]
    tokenizer = helpers.random_model().tokenizer
    if tokenizer.encode(TEXT + text)[: len(tokenizer.encode(TEXT))] == tokenizer.encode(TEXT):
        ids = torch.tensor([tokenizer.encode(TEXT)])
        model = helpers.random_model().model
        model.set_attn_implementation("eager")
        new = model.generate(ids, max_new_tokens=4, do_sample=False)[0, ids.shape[1] :]
        assert text == tokenizer.decode(new, skip_special_tokens=True)


@pytest.mark.parametrize("method", ["quest", "h2o", "tova", "streaming_llm"])
@pytest.mark.parametrize("feed", [1, 4])
def test_counters_prove_that_every_continuation_token_was_a_sparse_step(method, feed):
    asked = requests(method, feed=feed)
    values = asked.loglikelihood(PAIRS[:3])
    tokenizer = helpers.random_model().tokenizer
    steps = 0
    for context, continuation in PAIRS[:3]:
        own = len(tokenizer.encode(context + continuation)) - len(tokenizer.encode(context.rstrip()))
        steps += feed + own - 1  # the last token is judged, never fed
    facts = asked.proof.facts()
    assert facts["decode_steps"] == facts["limited_steps"] == steps
    assert facts["prefills"] == 2, "two continuations share a context"
    assert facts["requests"] == 3 and not facts["dense_fallback"] and facts["truncated"] == 0
    assert 16 < facts["tokens_visible"] <= 32
    if method != "quest":
        assert facts["tokens_visible"] == facts["tokens_read"] == facts["tokens_resident"] == 32
    dense = requests().loglikelihood(PAIRS[:3])
    assert all(abs(one[0] - other[0]) > 1e-3 for one, other in zip(values, dense, strict=True)), "it did nothing"


@pytest.mark.parametrize("method", ["quest", "tova"])
def test_batches_change_nothing(method):
    alone, together = requests(method), requests(method, batch=5)
    one, other = alone.loglikelihood(PAIRS), together.loglikelihood(PAIRS)
    assert [value for value, _ in one] == pytest.approx([value for value, _ in other], rel=1e-5)
    stop = [(context, ["."], 5 + number) for number, (context, _) in enumerate(PAIRS[:4])]
    assert alone.generate(stop) == together.generate(stop)
    assert alone.proof.facts() == pytest.approx(together.proof.facts())


def test_a_budget_that_holds_everything_is_dense():
    dense = requests().loglikelihood(PAIRS)
    for method in ("quest", "tova", "streaming_llm"):
        asked = requests(method, budget=512)
        assert [v for v, _ in asked.loglikelihood(PAIRS)] == pytest.approx([v for v, _ in dense], rel=1e-4)
        assert asked.proof.facts()["limited_steps"] == 0


def test_rolling(monkeypatch):
    tokenizer = helpers.random_model().tokenizer
    expected = -float(losses([tokenizer.bos_token_id, *tokenizer.encode(TEXT, add_special_tokens=False)]).sum())
    dense, quest = requests(), requests("quest")
    assert dense.rolling([TEXT]) == [pytest.approx(expected, rel=1e-5)]
    assert quest.rolling([TEXT])[0] != pytest.approx(expected, rel=1e-6)
    count = len(tokenizer.encode(TEXT, add_special_tokens=False))
    facts = quest.proof.facts()
    assert facts["prefill_tokens"] == 32 and facts["decode_steps"] == facts["limited_steps"] == count - 32
    assert requests("quest", budget=512).rolling([TEXT]) == [pytest.approx(expected, rel=1e-5)]
    # Windows of 100 tokens: each token is judged once, behind as much text as fits.
    monkeypatch.setattr(helpers.random_model().model.config, "max_position_embeddings", 100)
    ids = [tokenizer.bos_token_id, *tokenizer.encode(TEXT, add_special_tokens=False)]
    by_hand, start = 0.0, 0
    while start < count:
        end = min(start + 100, count)
        begin = max(0, end - 100)
        by_hand += float(losses(ids[begin : end + 1])[start - begin :].sum())
        start = end
    assert requests().rolling([TEXT]) == [pytest.approx(-by_hand, rel=1e-5)]


def test_contexts_are_cut_on_the_left_and_counted(monkeypatch):
    monkeypatch.setattr(helpers.random_model().model.config, "max_position_embeddings", 60)
    asked = requests()
    ((value, _),) = asked.loglikelihood([(TEXT, " blue")])
    # As in lm-eval: 60 tokens are fed, and the last one, which is only judged, comes on top.
    ids = helpers.random_model().tokenizer.encode(TEXT + " blue")
    assert value == pytest.approx(-float(losses(ids[-61:])[-1]), rel=1e-4)
    assert asked.proof.truncated == 1
    with pytest.raises(UsageError, match="does not fit"):
        asked.loglikelihood([("a", TEXT)])
    with pytest.raises(UsageError, match="no room"):
        asked.generate([(TEXT, [], 59)])


def test_stop_texts_are_cut_off():
    asked = requests()
    (whole,) = asked.generate([(TEXT, [], 12)])
    mark = whole[len(whole) // 2]
    assert asked.generate([(TEXT, [mark], 12)]) == [whole.partition(mark)[0]]


def test_bad_requests():
    with pytest.raises(UsageError, match="1 or more"):
        requests(feed=0)
    with pytest.raises(UsageError, match="no tokens of its own"):
        requests().loglikelihood([(TEXT, "")])
    with pytest.raises(UsageError, match="fewer than two"):
        requests().generate([("", [], 3)])


def test_a_context_that_begins_with_the_bos_gets_no_second_one(monkeypatch):
    """A chat template writes it; the tokenizer would add its own in front of it."""
    loaded = helpers.random_model()
    tokenizer = copy.deepcopy(loaded.tokenizer)
    tokenizer.split_special_tokens = False  # special tokens are known where a text spells them, as hub tokenizers do
    asked = Requests(dataclasses.replace(loaded, tokenizer=tokenizer), make("dense", 0), load("cpu"))
    plain = tokenizer.encode(TEXT)
    first = tokenizer.bos_token_id
    assert plain[0] == first and tokenizer.encode(tokenizer.bos_token + TEXT)[:2] == [first, first]
    for text in (TEXT, tokenizer.bos_token + TEXT):
        assert list(asked._context(text, room=4)) == plain
        assert list(asked._pair(text, " blue")[0]) == plain
    (chat, bare) = asked.loglikelihood([(tokenizer.bos_token + TEXT, " blue"), (TEXT, " blue")])
    assert chat == bare


@pytest.mark.parametrize("kind", ["bos", "eos", "both", "none"])
def test_an_end_of_text_that_a_tokenizer_appends_is_not_judged(kind):
    """It stood behind contexts and continuations, which cost three nats and the border between the two."""
    tokenizer = around(kind)
    asked = Requests(dataclasses.replace(helpers.random_model(), tokenizer=tokenizer), make("dense", 0), load("cpu"))
    front = in_front(tokenizer, kind)
    bare = tokenizer.encode(TEXT, add_special_tokens=False)
    whole = tokenizer.encode(TEXT + " blue", add_special_tokens=False)
    assert asked._pair(TEXT, " blue") == ((*front, *bare), tuple(whole[len(bare) :]))
    assert list(asked._context(TEXT, room=4)) == front + bare
    ((value, _),) = asked.loglikelihood([(TEXT, " blue")])
    assert value == pytest.approx(-float(losses(front + whole)[len(front) + len(bare) - 1 :].sum()), rel=1e-4)


def test_a_chat_is_the_same_on_every_day():
    tokenizer = copy.copy(helpers.random_model().tokenizer)
    tokenizer.chat_template = "{{ strftime_now('%Y-%m-%d') }} {% for m in messages %}{{ m.content }} {% endfor %}"
    asked = Requests(dataclasses.replace(helpers.random_model(), tokenizer=tokenizer), make("dense", 0), load("cpu"))
    model = bridge._model_class(Base)(asked)
    assert model.apply_chat_template([{"role": "user", "content": "Hi"}]) == "2024-07-26 Hi "
    tokenizer.chat_template = "{{ raise_exception('no chats') }}"
    with pytest.raises(UsageError, match="no chats") as error:
        model.apply_chat_template([{"role": "user", "content": "Hi"}])
    assert error.value.hint == "Leave --apply-chat-template out."


class Base:
    """What lm-eval's base class is to the bridge."""

    def __init__(self) -> None:
        self._rank = 0


def ask(*args) -> types.SimpleNamespace:
    return types.SimpleNamespace(args=args)


def test_the_model_class_over_a_base_class_like_lm_eval_s():
    model = bridge._model_class(Base)(requests("quest"))
    assert model._rank == 0 and model.tokenizer_name == "random" and model.chat_template() == ""
    plain = requests("quest")
    assert model.loglikelihood([ask(*pair) for pair in PAIRS]) == plain.loglikelihood(PAIRS)
    assert model.loglikelihood_rolling([ask(TEXT)]) == plain.rolling([TEXT])
    settings = {"until": ["."], "max_gen_toks": 6, "do_sample": False}
    assert model.generate_until([ask(TEXT, settings)]) == plain.generate([(TEXT, ["."], 6)])
    assert model.requests.proof.facts() == plain.proof.facts()


def test_settings_of_generation():
    assert bridge._generation({"until": "\n"}) == (["\n"], 256)
    assert bridge._generation({"until": ["a", ""], "max_new_tokens": 3, "temperature": 0.0}) == (["a"], 3)
    for settings in ({"do_sample": True}, {"num_beams": 4}):
        with pytest.raises(UsageError, match="greedily"):
            bridge._generation(settings)


def test_without_lm_eval_the_error_says_what_to_install(monkeypatch, capsys):
    real = builtins.__import__

    def missing(name, *args, **kwargs):
        if name.partition(".")[0] == "lm_eval":
            raise ImportError("No module named 'lm_eval'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(PrerequisiteError, match="lm-eval cannot be imported"):
        bridge.language_model(requests())
    assert bridge.main(["--tasks", "anything"]) == ExitCode.PREREQUISITE
    assert "pip install 'questbench[lm-eval]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tasks", "x", "--method", "snap"], "Unknown method 'snap'"),
        (["--tasks", "x", "--method", "quest", "--budget", "8"], "below one page"),
        (["--tasks", "x", "-M", "budget"], "is not name=value"),
        (["--tasks", "x", "--method", ","], "empty"),
    ],
)
def test_bad_command_lines(arguments, message, capsys):
    assert bridge.main(arguments) == ExitCode.USAGE
    assert message in capsys.readouterr().err


def write_tasks(folder: Path) -> None:
    """Three tasks over one local JSON file: multiple choice, generation, perplexity."""
    rows = [
        {"context": TEXT[40 * number :] + " The", "choices": [" sky", " grass is green"], "gold": number % 2}
        for number in range(3)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    head = f"dataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {folder / 'rows.jsonl'}\ntest_split: test\n"
    tail = "metadata:\n  version: 1\n"
    kinds = {
        "local_choice": 'output_type: multiple_choice\ndoc_to_text: "{{context}}"\ndoc_to_choice: "{{choices}}"\n'
        "doc_to_target: gold\ntarget_delimiter: ''\nmetric_list:\n  - metric: acc\n",
        "local_words": 'output_type: generate_until\ndoc_to_text: "{{context}}"\ndoc_to_target: " sky"\n'
        "generation_kwargs:\n  until: ['.']\n  max_gen_toks: 4\n  do_sample: false\n"
        "metric_list:\n  - metric: exact_match\n",
        "local_text": 'output_type: loglikelihood_rolling\ndoc_to_text: ""\ndoc_to_target: "{{context}}"\n'
        "metric_list:\n  - metric: bits_per_byte\n",
    }
    for name, text in kinds.items():
        (folder / f"{name}.yaml").write_text(f"task: {name}\n{head}{text}{tail}")


def test_a_cell_whose_logits_are_no_numbers_fails_and_the_others_go_on(tmp_path, monkeypatch, capsys):
    """The harness is a stand-in; quest's second variant overflows."""

    def simple_evaluate(model, tasks, **_):
        if getattr(model.requests.method, "group_merge", "") == "max":
            raise NotFiniteError("fp16", "the logits of a decode step")
        return {"results": {tasks[0]: {"acc,none": 0.5, "acc_stderr,none": math.nan}}, "n-samples": {}}

    model = types.SimpleNamespace(LM=object)
    manager = lambda **_: types.SimpleNamespace(all_tasks=["mine"])  # noqa: E731
    harness = types.SimpleNamespace(
        api=types.SimpleNamespace(model=model),
        tasks=types.SimpleNamespace(TaskManager=manager),
        simple_evaluate=simple_evaluate,
    )
    monkeypatch.setattr(bridge, "_harness", lambda: harness)
    monkeypatch.setattr("questbench.models.loading.resolve", lambda *_, **__: helpers.random_model())
    out = tmp_path / "found.json"
    command = ["--tasks", "mine", "--method", "dense,quest", "-M", "quest.group_merge=sum_softmax,max"]
    assert bridge.main([*command, "--backend", "reference", "--out", str(out)]) == ExitCode.CELLS_FAILED
    shown = capsys.readouterr()
    assert "failed" in shown.out and "has left the range of fp16" in shown.err
    cells = json.loads(out.read_text(), parse_constant=lambda name: pytest.fail(f"bare {name}"))
    assert [cell["method"] for cell in cells] == ["dense", "quest", "quest"]
    assert ["error" in cell for cell in cells] == [False, False, True]
    assert cells[0]["results"]["mine"] == {"acc,none": 0.5, "acc_stderr,none": None}


def test_a_real_run_of_lm_eval_on_a_local_task(tmp_path, monkeypatch, capsys):
    pytest.importorskip("lm_eval", reason="lm-eval is not installed (extra [lm-eval])")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    helpers.use(helpers.random_model(), monkeypatch)
    write_tasks(tmp_path)
    arguments = ["--tasks", "local_choice,local_words,local_text", "--include-path", str(tmp_path), "--threads", "1"]
    out = tmp_path / "out.json"
    assert bridge.main([*arguments, "--method", "dense,quest", "--budget", "32", "--out", str(out)]) == 0
    found = {(cell["method"], *cell["results"]): cell for cell in json.loads(out.read_text())}
    assert len(found) == 6
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    pairs = [(row["context"], choice) for row in rows for choice in row["choices"]]
    for method in ("dense", "quest"):
        asked = requests(method)
        values = [value for value, _ in asked.loglikelihood(pairs)]
        right = [(values[2 * n + 1] > values[2 * n]) == (row["gold"] == 1) for n, row in enumerate(rows)]
        cell = found[method, "local_choice"]
        assert cell["results"]["local_choice"]["acc,none"] == pytest.approx(sum(right) / 3)
        assert cell["proof"] == json.loads(json.dumps(asked.proof.facts()))
        texts = [row["context"] for row in rows]
        nats = -math.fsum(requests(method).rolling(texts))
        size = sum(len(text.encode()) for text in texts)
        bits = found[method, "local_text"]["results"]["local_text"]["bits_per_byte,none"]
        assert bits == pytest.approx(nats / size / math.log(2))
    assert found["quest", "local_words"]["proof"]["limited_steps"] > 0
    table = capsys.readouterr().out
    assert "limited" in table and "nan" not in table, "a text that dense only prefills has no decode steps"
    assert bridge.main(["--tasks", "no_such_task", *arguments[2:]]) == ExitCode.USAGE
