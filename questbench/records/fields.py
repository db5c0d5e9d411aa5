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

PARAMS: dict[str, Want] = {
    **dict.fromkeys(
        ("seq_len", "budget", "page_size", "heads", "kv_heads", "head_dim", "batch", "threads", "samples"),
        maybe(NUMBER),
    ),
    **dict.fromkeys(("dense_layers", "new_tokens", "layers"), maybe(NUMBER)),
    **dict.fromkeys(("stage", "baseline", "shape", "dtype", "device", "cache", "model", "task"), maybe(TEXT)),
    **dict.fromkeys(("protocol", "weights", "cache_fill", "loop", "chat_template", "timing"), maybe(TEXT)),
}
METHOD_ARGS: dict[str, Want] = {"budget": maybe(NUMBER), "page_size": maybe(NUMBER)}

STATS: dict[str, Want] = {
    **dict.fromkeys(("p20", "p80", "p90", "p99", "n", "ci_low", "ci_high", "rounds", "copies"), maybe(NUMBER)),
    **dict.fromkeys(("bandwidth", "achieved", "share", "predicted", "family", "normalised"), maybe(NUMBER)),
    **dict.fromkeys(("p_value", "min_detectable", "losses", "gains", "hits", "truncated", "steps"), maybe(NUMBER)),
    **dict.fromkeys(("delta_vs_dense", "delta_ci_low", "delta_ci_high"), maybe(NUMBER)),
    **dict.fromkeys(("lossless_margin", "lossless_lower", "lossless_needs", "sparse_steps"), maybe(NUMBER)),
    **dict.fromkeys(("relative_vs_dense", "relative_ci_low", "relative_ci_high"), maybe(NUMBER)),
    **dict.fromkeys(
        ("recall_perplexity", "scored_tokens", "bytes", "tokens_scored", "blocks", "block_tokens"), maybe(NUMBER)
    ),
    **dict.fromkeys(("tokens_visible", "tokens_read", "tokens_resident", "pages_read"), maybe(NUMBER)),
    **dict.fromkeys(("prompt_tokens", "prefill_tokens", "new_tokens", "needle_read"), maybe(NUMBER)),
    **dict.fromkeys(("dense_fallback", "yardstick", "lossless", "paired", "same_tokens"), maybe(FLAG)),
    **dict.fromkeys(("nothing_left_out", "own_prefill"), maybe(FLAG)),
    **dict.fromkeys(("linear", "path", "left_out", "lossless_reason", "layers"), maybe(TEXT)),
    "by_depth": wants.list_of(
        Want("", lambda row: isinstance(row, list) and len(row) == 3 and all(map(NUMBER.holds, row))),
        "a list of [depth, samples, sum of scores]",
    ),
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
    **dict.fromkeys(("machine", "os", "python"), maybe(TEXT)),
    **dict.fromkeys(("cpu", "git"), maybe(PLAIN_OBJECT)),
    **dict.fromkeys(("packages", "compilers", "variables"), maybe(_VERSIONS)),
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
    **dict.fromkeys(("unit", "sample", "task", "protocol", "cell", "method", "prompt", "completion", "stop"), TEXT),
    **dict.fromkeys(("error", "unusable", "prompt_text"), TEXT),
    **dict.fromkeys(("answers", "questions"), TEXTS),
    "answers_of_turns": wants.list_of(TEXTS, "a list of lists of texts"),
    "score": NUMBER,
    **dict.fromkeys(("seq_len", "prompt_tokens", "prefill_tokens", "batch", "removed_tokens", "context_tokens"), COUNT),
    **dict.fromkeys(("steps", "new_tokens", "scored_tokens", "scored_bytes", "window", "recall_tokens"), COUNT),
    **dict.fromkeys(("tokens_visible", "tokens_read", "tokens_resident", "pages_read", "tokens_scored"), maybe(NUMBER)),
    **dict.fromkeys(("nll", "recall_nll", "greedy", "needle_read", "sparse_steps"), maybe(NUMBER)),
    **dict.fromkeys(("needle_resident_first", "needle_resident_last", "thinking"), FLAG),
    "dense_fallback": maybe(FLAG),
    "meta": PLAIN_OBJECT,
    "turns": _OBJECTS,
    "windows": wants.list_of(
        Want("", lambda pair: isinstance(pair, list) and len(pair) == 2 and all(map(NUMBER.holds, pair))),
        "a list of [loss, tokens]",
    ),
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
