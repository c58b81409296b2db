"""serve_app.guards: what each rule keeps apart, what none of them does, and what holds for all texts."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.guards import GUARDS, Guard, Pair, Reading, load_guards, read
from serve_app.guards.lexicon import lemma, one_slip, opposites, same_meaning
from serve_app.settings import Settings

ALL = load_guards(GUARDS)
DATA = Path(__file__).resolve().parents[2] / "bench" / "data"


def rule(asked: str, stored: str) -> str | None:
    """The rule that keeps the two apart, in whichever order."""
    one, other = (ALL.veto(read(a), read(b)) for a, b in ((asked, stored), (stored, asked)))
    assert (one is None) == (other is None), "a guard takes sides"
    return one.rule if one else None


@pytest.mark.parametrize(
    ("name", "left", "right"),
    [
        ("numbers", "Track order 48213", "Track order 48231"),
        ("numbers", "Name three planets", "Name four planets"),
        ("numbers", "Upgrade to version 2.1", "Upgrade to version 2.10"),
        ("numbers", "Is -5 too cold?", "Is 5 too cold?"),
        ("numbers", "Who was the second king?", "Who was the third king?"),
        ("numbers", "Remind me at 9:15", "Remind me at 9:45"),
        ("units", "Is 500 mg too much?", "Is 500 g too much?"),
        ("units", "How long is it in miles?", "How long is it in km?"),
        ("units", "Is a 5 mW laser safe?", "Is a 5 MW laser safe?"),
        ("units", "What does €20 buy?", "What does $20 buy?"),
        ("units", "Remind me at 7am", "Remind me at 7pm"),
        ("dates", "Is it open on Monday?", "Is it open on Sunday?"),
        ("dates", "What is the weather today?", "What is the weather tomorrow?"),
        ("negation", "Which plans include calls?", "Which plans don't include calls?"),
        ("negation", "Tea with sugar", "Tea without sugar"),
        ("negation", "Is the deposit refundable?", "Is the deposit non-refundable?"),
        ("antonyms", "Is it safe to eat raw eggs?", "Is it unsafe to eat raw eggs?"),
        ("antonyms", "How do I buy shares?", "How do I sell shares?"),
        ("antonyms", "How do I turn on dark mode?", "How do I turn off dark mode?"),
        ("entities", "What is the capital of France?", "What is the capital of Germany?"),
        ("entities", "Where do I find Polish food?", "Where do I find polish food?"),
        ("substitution", "What is IT?", "What is it?"),
        ("roles", "Flights from Paris to Rome", "Flights from Rome to Paris"),
        ("roles", "Is Python faster than Java?", "Is Java faster than Python?"),
        ("roles", "Can I sue my landlord?", "Can my landlord sue me?"),
        ("roles", "What is a guest house?", "What is a house guest?"),
        ("roles", "Who loves Tom?", "Who is loved, Tom?"),
        ("roles", "Is she a nurse?", "Does she have a nurse?"),
        ("quantifiers", "Who was the first man there?", "Who was the last man there?"),
        ("quantifiers", "Do all birds fly?", "Do some birds fly?"),
        ("questions", "Who built it?", "When was it built?"),
        ("questions", "Does it rain in Cairo?", "Did it rain in Cairo?"),
        ("questions", "Should I drink milk?", "Can I drink milk?"),
        ("persons", "What is your name?", "What is my name?"),
        ("persons", "Is he married?", "Is she married?"),
        ("code", "What does ls -r do?", "What does ls -R do?"),
        ("code", "What does [a-z] match?", "What does [A-Z] match?"),
        ("code", "Explain the difference between == and ===", "Explain the difference between = and =="),
        ("code", "Write hello world in C", "Write hello world in C#"),
        ("wording", "Translate 'cat' to French", "Translate 'cats' to French"),
        ("wording", "How do you spell affects?", "How do you spell effects?"),
        ("wording", "How are you?", "How do you do?"),
        ("wording", 'What is "it"?', "What is it?"),
        ("substitution", "What are the effects of ibuprofen?", "What are the effects of aspirin?"),
        ("substitution", "How do I delete my account?", "How do I delete my shop account?"),
        ("substitution", "How do I clean glass?", "How do I clean glasses?"),
        ("substitution", "Is the chicken cooked?", "Is the chicken cooking?"),
        ("substitution", "Right knee pain", "Knee pain"),
        ("substitution", "Evening classes in Leeds", "Classes in Leeds"),
        ("entities", "Is CO poisonous?", "Is Co poisonous?"),
        ("entities", "How fast is 100 MBps?", "How fast is 100 Mbps?"),
        ("questions", "In what year did the war end?", "In what month did the war end?"),
        ("questions", "Which team won the cup?", "Which country won the cup?"),
        ("questions", "Tell me a joke", "What is a joke?"),
        ("questions", "List the rules of chess", "Explain the rules of chess"),
        ("persons", "How do you store my data?", "How do I store my data?"),
        ("roles", "What is the exchange rate between USD and EUR?", "What is the exchange rate between EUR and USD?"),
        ("roles", "Did Tom hit Ann and Bob hit Sue?", "Did Tom hit Bob and Ann hit Sue?"),
        ("roles", "Who is older, my sister or my brother's wife?", "Who is older, my brother or my sister's wife?"),
        ("roles", "Is a website better than a blog?", "Is a blog better than a web site?"),
        ("roles", "Fly to Rome from Paris", "Fly to Paris from Rome"),
        ("roles", "Is it colder in May than in June?", "Is it colder in June than in May?"),
        ("questions", "Who was Henry VII?", "When was Henry VIII?"),
        ("numbers", "Who was Henry VII?", "Who was Henry VIII?"),
        ("substitution", "Write a note to my teacher", "Write a note to my teachers"),
        ("substitution", "How do I cure a cold?", "How do I treat a cold?"),
        ("code", "What does a & b do?", "What does a and b do?"),
    ],
)
def test_what_is_kept_apart_and_by_which_rule(name: str, left: str, right: str) -> None:
    assert rule(left, right) is not None
    alone = load_guards([name])
    assert alone.veto(read(left), read(right)) is not None, f"{name} alone does not see it, {rule(left, right)} does"


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("What is 15% of 240?", "what is 15 percent of 240"),
        ("How do I enable it?", "Hi there! How do I enable it? Thanks!"),
        ("How do I enable it?", "Could you please tell me how to enable it?"),
        ("How do I enable dark mode?", "how can i turn on dark mode"),
        ("What's the capital of Australia?", "What is Australia's capital?"),
        ("What is the password for guests?", "What is the guest password?"),
        ("Who won the World Cup in 2014?", "Who won the 2014 World Cup?"),
        ("In Java, how do I reverse a string?", "How do I reverse a string in Java?"),
        ("What is the color of the sky?", "What is the colour of the sky?"),
        ("When does the term start?", "When does the term begin?"),
        ("How do I read my electricity meter?", "How do I read my electricty meter?"),
        ("What documents do I need?", "What documents are needed?"),
        ("Why is my phone not charging?", "Why isn't my phone charging?"),
        ("Name three planets", "Name 3 planets"),
        ("Is 10,000 steps enough?", "Is 10000 steps enough?"),
        ("How tall is Mount Everest?", "What is the height of Mount Everest?"),
        ("WHAT IS THE SPEED OF SOUND?", "What is the speed of sound?"),
        ("What does git reset --hard do?", "  what does git  reset --hard do"),
        ("How do I set up my e-mail?", "How do I set up my email?"),
        ("Explain how a heat pump works", "Explain: how does a heat pump work?"),
        ("It\u2019s raining", "It's raining"),
        ("What is an API?", "Would you mind telling me what an API is?"),
        ("What is an API?", "I want you to explain what an API is, please"),
        ("Who wrote Emma?", "I was wondering who is the author of Emma"),
        ("Does it rain in Cairo?", "Do you know if it rains in Cairo?"),
        ("Write a poem about rain", "Can you write me a poem about rain?"),
        ("What is the capital of Peru?", "Waht is teh capital of Peru"),
        ("Flights from Paris to Rome", "flights form Paris to Rome"),
        ("Fly from Paris to Rome", "Fly to Rome from Paris"),
        ("Pros and cons of solar panels", "pros & cons of solar panels"),
        ("What is the difference between RAM and ROM?", "How does ROM differ from RAM?"),
        ("Is tea or coffee healthier?", "Is coffee or tea healthier?"),
        ("How do I boil an egg?", "How does one boil an egg?"),
        ("How do I reset my password?", "How can one reset a password?"),
        ("When did the Titanic sink?", "In what year did the Titanic sink?"),
        ("How long does it take?", "How much time does it take?"),
        ("What does osmosis mean?", "Define osmosis"),
        ('What does "osmosis" mean?', "What is the meaning of osmosis?"),
        ("How do I descale a kettle?", "What is the best way to descale a kettle?"),
        ("What is a capo for?", "What is the purpose of a capo?"),
        ("What are the ingredients of pesto?", "What ingredients are in pesto?"),
        ("How do I set up a website?", "How do I setup a web site?"),
        ("Which planet is the biggest?", "What is the largest planet?"),
        ("Population of Japan", "How many people live in Japan?"),
        ("How is depreciation calculated?", "How do I calculate depreciation?"),
        ("Why did Rome fall?", "Explain why Rome fell"),
        ("What is $5 in euros?", "What is 5 dollars in euros?"),
        ("Who won World War II?", "Who won World War 2?"),
    ],
)
def test_what_means_the_same(left: str, right: str) -> None:
    assert rule(left, right) is None


@pytest.mark.parametrize(
    "text",
    [
        *("", "  \n\t", "???", "12345", "\x00", "a\u200bb", "👍", "What does 😀 mean?", "What is x²?", "→"),
        *("ราคาเท่าไหร่", "東京の天気は?", "ما هي عاصمة فرنسا؟", "Какая столица?", "Κόστος", "שלום", "कीमत क्या है?"),
        *("Quel est le prix du billet pour Paris ?", "Wie komme ich nach Berlin?", "¿Dónde está el banco?"),
        *("Come posso aprire il conto?", "Hoe laat gaat de winkel open?", "Ile kosztuje bilet?"),
    ],
)
def test_what_the_guards_cannot_read_is_refused(text: str) -> None:
    veto = ALL.refuse(read(text))
    assert veto is not None
    assert veto.rule == "language"


@pytest.mark.parametrize(
    "text", ["Who wrote Emma?", "flights to rome", "How do I install PostgreSQL on Ubuntu?", "What is the weather in São Paulo?"]
)
def test_english_with_names_is_not_refused(text: str) -> None:
    assert ALL.refuse(read(text)) is None


def test_the_labelled_pairs_of_the_benchmark() -> None:
    for file in ("adversarial_pairs.jsonl", "own_pairs.jsonl", "blind_pairs.jsonl"):
        pairs = [json.loads(line) for line in (DATA / file).read_text().splitlines()]
        served = {0: 0, 1: 0}
        for pair in pairs:
            refused = any(ALL.refuse(read(pair[side])) for side in "ab")
            served[pair["same"]] += not refused and rule(pair["a"], pair["b"]) is None
        different = sum(not pair["same"] for pair in pairs)
        assert served[0] <= 0.01 * different, f"{file}: {served[0]} of {different}, at any similarity"
        assert served[1] >= 0.8 * (len(pairs) - different), file


_pieces = [
    "how",
    "do",
    "I",
    "is",
    "the",
    "not",
    "3",
    "three",
    "Paris",
    "paris",
    "'s",
    ",",
    "?",
    '"',
    "'",
    "--x",
    "a.b",
    "5km",
    "to",
    "from",
]
_texts = st.one_of(st.text(max_size=200), st.lists(st.sampled_from(_pieces), max_size=15).map(" ".join))


@settings(max_examples=300, deadline=None)
@given(_texts, _texts)
def test_no_guard_takes_sides(left: str, right: str) -> None:
    rule(left, right)


@settings(max_examples=300, deadline=None)
@given(_texts)
def test_equal_texts_are_never_kept_apart(text: str) -> None:
    assert rule(text, text) is None


@pytest.mark.parametrize("piece", ["a", "(", "!", "- ", "'a ", '"', "a'", "1.", "hi ", "how much ", "please ", "_", "`", "one "])
def test_a_long_text_is_read_in_linear_time(piece: str) -> None:
    text = (piece * 100_000)[:100_000]
    ALL.refuse(read(text))  # quadratic, it would take minutes, and the timeout of the test would end it


def test_the_settings_name_every_guard_in_its_order() -> None:
    assert Settings(config="simulated").cache_guards == list(GUARDS)


class Nothing(Guard):
    """Objects to everything."""

    name = "nothing"

    def veto(self, pair: Pair) -> str | None:
        return "never"


class Unnamed:
    """Is no guard."""


def test_own_guards_are_named_by_module_and_class() -> None:
    guards = load_guards(["numbers", f"{__name__}:Nothing"])
    veto = guards.veto(read("Name 3 planets"), read("Name 3 planets"))
    assert veto is not None
    assert veto.rule == "nothing"
    assert load_guards([]).veto(read("a"), read("b")) is None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("numbrs", "no guard 'numbrs'; use one of language, code"),
        ("no_such_module:Guard", "cannot be made: ModuleNotFoundError"),
        (f"{__name__}:Missing", "cannot be made: AttributeError"),
        (f"{__name__}:Unnamed", "is not a serve_app.guards.Guard"),
    ],
)
def test_a_wrong_name_says_what_is_wrong(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_guards([name])


def test_words() -> None:
    assert [lemma(w) for w in ("stains", "glasses", "meeting", "cancelled", "children", "boxes", "news")] == (
        ["stain", "glasses", "meeting", "cancel", "child", "box", "news"]
    )
    assert same_meaning("organise", "organize")
    assert not same_meaning("fast", "fastest")
    assert opposites("taxable", "untaxable")
    assert one_slip("telephone", "telehpone")
    assert not one_slip("telephone", "telephone book")


def test_a_reading_keeps_the_text_as_it_was() -> None:
    reading: Reading = read("  Hi! What  is up? ")
    assert (reading.text, reading.core) == ("  Hi! What  is up? ", "What is up?")
