"""serve_app.guards: pairs of short questions that look alike and are not; each was, or could have been, a false hit."""

import pytest

from serve_app.guards import GUARDS, load_guards, read

ALL = load_guards(GUARDS)

# One pair a line, first those of the review that found them, by rule, then what was thought of on the way.
LOOKALIKES = """
Translate to French: thank you / Translate to French: please
What is the Spanish word for please? / What is the Spanish word for thank you?
Good morning in Japanese / Good evening in Japanese
Good morning in Japanese / Hello in Japanese
Can I get Covid again? / Can I get Covid?
When can I donate blood again? / When can I donate blood?
Can you browse the web? / Can I browse the web?
Can you send emails? / Can I send emails?
How do you store data? / How do I store data?
How do you learn? / How do I learn?
How long does a haircut take? / How long does a haircut last?
How long is a marathon? / How long does a marathon take?
Which party won the 2020 election? / Who won the 2020 election?
Which country invented paper? / Who invented paper?
What time did the Titanic sink? / When did the Titanic sink?
In what continent is Egypt? / Where is Egypt?
How are teachers paid? / How do I pay teachers?
How is HIV transmitted? / How do I transmit HIV?
Who is the director of the CIA? / Who was the director of the CIA?
Name a country in Africa / List the countries in Africa
What does Elon Musk do? / What is Elon Musk used for?
How do I sign off an email? / How do I sign out of an email?
How do I log in Django? / How do I log into Django?
Is it possible to drink bleach? / Is it ok to drink bleach?
Is alcohol a drug? / Is alcohol a medication?
How big is a pupil? / How big is a student?
How do I raise a child? / How do I boost a child?
What is the sign of cancer? / What is the symptom of cancer?
How do I check a bag? / How do I verify a bag?
How do I stop to rest? / How do I stop resting?
Did I remember to lock the door? / Did I remember locking the door?
How do I try to sleep? / How do I try sleeping?
Who sang thank you? / Who sang please?
Can someone write a will? / Write a will
How do people die? / How do I die?
How do we get energy? / How do I get energy?
Should people own guns? / Should I own guns?
What do you need? / What do I need?
Are you able to browse the web? / Can I browse the web?
Are dogs allowed to fly? / Can dogs fly?
Am I able to see the eclipse? / Am I allowed to see the eclipse?
Do I need to tip in Japan? / Am I required to tip in Japan?
What makes people happy? / Why are people happy?
What makes you happy? / Why are you happy?
How high is a plane? / How tall is a plane?
How high can I get? / How tall can I get?
How much is a gallon? / How expensive is a gallon?
What is the meaning of life? / Define life
What is the meaning of Christmas? / Define Christmas
What is garlic good for? / What is the purpose of garlic?
Does Google have an AI? / Is Google an AI?
Does Python have an interpreter? / Is Python an interpreter?
Is Amazon a bank? / Does Amazon have a bank?
What problems does Tesla have? / What problems does Tesla cause?
How is money made? / How do I make money?
How is chocolate made? / How do I make chocolate?
Who is the designer of Gucci? / Who was the designer of Gucci?
List my car / Name my car
Tell me jokes / What are jokes?
Name some mammals / What are mammals?
List verbs in English / What are verbs in English?
How do I pick a lock? / How do I choose a lock?
What is a show? / What is a display?
Is steel hard? / Is steel tough?
When is the primary election? / When is the main election?
What are significant figures? / What are important figures?
What is modern art? / What is contemporary art?
What is lift? / What is an elevator?
How do I sort a list? / How do I type a list?
Where can I store clothes? / Where can I shop for clothes?
How do I erase a hard drive? / How do I remove a hard drive?
What is the length of a marathon? / What is the duration of a marathon?
How do I get a car? / How do I get in a car?
How do I get TV? / How do I get on TV?
What is medicine? / What is medication?
How do I get a train? / How do I get on a train?
Who is in the picture? / Who is the picture?
Did you know the Titans? / Do you remember the Titans?
Do you have any tips? / Do you have any ideas?
Is it ok to burn leaves? / Is it possible to burn leaves?
How do I write please? / How do I write thank you?
Hello in Korean / Good evening in Korean
What day does the museum open? / When does the museum open?
What time is the World Cup? / When is the World Cup?
Which team won the World Cup? / Who won the World Cup?
How long is the flight? / How long does the flight take?
How do I call? / How do I call in?
What do doctors make? / What do doctors build?
How much do doctors make? / How much do doctors build?
How do I make friends? / How do I build friends?
How do I get a cold? / How do I receive a cold?
What is in season? / What is the season?
Why do you need sleep? / Why do I need sleep?
How do you make decisions? / How do I make decisions?
How do you vote? / How do I vote?
How do I ask for a raise? / How do I ask a raise?
What is in a hot dog? / What is a hot dog?
What is on TV? / What is TV?
How do I make a bed? / How do I build a bed?
Okay in Spanish / Please in Spanish
What is there to do in Rome? / What is there in Rome?
What is there to do in Rome? / What is Rome?
What to do in Rome? / What is in Rome?
What do people do in Rome? / What do people have in Rome?
What is Python? / What does Python have?
What is a nurse? / What has a nurse?
What are the things to do in Rome? / What are the things in Rome?
Who has the ball? / Who is the ball?
How do I explain myself? / How do I describe myself?
How do I write an application? / How do I write an app?
What is speed? / What is velocity?
What is an element? / What is a component?
Is he mad? / Is he angry?
What is available on Netflix? / What is Netflix?
Which vaccines are available? / What are vaccines?
What is there on Mars? / What is Mars?
Would I like sushi? / Will I like sushi?
How are teachers paid? / How should teachers be paid?
How should taxes work? / How do taxes work?
Who should be president? / Who is the president?
How do I make my bed? / How do I make a bed?
How do I open my account? / How do I open an account?
What is the interest rate in the world? / What is the interest rate?
Who sang Thank You? / Who sang Please?
"""
PAIRS = [tuple(line.split(" / ")) for line in LOOKALIKES.strip().splitlines()]


@pytest.mark.parametrize(("left", "right"), PAIRS)
def test_lookalikes_are_kept_apart(left: str, right: str) -> None:
    assert ALL.veto(read(left), read(right)) is not None
    assert ALL.veto(read(right), read(left)) is not None
