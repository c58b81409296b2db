"""bench/debate_quality: which replies count as right."""

import pytest

from bench.debate_quality.matching import accepted, canonical, is_right, majority
from bench.debate_quality.questions import Question

NUMBER = Question(id="n", kind="one_step", answer_type="number", question="What is 17 + 25?", answers=("42",))
CAPITAL = Question(id="t", kind="fact", answer_type="text", question="What is the capital of France?", answers=("Paris",))


@pytest.mark.parametrize(
    "reply",
    [
        "42",
        " 42.\n",
        "42.0",
        "0042",
        "17 + 25 = 42",
        "17 plus 25 makes 42 apples",
        "Answer: 42 (17 + 25)",
        "**Answer:** 17 + 25 = 42",
        "The answer is 42, not 43.",
        "So $\\boxed{42}$.",
        "<think>maybe 41</think>42",
        "Answer:\n42",
        "The sum is: 42%",
        "17+25=42",
    ],
)
def test_the_number_that_is_said_counts(reply: str) -> None:
    assert canonical(reply, NUMBER) == "42"


@pytest.mark.parametrize(
    "reply",
    [
        "4",
        "2",
        "420",
        "142",
        "4.2",
        "42.5",
        "42,000",
        "42,5",
        "-42",
        "B42",
        "42nd",
        "42x",
        "It is 42 or 43",
        "The answer is not 42",
        "",
        "Answer:",
        "none",
        "Answer: 41\nbut 42 is near",
        "42 <think></think> 7",
        "4 2",
        "42 - 1",
        "forty-two",
    ],
)
def test_a_number_elsewhere_in_the_reply_does_not(reply: str) -> None:
    assert canonical(reply, NUMBER) != "42"


def test_numbers_are_compared_as_numbers() -> None:
    metre = NUMBER.model_copy(update={"answers": ("1000",)})
    assert [canonical(text, metre) for text in ("1,000", "1000.00", "There are 1000 of them")] == ["1000"] * 3
    spider = NUMBER.model_copy(update={"question": "How many legs does a spider have?", "answers": ("8", "eight")})
    assert accepted(spider) == {"8"}
    assert is_right(canonical("A spider has eight legs.", spider), spider)
    assert not is_right(canonical("A spider has eighteen legs.", spider), spider)
    assert canonical("-5", NUMBER) == canonical("minus: -5", NUMBER) == "-5"


@pytest.mark.parametrize(
    "reply",
    [
        "Paris",
        "paris",
        "The capital of France is Paris.",
        "Paris is the capital of France.",
        "It's Paris!",
        "**Paris**",
        "Paris, a city on the Seine",
        "Paris (founded by the Parisii)",
        "Answer: Paris",
        "France's capital: Paris",
        "Paris. It is large.",
    ],
)
def test_the_words_that_are_said_count(reply: str) -> None:
    assert canonical(reply, CAPITAL) == "paris"


@pytest.mark.parametrize(
    "reply",
    [
        "Parisian",
        "Lyon",
        "It is not Paris.",
        "Paris or Lyon",
        "Lyon. Paris is large.",
        "Par is",
        "Answer: Lyon, once Paris",
        "Lyon, not Paris",
        "Paris Hilton",
        "The capital of France is",
        "",
        "Comparison",
        "Answer: no idea\nParis",
    ],
)
def test_words_elsewhere_in_the_reply_do_not(reply: str) -> None:
    assert canonical(reply, CAPITAL) != "paris"


def test_accents_abbreviations_and_remarks() -> None:
    everest = CAPITAL.model_copy(
        update={"question": "Which is the highest mountain?", "answers": ("Mt. Everest", "Mount Everest")}
    )
    for reply in ("Mt. Everest.", "The highest mountain is Mount Everest. It is in Asia.", "Mount Everest - 8849 m"):
        assert is_right(canonical(reply, everest), everest)
    brazil = CAPITAL.model_copy(update={"question": "What is the capital of Brazil?", "answers": ("Brasilia",)})
    assert is_right(canonical("Brasília", brazil), brazil)


def test_a_label_without_an_answer_is_refused() -> None:
    with pytest.raises(ValueError, match="no number"):
        accepted(NUMBER.model_copy(update={"answers": ("many",)}))
    with pytest.raises(ValueError, match="no word"):
        accepted(CAPITAL.model_copy(update={"answers": ("the",)}))


def test_majority_is_the_most_frequent_then_the_earliest() -> None:
    assert majority(["1", "2", "2"]) == "2"
    assert majority(["3", "1", "1", "3"]) == "3"
    assert majority([None, None, "7"]) == "7"
    assert majority([None]) is None
    assert majority([]) is None
