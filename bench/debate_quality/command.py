"""The command line: find the stack, ask, print the tables."""

import argparse
import asyncio
import hashlib
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final, get_args

from openai import AsyncOpenAI, DefaultAsyncHttpxClient

from bench.debate_quality.asking import STYLES, Refused, Terms, ask_all
from bench.debate_quality.questions import choose, digest, load
from bench.debate_quality.replies import Debated, Replies, Strategy
from bench.debate_quality.report import as_json, as_text, contests, gather, rows

_AIFACTORY: Final = str(Path(sys.executable).parent / "aifactory")
_OUT: Final = Path(__file__).parents[1] / "out"
_STRATEGIES: Final = get_args(Strategy)


def main() -> None:
    """Exit code 1 when a request failed; the same command asks again for what is missing."""
    options = _options()
    base_url, key, model = _stack(options)
    debates = tuple(Debated(strategy=name, rounds=rounds) for rounds in options.rounds for name in options.strategies)
    terms = Terms(model, debates, options.style, options.max_tokens, options.temperature, options.seed)
    try:
        sys.exit(asyncio.run(_measure(options, terms, base_url, key)))
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command goes on where this one stopped")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="debate against self-consistency at equal tokens; see docs/debate-quality.md")
    parser.add_argument("--questions", type=_positive, default=12, metavar="N", help="how many of the set; default 12")
    parser.add_argument("--strategies", type=_strategies, default=_STRATEGIES, help=f"default: {','.join(_STRATEGIES)}")
    parser.add_argument("--rounds", type=_rounds, default=(1,), help="rounds to try with each strategy, such as 1,2; default 1")
    parser.add_argument("--seed", type=int, default=1, help="chooses the questions and seeds the requests")
    parser.add_argument("--style", choices=tuple(STYLES), default="short", help="reason needs --max-tokens to match")
    parser.add_argument("--max-tokens", type=_positive, default=32, help="of each call; default 32")
    parser.add_argument("--temperature", type=float, default=0.7, help="of the samples of self-consistency; default 0.7")
    parser.add_argument("--lanes", type=_positive, default=2, help="questions under way at a time; 1 for honest seconds")
    parser.add_argument("--model", help="default: the first base model of the stack")
    parser.add_argument("--base-url", help="with /v1; default: from `aifactory status --json`")
    parser.add_argument("--api-key-file", type=Path, help="default: from `aifactory status --json`")
    parser.add_argument("--timeout-s", type=float, default=600.0, help="of one request")
    parser.add_argument(
        "--replies", type=Path, metavar="FILE", help="where replies are kept; default: one file per model and terms"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    return parser.parse_args()


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not 1 or more")
    return value


def _strategies(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(text.split(",")))
    if unknown := [name for name in names if name not in _STRATEGIES]:
        raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}; known: {', '.join(_STRATEGIES)}")
    return names


def _rounds(text: str) -> tuple[int, ...]:
    values = tuple(dict.fromkeys(int(part) for part in text.split(",")))
    if not all(1 <= value <= 3 for value in values):
        raise argparse.ArgumentTypeError(f"{text!r}: a debate has 1 to 3 rounds")
    return values


def _stack(options: argparse.Namespace) -> tuple[str, str, str]:
    """Base URL, API key and model: the flags, and for what they leave out the running stack."""
    status: dict[str, Any] = {}
    if not (options.base_url and options.api_key_file and options.model):
        said = subprocess.run([_AIFACTORY, "status", "--json"], capture_output=True, text=True, check=False)
        status = json.loads(said.stdout) if said.returncode == 0 else {}
        if not status.get("ready"):
            sys.exit("no stack is ready: run scripts/up, or give --base-url, --api-key-file and --model")
    key_file = options.api_key_file or Path(status["api_key_file"])
    model = options.model or status["replicas"][0]["model"]
    return options.base_url or status["api"], key_file.read_text().strip(), model


async def _measure(options: argparse.Namespace, terms: Terms, base_url: str, key: str) -> int:
    everything = load()
    questions = choose(everything, options.questions, terms.seed)
    # What a reply depends on. More questions, strategies or rounds may join the same file.
    conditions = {
        "model": terms.model,
        "style": terms.style,
        "max_tokens": terms.max_tokens,
        "temperature": terms.temperature,
        "seed": terms.seed,
        "questions": digest(everything),
    }
    name = hashlib.sha256(json.dumps(conditions).encode()).hexdigest()[:8]
    path = options.replies or _OUT / f"debate-quality-{terms.model.replace('/', '_').replace(':', '_')}-{name}.jsonl"
    began = time.perf_counter()
    http = DefaultAsyncHttpxClient(trust_env=False, timeout=options.timeout_s)
    async with AsyncOpenAI(base_url=base_url, api_key=key, max_retries=5, timeout=options.timeout_s, http_client=http) as client:
        with Replies(path, conditions) as replies:
            refused: BaseException | None = None
            try:
                failed = await ask_all(client, terms, questions, replies, options.lanes)
            except* Refused as group:
                refused = group
            if refused is not None:
                sys.exit(f"the stack refused {_first(refused)}")
            arms = gather(questions, terms.debates, replies)
    table, found = rows(arms, questions), contests(arms, terms.debates, terms.seed)
    print(
        f"model {terms.model}, {len(questions)} questions, style {terms.style}, max_tokens {terms.max_tokens}, seed {terms.seed}"
    )
    print(f"asked for {time.perf_counter() - began:.0f} s now; replies in {path}\n")
    print(as_text(table, found))
    if options.json:
        options.json.write_text(json.dumps(as_json(conditions, questions, table, found), indent=1) + "\n")
    if failed:
        print(f"\n{failed} requests failed; the same command asks again for what is missing", file=sys.stderr)
    return int(failed > 0)


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
