"""Short answers compare by what they say; what could be two different answers is never called the same."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dagster_project.debate import short_answer

SAME = [
    ("Paris.", "paris"),
    ("The answer is: **Paris**!", "paris"),
    ("**Answer:** Paris", "paris"),
    ("First this. Then that.\n\nFinal answer: Paris.", "paris"),
    ("It could be Lyon, or Nice, or Lille, which is far in the north. So the answer is Paris.", "paris"),
    ("It's Paris.", "paris"),
    ('"Paris".', "paris"),
    ("a cat", "cat"),
    ("The Hague", "hague"),
    ("(B)", "b"),
    ("A", "a"),
    ("The answer is A.", "a"),
    ("3.5 m", "3.5 m"),
    ("-4", "-4"),
    ("\u22124", "-4"),
    ("+4", "4"),
    ("-0", "0"),
    ("1,000", "1000"),
    ("1000.", "1000"),
    ("1000.0", "1000"),
    ("1\u202f000", "1000"),
    ("So the answer is 1,234.50 km", "1234.5 km"),
    (".5", "0.5"),
    ("0.50", "0.5"),
    ("about 0.50 km", "about 0.5 km"),
    ("Lyon, 0.50", "lyon 0.5"),
    ("x = 2.0", "x = 2"),
    ("3.10 and 2.50", "3.1 and 2.5"),
    ("Python 3.10", "python 3.10"),
    ("Section 1,000.", "section 1000"),
    ("$1,200.00", "$1200"),
    (r"Thus we get \boxed{42}.", "42"),
    ("$42$", "42"),
    ("cafe\u0301", "caf\u00e9"),
    ('{"b": [2], "a": 1}', '{"a":1,"b":[2]}'),
]
NONE = ["", " \n", "***", "word " * 40, "The answer is", '{"cut": ', '{"long": "' + "x" * 300 + '"}']
DIFFERENT = [
    ("A, B", "B"),
    ("A and B", "B"),
    ("42%", "42"),
    ("$42", "42"),
    ("5!", "5"),
    ("n!", "n"),
    ("(n-1)!", "(n-1)"),
    (r"First \boxed{2}, so \boxed{\frac{1}{3}}", r"First \boxed{2}, so \boxed{\frac{2}{3}}"),
    ("x<y", "x>y"),
    ("C++", "C#"),
    ("x\u00b2", "x2"),
    ("1/2", "1 2"),
    ("1,00", "100"),
    ("1,2", "12"),
    ("007", "7"),
    ("Python 3.10", "Python 3.1"),
    ("The answer is Python 3.10.", "The answer is Python 3.1."),
    ("**Python** 3.10", "**Python** 3.1"),
    ("version 2.0", "version 2"),
    ("v3.10", "v3.1"),
    ("section 4.20 of the act", "section 4.2 of the act"),
    ("-4", "4"),
    ("not Paris", "Paris"),
    ("The answer is not 42.", "The answer is 42."),
    ("Nobody knows if the answer is yes", "The answer is yes"),
    ("The answer is 42. No, 43.", "The answer is 42."),
    ("[0, 1]", "(0, 1)"),
    ('{"a": 1}', '{"a": 2}'),
]


@pytest.mark.parametrize(("text", "canonical"), SAME)
def test_what_a_short_answer_says(text: str, canonical: str) -> None:
    assert short_answer(text) == canonical


@pytest.mark.parametrize("text", NONE)
def test_what_is_no_short_answer(text: str) -> None:
    assert short_answer(text) is None


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_different_answers_stay_different(one: str, other: str) -> None:
    assert short_answer(one) != short_answer(other) or short_answer(one) is None


@given(st.integers(-(10**12), 10**12))
def test_a_number_is_the_same_however_it_is_written(number: int) -> None:
    for text in (f"{number}", f"{number:,}", f"{number}.", f"{number}.00", f"The answer is **{number:,}**."):
        assert short_answer(text) == str(number)


WORDS = st.lists(st.text("bcdfgh", min_size=3, max_size=9), min_size=13, max_size=40)


@given(WORDS)
def test_long_texts_are_not_compared(words: list[str]) -> None:
    assert short_answer(" ".join(words)) is None


@given(st.text(max_size=200))
def test_any_text_can_be_asked_for_its_answer(text: str) -> None:
    canonical = short_answer(text)
    assert canonical is None or canonical.strip()
