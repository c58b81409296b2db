"""Makes the arithmetic questions. Seeded: the same seed gives the same lines, and a test compares them with the file.

python -m bench.debate_quality.arithmetic > lines.jsonl
"""

from collections.abc import Callable
from random import Random
from typing import Final

from bench.debate_quality.questions import Kind, Question

SEED: Final = 20250101
EACH: Final = 30

# Text, expression, answer.
_Item = tuple[str, str, int]
_Maker = Callable[[Random], _Item]


def _plus(random: Random) -> _Item:
    a, b = random.randint(12, 89), random.randint(12, 89)
    return f"What is {a} + {b}?", f"{a} + {b}", a + b


def _minus(random: Random) -> _Item:
    a, b = random.randint(50, 99), random.randint(11, 49)
    return f"What is {a} - {b}?", f"{a} - {b}", a - b


def _times(random: Random) -> _Item:
    a, b = random.randint(3, 12), random.randint(3, 19)
    return f"What is {a} * {b}?", f"{a} * {b}", a * b


def _divided(random: Random) -> _Item:
    b, answer = random.randint(2, 12), random.randint(3, 15)
    return f"What is {b * answer} divided by {b}?", f"{b * answer} / {b}", answer


def _more_apples(random: Random) -> _Item:
    a, b = random.randint(5, 60), random.randint(5, 60)
    return f"Ann has {a} apples and gets {b} more. How many apples has she now?", f"{a} + {b}", a + b


def _boxes(random: Random) -> _Item:
    a, b = random.randint(3, 12), random.randint(4, 15)
    return f"There are {a} boxes with {b} pencils in each. How many pencils are there in all?", f"{a} * {b}", a * b


def _plus_minus(random: Random) -> _Item:
    a, b, c = random.randint(20, 89), random.randint(20, 89), random.randint(5, 35)
    return f"What is {a} + {b} - {c}?", f"{a} + {b} - {c}", a + b - c


def _times_plus(random: Random) -> _Item:
    a, b, c = random.randint(3, 12), random.randint(3, 15), random.randint(5, 60)
    return f"What is {a} * {b} + {c}?", f"{a} * {b} + {c}", a * b + c


def _bracket(random: Random) -> _Item:
    a, b, c = random.randint(3, 19), random.randint(3, 19), random.randint(3, 9)
    return f"What is ({a} + {b}) * {c}?", f"({a} + {b}) * {c}", (a + b) * c


def _bus(random: Random) -> _Item:
    a, b, c = random.randint(20, 50), random.randint(3, 18), random.randint(3, 18)
    text = f"A bus carries {a} people. At a stop {b} people get off and {c} people get on. How many people does it carry now?"
    return text, f"{a} - {b} + {c}", a - b + c


def _change(random: Random) -> _Item:
    a, b = random.randint(2, 9), random.randint(2, 11)
    paid = 100 if a * b > 45 else 50
    text = f"Bob buys {a} books at {b} coins each and pays with {paid} coins. How many coins does he get back?"
    return text, f"{paid} - {a} * {b}", paid - a * b


def _shared(random: Random) -> _Item:
    c, answer = random.randint(2, 8), random.randint(4, 14)
    a = random.randint(1, c * answer - 1)
    b = c * answer - a
    text = (
        f"Eva has {a} red and {b} blue marbles and shares all of them equally among {c} friends. How many does each friend get?"
    )
    return text, f"({a} + {b}) / {c}", answer


_MAKERS: Final[dict[Kind, tuple[_Maker, ...]]] = {
    "one_step": (_plus, _minus, _times, _divided, _more_apples, _boxes),
    "two_steps": (_plus_minus, _times_plus, _bracket, _bus, _change, _shared),
}


def generate(seed: int = SEED, each: int = EACH) -> list[Question]:
    """`each` questions of one step, then as many of two steps. No question comes twice; no answer stands in its question."""
    made: list[Question] = []
    for kind, makers in _MAKERS.items():
        random = Random(f"{seed}/{kind}")
        seen: set[str] = set()
        while len(seen) < each:
            text, expression, answer = makers[len(seen) % len(makers)](random)
            words = expression.replace("(", " ").replace(")", " ").split()
            if text in seen or str(answer) in words:
                continue
            seen.add(text)
            made.append(
                Question(
                    id=f"{kind}-{len(seen):02}",
                    kind=kind,
                    answer_type="number",
                    question=text,
                    answers=(str(answer),),
                    expression=expression,
                )
            )
    return made


if __name__ == "__main__":
    for question in generate():
        print(question.model_dump_json())
