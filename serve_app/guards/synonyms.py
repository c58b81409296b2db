"""Frequent words that stand for one another in questions, where WordNet keeps them apart or has another sense first.

Only near twins: what an expert would tell apart (cure and treat, rent and lease) is in no group together.
"""

from typing import Final

_GROUPS: Final = """
get obtain|receive obtain|obtain acquire|delete remove|delete erase|make create|build construct|make prepare|start begin commence
stop quit|end finish|finish complete|fix repair mend|fix solve resolve|change modify alter|improve enhance
boost increase|reduce decrease lower|choose select|find locate|need require|use utilize utilise|help assist
buy purchase|join enroll enrol|register enroll enrol|happen occur|permit allow|forbid prohibit ban
forbidden prohibited banned|close shut|keep retain|speak talk|live reside|verify confirm|answer reply respond
contact reach|postpone delay|combine merge|gather collect|hurt ache|own possess|view see|calculate compute|work function
execute run|submit file|submit send|ship deliver
big large huge|small little tiny|fast quick rapid|quickly fast rapidly|smart clever intelligent|rich wealthy
hard difficult|easy simple|cheap inexpensive affordable|expensive costly|famous renowned|ill sick|correct right
wrong incorrect|main principal|main major|entire whole|strange weird|sad unhappy|happy glad
tired exhausted|dangerous hazardous|dangerous risky|harmful damaging|beautiful pretty|near nearby|frequent common
legal lawful|illegal unlawful|calm peaceful|quiet silent|yearly annual
required necessary|useful helpful
benefit advantage|benefit upside|pros advantages|cons disadvantages|disadvantage drawback downside|difference distinction
cost price|fee charge|cause reason|method way technique|tip advice|job occupation profession|salary pay
car automobile|bike bicycle|phone telephone|mobile cellphone|photo picture photograph|image picture|movie film
television tv telly|lawyer attorney|kid child|infant baby|mom mother mum|dad father
grandma grandmother|grandpa grandfather|trip journey|apartment flat|truck lorry|gasoline petrol
trash garbage rubbish|luggage baggage|cab taxi|airplane plane aeroplane|road street|home house
worker employee|firm company|business company|nation country|kind type|amount quantity
goal aim objective|purpose goal|result outcome|effect impact|consequence effect|influence impact
illness disease sickness|remedy treatment|belly stomach|feature characteristic
quote quotation|folder directory|screen display|website site|webpage page|pic picture|info information
repo repository|config configuration|db database|docs documentation|param parameter|inhabitant resident|person individual
gift present|place location|sofa couch|tap faucet|timetable schedule|tenant renter|shipping delivery
package parcel|bathroom restroom|tire tyre|curb kerb|check cheque|donut doughnut
aluminum aluminium|jewelry jewellery|maths math mathematics|uni university|exam examination|fridge refrigerator
"""


# WordNet has these in one set, in senses that questions seldom mean: an eye has a pupil, things are stored.
APART: Final = frozenset(
    map(
        frozenset,
        (
            ("doctor", "physician"),
            ("pupil", "student"),
            ("vacation", "holiday"),
            ("store", "shop"),
            ("speed", "velocity"),
            ("element", "component"),
        ),
    )
)


def _partners() -> dict[str, frozenset[str]]:
    found: dict[str, set[str]] = {}
    for group in _GROUPS.replace("\n", "|").split("|"):
        for word in group.split():
            found.setdefault(word, set()).update(group.split())
    return {word: frozenset(partners) for word, partners in found.items()}


PARTNERS: Final = _partners()
