"""Our records beside the numbers of the Quest paper: ours, paper, ratio, and what differs in the set-up.

There is no verdict. A number from another device, model or protocol is not right or wrong; the ratio and the list of
differences are what a reader needs to judge.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from questbench import _paths, units
from questbench.errors import PrerequisiteError, UsageError
from questbench.records.schema import ResultRecord, RunManifest
from questbench.report import _format as fmt
from questbench.report.frame import cell_frame
from questbench.report.render import NONE, Cell, Table

if TYPE_CHECKING:
    import pandas as pd

Entry = dict[str, Any]
MUST_AGREE = {"kernel": ("seq_len", "budget"), "e2e": ("seq_len", "budget"), "accuracy": ("task", "budget")}
"""Inputs without which two numbers are not about the same thing; whatever else differs is named."""
OWN_NAMES = {
    "decode_latency": ("decode_latency", "latency.decode", "tpot", "latency"),
    "perplexity": ("perplexity", "score"),
}
"""Columns of ours in which a metric of the paper may be found; its own name if it is not listed."""
ABOUT = (
    *("device", "model", "shape", "heads", "kv_heads", "head_dim", "dtype", "batch", "weights", "page_size"),
    *("dense_layers", "protocol", "kernels", "timer", "seq_len"),
)
"""What a set-up is told by, in the order in which differences are named."""
CALLED = {"heads": "query heads", "kv_heads": "KV heads", "seq_len": "length"}
FEW = 100
"""Fewer samples than this are said beside the number."""
MOST = 4
SAME, NEAREST = "same axes", "nearest"
"""Own set-ups shown per number of the paper; the ones with the fewest differences."""
_WORDS = {
    "speedup.dense": "speed-up over dense",
    "speedup.tova": "speed-up over TOVA",
    "latency.attend": "time of attend",
    "score_over_dense": "time of score / time of dense",
}


@functools.cache
def load() -> dict[str, Any]:
    """``results/published/paper.json``.

    Raises:
        PrerequisiteError: it is not there or cannot be read.
    """
    file = _paths.published_results() / "paper.json"
    try:
        data: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PrerequisiteError(f"{file} cannot be read: {error}.", "Install questbench again.") from None
    return data


def figures() -> list[str]:
    """Figures and tables that there are numbers of: ``Table 1``, ``Fig 9``, ..."""
    return list(dict.fromkeys(entry["figure"] for entry in load()["entries"]))


def compare(
    records: Iterable[ResultRecord], manifests: Mapping[str, RunManifest] | None = None, only: Sequence[str] = ()
) -> tuple[list[Table], list[str]]:
    """Tables of ours against the paper's, and notes.

    Args:
        records: ours, of any kinds; may be empty.
        manifests: by run name; for the device.
        only: figures such as ``fig9`` or ``Table 1``; all if empty.

    Raises:
        UsageError: no such figure.
    """
    chosen, records = _choose(only), list(records)
    frames = {
        kind: cell_frame([record for record in records if record.kind == kind], manifests)
        for kind in dict.fromkeys(record.kind for record in records)
    }
    pairs = {entry["id"]: _matches(frames.get(entry["kind"]), entry) for entry in chosen}
    _leave_nearest(chosen, pairs)
    by_figure: dict[str, list[Entry]] = {}
    for entry in chosen:
        by_figure.setdefault(entry["figure"], []).append(entry)
    notes = list(load()["notes"])
    if not any(pairs.values()):
        notes.insert(0, "There is nothing to compare: no result of ours has the set-up of one of these numbers.")
        return [table for entries in by_figure.values() for table in _published(entries)], notes
    tables = []
    for figure, entries in by_figure.items():
        matched = [entry for entry in entries if pairs[entry["id"]]]
        if matched:
            tables.append(_side_by_side(figure, matched, pairs, len(entries)))
        else:
            notes.append(f"{figure}: nothing of ours to compare.")
    return tables, notes


def _choose(only: Sequence[str]) -> list[Entry]:
    entries: list[Entry] = load()["entries"]
    if not only:
        return entries
    wanted = {name.lower().replace(" ", "").removeprefix("figure").removeprefix("fig"): name for name in only}
    known = {figure: figure.lower().replace(" ", "").removeprefix("fig") for figure in figures()}
    if unknown := [name for figure, name in wanted.items() if figure not in known.values()]:
        names = ", ".join(figure.lower().replace(" ", "") for figure in known)
        raise UsageError(f"The paper's numbers have no '{unknown[0]}'.", f"There are: {names}.")
    return [entry for entry in entries if known[entry["figure"]] in wanted]


def _matches(frame: pd.DataFrame | None, entry: Entry) -> list[tuple[float, Any]]:
    """Own values for an entry with their rows, nearest set-up first."""
    if frame is None or frame.empty or entry["metric"] in ("lossless_budget", "speedup.tova"):
        return []
    frame = frame.iloc[::-1]  # of equal set-ups the newest run's
    setup = entry["setup"]
    found = []
    for _, row in frame[(frame["method"] == entry["method"]) & ~frame["fallback"]].iterrows():
        # The lengths of Fig 8's plateaus and of Fig 11's texts are not ours to choose; budgets of dense mean nothing.
        required = [key for key in MUST_AGREE[entry["kind"]] if key in setup]
        required += ["page_size"] if entry["metric"] == "score_over_dense" else []
        if all(_agrees(key, row.get(key), setup[key]) for key in required):
            value = _own(frame, row, entry["metric"])
            if not fmt.missing(value):
                found.append((value, row))
    nearest = sorted(found, key=lambda pair: (len(_differences(pair[1], entry)), _distance(pair[1], setup)))
    return _one_per_setup(nearest)[:MOST]


def _leave_nearest(entries: Sequence[Entry], pairs: dict[str, list[tuple[float, Any]]]) -> None:
    """An own value of another length stands beside one number of the paper only: the one of the nearest length."""
    taken: dict[tuple[str, ...], tuple[float, str]] = {}
    for entry in entries:
        for _, row in pairs[entry["id"]]:
            if away := _away(row, entry["setup"]):
                key = _identity(row, entry)
                taken[key] = min(taken.get(key, (math.inf, "")), (away, entry["id"]))
    for entry in entries:
        pairs[entry["id"]] = [
            (value, row)
            for value, row in pairs[entry["id"]]
            if not _away(row, entry["setup"]) or taken[_identity(row, entry)][1] == entry["id"]
        ]


def _identity(row: Any, entry: Entry) -> tuple[str, ...]:
    return entry["figure"], entry["metric"], str(row.name), str(entry["setup"].get("task"))


def _away(row: Any, setup: Mapping[str, Any]) -> float:
    """Powers of two between the two lengths; 0 where they agree or the paper's number is of none."""
    own, theirs = row.get("seq_len"), setup.get("seq_len")
    return 0.0 if theirs is None or fmt.missing(own) or own == theirs else abs(math.log2(own / theirs))


def _one_per_setup(found: list[tuple[float, Any]]) -> list[tuple[float, Any]]:
    """The nearest of the cells that differ in length and budget alone: what had to agree there agrees already."""
    keys = {*ABOUT, "machine", "label", "cache", "threads", "backend"} - {"seq_len"}
    kept: dict[str, tuple[float, Any]] = {}
    for value, row in found:
        kept.setdefault(str([(key, str(row.get(key))) for key in sorted(keys)]), (value, row))
    return list(kept.values())


def _own(frame: pd.DataFrame, row: Any, metric: str) -> Any:
    if metric == "score_over_dense":
        dense = frame[(frame["method"] == "dense") & (frame["seq_len"] == row.get("seq_len"))]
        for key in ("run", "dtype", "batch", "shape", "kv_heads", "cache", "page_size"):
            if key in dense:
                dense = dense[dense[key] == row.get(key)]
        if dense.empty or "latency.score" not in frame or fmt.missing(row.get("latency.score")):
            return None
        return row["latency.score"] / dense["latency"].iloc[0]
    names = OWN_NAMES.get(metric, (metric,))
    return next((row[name] for name in names if not fmt.missing(row.get(name))), None)


def _agrees(key: str, own: Any, theirs: Any) -> bool:
    if fmt.missing(own):
        return False
    return str(own).partition(":")[0] == theirs if key == "task" else bool(own == theirs)


def _distance(row: Any, setup: Mapping[str, Any]) -> float:
    """How far apart the lengths are; the longest text is nearest to a number that holds for all lengths."""
    own, theirs = row.get("seq_len"), setup.get("seq_len")
    if fmt.missing(own):
        return 0.0
    return float(-own if theirs is None else abs(own - theirs))


def _differences(row: Any, entry: Entry) -> list[str]:
    """``dtype bf16, paper fp16`` for everything in the paper's set-up that is not ours."""
    setup = {**entry["setup"]}
    own = dict(row)
    own["device"] = row["machine"]
    own["kernels"] = f"own ({row['backend']})"
    own["timer"] = "own (wall clock, interleaved)" if entry["kind"] == "kernel" else None
    own.setdefault("weights", own.get("dtype"))
    found = []
    for key in ABOUT:
        if key not in setup or (key == "seq_len" and "seq_len" in MUST_AGREE[entry["kind"]]):
            continue
        ours, theirs = own.get(key), setup[key]
        if str(fmt.inputs(key, ours)).lower() != str(fmt.inputs(key, theirs)).lower():
            shown = "unknown" if fmt.missing(ours) else fmt.inputs(key, ours)
            found.append(f"{CALLED.get(key, key.replace('_', ' '))} {shown}, paper {fmt.inputs(key, theirs)}")
    # The paper's accuracies are masked dense attention behind a flash prefill, which leaves no probabilities.
    if entry["kind"] == "accuracy" and row["args"].get("score_from") == "prefill":
        found.append("scores from prefill, paper decode")
    samples = row.get("score.n")
    if not fmt.missing(samples) and samples < FEW:
        found.append(f"only {samples:.0f} samples")
    return found


def _side_by_side(figure: str, entries: list[Entry], pairs: Mapping[str, list[tuple[float, Any]]], total: int) -> Table:
    near = sum(all(_away(row, entry["setup"]) for _, row in pairs[entry["id"]]) for entry in entries)
    title = f"{figure} of the paper: {len(entries) - near} of its {total} numbers have a counterpart"
    table = Table(
        title=title + (f", {near} a nearest one" if near else ""),
        columns=[
            "method",
            "what",
            "ours",
            "paper",
            "ours /\npaper",
            "ours -\npaper",
            "counterpart",
            "source",
            "differs",
        ],
        text_columns=frozenset({"method", "what", "counterpart", "source", "differs"}),
        setup=[_source_line(entries)],
    )
    for entry in entries:
        divisor, unit = fmt.scale([entry["value"]], entry["unit"])
        for value, row in pairs[entry["id"]]:
            differing = _differences(row, entry)
            mark = table.mark("; ".join(differing)) if differing else NONE
            ratio = fmt.number(value / entry["value"]) if entry["value"] else NONE
            # The ratio of two scores near zero says little; points do.
            points = f"{fmt.number(value - entry['value'], divisor)} points" if entry["unit"] == "fraction" else NONE
            cells = [
                str(row["label"]),
                f"{_words(entry['metric'])}, {_where(entry['setup'])}",
                f"{fmt.number(value, divisor)} {unit}",
                f"{fmt.number(entry['value'], divisor)} {unit}{_tolerance(entry, divisor)}",
                ratio,
                points,
                _counterpart(row, entry["setup"]),
                entry["source"],
                mark,
            ]
            table.rows.append([Cell(text) for text in cells])
    table.notes = list(dict.fromkeys(entry["note"] for entry in entries if "note" in entry))
    return table.without_empty_columns()


def _counterpart(row: Any, setup: Mapping[str, Any]) -> str:
    """Whether the two stand at the same place of the axes, or what is between them."""
    if not _away(row, setup):
        return SAME
    return f"{NEAREST}: length {fmt.inputs('seq_len', row['seq_len'])}, paper {fmt.inputs('seq_len', setup['seq_len'])}"


def _published(entries: list[Entry]) -> list[Table]:
    """The paper's numbers alone: a row per set-up, a column per method; one table per metric."""
    tables = []
    for metric in dict.fromkeys(entry["metric"] for entry in entries):
        part = [entry for entry in entries if entry["metric"] == metric]
        methods = list(dict.fromkeys(entry["method"] for entry in part))
        divisor, unit = fmt.scale([entry["value"] for entry in part], part[0]["unit"])
        rows: dict[str, dict[str, str]] = {}
        for entry in part:
            where = _where(entry["setup"])
            rows.setdefault(where, {})[entry["method"]] = fmt.number(entry["value"], divisor)
        table = Table(
            title=f"{entries[0]['figure']} of the paper: {_words(metric)}" + (f" ({unit})" if unit != metric else ""),
            columns=["set-up", *methods],
            text_columns=frozenset({"set-up"}),
            setup=[_source_line(part)],
            notes=list(dict.fromkeys(entry["note"] for entry in part if "note" in entry)),
        )
        for where, values in rows.items():
            table.rows.append([Cell(where), *(Cell(values.get(method, NONE)) for method in methods)])
        tables.append(table)
    return tables


def _words(metric: str) -> str:
    return _WORDS.get(metric, metric.replace("_", " "))


def _source_line(entries: list[Entry]) -> str:
    paper, sources = load()["paper"], load()["sources"]
    used = dict.fromkeys(entry["source"] for entry in entries)
    origins = "; ".join(f"{name}: {sources[name]}" for name in used)
    return f"{paper['authors']}, {paper['venue']}, {paper['url']}; {origins}"


def _where(setup: Mapping[str, Any]) -> str:
    """The inputs that tell the paper's numbers apart."""
    words = [str(setup[key]) for key in ("task", "model", "weights") if key in setup]
    words += [f"{units.count(setup['seq_len'])} long"] if "seq_len" in setup else []
    words += [f"budget {units.count(setup['budget'])}"] if "budget" in setup else []
    words += [f"page {setup['page_size']}"] if setup.get("page_size", 16) != 16 else []
    return ", ".join(words)


def _tolerance(entry: Entry, divisor: float) -> str:
    tolerance = entry["tolerance"]
    if tolerance.get("relative"):
        return f" ±{fmt.number(100 * tolerance['relative'])}%"
    return f" ±{fmt.number(tolerance['absolute'], divisor)}" if tolerance.get("absolute") else ""
