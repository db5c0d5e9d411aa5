"""LongBench and LongBench-E on self-made rows: prompts, cuts, scores, lengths."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from data_helpers import ANSWERS, CLASSES, jsonl, longbench_rows, longbench_zip

from questbench.errors import PrerequisiteError, UsageError
from questbench.experiments.accuracy.chat import Chat
from questbench.models.constructed.tokenizer import build_tokenizer
from questbench.tasks._longbench import PAPER, SETS
from questbench.tasks._make import make_task
from questbench.tasks._truncate import middle

TOKENIZER = build_tokenizer()


class Lumps:
    """About five characters per token, counted in whole words, and no offsets."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return [0] * add_special_tokens + [0 for word in text.split() for _ in range(-(-len(word) // 5))]


TOKENIZERS: dict[str, Any] = {
    "fast": TOKENIZER,
    "counting": Lumps(),
    "chat": Chat("USER: ", " ASSISTANT:", "").tokenizer(TOKENIZER),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("longbench")
    longbench_zip(path / "data.zip", list(SETS))
    longbench_zip(path / "e" / "data.zip", list(SETS), suffix="_e")
    return path


def make(folder: Path, spec: str) -> Any:
    return make_task(spec, {"*": str(folder)})


def sample(folder: Path, name: str, index: int = 0, length: int = 31500, tokenizer: Any = TOKENIZER) -> Any:
    task = make(folder, f"longbench:set={name}")
    return task.sample(index, length=length, tokenizer=tokenizer, rng=random.Random(0))


@pytest.mark.parametrize("name", SETS)
def test_prompt_is_context_and_question(name: str, folder: Path) -> None:
    row = longbench_rows(name)[1]
    got = sample(folder, name, 1)
    facts = SETS[name]
    assert got.context == facts.head + row["context"]
    assert got.question == facts.tail.replace("{input}", row["input"])
    assert row["input"] in got.question
    assert list(got.answers) == row["answers"]
    assert got.meta["row"] == f"{name}-row-1" and got.meta["words"] == 5000
    assert got.meta["truncation"] == "none"
    assert got.meta["tokens"] == got.meta["full_tokens"] == len(TOKENIZER.encode(got.prompt))
    assert got.meta["data"]["rows"] == 3 and len(got.meta["data"]["sha256"]) == 64


def test_prompts_of_the_papers_sets_to_the_letter(folder: Path) -> None:
    hotpot = sample(folder, "hotpotqa")
    start = (
        "Answer the question based on the given passages. Only give me the answer and do not output any other words."
        "\n\nThe following are given passages.\n"
    )
    assert hotpot.context == start + longbench_rows("hotpotqa")[0]["context"]
    assert hotpot.question == (
        "\n\nAnswer the question based on the given passages. Only give me the answer and do not output any other "
        "words.\n\nQuestion: Which bridge is number 0?\nAnswer:"
    )
    qasper = sample(folder, "qasper")
    assert qasper.question == (
        "\n\n Answer the question based on the above article as concisely as you can, using a single phrase or "
        "sentence if possible. If the question cannot be answered based on the information in the article, write "
        '"unanswerable". If the question is a yes/no question, answer "yes", "no", or "unanswerable". Do not provide '
        "any explanation.\n\nQuestion: Which bridge is number 0?\n\nAnswer:"
    )
    assert sample(folder, "narrativeqa").question == (
        "\n\nNow, answer the question based on the story asconcisely as you can, using a single phrase if possible. Do "
        "not provide any explanation.\n\nQuestion: Which bridge is number 0?\n\nAnswer:"
    )
    assert sample(folder, "gov_report").question == "\n\nNow, write a one-page summary of the report.\n\nSummary:"
    assert sample(folder, "triviaqa").question == "\n\nWhich bridge is number 0?"


def test_answer_lengths_and_metrics(folder: Path) -> None:
    tokens = {name: make(folder, f"longbench:set={name}").max_new_tokens for name in SETS}
    assert tokens == {
        "narrativeqa": 128,
        "qasper": 128,
        "multifieldqa_en": 64,
        "hotpotqa": 32,
        "2wikimqa": 32,
        "musique": 32,
        "gov_report": 512,
        "qmsum": 512,
        "multi_news": 512,
        "trec": 64,
        "triviaqa": 32,
        "samsum": 128,
        "passage_count": 32,
        "passage_retrieval_en": 32,
        "lcc": 64,
        "repobench-p": 64,
        "passage_retrieval_zh": 32,
        "lsht": 64,
    }
    metrics = {name: make(folder, f"longbench:set={name}").metric for name in SETS}
    assert {name for name, metric in metrics.items() if metric == "rouge_l"} == {
        "gov_report",
        "qmsum",
        "multi_news",
        "samsum",
    }
    assert metrics["trec"] == "classification" and metrics["lcc"] == "code_similarity"
    assert {name for name in SETS if not make(folder, f"longbench:set={name}").chat} == {
        "trec",
        "triviaqa",
        "samsum",
        "lcc",
        "repobench-p",
        "lsht",
    }


@pytest.mark.parametrize("name", SETS)
def test_gold_scores_one_and_nothing_scores_zero(name: str, folder: Path) -> None:
    task, got = make(folder, f"longbench:set={name}"), sample(folder, name)
    for answer in got.answers if name not in ANSWERS else got.answers[:1]:
        assert task.score(got, answer) == pytest.approx(1.0, abs=1e-6)
    assert task.score(got, "") == 0.0
    assert task.score(got, "zzz qqq") < 0.5


def test_scores_read_as_upstream_does(folder: Path) -> None:
    qa, trivia = make(folder, "longbench:set=qasper"), make(folder, "longbench:set=triviaqa")
    got = sample(folder, "qasper")
    assert qa.score(got, "copper bridge and more") == pytest.approx(2 * 0.5 / 1.5)  # P 2/4, R 2/2
    assert qa.score(got, "answer second") == 1.0, "the best of several answers"
    assert trivia.score(got, "\ncopper bridge\nPassage: a long one") == 1.0, "few-shot: the first line"
    assert qa.score(got, "copper bridge\nPassage: a long one") < 1.0
    trec = sample(folder, "trec")
    assert trec.meta["classes"] == CLASSES
    assert make(folder, "longbench:set=trec").score(trec, "Number of people\nQuestion") == 1.0
    assert make(folder, "longbench:set=trec").score(trec, "Number of people, Place") == 0.5


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@pytest.mark.parametrize("length", [400, 511, 900])
def test_middle_is_cut_to_the_length(tokenizer: str, length: int, folder: Path) -> None:
    whole = sample(folder, "qasper", tokenizer=TOKENIZERS[tokenizer])
    got = sample(folder, "qasper", length=length, tokenizer=TOKENIZERS[tokenizer])
    full = whole.context + whole.question
    cut = got.prompt
    reached = len(TOKENIZERS[tokenizer].encode(cut))
    template = len(TOKENIZERS[tokenizer].encode(""))  # counted with each half
    assert length - 12 - template <= reached <= length
    assert got.question == whole.question
    assert got.meta["truncation"] == "middle"
    assert got.meta["full_tokens"] == len(TOKENIZERS[tokenizer].encode(full)) and got.meta["tokens"] == reached
    # What is left is a beginning and an end of the prompt.
    head = next(size for size in range(len(cut), -1, -1) if full.startswith(cut[:size]))
    assert full.endswith(cut[head:])


def test_cut_is_upstreams_where_the_tokenizer_is_lossless() -> None:
    text = " ".join(f"word{number} of the text," for number in range(300))
    ids = TOKENIZER.encode(text)
    half = 200 // 2
    halves = [TOKENIZER.decode(part, skip_special_tokens=True) for part in (ids[:half], ids[-half:])]
    cut = middle(text, 200, TOKENIZER)
    assert text[: cut.head] + text[cut.tail :] == "".join(halves)
    assert cut.meta() == {"truncation": "middle", "full_tokens": len(ids), "tokens": 200, "kept_at_each_end": half}


def test_text_that_fits_is_not_cut() -> None:
    exact = len(TOKENIZER.encode("one two three"))
    assert middle("one two three", exact, TOKENIZER).half is None
    assert middle("one two three", exact - 1, TOKENIZER).half is not None


@pytest.mark.parametrize("length", [60, 100, 160])
def test_a_long_question_is_cut_as_upstream_cuts_it(length: int, folder: Path) -> None:
    """Upstream keeps both ends of the whole prompt, wherever its question begins."""
    whole = sample(folder, "qasper")
    got = sample(folder, "qasper", length=length)
    full, cut = whole.context + whole.question, got.context + got.question
    kept = got.meta["kept_at_each_end"]
    spans = TOKENIZER(full, return_offsets_mapping=True)["offset_mapping"]
    assert cut == full[: spans[kept - 1][1]] + full[spans[-kept][0] :]
    assert len(got.question) < len(whole.question)
    assert whole.context.startswith(got.context) and whole.question.endswith(got.question)


def test_a_length_that_leaves_nothing_is_refused(folder: Path) -> None:
    with pytest.raises(UsageError, match="nothing of its text would be left"):
        sample(folder, "qasper", length=1)


def test_chinese_sets_that_need_no_segmenter(folder: Path) -> None:
    got = sample(folder, "passage_retrieval_zh")
    task = make(folder, "longbench:set=passage_retrieval_zh")
    assert task.score(got, "段落7") == 1.0 and task.score(got, "答案是段落7，不是8") == 0.5  # noqa: RUF001
    assert got.context.startswith("以下是若干段落文字") and got.question.endswith("答案是：")  # noqa: RUF001
    news = sample(folder, "lsht")
    assert make(folder, "longbench:set=lsht").score(news, f"{news.answers[0]}\n新闻内容") == 1.0
    for name in ("dureader", "vcsum", "multifieldqa_zh"):
        with pytest.raises(UsageError, match="segmenter"):
            make(folder, f"longbench:set={name}")
    assert len(make_all(folder, "english")) == 16


def make_all(folder: Path, group: str) -> list[str]:
    from questbench.tasks._make import expand

    return expand([f"longbench:set={group}"])


def test_quest_papers_last_characters(folder: Path) -> None:
    counts = {name: make(folder, f"longbench:set={name}").last_chars(sample(folder, name)) for name in PAPER}
    question = len("Question: Which bridge is number 0?\n\nAnswer:")
    assert counts == {
        "qasper": question,
        "narrativeqa": len("Do not provide any explanation.\n\n") + question,
        "hotpotqa": question - 1,
        "multifieldqa_en": 100,
        "gov_report": len("Now, write a one-page summary of the report.\n\nSummary:"),
        "triviaqa": 100,
    }


def test_classification_without_classes_is_refused(tmp_path: Path) -> None:
    rows = [{**row, "all_classes": None} for row in longbench_rows("trec")]
    path = jsonl(tmp_path / "trec.jsonl", rows)
    with pytest.raises(PrerequisiteError, match="'all_classes' is empty"):
        make(path, "longbench:set=trec").table(4096)


def test_several_sets_are_no_task(folder: Path) -> None:
    with pytest.raises(UsageError, match="several sets"):
        _ = make(folder, "longbench").facts


def test_longbench_e_by_bucket(folder: Path) -> None:
    every = make(folder / "e", "longbench_e:set=qasper")
    assert every.samples(None, 31500) == 3
    found = [
        every.sample(index, length=31500, tokenizer=TOKENIZER, rng=random.Random(0)).meta["bucket"]
        for index in range(3)
    ]
    assert found == ["0-4k", "4-8k", "8k+"]
    for place, bucket in enumerate(found):
        task = make(folder / "e", f"longbench_e:set=qasper:bucket={bucket}")
        assert task.samples(None, 31500) == 1
        got = task.sample(0, length=31500, tokenizer=TOKENIZER, rng=random.Random(0))
        assert got.meta["row"] == f"qasper-row-{place}"
        assert got.meta["data"]["rows"] == 1


def test_longbench_e_reads_no_file_of_the_main_benchmark(folder: Path) -> None:
    with pytest.raises(PrerequisiteError, match=r"qasper_e\.jsonl"):
        make(folder / "data.zip", "longbench_e:set=qasper").table(4096)
