"""A RULER file is of the set that its prompts say: none serves as another."""

from __future__ import annotations

from pathlib import Path

import pytest
from data_helpers import hotpot, json_array, jsonl, squad
from suite import NEEDLE_SPECS, TOKENIZERS, sample_of

from questbench import seeding
from questbench.errors import PrerequisiteError
from questbench.tasks._make import make_task
from questbench.tasks._ruler_kinds import needle_set, qa_set

SPECS = [spec for spec in NEEDLE_SPECS if spec.startswith("niah_")]
SETS = [spec.partition("@")[0] for spec in SPECS]


def prompt_of(spec: str, index: int = 0, length: int = 2048) -> str:
    sample = sample_of(spec, index, length)
    return str(sample.prompt)


@pytest.mark.parametrize("length", [700, 2048])
@pytest.mark.parametrize("spec", SPECS)
def test_every_needle_set_is_told_by_its_text(spec: str, length: int) -> None:
    found = {needle_set(prompt_of(spec, index, length)) for index in range(4)}
    assert found == {spec.partition("@")[0]}


def test_a_file_serves_as_one_needle_set_only(tmp_path: Path) -> None:
    for spec, name in zip(SPECS, SETS, strict=True):
        row = {"input": prompt_of(spec), "outputs": list(sample_of(spec, 0, 2048).meta["references"])}
        path = jsonl(tmp_path / f"{name}.jsonl", [row])
        for other in SETS:
            task = make_task(f"ruler:set={other}", {"*": str(path)})
            if other == name:
                assert task.samples(None, 2048) == 1
                continue
            with pytest.raises(PrerequisiteError, match=f"line 1 is a prompt of {name}, not of {other}") as caught:
                task.samples(None, 2048)
            assert f"ruler:set={name}" in str(caught.value.hint)


@pytest.mark.parametrize(("name", "source"), [("squad", squad()), ("hotpotqa", hotpot())])
def test_documents_tell_the_questions_apart(name: str, source: object, tmp_path: Path) -> None:
    path = json_array(tmp_path / "source.json", [source] if isinstance(source, dict) else source)
    if isinstance(source, dict):
        import json

        path.write_text(json.dumps(source))
    task = make_task(f"ruler_qa:set={name}", {"*": str(path)})
    rng = seeding.generator(0, "x", 1024, 0)
    sample = task.sample(0, length=1024, tokenizer=TOKENIZERS["lumps"], rng=rng)
    own, other = ("qa_1", "qa_2") if name == "squad" else ("qa_2", "qa_1")
    prompt = sample.prompt
    assert qa_set(prompt) == own
    ruler = jsonl(tmp_path / "ruler.jsonl", [{"input": prompt, "outputs": ["x"]}])
    assert make_task(f"ruler:set={own}", {"*": str(ruler)}).samples(None, 1024) == 1
    with pytest.raises(PrerequisiteError, match=f"is a prompt of {own}, not of {other}"):
        make_task(f"ruler:set={other}", {"*": str(ruler)}).samples(None, 1024)
