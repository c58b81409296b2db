"""Equal tokens: how many samples of self-consistency the tokens of a debate pay for. Pure."""

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import Final

MOST_SAMPLES: Final = 64  # of one question; a bound for models that answer in a token or two
_MOST_AT_ONCE: Final = 8


def paid_samples(tokens: Sequence[int], budget: int) -> int | None:
    """How many samples, from the first on, come nearest to `budget` completion tokens; at least one, on a tie fewer.

    `tokens`: what each sample used, in the order drawn. The order is fixed by the seeds, never by what was answered.
    None when the samples do not reach the budget, so that more must be drawn first.
    """
    sums = list(accumulate(tokens))
    reached = next((count for count, total in enumerate(sums, 1) if total >= budget), None)
    if reached is None:
        return len(tokens) if len(tokens) >= MOST_SAMPLES else None
    if reached > 1 and budget - sums[reached - 2] <= sums[reached - 1] - budget:
        return reached - 1
    return reached


def samples_to_draw(tokens: Sequence[int], budget: int, longest: int) -> int:
    """How many samples to draw next, side by side; 0 when the budget is reached. `longest`: max_tokens of a sample."""
    left = budget - sum(tokens)
    if tokens and (left <= 0 or len(tokens) >= MOST_SAMPLES):
        return 0
    each = max(1.0, sum(tokens) / len(tokens)) if tokens else longest
    return max(1, min(math.ceil(left / each), _MOST_AT_ONCE, MOST_SAMPLES - len(tokens)))
