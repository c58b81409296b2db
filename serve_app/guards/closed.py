"""Closed classes of English: the few words that grammar is made of, which no dictionary groups by what they do."""

import re
from typing import Final


def words(text: str) -> frozenset[str]:
    """A class of words from one line of text."""
    return frozenset(text.split())


# Dropped before two questions are compared: neither presence nor absence changes the answer.
FREE: Final = words(
    "a an the is are am be been being do does doing have has having got there it that so and please just really actually "
    "basically simply kindly usually generally typically normally exactly any um uh er erm hmm"
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
    **dict.fromkeys(("will", "would"), "will"),
    **dict.fromkeys(("may", "might"), "may"),
    "must": "must",
}
QUESTION_WORDS: Final = {"what": "what", "which": "what", "who": "who", "whom": "who", "whose": "whose"} | {
    word: word for word in ("when", "where", "why", "how")
}
SUBJECTS: Final = {"i": "1", "me": "1", "we": "1p", "us": "1p", "you": "2"}  # may be missing on one side (passive voice)
PERSONS: Final = {
    **dict.fromkeys(("my", "mine", "myself"), "1'"),
    **dict.fromkeys(("our", "ours", "ourselves"), "1p'"),
    **dict.fromkeys(("your", "yours", "yourself"), "2'"),
    **{word: word for word in ("he", "she", "they", "him", "her", "them", "his", "hers", "their", "theirs", "its")},
}
NEGATIONS: Final = words(
    "not no never without none nobody nothing nowhere neither nor "
    "non cannot hardly barely unless except excluding lack avoid instead"
)
QUANTIFIERS: Final = words(
    "all some every each both either few several many much more "
    "most less least fewer fewest half double triple twice once only "
    "first last next previous min max minimum maximum average mean median total always often sometimes rarely seldom "
    "best worst better worse highest lowest enough too almost about exactly other another same or than"
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
    "proofread correct grammar conjugate plural singular tense synonym synonyms antonym antonyms define definition meaning "
    "word words letter letters syllable syllables character "
    "characters capitalize capitalise uppercase lowercase anagram etymology "
    "repeat echo transcribe transliterate"
)
# What is said around a question.
_HELLO: Final = (
    r"(?:hi|hello|hey|hiya|howdy|greetings)(?: (?:there|team|all|everyone|guys|folks))?|dear (?:team|assistant|all)|"
    r"good (?:morning|afternoon|evening|day)|sorry to bother you|excuse me|just wondering|just curious|"
    r"so|ok|okay|yeah|um|uh|er|erm|hmm|please|pls|plz|kindly"
)
# Also ordinary words ("evening classes", "right knee"): a greeting only before a mark.
_INTERJECTION: Final = (
    r"morning|afternoon|evening|sorry|pardon me|yes|well|right|but|out of curiosity|"
    r"(?:quick|silly|random|simple|another) (?:question|one)|"
    r"(?:i have|i've got|got) (?:a|one) (?:\w+ )?question(?: (?:for you|about this))?|"
    r"(?:can|could) (?:you|someone|anyone) (?:please )?help(?: me)?(?: out)?|(?:i )?need (?:some |your )?help"
)
_ASKING: Final = (
    r"(?:can|could|would|will) (?:you|u|someone|anyone) (?:please |kindly |just )*(?:tell|explain to|inform|show) me|"
    r"(?:please |kindly |just )*tell me|do you (?:happen to )?know|any idea|"
    r"i (?:would|'d|d) (?:like|love) to (?:know|ask)|i'd (?:like|love) to (?:know|ask)|i (?:want|need) to know|"
    r"i(?: am|'m|m) wondering|"
    r"i was (?:just )?wondering(?: if you could tell me)?|"
    r"(?:can|could|would|will) (?:you|u) (?:please |kindly |just )*"
    r"(?=(?:explain|give|list|write|describe|help|show|name|summari[sz]e|find|translate|convert|calculate|compare|recommend|suggest|define)\b)"
)
_MARKS: Final = r"\s*[,.:;!?–—-][\s,.:;!?–—-]*"
_ASKED: Final = r"(?:how|what|when|where|who|why|which|can|could|do|does|is|are)\b"
OPENING: Final = re.compile(
    rf"\s*(?:(?:{_HELLO})\b(?!-)[\s,.:;!–—-]*(?=\S)|(?:{_INTERJECTION})(?:{_MARKS}|\s+(?={_ASKED}))(?=\S)|(?:{_ASKING})[\s,:;–—-]*)",
    re.IGNORECASE,
)
CLOSING: Final = re.compile(
    r"\b(?:thanks(?: a lot| so much| very much| in advance)?|many thanks|thank you(?: so much| very much| in advance)?|"
    r"thx|ty|cheers|please|pls|plz|kindly|much appreciated)$",
    re.IGNORECASE,
)
LONGEST_CLOSING: Final = 30  # characters
# Two ways to say one thing that differ in more than a word. The right side is read instead of the left.
_MEASURES: Final = {
    "tall|high": "height", "old": "age", "deep": "depth", "wide": "width",
    "heavy": "weight", "big|large": "size", "fast": "speed",
}  # fmt: skip
REPHRASED: Final = tuple(
    (re.compile(pattern, re.IGNORECASE), instead)
    for pattern, instead in (
        (r"\bwhat(?:'s| is) (?:the|a) way (?:to|of)\b", "how to"),
        (r"\b(?:at )?what time\b", "when"),
        (r"\bwhat(?:'s| is) (?=the (?:\w+ )?(?:time|date|deadline)\b)", "when is "),
        (r"\bis it (?:possible|ok|okay|allowed|permitted) (?:for me )?to\b", "can I"),
        (r"\bhow much (?=(?:\S+ )*(?:costs?|charged?)\b)", "what "),
        (r"\bhow much (is|are)\b", r"what \1 the price of"),
        *((rf"\bhow (?:{adjective})\b", f"what {noun}") for adjective, noun in _MEASURES.items()),
        (r"\b(?:turn|switch) on\b|\bactivate\b", "enable"),
        (r"\b(?:turn|switch) off\b|\bdeactivate\b", "disable"),
        (r"\b(?:log|sign) ?-?(?:in to|into|onto|in|on)\b", "login"),
        (r"\b(?:log|sign) ?-?(?:out|off)\b", "logout"),
    )
)
