"""Closed classes of English: the few words that grammar is made of, which no dictionary groups by what they do."""

from typing import Final


def words(text: str) -> frozenset[str]:
    """A class of words from one line of text."""
    return frozenset(text.split())


# Dropped before two questions are compared: neither presence nor absence changes the answer.
FREE: Final = words(
    "a an the is are am be been being do does doing have has having got there it that so and please just really actually "
    "basically simply kindly usually generally typically normally exactly any um uh er erm hmm currently"
)
PREPOSITIONS: Final = words("of in at on for")  # may be missing on one side; `to` is one when no verb follows
# Content all the same (a flight to Rome is none from Rome), but in no dictionary.
RELATIONS: Final = words(
    "to from into onto with by about between among during through "
    "across against toward towards until since within upon via per "
    "and but if because while although though whether like this these those"
)
COPULAS: Final = words("is are am be been being was were")
POSSESSION: Final = words("have has having")
PAST: Final = dict.fromkeys(("was", "were", "did", "had"), "past")
MODALS: Final = {
    **dict.fromkeys(("can", "could"), "can"),
    **dict.fromkeys(("should", "shall", "ought"), "should"),
    "will": "will",
    "would": "would",
    **dict.fromkeys(("may", "might"), "may"),
    "must": "must",
}
QUESTION_WORDS = {"what": "what", "which": "what", "who": "who", "whom": "who", "whose": "whose"} | {
    word: word for word in ("when", "where", "why", "how")
}
# What rephrased.py puts in the place of a phrase: the question word, and what else the phrase says about the answer.
QUESTION_WORDS |= {f"when{detail}": f"when:{detail}" for detail in words("year date month day time")}
QUESTION_WORDS |= {
    f"where{detail}": f"where:{detail}" for detail in words("country city state town continent region county province")
}
QUESTION_WORDS |= {
    f"who{detail}": f"who:{detail}"
    for detail in words("team country nation person player company man woman club party band artist author scientist")
}
QUESTION_WORDS |= {f"what{detail}": f"what:{detail}" for detail in words("explain list give name do")}
SUBJECTS: Final = {"i": "1", "me": "1", "we": "1p", "us": "1p", "you": "2"}  # may be missing on one side (passive voice)
PERSONS: Final = {
    **dict.fromkeys(("my", "mine", "myself"), "1'"),
    **dict.fromkeys(("our", "ours", "ourselves"), "1p'"),
    **dict.fromkeys(("your", "yours", "yourself"), "2'"),
    **{word: word for word in ("he", "she", "they", "him", "her", "them", "his", "hers", "their", "theirs", "its")},
}
# A pattern: the longest, the most popular; not a forest.
SUPERLATIVE: Final = (
    r"(?!(?:inter|for|gu|w|t|r|requ|qu|conqu|n|ch|harv|prot|cont|arr|unr|ea?|inv|sugg|dig|manif|hon|mod|cr|v|p|ever|budap)est\b)"
    r"\w+est|most \w+"
)
NEGATIONS: Final = words(
    "not no never without none nobody nothing nowhere neither nor "
    "non cannot hardly barely unless except excluding lack avoid instead"
)
QUANTIFIERS: Final = words(
    "all some every each both either few several many much more "
    "most less least fewer fewest half double triple twice once only "
    "first last next previous min max minimum maximum average mean median total always often sometimes rarely seldom "
    "best worst better worse enough too almost about exactly other another same or than"
)
DATES: Final = words(
    "monday tuesday wednesday thursday friday saturday sunday january february march april june july august september october "
    "november december jan feb mar apr jun jul aug sep sept oct nov dec today tomorrow yesterday tonight noon midnight morning "
    "afternoon evening night spring summer autumn fall winter weekday weekdays weekend weekends now soon later earlier ago "
    "daily weekly monthly quarterly yearly annually hourly century decade bc ad bce ce am pm christmas easter"
)
_UNITS: Final = """
mm millimetre millimeter|cm centimetre centimeter|m metre meter|km kilometre kilometer kms|in inch inches|ft foot feet|yd yard
mi mile|mg milligram milligramme|g gram gramme|kg kilogram kilogramme kilo kgs|oz ounce|lb pound lbs|st stone|t ton tonne
ml millilitre milliliter|l litre liter|gal gallon|pt pint|cup|tbsp tablespoon|tsp teaspoon|ms millisecond|s sec second|min minute
h hr hour hrs|day|week|month|year yr|%  percent pct|kb kilobyte|mb megabyte|gb gigabyte|tb terabyte|hz hertz|khz|mhz|ghz
w watt|kw kilowatt|mw|kwh|v volt|a amp ampere|j joule|cal calorie|kcal kilocalorie|mph|kph kmh|knot|c celsius|f fahrenheit
k kelvin|$ dollar usd|€ euro eur|£ gbp|¥ yen jpy|aud|cad|chf|inr|cent|p pence|am|pm|px pixel|dpi|bpm|psi|bar
kpa pascal|acre|hectare
"""
UNITS: Final = {
    name: group.split()[0] for line in _UNITS.strip().splitlines() for group in line.split("|") for name in group.split()
}
MIXED_UNITS: Final = words("kb mb gb tb mw")  # Mb is a bit, mW a thousandth, in capitals they are not
# A unit's short name is one only behind a number: "in", "a" and "m" are words or letters elsewhere.
SHORT_UNIT: Final = 3
_ONES: Final = (
    "zero one two three four five six seven eight nine ten "
    "eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen"
)
_TENS: Final = "twenty thirty forty fifty sixty seventy eighty ninety"
NUMBER_WORDS: Final = {name: number for number, name in enumerate(_ONES.split())} | {
    name: 10 * number for number, name in enumerate(_TENS.split(), 2)
}
MULTIPLIERS: Final = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_ORDINALS: Final = (
    "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth fifteenth "
    "sixteenth seventeenth eighteenth nineteenth twentieth"
)
ORDINALS: Final = {word: i for i, word in enumerate(_ORDINALS.split(), 1)}
CONTRACTED: Final = {
    **{
        f"{w}nt": (w, "not") for w in ("do", "does", "did", "is", "are", "was", "were", "have", "has", "could", "would", "should")
    },
    **{f"{w}s": (w, "is") for w in ("what", "where", "who", "how", "when", "that", "there")},
    "cant": ("can", "not"),
    "cannot": ("can", "not"),
    "wont": ("will", "not"),
    "im": ("i", "am"),
    "ive": ("i", "have"),
}
IS_CONTRACTED: Final = frozenset(QUESTION_WORDS) | words("it that there here he she this")  # elsewhere 's is a genitive
# The answer depends on the very words, not on what they mean.
LITERAL: Final = words(
    "translate translation spell spelling spelled spelt pronounce "
    "pronunciation pronounced rhyme rhymes rewrite rephrase paraphrase "
    "proofread grammar conjugate plural singular tense synonym synonyms antonym antonyms define definition meaning "
    "word words letters syllable syllables character "
    "characters capitalize capitalise uppercase lowercase anagram etymology "
    "transcribe transliterate"
)
# The French president is the president of France; French toast has nothing to do with it.
COUNTRIES: Final = dict(
    pair.split("/")
    for pair in words(
        "french/france german/germany italian/italy spanish/spain russian/russia chinese/china japanese/japan indian/india "
        "brazilian/brazil mexican/mexico canadian/canada australian/australia polish/poland turkish/turkey greek/greece "
        "swedish/sweden norwegian/norway danish/denmark finnish/finland dutch/netherlands belgian/belgium swiss/switzerland "
        "austrian/austria irish/ireland portuguese/portugal egyptian/egypt israeli/israel iranian/iran iraqi/iraq "
        "ukrainian/ukraine korean/korea vietnamese/vietnam thai/thailand kenyan/kenya nigerian/nigeria argentine/argentina "
        "chilean/chile peruvian/peru colombian/colombia cuban/cuba hungarian/hungary romanian/romania czech/czechia "
        "british/britain scottish/scotland welsh/wales"
    )
)
# Names of software that are written with a small letter as often: no other python is installed.
SOFTWARE: Final = words("python java javascript excel vim git docker ruby perl rust swift bash kafka flask pandas chrome android")
OFFICES: Final = words(
    "president presidents king kings queen queens emperor prime government parliament flag anthem currency economy constitution "
    "population capital embassy ambassador chancellor"
)
