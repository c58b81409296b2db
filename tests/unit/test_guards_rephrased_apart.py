"""serve_app.guards.rephrased: pairs that a phrase must not make one; those in the first table it did, before it was narrowed."""

from importlib import import_module
from typing import Any

import pytest

from serve_app.guards import GUARDS, load_guards, read

ALL = load_guards(GUARDS)
MODULE: Any = import_module("serve_app.guards.rephrased")

# One pair a line, in the order of the phrases.
ONCE_FALSE_HITS = """
How do you spell wanna? / How do you spell want to?
How do you pronounce gonna? / How do you pronounce going to?
Is gonna a word? / Is going to a word?
What does w/o mean? / What does without mean?
What does USA mean? / What does United States mean?
What does VII mean? / What does 7 mean?
What is a U turn? / What is a turn?
What is a U value? / What is a value?
What are u bolts for? / What are bolts for?
What is the largest state in the world? / What is the largest state?
What is the most popular sport in the world? / What is the most popular sport?
What is the most abundant element on Earth? / What is the most abundant element?
What is the coldest place on earth? / What is the coldest place?
Where should I invest my money in the world? / Where should I invest my money?
What is the world's largest state? / What is the largest state?
How do I turn on my iPhone? / How do I activate my iPhone?
How do I turn off my laptop? / How do I disable my laptop?
How do I get rid of moles? / How do I remove moles?
How do I get rid of old batteries? / How do I remove old batteries?
How do I get rid of old paint? / How do I remove old paint?
Can I lose 10 pounds every week? / Can I lose 10 pounds in a week?
What is a capital city? / What is capital?
Am I allowed to use my phone in China? / Can I use my phone in China?
Am I allowed to see the eclipse? / Can I see the eclipse?
Is it allowed to drink tap water in Mexico? / Can I drink tap water in Mexico?
Who wrote Batman vs Superman? / Who wrote Batman and Superman?
Explain mitosis vs meiosis / Explain mitosis and meiosis
Explain the way of the samurai / How is the samurai?
Explain the price of gold / What is the price of gold?
Explain the color of the sky / What is the color of the sky?
Explain my bill / What is my bill?
Explain the joke / What is the joke?
Tell me about the capital of France / What is the capital of France?
Give me a list of mammals / What are mammals?
Show me the Mona Lisa / What is the Mona Lisa?
What are some mammals? / What are mammals?
How can someone be so cruel? / How can I be so cruel?
How could someone do this? / How could I do this?
How does someone die of thirst? / How do I die of thirst?
How would I look with short hair? / How do I look with short hair?
Can one parent claim child benefit? / Can parents claim child benefit?
What can one person do about climate change? / What can people do about climate change?
Are parents required to pay for college? / Do I need parents to pay for college?
Are lawyers required to report a crime? / Do I need a lawyer to report a crime?
How long do I have to file a claim? / How long do I need to file a claim?
How many days do I have to return it? / How many days do I need to return it?
How much money do I have to spend? / How much money do I need to spend?
What are ways to die? / How do I die?
What is the best way to die? / How do I die?
When does school start? / What time does school start?
Which woman won two Nobel Prizes? / Who won two Nobel Prizes?
Which man won Wimbledon in 2019? / Who won Wimbledon in 2019?
Who is the woman who won Wimbledon in 2019? / Who won Wimbledon in 2019?
What is the number of the fire department? / How many are the fire department?
What reasons did he give? / Why did he give?
What causes stress? / What does stress cause?
What caused the crash? / What did the crash cause?
How much will Bitcoin cost? / How much does Bitcoin cost?
How much is a carat? / What is the price of a carat?
How much is a fluid ounce? / What is the price of a fluid ounce?
What is the use of crying? / What is the purpose of crying?
What do you call a fish with no eyes? / What is the name of a fish with no eyes?
Is O positive compatible with A positive? / Is A positive compatible with O positive?
What person is honest? / What is an honest person?
Who are the winners of the World Cup? / Who won the World Cup?
Is drinking water safe? / Is it safe to drink water?
Is boiling water dangerous? / Is it dangerous to boil water?
Explain the tax on wine / What is the tax on wine?
Explain the title of Dune / What is the title of Dune?
Explain the legal drinking limit in Ohio / What is the legal drinking limit in Ohio?
Explain the melting point of gold / What is the melting point of gold?
Explain the motto of Harvard / What is the motto of Harvard?
Explain the voltage in Japan / What is the voltage in Japan?
Explain the most popular sport / What is the most popular sport?
Explain the nickname of Chicago / What is the nickname of Chicago?
Explain the symbol for gold / What is the symbol for gold?
Tell me about the tallest building in Dubai / What is the tallest building in Dubai?
Tell me about the fastest animal / What is the fastest animal?
Tell me about the official language of Brazil / What is the official language of Brazil?
Tell me about the GDP of France / What is the GDP of France?
Explain the delay / What is the delay?
Explain France's GDP / What is France's GDP?
Explain tax on wine / What is tax on wine?
Explain gold melting point / What is gold melting point?
Explain inflation in Japan / What is inflation in Japan?
Explain a normal blood pressure / What is a normal blood pressure?
Explain the cause of death of Elvis / What is the cause of death of Elvis?
Explain hotel prices / What are hotel prices?
Give me an overview of the tax on wine / What is the tax on wine?
What can you tell me about the tax on wine? / What is the tax on wine?
Explain the tax on wine / The tax on wine
Describe the best diet for me / Describe the best diet
Describe the perfect job for me / Describe the perfect job
Explain the risks for me / Explain the risks
Explain the danger to me / Explain the danger
Describe the charges billed to me / Describe the charges billed
What is the best diet for me? / What is the best diet?
Is climbing rope dangerous? / Is it dangerous to climb rope?
Is burning wood bad? / Is it bad to burn wood?
Is cooking oil bad? / Is it bad to cook oil?
Is frying oil bad? / Is it bad to fry oil?
Is hunting dogs legal? / Is it legal to hunt dogs?
Is baking powder bad? / Is it bad to bake powder?
Is drinking chocolate bad? / Is it bad to drink chocolate?
Is skipping rope good? / Is it good to skip rope?
Is carrying cost bad? / Is it bad to carry cost?
How might I get lung cancer? / How do I get lung cancer?
How might I lose my job? / How do I lose my job?
How would I survive a nuclear war? / How do I survive a nuclear war?
How would one survive a nuclear war? / How do I survive a nuclear war?
May I run a marathon with asthma? / Can I run a marathon with asthma?
May I fly with a cold? / Can I fly with a cold?
Am I allowed to fly with a cold? / Can I fly with a cold?
How much would a trip to Mars cost? / How much does a trip to Mars cost?
What would a wall cost? / What does a wall cost?
How much would a trip to Mars cost? / What is the price of a trip to Mars?
Are nurses needed in Canada? / Do I need nurses in Canada?
Are soldiers needed in Ukraine? / Do I need soldiers in Ukraine?
Are nurses needed for surgery? / Do I need nurses for surgery?
Is staff needed for the fair? / Do I need staff for the fair?
Is a visa required in Japan? / Do I need a visa in Japan?
How do I get in touch with my inner child? / How do I contact my inner child?
How do I get in touch with my feelings? / How do I contact my feelings?
How do I get in touch with nature? / How do I contact nature?
Explain gold price today / What is gold price today?
Explain the French President / What is the French President?
Explain the first rule of Fight Club / What is the first rule of Fight Club?
Explain the main difference between gold and silver prices / What is the main difference between gold and silver prices?
Is chewing gum bad? / Is it bad to chew gum?
Is melting ice dangerous? / Is it dangerous to melt ice?
May I smoke after surgery? / Can I smoke after surgery?
Can I carry twins? / May I carry twins?
Are weapons needed for Ukraine? / Do I need weapons for Ukraine?
Is food needed for Gaza? / Do I need food for Gaza?
Best job for me / Best job
Recommend some books / Recommend a book
Recommend books / Recommend a book
Write some poems / Write a poem
Find me some hotels in Rome / Find me a hotel in Rome
Share some tips / Share a tip
Explain the process in the picture / What is the process in the picture?
Is housing in Rome bad? / Is it bad to house in Rome?
Is burning wood in Ohio legal? / Is it legal to burn wood in Ohio?
How do I get in touch with God? / How do I contact God?
How do I get in touch with my feelings at school? / How do I contact my feelings at school?
Is this diet safe for me? / Is this diet safe?
How does a pension work for me? / How does a pension work?
Explain the tax rules for me / Explain the tax rules
Explain taxes for me / Explain taxes
"""
NEVER_ONE = """
Is tea w/ milk healthy? / Is tea w/o milk healthy?
Is it open at 9 a.m.? / Is it open at 9 p.m.?
How do I turn on Bluetooth? / How do I turn off Bluetooth?
How do I activate Windows? / How do I deactivate Windows?
How do I log in to Netflix? / How do I log out of Netflix?
How do I log in to Django? / How do I log in Django?
How do I sign up for Netflix? / How do I sign in for Netflix?
How do I mix bleach with water? / How do I mix bleach without water?
What is the max age for a driver? / What is the min age for a driver?
How many calories per day? / How many calories per week?
Exactly when did it start? / About when did it start?
How much time does it take to bake? / How much flour does it take to bake?
Is it okay to cry? / Is it necessary to cry?
Rome is where? / Rome is when?
I'm looking for a recipe for soup / I'm looking for ingredients for soup
Write me a poem / Write a poem about me
Teach me how to cook / Teach me why to cook
Tell me if it rains / Tell me why it rains
Give me a list of symptoms of flu / Give me a list of causes of flu
Give me an overview of Rome / Give me a map of Rome
Give me a summary of Emma / Give me a review of Emma
What are some good books? / What are some bad books?
Translate hello into French / Translate hello from French
How can one person lift a piano? / How can people lift a piano?
When should one plant garlic? / When can one plant garlic?
Am I required to vote? / Am I allowed to vote?
Is it necessary to wash rice? / Is it ok to wash rice?
Do I have to wear a helmet? / Should I wear a helmet?
What should I pack? / What can I pack?
How do I know whether it is safe? / How do I know when it is safe?
Is there a way to stop hiccups? / Is there a way to start hiccups?
What are the steps to bake bread? / How many steps are there to bake bread?
What can I do to sleep better? / What can I do to sleep longer?
When will the party be? / Where will the party be?
What causes leaves to fall? / What do leaves cause to fall?
What symptoms does stress cause? / What causes stress symptoms?
What is the time in Tokyo? / What is the weather in Tokyo?
In which country is Rome? / In which continent is Rome?
What city is the Louvre in? / What country is the Louvre in?
Where is Troy located? / Where was Troy located?
Which band made Thriller? / Which artist made Thriller?
Who was Tom hit by? / Who did Tom hit?
By whom was Caesar killed? / Who did Caesar kill?
Who was Lincoln killed by? / Who was killed by Lincoln?
Who is the current king? / Who was the king?
How come cats purr? / How do cats purr?
How much does a horse weigh? / How much does a horse cost?
How far is Rome from Paris? / How far is Rome from Milan?
What is NASA short for? / What is NASA for?
What can I use vinegar for? / What can I use instead of vinegar?
How is Python different from Java? / How is Python similar to Java?
What did he do? / What does he do?
What do you call a baby goat? / What do you call a male goat?
Which is better, tea or coffee? / Which is worse, tea or coffee?
Are PS4 games compatible with PS5? / Are PS5 games compatible with PS4?
What benefits does yoga have? / What drawbacks does yoga have?
Which ocean is the deepest? / Which ocean is the coldest?
Who is the founder of Ford? / Who is the owner of Ford?
How is speed measured? / How is speed calculated?
Is eating fish safe? / Is catching fish safe?
How tall is the US president? / How tall is the UK president?
Explain the method of payment / What is the method of payment?
Explain the difference in price between gold and silver / What is the difference in price between gold and silver?
Describe what was said to me / Describe what was said
Suggest some names / Suggest a name
Show me some cats / Show me a cat
What does inflation mean for us? / What does inflation mean?
Tell me a joke / Tell me jokes
Write a two page essay / Write a three page essay
Give me a country in Africa / Give me countries in Africa
"""
PAIRS = [tuple(line.split(" / ")) for line in (ONCE_FALSE_HITS + NEVER_ONE).split("\n") if line]


@pytest.mark.parametrize(("left", "right"), PAIRS)
def test_other_questions_are_kept_apart(left: str, right: str) -> None:
    assert ALL.veto(read(left), read(right)) is not None
    assert ALL.veto(read(right), read(left)) is not None


@pytest.mark.parametrize("at", range(len(MODULE._SAID)))
def test_without_what_is_said_a_pair_would_be_one(at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MODULE, "_SAID", MODULE._SAID[:at] + MODULE._SAID[at + 1 :])
    assert any(ALL.veto(read(left), read(right)) is None for left, right in PAIRS)
