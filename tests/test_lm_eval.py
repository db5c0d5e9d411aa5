"""Tasks of lm-evaluation-harness: values of the plain model, counted sparse steps, records; and a real run."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from questbench.errors import ExitCode, NotFiniteError, PrerequisiteError, UsageError
from questbench.experiments.accuracy import AccuracyConfig, Work, cells
from questbench.experiments.accuracy.requests import RequestSession, tokenised
from questbench.experiments.accuracy.session import stop_ids
from questbench.kernels import load
from questbench.models.loading import LoadedModel
from questbench.models.static_loop import StaticLoop
from questbench.records import store
from questbench.registry import load_module
from questbench.tasks._base import Request, RequestTask, Sample
from questbench.tasks._make import expand, make_task

sys.path.insert(0, str(Path(__file__).parent / "experiments"))
sys.path.insert(0, str(Path(__file__).parent / "tasks"))
import accuracy_helpers as helpers
from tokenizer_kinds import around, in_front

bridge = load_module("questbench.tasks", "lm_eval", kind="task")

TEXT = " ".join(f"{number * 37 % 900 + 100} grass is green." for number in range(24))
PAIRS = [
    (TEXT, " The sky"),
    (TEXT, " blue"),
    (TEXT + " The ", "grass is 417 green"),
    (TEXT[:90], " sun"),
    ("", "The grass is green."),
]


@dataclass(frozen=True)
class Given(RequestTask):
    """Asks what it is told to; its only metric is what it was answered."""

    asked: tuple[tuple[Request, ...], ...] = ()
    feed: int = 1
    rolling: bool = False

    def build(self, count: int, seed: int, chat: Any) -> list[Sample]:
        return [Sample(f"given-{n:04d}", "", "", ("",), requests=asked) for n, asked in enumerate(self.asked)]

    def judge(self, sample: Sample, replies: Sequence[Any]) -> dict[str, Any]:
        return {"replies": list(replies)}

    def score_of(self, metrics: Mapping[str, Any]) -> float:
        return 0.0

    def digest(self) -> str:
        return ""

    def sample(self, index: int, **_: Any) -> Sample:
        return self.build(1, 0, None)[index]

    def score(self, sample: Sample, completion: str) -> float:
        return 0.0


def answers(
    asked: Sequence[Sequence[Request]],
    method: str = "dense",
    *,
    budget: int = 32,
    batch: int = 1,
    length: int = 4096,
    loaded: LoadedModel | None = None,
    rolling: bool = False,
    feed: int = 1,
) -> list[dict[str, Any]]:
    """Rows of samples.jsonl of one method, one per sample."""
    loaded = loaded or helpers.random_model()
    config = AccuracyConfig(tasks=["given"], methods=[method], budgets=[budget], batch=batch, threads=1)
    task = Given(tuple(map(tuple, asked)), feed, rolling)
    behind = 0 if method == "dense" else budget
    work = Work("given", task, length, len(asked), "stream" if rolling else "prefill", behind)
    layers, chosen = loaded.dense_layers, [cell for cell in cells(config)[0] if cell.name == method]
    session = RequestSession(config, loaded, load("cpu"), layers, stop_ids(loaded), None, None)
    indices = range(len(asked))
    found = [done for at in indices[::batch] for done in session.samples(work, chosen, indices[at : at + batch])]
    return [row for done in found for row in done.rows]


def likelihoods(pairs: Sequence[tuple[str, str]]) -> list[Request]:
    return [Request("likelihood", *pair) for pair in pairs]


def values(rows: Sequence[Mapping[str, Any]]) -> list[float]:
    return [value for row in rows for value, _ in row["metrics"]["replies"]]


def losses(ids: Sequence[int]) -> torch.Tensor:
    """Of every token but the first, by the plain model in fp64."""
    model = helpers.random_model().model
    model.set_attn_implementation("eager")
    with torch.no_grad():
        logits = model(torch.tensor([list(ids)])).logits[0].double()
    return torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(list(ids[1:])), reduction="none")


def encode(text: str, **settings: Any) -> list[int]:
    return list(helpers.random_model().tokenizer.encode(text, **settings))


def own_tokens(context: str, continuation: str) -> int:
    return len(encode(context + continuation)) - len(encode(context.rstrip()))


@pytest.mark.parametrize(
    ("settings", "together"),
    [({}, False), ({"batch": 4}, False), ({"feed": 5}, True), ({"feed": 3, "batch": 2}, False)],
)
def test_likelihoods_are_the_plain_model_s(settings: dict[str, int], together: bool) -> None:
    every = likelihoods(PAIRS)
    rows = answers([every] if together else [[one] for one in every], **settings)
    found = [reply for row in rows for reply in row["metrics"]["replies"]]
    for (context, continuation), (value, greedy) in zip(PAIRS, found, strict=True):
        own = losses(encode(context + continuation))[-own_tokens(context, continuation) :]
        assert value == pytest.approx(-float(own.sum()), rel=1e-4)
        assert greedy is False


def test_a_greedy_continuation_is_known() -> None:
    (row,) = answers([[Request("completion", TEXT, max_new_tokens=4)]])
    (text,) = row["metrics"]["replies"]
    model = helpers.random_model().model
    model.set_attn_implementation("eager")
    ids = torch.tensor([encode(TEXT)])
    new = model.generate(ids, max_new_tokens=4, do_sample=False)[0, ids.shape[1] :]
    assert text == helpers.random_model().tokenizer.decode(new, skip_special_tokens=True)
    assert row["completion"] == text and row["new_tokens"] == 4


def test_greedy_says_whether_the_model_would_have_written_it() -> None:
    ids = encode(TEXT)
    model = helpers.random_model().model
    with torch.no_grad():
        best = int(model(torch.tensor([ids])).logits[0, -1].argmax())
    word = helpers.random_model().tokenizer.decode([best])
    assert encode(TEXT + word) == [*ids, best], "the test needs a word that is one token here"
    ((_, hit),) = answers([likelihoods([(TEXT, word)])])[0]["metrics"]["replies"]
    assert hit is True


@pytest.mark.parametrize("method", ["quest", "h2o", "tova", "streaming_llm"])
@pytest.mark.parametrize("feed", [1, 4])
def test_counters_prove_that_every_continuation_token_was_a_sparse_step(method: str, feed: int) -> None:
    asked = [likelihoods(PAIRS[:3])]
    (row,) = answers(asked, method, feed=feed)
    # The last token is judged, never fed.
    assert row["steps"] == sum(feed + own_tokens(*pair) - 1 for pair in PAIRS[:3])
    assert row["sparse_steps"] == 1 and not row["dense_fallback"]
    assert 16 < row["tokens_visible"] <= 32
    if method != "quest":
        assert row["tokens_visible"] == row["tokens_read"] == row["tokens_resident"] == 32
    dense = values(answers(asked))
    assert all(abs(one - other) > 1e-3 for one, other in zip(values([row]), dense, strict=True)), "it did nothing"


@pytest.mark.parametrize("method", ["quest", "tova"])
def test_batches_change_nothing(method: str) -> None:
    asked = [
        *([one] for one in likelihoods(PAIRS)),
        likelihoods(PAIRS[1:4]),
        *(
            [Request("completion", context, stop=(".",), max_new_tokens=5 + n)]
            for n, (context, _) in enumerate(PAIRS[:4])
        ),
    ]
    alone, together = answers(asked, method), answers(asked, method, batch=5)
    for one, other in zip(alone, together, strict=True):
        assert one["likelihoods"] == [[pytest.approx(value, rel=1e-5), hit] for value, hit in other["likelihoods"]]
        for name in ("completion", "steps", "tokens_read", "prompt"):
            assert one[name] == pytest.approx(other[name])


def test_a_budget_that_holds_everything_is_dense() -> None:
    asked = [likelihoods(PAIRS)]
    for method in ("quest", "tova", "streaming_llm"):
        (row,) = answers(asked, method, budget=512)
        assert values([row]) == pytest.approx(values(answers(asked)), rel=1e-4)
        assert row["sparse_steps"] == 0


def test_whole_texts() -> None:
    asked = [[Request("text", TEXT)]]
    ids = [helpers.random_model().tokenizer.bos_token_id, *encode(TEXT, add_special_tokens=False)]
    expected = -float(losses(ids).sum())

    def whole(method: str = "dense", **settings: Any) -> Any:
        (row,) = answers(asked, method, rolling=True, **settings)
        assert row["metrics"]["replies"] == [pytest.approx(-row["nll"])]
        assert row["scored_tokens"] == len(ids) - 1 and row["scored_bytes"] == len(TEXT.encode())
        return row

    assert whole()["nll"] == pytest.approx(-expected, rel=1e-5)
    quest = whole("quest")
    assert quest["nll"] != pytest.approx(-expected, rel=1e-6)
    assert quest["prefill_tokens"] == 32 and quest["steps"] == len(ids) - 1 - 32 and quest["sparse_steps"] == 1
    assert whole("quest", budget=512)["nll"] == pytest.approx(-expected, rel=1e-5)
    # Windows of 100 tokens: each token is judged once, behind as much text as fits.
    by_hand, start = 0.0, 0
    while start < len(ids) - 1:
        end = min(start + 100, len(ids) - 1)
        begin = max(0, end - 100)
        by_hand += float(losses(ids[begin : end + 1])[start - begin :].sum())
        start = end
    assert whole(length=100)["nll"] == pytest.approx(by_hand, rel=1e-5)


def test_contexts_lose_their_beginning() -> None:
    (row,) = answers([likelihoods([(TEXT, " blue")])], length=60)
    # As in lm-eval: 60 tokens are fed, and the last one, which is only judged, comes on top.
    ids = encode(TEXT + " blue")
    assert values([row]) == [pytest.approx(-float(losses(ids[-61:])[-1]), rel=1e-4)]
    assert row["removed_tokens"] == len(ids) - 61


def test_stop_texts_are_cut_off() -> None:
    (row,) = answers([[Request("completion", TEXT, max_new_tokens=12)]])
    mark = row["completion"][len(row["completion"]) // 2]
    (cut,) = answers([[Request("completion", TEXT, stop=(mark,), max_new_tokens=12)]])
    assert cut["completion"] == row["completion"].partition(mark)[0]


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (Request("likelihood", TEXT, ""), "no tokens of its own"),
        (Request("completion", "", max_new_tokens=3), "fewer than two"),
        (Request("likelihood", "a", TEXT), "no room"),
        (Request("completion", TEXT, max_new_tokens=59), "no room"),
        (Request("text", ""), "empty"),
    ],
)
def test_a_request_that_cannot_be_answered_is_no_answer_of_any_method(request_: Request, words: str) -> None:
    rows = answers([[request_], likelihoods(PAIRS[:1])], "quest", length=60)
    assert words in rows[0]["unusable"] and "score" in rows[1]


def ids_of(request: Request, tokenizer: Any, limit: int = 4096) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Tokens of a context, and those that are judged."""
    (one,) = tokenised(Given(), Sample("x", "", "", ("",), requests=(request,)), tokenizer, limit, 0).asked
    border = len(one.ids) - one.judged
    return one.ids[:border], one.ids[border:]


def test_a_context_that_begins_with_the_bos_gets_no_second_one() -> None:
    """A chat template writes it; the tokenizer would add its own in front of it."""
    tokenizer = copy.deepcopy(helpers.random_model().tokenizer)
    tokenizer.split_special_tokens = False  # special tokens are known where a text spells them, as hub tokenizers do
    first = tokenizer.bos_token_id
    assert encode(TEXT)[0] == first and tokenizer.encode(tokenizer.bos_token + TEXT)[:2] == [first, first]
    for text in (TEXT, tokenizer.bos_token + TEXT):
        assert list(ids_of(Request("completion", text, max_new_tokens=4), tokenizer)[0]) == encode(TEXT)
        assert list(ids_of(Request("likelihood", text, " blue"), tokenizer)[0]) == encode(TEXT)


@pytest.mark.parametrize("kind", ["bos", "eos", "both", "none"])
def test_an_end_of_text_that_a_tokenizer_appends_is_not_judged(kind: str) -> None:
    """It stood behind contexts and continuations, which cost three nats and the border between the two."""
    tokenizer = around(kind)
    front, bare = in_front(tokenizer, kind), tokenizer.encode(TEXT, add_special_tokens=False)
    whole = tokenizer.encode(TEXT + " blue", add_special_tokens=False)
    assert ids_of(Request("likelihood", TEXT, " blue"), tokenizer) == ((*front, *bare), tuple(whole[len(bare) :]))
    assert list(ids_of(Request("completion", TEXT, max_new_tokens=4), tokenizer)[0]) == front + bare
    loaded = dataclasses.replace(helpers.random_model(), tokenizer=tokenizer)
    (value,) = values(answers([likelihoods([(TEXT, " blue")])], loaded=loaded))
    assert value == pytest.approx(-float(losses(front + whole)[len(front) + len(bare) - 1 :].sum()), rel=1e-4)


# ---- the harness, by a stand-in ------------------------------------------------------------------------------------


def mean(found: Sequence[float]) -> float:
    return sum(found) / len(found)


def last(found: Sequence[float]) -> float:
    return found[-1]


class First:
    """The filter that lm-eval puts where a task names none."""

    name = "none"

    def apply(self, instances: Sequence[Any]) -> None:
        for instance in instances:
            instance.filtered_resps[self.name] = instance.resps[0]


class Harness:
    """What a task of lm-eval is to the bridge: which of two continuations is likelier, or a completion, or a text."""

    def __init__(self, kind: str, count: int = 3) -> None:
        self.OUTPUT_TYPE = kind
        self.config = types.SimpleNamespace(repeats=1, num_fewshot=0)
        self._filters = [First()]
        self.eval_docs = [{"context": TEXT[40 * n :] + " The", "gold": n % 2} for n in range(count)]
        self.chats: list[Any] = []
        self.instances: list[Any] = []
        self.seeds: list[int] = []

    def set_config(self, key: str, value: Any) -> None:
        setattr(self.config, key, value)

    def set_fewshot_seed(self, seed: int) -> None:
        self.seeds.append(seed)

    def aggregation(self) -> dict[str, Any]:
        return (
            {"brier": last, "bits_per_byte": last}
            if self.OUTPUT_TYPE.endswith("rolling")
            else {"brier": last, "acc": mean, "acc_norm": mean}
        )

    def build_all_requests(self, *, limit: int, apply_chat_template: bool, chat_template: Any) -> None:
        assert apply_chat_template == (chat_template is not None)
        self.instances = []
        for number, doc in enumerate(self.eval_docs[:limit]):
            text = str(doc["context"])
            if chat_template:
                text = chat_template([{"role": "user", "content": text}], add_generation_prompt=True)
            arguments: list[tuple[Any, ...]] = [(text, " sky"), (text, " grass is green")]
            if self.OUTPUT_TYPE == "loglikelihood_rolling":
                arguments = [(text,)]
            elif self.OUTPUT_TYPE == "generate_until":
                arguments = [(text, {"until": ["."], "max_gen_toks": 4, "do_sample": False})]
            kind = "loglikelihood" if self.OUTPUT_TYPE == "multiple_choice" else self.OUTPUT_TYPE
            self.instances += [
                types.SimpleNamespace(request_type=kind, args=args, doc=doc, doc_id=number, idx=index)
                for index, args in reversed(list(enumerate(arguments)))
            ]

    def doc_to_target(self, doc: Mapping[str, Any]) -> Any:
        return doc["gold"]

    def process_results(self, doc: Mapping[str, Any], replies: Sequence[Any]) -> dict[str, Any]:
        if self.OUTPUT_TYPE == "loglikelihood_rolling":
            return {"bits_per_byte": (replies[0], len(str(doc["context"]).encode()))}
        if self.OUTPUT_TYPE == "generate_until":
            return {"acc": float("." not in replies[0]), "acc_norm": 0.0}
        (sky, _), (grass, _) = replies
        return {"brier": grass - sky, "acc": float((grass > sky) == (doc["gold"] == 1)), "acc_norm": 2.0}


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch) -> dict[str, Harness]:
    """The stand-in's tasks by name."""
    tasks = {
        "choice": Harness("multiple_choice"),
        "words": Harness("generate_until"),
        "text": Harness("loglikelihood_rolling"),
    }

    class TaskManager:
        def __init__(self, include_path: str | None = None) -> None:
            self.all_tasks = [*tasks, "group", "broken", *(["own"] if include_path == "mine" else [])]

        def load(self, name: str) -> Any:
            if name == "broken":
                raise ConnectionError("no network\nsecond line")
            return {"tasks": tasks if name == "group" else {name: tasks["choice" if name == "own" else name]}}

    parts = {"lm_eval": types.ModuleType("lm_eval"), "lm_eval.tasks": types.ModuleType("lm_eval.tasks")}
    vars(parts["lm_eval"])["tasks"] = parts["lm_eval.tasks"]
    vars(parts["lm_eval.tasks"])["TaskManager"] = TaskManager
    for name, module in parts.items():
        monkeypatch.setitem(sys.modules, name, module)
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    bridge._load.cache_clear()
    yield tasks
    bridge._load.cache_clear()


SMALL = {"seq_lens": [512], "budgets": [32], "methods": ["quest", "tova"], "model": "random"}


def test_a_task_of_the_harness_becomes_records(harness: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    helpers.use(helpers.random_model(), monkeypatch)
    records, rows, _ = helpers.run(tasks=["lm_eval:choice", "lm_eval:words"], samples=3, log_samples=True, **SMALL)
    scores = {(r.params["task"], r.method): r for r in records if r.metric == "score"}
    assert set(scores) == {(f"lm_eval:{task}", m) for task in ("choice", "words") for m in ("dense", "quest", "tova")}
    pairs = [(doc["context"], choice) for doc in harness["choice"].eval_docs for choice in (" sky", " grass is green")]
    for method in ("dense", "quest", "tova"):
        asked = values(answers([[one] for one in likelihoods(pairs)], method))
        right = [(asked[2 * n + 1] > asked[2 * n]) == (n % 2 == 1) for n in range(3)]
        record = scores["lm_eval:choice", method]
        assert record.samples == [float(hit) for hit in right] and record.params["protocol"] == "prefill"
        assert record.stats["metrics"]["brier,none"] == pytest.approx(asked[5] - asked[4])
        assert record.stats["metrics"]["acc,none"] == pytest.approx(record.value)
    for record in scores.values():
        assert record.method == "dense" or "delta_vs_dense" in record.stats
        assert record.stats["sparse_steps"] == (record.method != "dense")
    assert {row["metrics"]["acc_norm,none"] for row in rows if row["task"] == "lm_eval:choice"} == {2.0}
    assert {row["meta"]["document"] for row in rows} == {0, 1, 2} and rows[0]["answers"] == ["0"]
    prompts = {(row["task"], row["sample"], row["prompt"]) for row in rows}
    assert len(prompts) == 6, "every method has the same prompts"


def test_whole_texts_of_the_harness_become_perplexities(harness: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    helpers.use(helpers.random_model(), monkeypatch)
    records, rows, _ = helpers.run(tasks=["lm_eval:text"], samples=2, **SMALL | {"budgets": [32, 64]})
    found = {(r.method, r.method_args.get("budget"), r.metric): r for r in records}
    assert len([key for key in found if key[2] == "perplexity"]) == 5
    bits = found["dense", None, "bits_per_byte"]
    nats = [row["nll"] for row in rows if row["method"] == "dense"]
    assert bits.value == pytest.approx(sum(nats) / math.log(2) / bits.stats["bytes"])
    assert found["quest", 64, "perplexity"].params["counted_behind"] == 64
    of_dense = found["dense", None, "perplexity"].stats["metrics"]["bits_per_byte,none"]
    assert of_dense[0] == pytest.approx(-nats[-1])


def test_choosing_a_metric_examples_and_fed_tokens(harness: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    helpers.use(helpers.random_model(), monkeypatch)
    task = make_task("lm_eval:words:metric=acc_norm/none:fewshot=2:feed=3")
    assert (task.scored, task.feed, harness["words"].config.num_fewshot) == ("acc_norm,none", 3, 2)  # type: ignore[attr-defined]
    assert make_task("lm_eval:own:include_path=mine").scored == "acc,none"  # type: ignore[attr-defined]
    records, *_ = helpers.run(tasks=["lm_eval:choice:metric=acc_norm"], samples=1, **SMALL)
    assert "scores 2.0, which is not between 0 and 1" in str(records[0].reason)
    assert expand(["lm_eval:group:feed=2"]) == [f"lm_eval:{name}:feed=2" for name in ("choice", "words", "text")]
    assert harness["choice"].seeds == [0]


def test_a_chat_template_is_put_around_prompts_only_where_asked(harness: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = copy.copy(helpers.random_model().tokenizer)
    tokenizer.chat_template = "{{ strftime_now('%Y-%m-%d') }} {% for m in messages %}{{ m.content }} {% endfor %}"
    helpers.use(dataclasses.replace(helpers.random_model(), tokenizer=tokenizer), monkeypatch)
    settings = {"tasks": ["lm_eval:choice"], "samples": 1, **SMALL, "methods": ["dense"]}
    _, (bare,), _ = helpers.run(**settings)
    records, (chat,), _ = helpers.run(**settings, chat_template="on")
    assert records[0].params["chat_template"] == "on"
    assert chat["prompt_tokens"] > bare["prompt_tokens"]
    assert harness["choice"].instances[0].args[0].startswith("2024-07-26 ")


def test_a_cell_whose_logits_are_no_numbers_fails_and_the_others_go_on(
    harness: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    helpers.use(helpers.random_model(), monkeypatch)
    original = StaticLoop.feed

    def feed(self: StaticLoop, tokens: Sequence[int]) -> torch.Tensor:
        if self.cache.layers[-1].method.name == "tova":
            raise NotFiniteError("fp16", "the logits of a decode step")
        return original(self, tokens)

    monkeypatch.setattr(StaticLoop, "feed", feed)
    for batch in (1, 3):
        records, *_ = helpers.run(tasks=["lm_eval:choice"], samples=3, batch=batch, **SMALL)
        states = {record.method: record.status for record in records if record.metric == "score"}
        assert states == {"dense": "ok", "quest": "ok", "tova": "failed"}
        assert any("has left the range of fp16" in str(record.reason) for record in records)


def test_a_run_is_resumed(harness: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    helpers.use(helpers.random_model(), monkeypatch)
    settings = {"tasks": ["lm_eval:choice"], "samples": 3, **SMALL}
    records, rows, units = helpers.run(**settings)
    first = units[0]
    again, more, _ = helpers.run(finished={first.key}, stored=first.samples, **settings)
    assert [helpers.plain(row) for row in [*first.samples, *more]] == [helpers.plain(row) for row in rows]
    assert [(r.method, r.metric, r.value) for r in again] == [(r.method, r.metric, r.value) for r in records]


def test_settings_of_generation() -> None:
    def made(settings: dict[str, Any]) -> tuple[tuple[str, ...], int]:
        found = bridge._request(types.SimpleNamespace(request_type="generate_until", args=("text", settings)))
        return found.stop, found.max_new_tokens

    assert made({"until": "\n"}) == (("\n",), 256)
    assert made({"until": ["a", ""], "max_new_tokens": 3, "temperature": 0.0}) == (("a",), 3)
    for settings in ({"do_sample": True}, {"num_beams": 4}):
        with pytest.raises(UsageError, match="greedily"):
            made(settings)


def test_a_method_that_reads_prompts_for_itself_has_a_prefill_of_its_own(
    harness: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    helpers.add_windowed(tmp_path, monkeypatch)
    helpers.use(helpers.random_model(), monkeypatch)
    settings = {"tasks": ["lm_eval:choice"], "samples": 2} | SMALL
    _, together, units = helpers.run(**settings | {"methods": ["windowed", "quest"], "budgets": [32, 48]})
    assert [unit.prefills for unit in units if unit.samples] == [3, 3]  # dense, and windowed at either budget
    found = {(row["sample"], row["cell"]): helpers.plain(row) for row in together}
    for methods, budget in ((["windowed"], 32), (["windowed"], 48), (["quest"], 32)):
        _, rows, _ = helpers.run(**settings | {"methods": methods, "budgets": [budget]})
        assert all(found[row["sample"], row["cell"]] == helpers.plain(row) for row in rows)
    own = [row["likelihoods"] for row in together if row["sample"] == together[0]["sample"]]
    assert len({repr(values) for values in own}) == len(own) == 5


def test_without_lm_eval_the_error_says_what_to_install(
    questbench: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    bridge._load.cache_clear()
    ended = questbench("accuracy", "--task", "lm_eval:anything", "--out", tmp_path)
    assert ended.code == ExitCode.PREREQUISITE
    assert ended.err.splitlines()[-1] == "next:  Install it with: pip install 'questbench[lm-eval]'"
    assert not store.runs(tmp_path)


@pytest.mark.parametrize(
    ("spec", "error", "words"),
    [
        ("lm_eval", UsageError, "needs the name of a task"),
        ("lm_eval:nothing", UsageError, "no task 'nothing'"),
        ("lm_eval:broken", PrerequisiteError, "ConnectionError: no network"),
        ("lm_eval:choice:metric=f1", UsageError, "has no metric 'f1' that is a mean over samples"),
        ("lm_eval:choice:feed=0", UsageError, "nothing to run"),
        ("lm_eval:choice:shots=3", UsageError, "no parameter 'shots'"),
    ],
)
def test_tasks_that_cannot_be_run(spec: str, error: type[Exception], words: str, harness: Any) -> None:
    with pytest.raises(error, match=words):
        helpers.run(tasks=[spec], methods=["dense"])


def test_more_samples_than_there_are(harness: Any) -> None:
    with pytest.raises(UsageError, match="has 3 samples, not 4"):
        helpers.run(tasks=["lm_eval:choice"], samples=4, methods=["dense"])


def test_documents_that_changed_are_noticed(harness: Any) -> None:
    before = make_task("lm_eval:choice").digest()  # type: ignore[attr-defined]
    harness["choice"].eval_docs[1]["gold"] = 5
    assert make_task("lm_eval:choice").digest() != before  # type: ignore[attr-defined]


# ---- the harness itself, where it is installed ---------------------------------------------------------------------


def write_tasks(folder: Path) -> list[dict[str, Any]]:
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
        "doc_to_target: gold\ntarget_delimiter: ''\nmetric_list:\n  - metric: acc\n  - metric: acc_norm\n",
        "local_words": 'output_type: generate_until\ndoc_to_text: "{{context}}"\ndoc_to_target: " sky"\n'
        "generation_kwargs:\n  until: ['.']\n  max_gen_toks: 4\n  do_sample: false\n"
        "metric_list:\n  - metric: exact_match\n",
        "local_text": 'output_type: loglikelihood_rolling\ndoc_to_text: ""\ndoc_to_target: "{{context}}"\n'
        "metric_list:\n  - metric: bits_per_byte\n",
    }
    for name, text in kinds.items():
        (folder / f"{name}.yaml").write_text(f"task: {name}\n{head}{text}{tail}")
    return rows


def test_a_real_run_of_lm_eval_on_a_local_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, questbench: Callable[..., Any]
) -> None:
    pytest.importorskip("lm_eval", reason="lm-eval is not installed (extra [lm-eval])")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    helpers.use(helpers.random_model(), monkeypatch)
    rows = write_tasks(tmp_path)
    tasks = ",".join(
        f"lm_eval:{name}:include_path={tmp_path}" for name in ("local_choice", "local_words", "local_text")
    )
    line = ["--task", tasks, "--method", "quest", "--budget", "32", "--threads", "1", "--out", tmp_path / "results"]
    ended = questbench("accuracy", "--model", "constructed", *line)
    assert ended.code == 0, ended.err
    (run,) = store.runs(tmp_path / "results")
    records = store.load([run])
    found = {(r.params["task"].split(":")[1], r.method, r.metric): r for r in records}
    pairs = [(row["context"], choice) for row in rows for choice in row["choices"]]
    for method in ("dense", "quest"):
        asked = values(answers([[one] for one in likelihoods(pairs)], method))
        right = [(asked[2 * n + 1] > asked[2 * n]) == (row["gold"] == 1) for n, row in enumerate(rows)]
        record = found["local_choice", method, "score"]
        assert record.samples == [float(hit) for hit in right]
        assert record.stats["metrics"]["acc,none"] == pytest.approx(sum(right) / 3)
        texts = answers([[Request("text", row["context"])] for row in rows], method, rolling=True)
        size = sum(len(row["context"].encode()) for row in rows)
        bits = sum(row["nll"] for row in texts) / size / math.log(2)
        text = found["local_text", method, "perplexity"]
        assert found["local_text", method, "bits_per_byte"].value == pytest.approx(bits, rel=1e-4)
        assert text.stats["metrics"]["bits_per_byte,none"] == pytest.approx(bits, rel=1e-4)
    assert found["local_words", "quest", "score"].stats["sparse_steps"] == 1
    assert "local_choice" in questbench("report", run, "--to", tmp_path / "report", "--no-plots").out
