"""How often is the semantic cache right? Labelled pairs of questions through the product's own recall, no server needed.

    python bench/cache_quality.py [--thresholds 0.85,0.88,0.92] [--guards NAMES] [--show] [FILE ...]

One question of a pair is stored, the other asked, in both directions. A pair is JSON per line: a, b, same (1: one answer
fits both), cat. Without files: adversarial_pairs, own_pairs and blind_pairs of bench/data, and the pairs of the package
fow-cache. The guards were made with all but the third at hand; that is reported in its parts, and bench/data/README.md says
which were used to mend the guards, and when. Plain is the cosine alone; kept and false are what the guards leave of its hits.
Exit code 1 when more than 1 % of the pairs with another answer are hits in any part at the settings' threshold.
docs/cache.md has the method.
"""

import argparse
import asyncio
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from serve_app.embeddings import OnnxEmbedder, load_embedder
from serve_app.events import ChoiceEnd, Usage
from serve_app.guards import Guards, load_guards, read
from serve_app.lifecycle.recall import embed_question, recall_semantic
from serve_app.runs import Answer, CachePolicy, Question, Run, new_trace_id
from serve_app.settings import Settings
from serve_app.store.memory import InMemoryAnswerCache
from serve_app.telemetry import configure_logging

_DATA: Final = Path(__file__).parent / "data"
_SETS: Final = ("adversarial", "own", "blind")
_MOST_FALSE: Final = 0.01
_ANSWER: Final = Answer("m", ({"role": "assistant", "content": "."},), (ChoiceEnd(finish_reason="stop"),), Usage())


@dataclass(frozen=True, slots=True)
class Asked:
    """One direction of a pair, measured. `rule` is the guard that refuses it, whatever the similarity."""

    stored: str
    asked: str
    same: bool
    similarity: float
    rule: str | None
    hits: frozenset[float]  # thresholds at which the cache answers


@dataclass(slots=True)
class Figures:
    """Counts of one set at one threshold, both directions."""

    pairs: Counter[bool] = field(default_factory=Counter)
    plain: Counter[bool] = field(default_factory=Counter)
    hits: Counter[bool] = field(default_factory=Counter)
    vetoes: dict[bool, Counter[str]] = field(default_factory=lambda: {True: Counter(), False: Counter()})


def pairs(path: Path | None) -> Iterator[tuple[str, str, bool]]:
    """The labelled pairs of a file, or those of fow-cache."""
    for of_part in parts(path).values():
        yield from of_part


def parts(path: Path | None) -> dict[str, list[tuple[str, str, bool]]]:
    """The labelled pairs of a file, or those of fow-cache, by the part of the set that they belong to."""
    source = path.read_text() if path else files("fow_cache").joinpath("data/pairs.jsonl").read_text()
    found: dict[str, list[tuple[str, str, bool]]] = {}
    for line in source.splitlines():
        pair = json.loads(line)
        name = (path.name if path else "fow-cache") + (f" ({pair['part']})" if "part" in pair else "")
        same = bool(pair["same"] if "same" in pair else pair["same_answer"])
        found.setdefault(name, []).append((pair["a"], pair["b"], same))
    return found


def run_of(text: str, threshold: float) -> Run:
    """The run that a plain chat request with this text becomes."""
    question = Question(project="p", route="direct", model="m", adapter=None, messages=[{"role": "user", "content": text}])
    policy = CachePolicy(threshold=threshold)
    return Run(new_trace_id(), question.req_id, question.req_id, False, question, time.time() + 600, policy)


async def measure(embedder: OnnxEmbedder, guards: Guards, stored: str, asked: str, same: bool, at: list[float]) -> Asked:
    """Store one question, ask the other."""
    here, there = await embedder.embed([asked, stored])
    similarity = sum(a * b for a, b in zip(here, there, strict=True))
    first, second = [await embed_question(embedder, guards, run_of(text, 0)) for text in (stored, asked)]
    if first.embedding is None or second.embedding is None:
        refused = next((veto for text in (stored, asked) if (veto := guards.refuse(read(text)))), None)
        return Asked(stored, asked, same, similarity, refused.rule if refused else "tokens", frozenset())
    cache = InMemoryAnswerCache()
    cache.keep(first, _ANSWER)
    hits = [t for t in at if await recall_semantic(cache, guards, replace(second, cache=CachePolicy(threshold=t)))]
    veto = guards.veto(read(asked), read(stored))
    return Asked(stored, asked, same, similarity, veto.rule if veto else None, frozenset(hits))


def figures(all_asked: list[Asked], threshold: float) -> Figures:
    """Counted at one threshold."""
    counted = Figures()
    for asked in all_asked:
        counted.pairs[asked.same] += 1
        if asked.similarity < threshold:
            continue
        counted.plain[asked.same] += 1
        counted.hits[asked.same] += threshold in asked.hits
        if asked.rule:
            counted.vetoes[asked.same][asked.rule] += 1
    return counted


def show(name: str, threshold: float, f: Figures) -> str:
    """One block of the report."""
    kept = f"{f.hits[True]}/{f.plain[True]} = {f.hits[True] / max(1, f.plain[True]):.1%}"
    wrong = f"{f.hits[False]}/{f.pairs[False]} = {f.hits[False] / max(1, f.pairs[False]):.1%}"
    lines = [
        f"{name} at {threshold:.2f}: true hits kept {kept} (of {f.pairs[True]} same)",
        f"    false hits {wrong} (plain {f.plain[False]} = {f.plain[False] / max(1, f.pairs[False]):.1%})",
    ]
    for same, what in ((False, "rightly"), (True, "needlessly")):
        lines.append(f"    vetoed {what}: " + (", ".join(f"{rule} {n}" for rule, n in f.vetoes[same].most_common()) or "none"))
    return "\n".join(lines)


async def main(options: argparse.Namespace) -> int:
    """Print the report; 1 when there are too many false hits."""
    configure_logging("ERROR")
    settings = Settings()
    guards = load_guards(settings.cache_guards if options.guards is None else options.guards.split())
    thresholds = sorted({*options.thresholds, settings.cache_threshold})
    embedder, failed = load_embedder(settings), False
    sources: list[Path | None] = options.files or [*(_DATA / f"{name}_pairs.jsonl" for name in _SETS), None]
    try:
        for name, labelled in [part for path in sources for part in parts(path).items()]:
            both = [way for a, b, same in labelled for way in ((a, b, same), (b, a, same))]
            measured = [await measure(embedder, guards, *way, thresholds) for way in both]
            for threshold in thresholds:
                counted = figures(measured, threshold)
                print(show(name, threshold, counted))
                too_many = counted.hits[False] > _MOST_FALSE * counted.pairs[False]
                failed = failed or (threshold == settings.cache_threshold and too_many)
            if options.show:
                print_wrong(measured, settings.cache_threshold)
    finally:
        embedder.close()
    return int(failed)


def print_wrong(measured: list[Asked], threshold: float) -> None:
    """What went wrong at the settings' threshold."""
    for one in measured:
        hit = threshold in one.hits
        if hit != one.same and (hit or one.similarity >= threshold):
            kind = "FALSE HIT" if hit else f"lost ({one.rule})"
            print(f"    {kind} {one.similarity:.3f} {one.asked!r} <- {one.stored!r}")


def _options() -> argparse.Namespace:
    def numbers(text: str) -> list[Any]:
        return [float(part) for part in text.split(",")]

    parser = argparse.ArgumentParser(description="true and false hits of the semantic cache on labelled pairs")
    parser.add_argument("files", nargs="*", type=Path, help="labelled pairs, JSON per line")
    parser.add_argument("--thresholds", type=numbers, default=[0.85, 0.88], help="beside that of the settings")
    parser.add_argument("--guards", help="names instead of those of the settings, in quotation marks; empty for none")
    parser.add_argument("--show", action="store_true", help="print the pairs that went wrong")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(asyncio.run(main(_options())))
