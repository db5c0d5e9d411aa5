"""Every field of a run folder's files and what it must hold: the one list that all readers go by.

Fields that a table does not know pass if they are plain: parameters and statistics grow with the experiments. A record,
a manifest and a line of the journal have no other fields than these.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Literal, get_args

from questbench.records import wants
from questbench.records.wants import (
    COUNT,
    FLAG,
    NUMBER,
    NUMBERS,
    OBJECT,
    PLAIN_OBJECT,
    TEXT,
    TEXTS,
    TIME,
    WHOLE,
    Want,
    maybe,
)

SCHEMA_VERSION = 1

Kind = Literal["kernel", "e2e", "accuracy"]
Status = Literal["ok", "skipped", "failed"]
Fidelity = Literal["measured", "modelled"]

RECORD: dict[str, Want] = {
    "run": TEXT,
    "kind": wants.one_of(get_args(Kind)),
    "status": wants.one_of(get_args(Status)),
    "method": TEXT,
    "method_args": OBJECT,
    "backend": TEXT,
    "params": OBJECT,
    "metric": TEXT,
    "unit": TEXT,
    "value": maybe(NUMBER),
    "reason": maybe(TEXT),
    "fidelity": wants.one_of(get_args(Fidelity)),
    "samples": NUMBERS,
    "stats": OBJECT,
    "warnings": TEXTS,
    "seed": WHOLE,
    "schema": COUNT,
}


def _each(want: Want, names: str) -> dict[str, Want]:
    """The same for several fields."""
    return dict.fromkeys(names.split(), want)


PARAMS: dict[str, Want] = {
    **_each(maybe(NUMBER), "seq_len budget page_size heads kv_heads head_dim batch threads samples"),
    **_each(maybe(NUMBER), "dense_layers new_tokens layers"),
    **_each(maybe(TEXT), "stage baseline shape dtype device cache model task"),
    **_each(maybe(TEXT), "protocol weights cache_fill loop chat_template timing"),
}
METHOD_ARGS: dict[str, Want] = _each(maybe(NUMBER), "budget page_size")

STATS: dict[str, Want] = {
    **_each(maybe(NUMBER), "p20 p80 p90 p99 n ci_low ci_high rounds copies"),
    **_each(maybe(NUMBER), "bandwidth achieved share predicted family normalised"),
    **_each(maybe(NUMBER), "p_value min_detectable losses gains hits truncated steps"),
    **_each(maybe(NUMBER), "delta_vs_dense delta_ci_low delta_ci_high"),
    **_each(maybe(NUMBER), "lossless_margin lossless_lower lossless_needs sparse_steps"),
    **_each(maybe(NUMBER), "relative_vs_dense relative_ci_low relative_ci_high"),
    **_each(maybe(NUMBER), "recall_perplexity scored_tokens bytes tokens_scored blocks block_tokens"),
    **_each(maybe(NUMBER), "tokens_visible tokens_read tokens_resident pages_read"),
    **_each(maybe(NUMBER), "prompt_tokens prefill_tokens new_tokens needle_read"),
    **_each(maybe(FLAG), "dense_fallback yardstick lossless paired same_tokens nothing_left_out own_prefill"),
    **_each(maybe(TEXT), "linear path left_out lossless_reason layers"),
    "by_depth": wants.list_of(wants.row_of(3), "a list of [depth, samples, sum of scores]"),
}

MANIFEST: dict[str, Want] = {
    "run": TEXT,
    "kind": wants.one_of(get_args(Kind)),
    "argv": TEXTS,
    "config": OBJECT,
    "environment": OBJECT,
    "start": TIME,
    "end": maybe(TIME),
    "prefills": maybe(COUNT),
    "exit_code": maybe(WHOLE),
    "inputs": PLAIN_OBJECT,
    "schema": COUNT,
}
_OBJECTS = wants.list_of(PLAIN_OBJECT, "a list of objects")
_VERSIONS = Want("an object of texts", lambda value: isinstance(value, dict) and all(map(TEXT.holds, value.values())))
ENVIRONMENT: dict[str, Want] = {
    **_each(maybe(TEXT), "machine os python"),
    **_each(maybe(PLAIN_OBJECT), "cpu git"),
    **_each(maybe(_VERSIONS), "packages compilers variables"),
    "gpus": maybe(_OBJECTS),
    "resumed": _OBJECTS,
    "load": maybe(NUMBERS),
    "memory_bytes": maybe(COUNT),
}
GIT: dict[str, Want] = {"commit": maybe(TEXT), "dirty": maybe(FLAG)}

COMMIT: dict[str, Want] = {
    "records_end": COUNT,
    "samples_end": COUNT,
    "done": TEXTS,
    "failed": TEXTS,
    "prefills": COUNT,
}

SAMPLE: dict[str, Want] = {
    **_each(TEXT, "unit sample task protocol cell method prompt completion stop"),
    **_each(TEXT, "error unusable prompt_text"),
    **_each(TEXTS, "answers questions"),
    "answers_of_turns": wants.list_of(TEXTS, "a list of lists of texts"),
    "score": NUMBER,
    **_each(COUNT, "seq_len prompt_tokens prefill_tokens batch removed_tokens context_tokens"),
    **_each(COUNT, "steps new_tokens scored_tokens scored_bytes window recall_tokens"),
    **_each(maybe(NUMBER), "tokens_visible tokens_read tokens_resident pages_read tokens_scored"),
    **_each(maybe(NUMBER), "nll recall_nll greedy needle_read sparse_steps"),
    **_each(FLAG, "needle_resident_first needle_resident_last thinking"),
    "dense_fallback": maybe(FLAG),
    "meta": PLAIN_OBJECT,
    "turns": _OBJECTS,
    "windows": wants.list_of(wants.row_of(2), "a list of [loss, tokens]"),
}


def check_record(data: Mapping[str, Any], known: Collection[str], required: Collection[str]) -> None:
    """Raises FieldError for what is no result record.

    Args:
        known: all fields.
        required: those without a default.
    """
    _require_all(data, RECORD, known, required, "result record")
    wants.require(data["params"], PARAMS, "params.")
    wants.require(data["method_args"], METHOD_ARGS, "method_args.")
    wants.require(data.get("stats", {}), STATS, "stats.")


def check_manifest(data: Mapping[str, Any], known: Collection[str], required: Collection[str]) -> None:
    """As for a record."""
    _require_all(data, MANIFEST, known, required, "manifest")
    wants.require(data["config"], {}, "config.")
    wants.require(data["environment"], ENVIRONMENT, "environment.")
    wants.require(data["environment"].get("git") or {}, GIT, "environment.git.")


def check_commit(data: Mapping[str, Any]) -> None:
    """Raises ValueError for what is no line of the journal."""
    _require_all(data, COMMIT, COMMIT, ("records_end", "samples_end", "done", "failed"), "line of the journal")


def check_sample(data: Mapping[str, Any]) -> None:
    """Raises ValueError for a row of samples.jsonl that cannot be used."""
    wants.require(data, SAMPLE)
    needed: tuple[str, ...] = ("cell",)
    if not {"error", "unusable"} & set(data):
        losses = ("nll", "scored_tokens", "scored_bytes", "windows")
        needed += ("prompt_tokens", "meta", "dense_fallback", *(losses if "nll" in data else ("score",)))
    # A row without a unit belongs to no sample, so that nothing is made of it.
    if "unit" in data and (lacking := [name for name in needed if name not in data]):
        raise wants.FieldError(lacking[0], f"not a sample's row: field '{lacking[0]}' is missing")


def _require_all(
    data: Mapping[str, Any], table: Mapping[str, Want], known: Collection[str], required: Collection[str], what: str
) -> None:
    schema = data.get("schema", 0)
    if isinstance(schema, int) and schema > SCHEMA_VERSION:
        raise ValueError(f"schema {schema} is newer than {SCHEMA_VERSION}, which this questbench knows")
    if lacking := [name for name in required if name not in data]:
        raise wants.FieldError(lacking[0], f"not a {what}: field '{lacking[0]}' is missing")
    if unknown := sorted(set(data) - set(known)):
        raise wants.FieldError(unknown[0], f"not a {what}: field '{unknown[0]}' is unknown")
    wants.require(data, table)
