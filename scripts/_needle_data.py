"""Training sequences of the embedded model, made on the fly: a function of (seed, step) only.

Most are built as token ids by numpy, because a sequence per sample of a text task would leave the two cores waiting:

    repeats    random tokens, of which segments come again (what makes an induction head grow)
    records    the records of the kv task in filler, with many questions instead of one
    passkey    the passkey task's prompt
    text       a sample of any other task, made by the task itself with a seed of training

The wording of records and passkey is imported from the tasks, so it cannot drift. Evaluation draws from
``random.Random("seed/task/length/index")`` with small seeds; training draws from numpy's PCG64 keyed by (seed >=
TRAINING_SEED, step), and text samples from the tasks' own generator with seeds from TRAINING_SEED on.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from questbench import seeding
from questbench.tasks import _book, _words, chain, kv, niah, passkey, vt
from questbench.tasks._haystack import GARBAGE, PROSE, garbage_lines, insert
from questbench.tasks._prose import Sentences

TRAINING_SEED = 1_000_000
"""Seeds of training start here; those of evaluation lie below."""

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Batch:
    """Ids ``[batch, length]``, and the weight in the loss of predicting each of them from those before it."""

    ids: Ids
    weights: NDArray[np.float32]


@dataclass(frozen=True)
class Shape:
    """What the sequences of a stage hold."""

    length: int
    batch: int
    most_records: int
    most_questions: int
    mix: Mapping[str, float]
    """Source -> share of the sequences; ``text:NAME`` is a task."""


class Generator:
    """Makes batches.

    Args:
        tokenizer: of :mod:`_needle_tokenizer`.
        task: name -> task instance, for ``text:`` sources.
    """

    def __init__(self, tokenizer: Any, task: Callable[[str], Any]) -> None:
        self.tokenizer, self.task = tokenizer, task
        self._lines: dict[str, Ids] = {}
        self.bos, self.eos = tokenizer.bos_token_id, tokenizer.eos_token_id
        self.newline = int(self.line("\n")[0])
        self.spaced = np.array([self._one(f" {n:03d}") for n in range(1000)])
        self.bare = np.array([self._one(f"{n:03d}") for n in range(1000)])
        self.pairs = np.array([self._one(f"{n:02d}") for n in range(100)])
        vocabulary = [(tokenizer.decode([i]), i) for i in range(len(tokenizer))]
        self.drawn = np.array([i for text, i in vocabulary if i not in (self.bos, self.eos, self.newline)])
        whole = {text: i for text, i in vocabulary}
        self.unspaced = np.array([whole.get(text[1:], i) if text.startswith(" ") else i for text, i in vocabulary])
        self.sentences = [self.line(" " + sentence) for sentence in PROSE]
        sentences = Sentences(random.Random(TRAINING_SEED))
        self.prose = sentences.cut(60_000)
        self.lines = [
            np.array(ids) for ids in tokenizer([" " + s for s in self.prose], add_special_tokens=False).input_ids
        ]
        self.garbage = np.concatenate([self.line(" " + word) for word in GARBAGE])
        self.record = {part: self.line(text) for part, text in zip("ab", _around(kv.RECORD), strict=True)}
        ask, key, value = (kv.QUESTION + kv.PREFIX).lstrip("\n").partition("\nkey {key}:")
        assert key and not value, "the kv task's question has another form now: teach it to Generator.records"
        self.ask = [self.line(text.rstrip(" ")) for text in ask.split("{key}")]

    def batch(self, seed: int, step: int, shape: Shape) -> Batch:
        """The batch of a step."""
        rng = np.random.default_rng((TRAINING_SEED + seed, step))
        ids = np.full((shape.batch, shape.length), self.eos, dtype=np.int64)
        weights = np.zeros(ids.shape, dtype=np.float32)
        names, shares = list(shape.mix), np.array(list(shape.mix.values()))
        for row in range(shape.batch):
            source = names[rng.choice(len(names), p=shares / shares.sum())]
            for _ in range(8):  # one that is too long would lose its answers, or what they rest on
                parts, wanted = self._make(source, rng, shape)
                if len(parts) <= shape.length:
                    break
            count = min(len(parts), shape.length)
            ids[row, :count], weights[row, :count] = parts[:count], wanted[:count]
        return Batch(ids, weights)

    def _make(self, source: str, rng: np.random.Generator, shape: Shape) -> tuple[Ids, NDArray[Any]]:
        if source.startswith("text:"):
            return self.text(rng, shape, source.removeprefix("text:"))
        made: tuple[Ids, NDArray[Any]] = getattr(self, source)(rng, shape)
        return made

    def repeats(self, rng: np.random.Generator, shape: Shape) -> tuple[Ids, NDArray[np.bool_]]:
        """Segments of random tokens, each of which may come again; asked is a repeat from its third token on."""
        parts: list[Ids] = [np.array([self.bos])]
        wanted = [np.zeros(1, dtype=bool)]
        known: list[Ids] = []
        numbers = rng.random() < 0.6
        total = 1
        while total < shape.length:
            again = bool(known) and rng.random() < 0.6
            if again:
                segment = known[rng.integers(len(known))]
            else:
                length = int(rng.integers(8, min(64, shape.length // 3)))
                pool = np.concatenate([self.spaced, self.bare]) if numbers else self.drawn
                segment = rng.choice(pool, length)
                known.append(segment)
            mask = np.full(len(segment), again)
            mask[:2] = False
            parts.append(segment)
            wanted.append(mask)
            total += len(segment)
        return np.concatenate(parts), np.concatenate(wanted)

    def records(self, rng: np.random.Generator, shape: Shape) -> tuple[Ids, NDArray[np.bool_]]:
        """Records, filler around them and questions; asked are the values, each ended by EOS."""
        few = rng.random() < 0.3
        questions = int(rng.integers(1, shape.most_questions + 1))
        full = rng.random() < 0.5  # the task's whole question, or only the line that starts like a record
        room = shape.length - 1 - questions * (21 if full else 9)
        with_instruction = room > 150 and rng.random() < 0.7
        room -= 40 if with_instruction else 0
        most = max(min(shape.most_records, room // 8), 1)
        records = int(rng.integers(1, 4)) if few else int(rng.integers(1, most + 1))
        records = min(records, most)
        keys = _checked(rng.choice(90_000, records, replace=False) + 10_000, 0)
        values = _checked(rng.choice(90_000, records, replace=False) + 10_000, rng.integers(1, 10, records))
        if rng.random() < 0.3:  # keys that share their first group
            keys = keys[0] // 1000 * 1000 + keys % 1000 if rng.random() < 0.3 else _near(rng, keys)
            keys = np.unique(keys)
            rng.shuffle(keys)
            values, records = values[: len(keys)], len(keys)
        lines = np.empty((records, 7), dtype=np.int64)
        lines[:, 0], lines[:, 3], lines[:, 6] = self.record["a"][0], self.record["b"][0], self.newline
        lines[:, 1], lines[:, 2] = self.spaced[keys // 1000], self.bare[keys % 1000]
        lines[:, 4], lines[:, 5] = self.spaced[values // 1000], self.bare[values % 1000]
        filler = self.filler(rng, max(room - 8 * records - 1, 0)) if rng.random() < 0.85 else np.empty(0, np.int64)
        even = rng.random() < 0.5
        inner = np.arange(1, records + 1) * len(filler) // (records + 1)
        cuts = [0, *(inner if even else np.sort(rng.integers(0, len(filler) + 1, records))), len(filler)]
        parts = [np.array([self.bos])]
        if with_instruction:
            parts += [self.line(kv.INSTRUCTION), np.array([self.newline])]
        for at in range(records + 1):
            chunk = filler[cuts[at] : cuts[at + 1]].copy()
            if len(chunk):
                chunk[0] = self.unspaced[chunk[0]]
                parts += [chunk, np.array([self.newline])]
            if at < records:
                parts.append(lines[at])
        body = np.concatenate(parts)
        body = body[:-1] if rng.random() < 0.8 else body  # the question brings its newline
        order = rng.permutation(records)[:questions]
        tail, wanted = [], []
        for at in order:
            key = lines[at, 1:3]
            head = [self.ask[0], key, self.ask[1], [self.newline]] if full else []
            question = np.concatenate([[self.newline], *head, lines[at, :4]])
            tail += [question, lines[at, 4:6], [self.eos]]
            wanted += [np.zeros(len(question), bool), np.ones(3, bool)]
        return np.concatenate([body, *tail]), np.concatenate([np.zeros(len(body), bool), *wanted])

    def passkey(self, rng: np.random.Generator, shape: Shape) -> tuple[Ids, NDArray[np.bool_]]:
        """The passkey prompt with its answer; the filler is the task's garbage three times in four."""
        number = int(rng.integers(10_000, 100_000))
        key = np.array([self.spaced[number // 100], self.pairs[number % 100]])
        pieces = [self.line(text) for text in passkey.NEEDLE.replace("{key} is", " {key} is").split(" {key}")]
        pieces[1] = pieces[1][:-1] if self.tokenizer.decode(pieces[1][-1:]) == " " else pieces[1]
        needle = np.concatenate([pieces[0], key, pieces[1], key, pieces[2]])
        question = self.line(passkey.QUESTIONS["published"] + passkey.PREFIX)
        head = np.concatenate([[self.bos], self.line(passkey.INSTRUCTION), [self.newline]])
        spare = shape.length - len(head) - len(needle) - len(question) - 8
        if spare < 16:
            head, spare = np.array([self.bos]), shape.length - len(needle) - len(question) - 9
        total = int(rng.integers(spare // 2, spare)) if rng.random() < 0.3 else spare
        kind = rng.random()
        before = int(rng.integers(0, total + 1))
        chunks = []
        for size in (before, total - before):
            if kind < 0.75:
                chunk = np.tile(self.garbage, size // len(self.garbage) + 1)[:size]
            else:
                chunk = self.filler(rng, size)
            if len(chunk):
                chunk[0] = self.unspaced[chunk[0]]
            chunks.append(chunk)
        body = [head, chunks[0], [self.newline] if before else [], needle]
        body += [[self.newline], chunks[1]] if len(chunks[1]) else []
        start = np.concatenate([*body, question]).astype(np.int64)
        ids = np.concatenate([start, key, [self.eos]])
        wanted = np.zeros(len(ids), bool)
        wanted[len(start) :] = True
        return ids, wanted

    def text(self, rng: np.random.Generator, shape: Shape, name: str) -> tuple[Ids, NDArray[np.bool_]]:
        """A sample of a task as the task itself makes it, its answer and EOS; asked is the answer."""
        seed, index = TRAINING_SEED + int(rng.integers(1 << 30)), int(rng.integers(1 << 20))
        generator = seeding.generator(seed, name, shape.length, index)
        sample = self.task(name).sample(index, length=shape.length - 40, tokenizer=self.tokenizer, rng=generator)
        return self._joined([(sample.prompt, False), (" " + sample.answers[0], True)])

    def niah(self, rng: np.random.Generator, shape: Shape) -> tuple[Ids, NDArray[np.bool_]]:
        """One to four numbers of the niah task in prose or garbage, all of them asked for."""
        draw = random.Random(int(rng.integers(1 << 62)))
        count = min(draw.randint(1, 4), shape.length // 100 + 1)
        pairs = [(key.replace("-", " "), draw.randrange(100_000, 1_000_000)) for key in _words.keys(draw, count)]
        needles = [(draw.random(), niah.NEEDLE.format(key=key, value=value)) for key, value in pairs]
        words = max(shape.length - count * 55 - 30, 8)
        if draw.random() < 0.8:
            start = draw.randrange(len(self.prose))
            units, taken = [], 0
            while taken < words * 0.8:
                units.append(self.prose[(start + len(units)) % len(self.prose)])
                taken += units[-1].count(" ") + 2
        else:
            units = garbage_lines(int(words * 0.8))
        text, _ = insert(units, needles, " ")
        pieces = [((niah.INSTRUCTION if draw.random() < 0.8 else "") + text, False)]
        for key, value in pairs:
            pieces += [((niah.QUESTION + niah.PREFIX).format(key=key), False), (f" {value}", True)]
        return self._joined(pieces)

    def vt(self, rng: np.random.Generator, shape: Shape) -> tuple[Ids, NDArray[np.bool_]]:
        """Chains of the vt task in its noise, all of them asked for, behind the solved example where there is room."""
        draw = random.Random(int(rng.integers(1 << 62)))
        hops = draw.randint(1, 4) if draw.random() < 0.5 else 4
        hops = min(hops, max((shape.length - 100) // 70, 1))
        chains = draw.randint(1, max(min(3, shape.length // 200), 1))
        values = draw.sample(range(10_000, 100_000), chains + 1)
        drawn = vt.names(draw, (hops + 1) * chains, letters=5)
        found = [drawn[first : first + hops + 1] for first in range(0, len(drawn), hops + 1)]
        lines = [
            piece
            for names, value in zip(found, values, strict=False)
            for piece in zip(sorted(draw.random() for _ in names), vt.assignments(names, value), strict=True)
        ]
        shown = ""
        room = shape.length - chains * (70 + 14 * hops) - 25
        if room > 400 and draw.random() < 0.8:
            shown = vt.VariableTracking(hops=hops)._example(draw, values[-1])
            room -= 330
        text, _ = insert(garbage_lines(max(int(room / 1.5), 0)), lines, "\n")
        pieces = [(shown + vt.INSTRUCTION + text, False)]
        for names, value in zip(found, values, strict=False):
            pieces.append(((vt.QUESTION + vt.PREFIX).format(value=value, count=len(names)), False))
            pieces.append((" " + " ".join(names), True))
        return self._joined(pieces)

    def chain(self, rng: np.random.Generator, shape: Shape) -> tuple[Ids, NDArray[np.bool_]]:
        """Links of the chain task in filler and a walk along them."""
        draw = random.Random(int(rng.integers(1 << 62)))
        links = draw.randint(2, max(min(shape.length // 16, shape.most_records), 3))
        stops = [chain.checked(prefix) for prefix in draw.sample(range(10_000, 100_000), links)]
        steps = draw.randint(1, min(links, 96))
        pieces = [
            (draw.random(), chain.LINK.format(stop=stop, following=following))
            for stop, following in zip(stops, [*stops[1:], stops[0]], strict=True)
        ]
        room = shape.length - 9 * links - 4 * steps - 60
        start = draw.randrange(len(self.prose))
        units, taken = [], 0
        while taken < room:
            units.append(self.prose[(start + len(units)) % len(self.prose)])
            taken += int(units[-1].count(" ") * 1.2) + 3
        text, _ = insert(units[:-1], pieces, "\n")
        walk = [stops[(at + 1) % links] for at in range(steps)]
        question = (chain.QUESTION + chain.PREFIX).format(stop=stops[0], steps=steps)
        return self._joined([(chain.INSTRUCTION + text + question, False), (" " + " -> ".join(map(str, walk)), True)])

    def book(self, rng: np.random.Generator, shape: Shape) -> tuple[Ids, NDArray[np.bool_]]:
        """A book of the ppl task: every token counts a little, and what was told before counts fully."""
        draw = random.Random(int(rng.integers(1 << 62)))
        book = _book.Book(draw, people=max(int(0.4 * shape.length / 260), 1))
        text, recalls = book.text(max(int(shape.length * 0.5), 8))
        encoded = self.tokenizer(text, return_offsets_mapping=True)
        weights = np.full(len(encoded["input_ids"]), 0.2, np.float32)
        spans = encoded["offset_mapping"]
        starts = np.array([start for start, _ in spans])
        for first, last in recalls:
            weights[np.searchsorted(starts, first - 1) : np.searchsorted(starts, last)] = 1.0
        return np.array(encoded["input_ids"]), weights

    def _joined(self, pieces: list[tuple[str, bool]]) -> tuple[Ids, NDArray[np.bool_]]:
        """Ids of pieces behind BOS; those marked are asked for and end with EOS."""
        ids, wanted = [self.bos], [False]
        for text, asked in pieces:
            found = self.tokenizer.encode(text, add_special_tokens=False) + ([self.eos] if asked else [])
            ids += found
            wanted += [asked] * len(found)
        return np.array(ids), np.array(wanted)

    def filler(self, rng: np.random.Generator, size: int) -> Ids:
        """``size`` tokens of prose, garbage or listed words at random, words spaced."""
        kind = rng.random()
        if kind < 0.8:
            pool = self.sentences if kind < 0.5 else self.lines
            parts: list[Ids] = []
            total = 0
            while total < size:
                chosen = pool[rng.integers(len(pool))]
                parts.append(chosen)
                total += len(chosen)
            return np.concatenate(parts)[:size].copy() if parts else np.empty(0, np.int64)
        if kind < 0.9:
            return np.tile(self.garbage, size // len(self.garbage) + 1)[:size]
        return rng.choice(self.drawn[-4000:], size)

    def line(self, text: str) -> Ids:
        """Ids of a text, without BOS."""
        if text not in self._lines:
            self._lines[text] = np.array(self.tokenizer.encode(text, add_special_tokens=False), dtype=np.int64)
        return self._lines[text]

    def _one(self, text: str) -> int:
        (token,) = self.line(text)
        return int(token)


def _around(record: str) -> tuple[str, str]:
    """What stands before a record's key and between key and value."""
    head, _, rest = record.partition(" {key}")
    middle, _, tail = rest.partition(" {value}")
    assert rest and not tail, "the kv task's record has another form now: teach it to Generator.records"
    return head, middle


def _checked(prefix: Ids, off: Ids | int) -> Ids:
    """Five digits and the last digit of their sum, shifted by ``off``: the kv task's keys and values."""
    digits = sum(prefix // 10**place % 10 for place in range(5))
    result: Ids = prefix * 10 + (digits + off) % 10
    return result


def _near(rng: np.random.Generator, keys: Ids) -> Ids:
    """A fifth of the keys get the second group, or the first, of another key."""
    changed = keys.copy()
    for at in np.flatnonzero(rng.random(len(keys)) < 0.2):
        other = keys[rng.integers(len(keys))]
        swap = rng.random() < 0.5
        changed[at] = keys[at] // 1000 * 1000 + other % 1000 if swap else other // 1000 * 1000 + keys[at] % 1000
    return changed
