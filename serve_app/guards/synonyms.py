"""Frequent words that stand for one another in questions, where WordNet keeps them apart or has another sense first.

Only near twins: what an expert would tell apart (cure and treat, rent and lease) is in no group together.
"""

from typing import Final

_GROUPS: Final = """
get receive obtain|obtain acquire|delete remove erase|make create|make build|build construct|make prepare|start begin commence
stop quit|end finish|finish complete|fix repair mend|fix solve resolve|change modify alter|change switch|improve enhance
boost increase raise|reduce decrease lower|choose pick select|find locate|need require|use utilize utilise|help assist
show display|buy purchase|join enroll enrol|register enroll enrol|happen occur|permit allow|forbid prohibit ban
forbidden prohibited banned|close shut|keep retain|speak talk|live reside|verify check|verify confirm|answer reply respond
contact reach|postpone delay|combine merge|gather collect|hurt ache|own possess|view see|calculate compute|work function
execute run|submit file|submit send|ship deliver|explain describe
big large huge|small little tiny|fast quick rapid|quickly fast rapidly|smart clever intelligent|rich wealthy
hard difficult tough|easy simple|cheap inexpensive affordable|expensive costly|famous renowned|ill sick|correct right
wrong incorrect|important significant|main primary principal|main major|entire whole|strange odd weird|sad unhappy|happy glad
angry mad|tired exhausted|dangerous hazardous|dangerous risky|harmful damaging|beautiful pretty|near nearby|frequent common
common typical|legal lawful|illegal unlawful|calm peaceful|quiet silent|modern contemporary|yearly annual|tall high
required necessary|useful helpful
benefit advantage|benefit upside|pros advantages|cons disadvantages|disadvantage drawback downside|difference distinction
cost price|fee charge|symptom sign|cause reason|method way technique|tip advice|job occupation profession|salary pay
car automobile|bike bicycle|phone telephone|mobile cellphone|photo picture photograph|image picture|movie film
television tv telly|doctor physician|lawyer attorney|attorney solicitor|kid child|infant baby|mom mother mum|dad father
grandma grandmother|grandpa grandfather|trip journey|vacation holiday|apartment flat|elevator lift|truck lorry|gasoline petrol
store shop|trash garbage rubbish|sidewalk pavement|luggage baggage|cab taxi|airplane plane aeroplane|road street|home house
pupil student|worker employee|firm company|business company|nation country|kind type sort|amount quantity|length duration
goal aim objective|purpose goal|purpose function|result outcome|effect impact|consequence effect|influence impact
illness disease sickness|medicine medication|drug medication|remedy treatment|belly stomach|feature characteristic
quote quotation|folder directory|screen display|app application|website site|webpage page|pic picture|info information
repo repository|config configuration|db database|docs documentation|param parameter|inhabitant resident|person individual
gift present|place location|sofa couch|tap faucet|cookie biscuit|timetable schedule|tenant renter|shipping delivery
package parcel|bathroom restroom|toilet restroom|tire tyre|curb kerb|check cheque|donut doughnut
aluminum aluminium|jewelry jewellery|maths math mathematics|uni university|exam examination|fridge refrigerator
"""


def _partners() -> dict[str, frozenset[str]]:
    found: dict[str, set[str]] = {}
    for group in _GROUPS.replace("\n", "|").split("|"):
        for word in group.split():
            found.setdefault(word, set()).update(group.split())
    return {word: frozenset(partners) for word, partners in found.items()}


PARTNERS: Final = _partners()
