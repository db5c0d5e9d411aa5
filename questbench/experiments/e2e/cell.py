"""Measure one cell end to end: prefill, count, time decode steps in interleaved rounds, take the steps apart."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from questbench import baselines
from questbench.baselines._base import Decode, Fastest
from questbench.baselines._loop import PATHS, StepArm
from questbench.errors import CellError
from questbench.experiments import costs
from questbench.experiments.costs import OutOfTime
from questbench.experiments.counting import ReadCounter
from questbench.experiments.e2e.arms import GenerateArm, control, stages
from questbench.experiments.e2e.config import Cell, E2EConfig, methods
from questbench.experiments.e2e.found import Found
from questbench.experiments.e2e.records import Records
from questbench.experiments.e2e.session import Session
from questbench.experiments.engine import Turn
from questbench.experiments.records import READ
from questbench.experiments.setup import thread_count
from questbench.measure import bandwidth, busy, timer
from questbench.measure.memory import out_of_memory
from questbench.measure.peak import peak
from questbench.methods._base import Method
from questbench.models import hf
from questbench.models.graph_loop import GraphLoop
from questbench.models.static_loop import StaticLoop
from questbench.records.schema import ResultRecord
from questbench.seeding import generator

COUNTED = 4
"""Steps that are made twice, once with the counters on: the tokens must be the same."""
STAGE_ROUNDS = 10
SLOPE_ROUNDS = 5
RIVAL_ROUNDS = 10
NOISE_TARGET = 0.01
TIMING = 5e-3
ROUNDS_LIMIT = 400


def measure(config: E2EConfig, cell: Cell, session: Session, turn: Turn) -> list[ResultRecord]:
    """All records of one cell, or as many as the time limit leaves.

    Raises:
        CellError: the cell needs more memory than there is.
    """
    chosen = {name: method for name, method in methods(config, cell).items() if name not in turn.refused}
    longest = max(config.tokens)
    # Steps between two rewinds: one timing repeats short steps, a generation makes all of its own.
    room = max(timer.CALLS_MAX, longest) + COUNTED + 4
    part = min(config.prefill_chunk, cell.seq_len) if config.prefills else 0
    size: dict[str, Any] = {"rows": cell.batch, "length": cell.seq_len, "room": room, "part": part}
    required = costs.need(session.costs(cell), chosen, **size, loops=PATHS if session.captured else 0)
    hint = "Use a shorter --seq-len, a smaller --batch, fewer methods or --cache-fill random."
    costs.require(required.total, cell.device, beside="beside the weights", hint=hint)
    session.between = lambda *_: turn.deadline.check()
    found = Found(before=turn.before)
    with torch.inference_mode(), thread_count(cell.threads):
        try:
            if config.prefills:
                _time_prefills(cell, session, chosen, found, turn)
            _decode(cell, session, chosen, room, found, turn)
            for kind in config.rivals:
                turn.deadline.check()
                turn.tell(f"transformers, {kind} cache")
                _time_rival(cell, session, f"transformers_{kind}", session.decode(cell, room), found, turn)
        except OutOfTime:
            found.late = turn.deadline.reason  # what is missing says so
        except Exception as error:
            if not out_of_memory(error):
                raise
            raise CellError(
                f"out of memory, although {costs.gib(required.total)} beside the weights were predicted: {error}",
                "Use a shorter --seq-len, a smaller --batch or fewer methods.",
            ) from None
    return Records(config, cell, session, chosen, found, required).all()


def _time_prefills(cell: Cell, session: Session, chosen: Mapping[str, Method], found: Found, turn: Turn) -> None:
    """Each method prefills for itself, in rounds of shuffled order; one cache is alive at a time."""
    config = session.config
    shuffle = generator(config.seed, "prefill").shuffle
    begin, names = time.monotonic(), list(chosen)
    for number in range(config.prefill_rounds):
        if number and (time.monotonic() - begin > config.max_seconds or turn.deadline.passed):
            break
        shuffle(names)
        for name in names:
            turn.tell(f"prefill {number + 1} of {config.prefill_rounds}: {name}")
            seconds, rise = session.time_prefill(cell, chosen[name])
            found.prefills.setdefault(name, []).append(seconds)
            found.prefill_rise[name] = rise


def _decode(cell: Cell, session: Session, chosen: Mapping[str, Method], room: int, found: Found, turn: Turn) -> None:
    config, progress, deadline = session.config, turn.tell, turn.deadline
    progress("prefill for all methods" if config.prefills else "filling the cache")
    base, first = session.base(cell, chosen, room)
    loops = {}
    for name, method in chosen.items():
        deadline.check()
        progress(f"counting what {name} reads")
        tokens, found.counted[name] = _count(session, base, cell, method, first)
        loop = session.loop(base, cell, method, first, steps=room)
        with peak(cell.device) as memory:
            made = [loop.step().tolist() for _ in range(COUNTED)]
        found.decode_rise[name] = memory.rise
        found.same_tokens[name] = made == tokens
        found.kv[name] = _held_bytes(session, loop, cell)
        found.loops[name] = _how(loop)
        loops[name] = loop
    progress("other libraries' dense attention")
    run = session.decode(cell, room, base, first)
    for name, baseline, why in baselines.of("e2e", cell.device):
        best = found.baselines[name] = baseline.decode(run) if why is None else Fastest(why=why)
        if best.arm is not None:
            found.kv[name] = _held_bytes(session, best.arm, cell)
            found.loops[name] = _how(best.arm)
            loops[name] = best.arm
    deadline.check()
    arms: dict[str, Any] = {name: StepArm(loop) for name, loop in loops.items()}
    arms["torch"] = control(run.noise, session.text.num_attention_heads, cell.seq_len)
    probe = bandwidth.ReadProbe(threads=cell.threads, device=cell.device)
    found.probe_bytes = probe.bytes
    neighbours = busy.Watch()
    found.timed = timer.interleave(
        {**arms, READ: probe},
        rounds_min=config.rounds,
        rounds_max=max(ROUNDS_LIMIT, config.rounds),
        target_noise=NOISE_TARGET,
        max_seconds=deadline.within(config.max_seconds),
        shuffle_seed=config.seed,
        on_progress=progress,
        floor=TIMING,
        stopwatch=timer.stopwatch(cell.device),
    )
    neighbours.look()
    found.others = neighbours.others
    for name, loop in loops.items():
        if deadline.passed:
            found.late = deadline.reason
            break
        progress(f"two lengths of generation: {name}")
        found.slopes[name] = _slope(config, loop, deadline.within(config.max_seconds / len(loops)))
    for name in chosen if config.stages else ():
        if deadline.passed:
            found.late = deadline.reason
            break
        progress(f"stages: {name}")
        found.stages[name] = _stages(session, base, cell, chosen[name], first)
    for loop in loops.values():
        hf.release(loop.cache)
    hf.release(base)


def _count(
    session: Session, base: Any, cell: Cell, method: Method, first: Tensor
) -> tuple[list[list[int]], ReadCounter]:
    """Tokens of a few steps and what they read, over a fork of their own."""
    counter = ReadCounter(session.text.num_attention_heads, first_layer=session.dense_layers)
    loop = session.loop(base, cell, method, first, steps=COUNTED, observer=counter)
    tokens = [loop.step().tolist() for _ in range(COUNTED)]
    hf.release(loop.cache)
    return tokens, counter


def _how(loop: StaticLoop) -> dict[str, Any]:
    kind = "graph" if isinstance(loop, GraphLoop) else "eager"
    return {"path": loop.path, "reason": loop.reason, "linear": loop.linear_path, "loop": kind}


def _held_bytes(session: Session, loop: StaticLoop, cell: Cell) -> tuple[int, int]:
    """Bytes of keys and values, and of bounds, that this cache's entries take, as if it shared no pages.

    Full-attention layers hold whole pages; sliding ones their window less the entry that comes next.
    """
    kv = bounds = 0
    for layer in loop.layers:
        assert layer.store is not None
        stored, bounded = layer.store.bytes
        kv, bounds = kv + stored, bounds + bounded
    return kv + session.costs(cell).slid(cell.seq_len + COUNTED, cell.batch, coming=1), bounds


def _slope(config: E2EConfig, loop: StaticLoop, seconds: float) -> list[float]:
    """Seconds per token, one sample per round, from two generations: what they share cancels."""
    short, long = config.tokens
    timed = timer.interleave(
        {"short": GenerateArm(loop, short), "long": GenerateArm(loop, long)},
        rounds_min=SLOPE_ROUNDS,
        rounds_max=SLOPE_ROUNDS,
        target_noise=0.0,
        max_seconds=seconds,
        shuffle_seed=config.seed,
        floor=0.0,
        warm=True,
        stopwatch=timer.stopwatch(str(loop.tokens.device)),
    )
    pairs = zip(timed["short"].seconds, timed["long"].seconds, strict=True)
    return [(more - less) / (long - short) for less, more in pairs]


def _stages(session: Session, base: Any, cell: Cell, method: Method, first: Tensor) -> dict[str, list[float]]:
    """The parts of a step, over a fork of its own and never captured: each op is waited for."""
    cuda = cell.device.startswith("cuda")

    def clock() -> float:
        if cuda:
            torch.cuda.synchronize(cell.device)
        return time.perf_counter()

    cache = hf.fork(base, method, dense_layers=session.dense_layers, page_size=cell.page_size)
    plan = "model" if session.config.loop == "model" else "auto"
    loop = StaticLoop(session.loaded.model, cache, plan=plan)
    loop.tokens.copy_(first)
    for _ in range(1 + method.warmup_steps):
        loop.step()
    found = stages(loop, STAGE_ROUNDS, clock)
    hf.release(cache)
    return found


def _time_rival(cell: Cell, session: Session, name: str, run: Decode, found: Found, turn: Turn) -> None:
    """A step of another library, alone in memory; reads of memory run in its rounds too."""
    config = session.config
    try:
        rival = found.rivals[name] = baselines.load(name).decode(run)
    except CellError as error:
        found.rivals[name] = Fastest(why=error.message)
        return
    probe = bandwidth.ReadProbe(threads=cell.threads, device=cell.device)
    found.apart[name] = timer.interleave(
        {name: rival.arm, READ: probe},
        rounds_min=min(RIVAL_ROUNDS, config.rounds),
        rounds_max=max(RIVAL_ROUNDS, config.rounds),
        target_noise=NOISE_TARGET,
        max_seconds=turn.deadline.within(config.max_seconds),
        shuffle_seed=config.seed,
        stopwatch=timer.stopwatch(cell.device),
    )
    rival.arm = None
