"""serve_app.guards.rephrased: for each phrase that it reads as another, a pair of questions that it makes one."""

import re
from importlib import import_module
from typing import Any, Final

import pytest

from serve_app.guards import GUARDS, load_guards, read
from serve_app.guards.frames import unframed

ALL = load_guards(GUARDS)
MODULE: Any = import_module("serve_app.guards.rephrased")

# One pair a line, in the order of the phrases; each passes because of one of them, as the last test proves.
ANYWHERE: Final = """
Pros & cons of solar panels / Pros and cons of solar panels
Is it open at 9 p.m.? / Is it open at 9 pm?
How do I make bread w/o yeast? / How do I make bread without yeast?
Is tea w/ milk healthy? / Is tea with milk healthy?
What if I wanna leave? / What if I want to leave?
Is it gonna rain today? / Is it going to rain today?
Why do u want this job? / Why do you want this job?
What are the different types of clouds? / What are the types of clouds?
What is the tallest building in the world? / What is the tallest building?
What is the largest land animal on earth? / What is the largest land animal?
What is the world's longest river? / What is the longest river?
How do I switch on my TV? / How do I turn on my TV?
How do I turn on dark mode? / How do I enable dark mode?
How do I turn off dark mode? / How do I disable dark mode?
How do I deactivate notifications? / How do I disable notifications?
How do I activate notifications? / How do I enable notifications?
How do I log into my account? / How do I log in to my account?
Why can't I log in? / Why can't I login?
How do I log off? / How do I log out?
How do I sign into my account? / How do I login to my account?
Why can't I sign in? / Why can't I log in?
How do I sign out? / How do I log out?
How do I sign up for a class? / How do I register for a class?
How do I get in touch with support? / How do I contact support?
How do I get in touch with my landlord? / How do I contact my landlord?
How do I get in touch with Amazon? / How do I contact Amazon?
How do I get rid of coffee stains? / How do I remove coffee stains?
Can I mix bleach with vinegar? / Can I mix bleach and vinegar?
What is the max speed of a train? / What is the maximum speed of a train?
What is the min age for a driver? / What is the minimum age for a driver?
What should I study in order to become a nurse? / What should I study to become a nurse?
How many calories should I eat per day? / How many calories should I eat a day?
How much water should I drink every day? / How much water should I drink a day?
Exactly how does a fridge work? / How does a fridge work?
What exactly is inflation? / What is inflation?
What is the capital city of France? / What is the capital of France?
How much time do I have to pay? / How long do I have to pay?
Is it allowed to park here? / Can I park here?
Is it okay to skip breakfast? / Is it ok to skip breakfast?
Python vs. Java / Python versus Java
Compare tea versus coffee / Compare tea and coffee
"""
ASKED_FOR: Final = """
Who's the author of Dune? / Who is the author of Dune?
Spain's capital is what? / What is Spain's capital?
The king of Spain is who? / Who is the king of Spain?
The Louvre is where? / Where is the Louvre?
The next eclipse of the moon is when? / When is the next eclipse of the moon?
Can I get a recipe for pancakes? / Give me a recipe for pancakes
I'm looking for some advice on sleep / Give me some advice on sleep
Write me a song that I can sing / Write a song that I can sing
Explain how a heat pump works / How does a heat pump work?
Explain the way a heat pump works / Explain how a heat pump works
Show me how to knit / How to knit
Would you mind letting me know if it rains in Cairo? / Does it rain in Cairo?
Explain inflation to me / Explain inflation
Explain osmosis for me / Explain osmosis
Tell me about black holes / What are black holes?
Tell me about Mount Everest / What is Mount Everest?
Tell me about the Internet / What is the Internet?
Explain a mortgage / What is a mortgage?
Explain closures in JavaScript / What is a closure in JavaScript?
Explain Ohm's law / What is Ohm's law?
Explain the law on theft / What is the law on theft?
Explain the offside rule / What is the offside rule?
Explain your refund policy / What is your refund policy?
Explain the difference between TCP and UDP / What is the difference between TCP and UDP?
Give me an overview of the causes of inflation / What are the causes of inflation?
Give me a list of the planets / What are the planets?
Give me a list of mammals / Name some mammals
Show me a recipe for pancakes / Give me a recipe for pancakes
Give me the symptoms of flu / What are the symptoms of flu?
Show me some photos of cats / Name photos of cats
Recommend some books about Rome / Recommend books about Rome
What are some good books about Rome? / What are good books about Rome?
What are some mammals? / Name some mammals
Give me a summary of Emma / Summarize Emma
Translate the menu into French / Translate the menu to French
"""
ANYBODY: Final = """
How does one boil an egg? / How do I boil an egg?
How does someone become a nurse? / How do I become a nurse?
How do I go about applying for a loan? / How do I apply for a loan?
How might I learn Spanish? / How do I learn Spanish?
Can one eat raw eggs? / Can I eat raw eggs?
When should one plant the bulbs? / When should I plant the bulbs?
What documents does one need to vote? / What documents do I need to vote?
Am I allowed to park here? / Can I park here?
Am I allowed to watch Netflix at work? / Is it allowed to watch Netflix at work?
Is a visa required for Japan? / Do I need a visa for Japan?
What do I need to pack for Japan? / What should I pack for Japan?
How can I tell whether an egg is bad? / How do I know if an egg is bad?
How can I know whether an egg is bad? / How do I know if an egg is bad?
May I bring my dog? / Can I bring my dog?
Is there a way to freeze milk? / Is it possible to freeze milk?
Do I need to rinse rice? / Must I rinse rice?
When do I have to pay tax? / When must I pay tax?
How much notice do I need to give? / How much notice must I give?
Am I required to wear a helmet? / Is it required to wear a helmet?
Is it necessary to rinse rice? / Must I rinse rice?
Ways to save money / How do I save money?
What is the best way to descale a kettle? / How do I descale a kettle?
What are the steps to change a tyre? / How do I change a tyre?
What can I do to sleep better? / How do I sleep better?
"""
TIME_AND_PLACE: Final = """
When will the party be? / When is the party?
What causes leaves to fall? / Why do leaves fall?
What does smoking cause? / What is the effect of smoking?
What did the war cause? / What was the effect of the war?
What time does the museum open? / When does the museum open?
In what year did the Titanic sink? / When did the Titanic sink?
What is the time in Tokyo? / What time is it in Tokyo?
What is the release date of Dune? / When is the release date of Dune?
In which country is Petra? / What country is Petra in?
What city is the Louvre in? / In what city is the Louvre?
Where is Petra located? / Where is Petra?
Which person invented the telephone? / Who invented the telephone?
Who is the person who runs the club? / Who runs the club?
What is the number of bones in a hand? / How many bones are in a hand?
By whom was Emma written? / Who wrote Emma?
Who was Emma written by? / Who wrote Emma?
Who is the current king of Spain? / Who is the king of Spain?
What is the current price of gold? / What is the price of gold?
How come cats purr? / Why do cats purr?
For what reason do cats purr? / Why do cats purr?
What is the reason why cats purr? / Why do cats purr?
What caused the fire in Rome? / What was the cause of the fire in Rome?
"""
MEASURE_AND_MEANING: Final = """
How long is the Nile? / What is the length of the Nile?
How expensive is a passport? / What is the price of a passport?
How much does a horse weigh? / What is the weight of a horse?
How many people live in Japan? / What is the population of Japan?
How far is Rome from Paris? / What is the distance between Rome and Paris?
What is the distance from Rome to Paris? / What is the distance between Rome and Paris?
What does osmosis mean? / What is the meaning of osmosis?
Define osmosis / What is the meaning of osmosis?
Definition of osmosis / What is the meaning of osmosis?
What is the meaning of the word osmosis? / What is the meaning of osmosis?
What osmosis means / What is the meaning of osmosis?
What is NASA short for? / What does NASA stand for?
What is a capo used for? / What is the purpose of a capo?
What do people use borax for? / What is the purpose of borax?
What is the use of a capo? / What is the purpose of a capo?
How does ROM differ from RAM? / What is the difference between ROM and RAM?
How is ROM different from RAM? / What is the difference between ROM and RAM?
How do ROM and RAM differ? / What is the difference between ROM and RAM?
What distinguishes ROM from RAM? / What is the difference between ROM and RAM?
Compare tea with coffee / Compare tea and coffee
What does a notary do? / What a notary does
What a notary does / What does a notary do?
What do you call a baby goat? / What is the name of a baby goat?
Which is bigger, Mars or Venus? / Is Mars or Venus bigger?
Is stock the same as broth? / Are stock and broth the same as?
What currency does Japan have? / What is Japan's currency?
What symptoms does stress cause? / What are the symptoms of stress?
What is a baby goat called? / What is the name of a baby goat?
Which ocean is the deepest? / What is the deepest ocean?
"""
SINGLE_WORDS: Final = """
Where is the US embassy? / Where is the United States embassy?
Is the USA a republic? / Is the United States a republic?
Who runs the UK? / Who runs the United Kingdom?
What is the weather in NYC? / What is the weather in New York City?
Is Turkey in the EU? / Is Turkey in the European Union?
Who founded the UN? / Who founded the United Nations?
How do I sort a list in JS? / How do I sort a list in JavaScript?
Who invented AI? / Who invented artificial intelligence?
Who won WWI? / Who won World War 1?
Who lost WW1? / Who lost World War 1?
Who won WWII? / Who won World War 2?
Who lost WW2? / Who lost World War 2?
Who was Pope Paul II? / Who was Pope Paul 2?
Who was Henry III? / Who was Henry 3?
Who was Henry IV? / Who was Henry 4?
Who was Henry VI? / Who was Henry 6?
Who was Henry VII? / Who was Henry 7?
Who was Henry VIII? / Who was Henry 8?
Who was Louis IX? / Who was Louis 9?
Who was Louis XI? / Who was Louis 11?
Who was Louis XII? / Who was Louis 12?
Who was Louis XIII? / Who was Louis 13?
Who is the author of Emma? / Who wrote Emma?
Who was the writer of Emma? / Who wrote Emma?
Who was the inventor of the telephone? / Who invented the telephone?
Who are the founders of Google? / Who founded Google?
Who was the discoverer of radium? / Who discovered radium?
Who is the composer of Carmen? / Who composed Carmen?
Who is the painter of Guernica? / Who painted Guernica?
Who is the creator of Linux? / Who created Linux?
Who was the winner of the 2010 World Cup? / Who won the 2010 World Cup?
Who was the builder of the Titanic? / Who built the Titanic?
Who is the developer of Minecraft? / Who developed Minecraft?
How tall is Mount Everest? / What is the height of Mount Everest?
How old is the Earth? / What is the age of the Earth?
How deep is the Dead Sea? / What is the depth of the Dead Sea?
How wide is the Amazon? / What is the width of the Amazon?
How heavy is the Moon? / What is the weight of the Moon?
How big is the Moon? / What is the size of the Moon?
How large is the Moon? / What is the size of the Moon?
How fast is light? / What is the speed of light?
How quickly can I lose weight? / How fast can I lose weight?
How is depreciation calculated? / How do I calculate depreciation?
Is eating fish safe? / Is it safe to eat fish?
Is walking on ice dangerous? / Is it dangerous to walk on ice?
Is running a marathon dangerous? / Is it dangerous to run a marathon?
Is visiting Chernobyl safe? / Is it safe to visit Chernobyl?
How much will a wedding cost? / What will a wedding cost?
"""
TABLES: Final = (ANYWHERE, ASKED_FOR, ANYBODY, TIME_AND_PLACE, MEASURE_AND_MEANING, SINGLE_WORDS)
EXAMPLES: Final = [tuple(line.split(" / ")) for table in TABLES for line in table.strip().splitlines()]

LISTS: Final = ("_ANYWHERE", "_AT_START")
WORDS: Final = ("_SHORT", "_ROMAN", "_MAKERS", "_MEASURES")
PATTERNS: Final = ("_MAKER", "_DONE_TO", "_DOING", "_MEASURE", "_COSTS")
NEVER: Final = re.compile(r"(?!)")


def served(left: str, right: str) -> bool:
    """Whether the answer to one is given to the other."""
    return ALL.veto(read(left), read(right)) is None


def cores() -> list[tuple[str, str]]:
    """The examples in the words that the guards compare."""
    return [(MODULE.rephrased(unframed(left)), MODULE.rephrased(unframed(right))) for left, right in EXAMPLES]


WITH_ALL: Final = cores()


def vetoed_now() -> set[int]:
    """The examples that no longer pass. Only those whose words changed can be: the others need not be compared again."""
    changed = (at for at, (before, now) in enumerate(zip(WITH_ALL, cores(), strict=True)) if before != now)
    return {at for at in changed if not served(*EXAMPLES[at])}


@pytest.mark.parametrize(("left", "right"), EXAMPLES)
def test_what_a_phrase_makes_one(left: str, right: str) -> None:
    assert served(left, right)
    assert served(right, left)


def test_each_phrase_has_an_example_and_each_example_a_phrase(monkeypatch: pytest.MonkeyPatch) -> None:
    needed: set[int] = set()
    without: list[str] = []

    def remove(name: str, rest: object, removed: str) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(MODULE, name, rest)
            vetoed = vetoed_now()
        needed.update(vetoed)
        if not vetoed:
            without.append(f"{name}: {removed}")

    for name in LISTS:
        phrases = getattr(MODULE, name)
        for at, phrase in enumerate(phrases):
            remove(name, phrases[:at] + phrases[at + 1 :], phrase.pattern.pattern)
    for name in WORDS:
        for word in getattr(MODULE, name):
            remove(name, getattr(MODULE, name) | {word: word}, word)  # read as itself
    for name in PATTERNS:
        remove(name, NEVER, "as a whole")
    assert not without, "no example passes because of these; add one, or drop the phrase"
    idle = [EXAMPLES[at] for at in range(len(EXAMPLES)) if at not in needed]
    assert not idle, "these pass without any of the phrases"
