"""The work that every candidate gets: models at a known pace, and request bodies."""

from dataclasses import dataclass
from typing import Any, Final

from serve_app.configured import SimulatedConfig

# One text for all, so that the answers can be compared; longer than any request asks for.
_SCRIPT: Final = " ".join(f"word{number:03d}" for number in range(200))
PACED: Final = "sim-paced"
INSTANT: Final = "sim-instant"
SIMULATED: Final = {
    PACED: SimulatedConfig(ttft_ms=20, itl_ms=5, script=_SCRIPT),
    INSTANT: SimulatedConfig(ttft_ms=0, itl_ms=0, script=_SCRIPT),
}
LATENCY_TOKENS: Final = 8
LOAD_TOKENS: Final = 4
STREAM_TOKENS: Final = 64


@dataclass(frozen=True)
class Work:
    """Which models are asked, and whether all candidates must say the same."""

    engine: str  # simulated or vllm
    paced: str  # for latency and streams
    instant: str  # for load and the first answer


def work_of(engine: str) -> Work:
    if engine == "simulated":
        return Work(engine, PACED, INSTANT)
    return Work(engine, "smollm2-135m", "smollm2-135m")


def body(model: str, question: str, tokens: int, *, stream: bool) -> dict[str, Any]:
    """A chat request that any OpenAI server understands. Questions must differ: ours answers identical ones once.

    A real engine would end some answers early, and the candidates would be given different work: it is told not to.
    """
    whole = {} if model in SIMULATED else {"ignore_eos": True}
    return {
        **whole,
        "model": model,
        "messages": [{"role": "user", "content": question}],
        "max_tokens": tokens,
        "temperature": 0,
        "stream": stream,
    }
