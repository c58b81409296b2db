"""Two ways to say one thing that differ in more than a word: read as one of them."""

import re
from typing import Final, NamedTuple

from serve_app.guards.closed import LITERAL, SUPERLATIVE
from serve_app.guards.deeds import CALLED, DEED, DOING, INTENDED, NEEDED, NO_DEVICE, NOBODY, PERMITTED, TRACE
from serve_app.guards.explainable import EXPLAIN, EXPLAINABLE
from serve_app.guards.lexicon import gerund_of, lemma

_LONGEST: Final = 400  # characters; longer texts are compared word by word anyway
_PEOPLE: Final = r"(?:i|you|u|we|one|people|someone|somebody|anyone)"
_NO_PERSON: Final = r"(?!.*\b(?:my|mine|me|our|us|your|yours|you|i)\b)"
_ASKED: Final = r"(?=(?:how|what|why|when|where|who|which|whether)\b)"
_PLACE: Final = r"(country|city|state|town|continent|region|county|province)"
_DONE: Final = r"(?=\w+ed\b|(?:won|wrote|made|built|sang|led|began|became|beat|lost|held|took|found|drew|flew|ran|has|had)\b)"
_END: Final = r"\W*$"
_MAKERS: Final = {
    "author": "wrote", "writer": "wrote", "inventor": "invented", "founder": "founded", "discoverer": "discovered",
    "composer": "composed", "painter": "painted", "creator": "created",
    "winner": "won", "builder": "built", "developer": "developed",
}  # fmt: skip
_MEASURES: Final = {
    "tall": "height", "old": "age", "deep": "depth", "wide": "width", "heavy": "weight", "big": "size",
    "large": "size", "fast": "speed", "quickly": "speed",
}  # fmt: skip
_SHORT: Final = {
    "US": "United States", "USA": "United States", "UK": "United Kingdom", "NYC": "New York City", "EU": "European Union",
    "UN": "United Nations", "JS": "JavaScript", "AI": "artificial intelligence",
    "WWI": "World War 1", "WW1": "World War 1", "WWII": "World War 2", "WW2": "World War 2",
}  # fmt: skip
_NUMERALS: Final = ("II", "III", "IV", "V", "VI", "VII", "VIII", "IX", "X", "XI", "XII", "XIII")
_ROMAN: Final = {name: str(number) for number, name in enumerate(_NUMERALS, 2) if len(name) > 1}
_ABOUT_WORDS: Final = re.compile(
    rf"\b(?:stands? for|abbreviat|acronym|short for|initials|numeral|slang|(?:means?|{'|'.join(sorted(LITERAL))})\b)",
    re.IGNORECASE,
)
_SHORTENED: Final = re.compile(rf"(?<![\w.$'\"])(?:{'|'.join(_SHORT)}|uk|usa|nyc|eu|js|ww[12]|wwii?)(?![\w$'\"&])")
_NUMBERED: Final = re.compile(rf"(?<=[a-z] )(?:{'|'.join(sorted(_ROMAN, key=len, reverse=True))})(?![\w.'-])")
_ALIKE: Final = r"(?:same|identical|similar|equal|equivalent|related|married|different) (?:as|to|from)"
_WAY: Final = r"(?:way|method|technique|approach)"
_AUXILIARY: Final = r"(?=(?:did|was|were|is|are|do|does|will|has|have|can|should)\b)"
# Which woman won it is not who won it.
_GROUP: Final = r"(team|country|nation|person|player|company|club|party|band|artist|author|scientist)"
_GIVE: Final = r"(?:giv(?:e|ing)|show(?:ing)?|tell(?:ing)?|provid(?:e|ing))"
_STATED: Final = r"(?!(?:what|which|who|where|when|why|how|is|are|does?|did|can)\b)"  # Spain's capital is what?
_NO_SINGLE: Final = r"(?!an? (?!few\b|couple\b))"
_PIECE: Final = (
    r"(?:an? |some |the )"
    r"(?:list|recipe|summary|explanation|example|overview|definition|description|tips|ideas|advice|information)\b"
)
# Of these all there are is meant anyway; the largest state may be one of the United States, the commonest element one of all.
_LIVING: Final = r"(?:animal|mammal|bird|fish|snake|insect|spider|tree|person|man|woman|country|city|building)"
_UNIQUE: Final = rf"(?:{_LIVING}|mountain|continent|ocean|lake|river|desert|island|waterfall|bridge|language|car|ship)"
_SOME: Final = r"(?:some |a few |a couple of )"
# The danger to me, what was said to me.
_NOT_MINE: Final = (
    r"(?!.*\b(?:\w+ed|sent|said|given|sold|lent|due|next|nearest|closest|available|open|access|relation|harm|value|"
    r"importance|relevance|meaning|significance|(?:risk|danger|threat|benefit|cost|damage|advantage|consequence|effect)s?)"
    r" to me\W*$)"
)
# The best diet for me is not the best diet; a summary for me is the summary.
_NO_TASK: Final = (
    r"(?!(?:summari[sz]e|write|rewrite|paraphrase|proofread|translate|find|book|reserve|order|draft|compose|generate|create|make|"
    r"convert|calculate|compute|solve|compare|outline|draw|design|plan|check|fix|debug|format|sort|count|look|set|open|call|send|"
    r"recommend|suggest)\b)"
)
_OWN: Final = r"(?!(?:my|our|your|his|her|their|its|this|that|it|him|them|me|us)\b)"  # list my car, name my car
_LISTING: Final = rf"(?:(?:list|listing|name|naming) (?!of\b)|{_GIVE} (?:me|us)(?: with)? ){_NO_SINGLE}{_OWN}"
# Name some mammals is not: what are mammals?
_KINDS: Final = (
    r"(?:side |main |common |early )*(?:symptoms|signs|causes|types|kinds|benefits|effects|uses|ingredients|advantages|"
    r"disadvantages|examples|pros|risks|reasons|stages|features|synonyms|antonyms) (?:of|for) "
)
_MEMBERS: Final = rf"(?=the |{_KINDS})"
_JUDGED: Final = r"(?:good|great|best|popular|famous|common|fun|cheap|easy|healthy|ways|things|tips|ideas|examples)\b"
# Recommend a book: one, and not books.
_ASKED_FOR: Final = (
    r"suggest|recommend|propose|share|find|write|draft|compose|generate|create|invent|design|draw|pick|choose|plan|book|reserve"
)
_SHOWN: Final = rf"(?!show\w* (?:me|us)(?: with)? the (?!{_KINDS}))"  # the Mona Lisa
_TO_SITE: Final = r"(?=\W*$| (?:to|with|as|from|for|of|again)\b)"
# How much is a gallon?
_AMOUNTS: Final = (
    r"(?!(?:an? |one )?(?:fluid |troy |metric |square |cubic |standard )?(?:gallon|pint|cup|ounce|pound|quart|tonne|stone|dozen|"
    r"ton|gram|kilo|mile|acre|inch|foot|yard|lit(?:er|re)|pinch|dash|serving|shot|mole|carat|bushel|barrel|cord|teaspoon|tablespoon|"
    r"gigabyte|million|billion)\b)"
)
_THERE: Final = r"(?= (?:for|on|in|at)\b|\W*$)"
_DEEP: Final = r"(?!(?:life|love|death|existence|being|suffering|pain|christmas|easter|halloween|thanksgiving|ramadan|home)\b)"
_HAD: Final = r"(?:effects?|symptoms?|benefits?|(?:dis)?advantages?|features?|population|capital|currency|shape|colou?r)"


class _Phrase(NamedTuple):
    hint: str  # must stand in the text, in small letters: most patterns need not be tried
    pattern: re.Pattern[str]
    instead: str


def _compiled(*phrases: tuple[str, str, str]) -> tuple[_Phrase, ...]:
    return tuple(_Phrase(hint, re.compile(pattern, re.IGNORECASE), instead) for hint, pattern, instead in phrases)


_ANYWHERE: Final = _compiled(
    (" & ", r"(?<=[a-z]{2}) & (?=[a-z]{2})", " and "),
    (".m.", r"\b([ap])\.m\.(?=\W|$)", r"\1m"),
    ("w/o", r"\bw/o\b", "without"),
    (" w/", r"(?<= )w/(?= ?\w)", "with "),
    ("wanna", r"\bwanna\b", "want to"),
    ("gonna", r"\bgonna\b", "going to"),
    ("u ", r"\b(do|did|are|were|can|could|will|would|should) u (?!(?:turn|boat|bend|bolt|value|tube|lock)s?\b)", r"\1 you "),
    ("the ", r"\bthe (?:different|various) (?=(?:type|kind|sort|way|part|method|stage|form)s\b)", "the "),
    ("in the ", rf"\b({SUPERLATIVE})((?: \w+)? {_UNIQUE}) in the world\b", r"\1\2"),
    ("on earth", rf"\b({SUPERLATIVE})((?: \w+)? {_LIVING}) on earth\b", r"\1\2"),
    ("the world's", rf"\bthe world's (?=(?:{SUPERLATIVE})(?: \w+)? {_UNIQUE}\b)", "the "),
    ("switch", r"\bswitch (on|off)\b", r"turn \1"),
    ("turn on", rf"\bturn on\b{NO_DEVICE}", "enable"),
    ("turn off", rf"\bturn off\b{NO_DEVICE}", "disable"),
    ("deactivate", r"\bdeactivate\b", "disable"),
    ("activate", r"\bactivate\b", "enable"),
    ("log", r"\blog ?-?(?:(?:in|on) to|into|onto)\b", "login"),
    ("log", rf"\blog ?-?(?:in|on)\b{_TO_SITE}", "login"),
    ("log", rf"\blog ?-?(?:out|off)\b{_TO_SITE}", "logout"),
    ("sign", r"\bsign ?-?(?:in to|into)\b", "login"),
    ("sign", rf"\bsign ?-?in\b{_TO_SITE}", "login"),
    ("sign", rf"\bsign ?-?out\b{_TO_SITE}", "logout"),
    ("sign", rf"\bsign(?:ing)? up\b{_TO_SITE}", "register"),
    ("in touch", rf"\b(?:get|getting|be) in touch with (?={CALLED})", "contact "),
    ("rid of", rf"\bget rid of (?=(?:\w+ ){{0,3}}{TRACE}(?: (?:from|on|in|out)\b|\W*$))", "remove "),
    ("mix", r"\b(mix|mixing) (\w+(?: \w+)?) with\b", r"\1 \2 and"),
    ("max", r"(?-i:\bmax\b)", "maximum"),
    ("min", r"(?<!\d)(?<!\d )\bmin\b", "minimum"),
    ("in order to", r"\bin order to\b", "to"),
    (" per ", r" per (day|week|month|year|hour)(?=\W*$)", r" a \1"),
    ("how ", r"\b(how (?:many|much|often|long) .+) (?:each|every) (day|week|month|year|hour)(?=\W*$)", r"\1 a \2"),
    ("exactly", r"\bexactly (?=(?:how|what|why|when|where|who|which)\b)", ""),
    ("exactly", r"\b(how|what|why|when|where|who|which) exactly\b", r"\1"),
    ("capital city", r"(?<='s )capital city\b|\bcapital city(?= (?:of|in)\b)", "capital"),
    ("how much time", r"\bhow much time\b", "how long"),
    ("is it ", rf"\bis it (?:allowed|permitted) (?:for me )?to {PERMITTED}", "can I "),
    ("okay", r"\bis it okay\b", "is it ok"),
    (" v", r"(?<=[a-z]),? (?:versus|v\.?s\.?) (?=\w)", " versus "),
    (" versus ", r"\b(compare|comparison|difference)\b(.+?) versus (?=\w)", r"\1\2 and "),
)
# In this order: a later one may find what an earlier one leaves.
_AT_START: Final = _compiled(
    ("s ", r"(what|who|where|when|how|why)'?s (?=\w)", r"\1 is "),
    *(
        (f" {word}", rf"{_STATED}(.+) (is|are|was|were) ({word}){_END}", r"\3 \2 \1")
        for word in ("what", "who", "where", "when")
    ),
    # imperatives
    ("i ", rf"(?:can|could|may) i (?:please )?(?:get|have) (?={_PIECE})", "give me "),
    ("i", rf"(?:i (?:need|want|would like)|i'd like|i(?: am|'m) looking for) (?={_PIECE})", "give me "),
    (" me ", r"(write|draft|compose|suggest|recommend) me (?=\w)", r"\1 "),
    ("", rf"(?:explain|describe|clarify|demonstrate|illustrate)(?:ing)?(?: (?:to|for) (?:me|us))?,?:? {_ASKED}", ""),
    ("the ", r"(?:explain|describe)(?:ing)? (?:the way|the manner in which) (?!of\b)(?=\w)", "how "),
    (" how", r"(?:show|teach|tell|walk)(?:ing)? (?:me|us)(?: through)? (?=how\b)", ""),
    ("", rf"(?:tell(?:ing)?|let(?:ting)?) (?:me|us)(?: know)? (?:(?:if|whether) |{_ASKED})", ""),
    (" to me", rf"(explain|describe|define|clarify)(?:ing)? {_NOT_MINE}(.+) to me{_END}", r"\1 \2"),
    (" for me", rf"(explain|define|clarify)(?:ing)? (\w*(?:[^\Ws]|[sci]s)) for me{_END}", r"\1 \2"),
    ("", rf"(?:{EXPLAIN})(?: to (?:me|us))?,?:? {EXPLAINABLE}", "whatexplain "),
    ("list of", rf"(?:list|name|{_GIVE} (?:me|us)(?: with)?) (?:out )?(?:the |a )?list of {_MEMBERS}", "whatlist "),
    ("list of", rf"(?:list|name|{_GIVE} (?:me|us)(?: with)?) (?:out )?(?:the |a )?list of (?=\w)", "whatname "),
    (" a", rf"{_GIVE} (?:me|us)(?: with)? (?=an? (?!few\b|couple\b|summary\b))", "whatgive "),
    ("", rf"{_SHOWN}{_LISTING}{_SOME}?{_MEMBERS}", "whatlist "),
    ("", rf"{_LISTING}{_SOME}?(?=\w)", "whatname "),
    ("", rf"(suggest|recommend|share|find|write)(?: me)? {_SOME}(?=\w)", r"\1 "),
    ("what are ", rf"what are {_SOME}(?={_KINDS}|{_JUDGED})", "what are "),
    ("what are ", rf"what are {_SOME}(?=\w)", "whatname "),
    ("summary of", r"(?:give (?:me|us)|write|provide) (?:me )?(?:a|the) summary of (?=\w)", "summarize "),
    (" into ", r"translate (.+) into (?=\w)", r"translate \1 to "),
    # anybody
    ("how ", rf"how (?:do|does|can|could|should) one {DEED}{_NO_PERSON}", "how do I "),
    ("how ", rf"how (?:do|does|can|should) someone (?!(?:be|die|do|have|feel|think|say|kill)\b){_NO_PERSON}", "how do I "),
    ("how ", r"how (?:do|would|can|should|could) i (?:go about|best) (?=\w)", "how do I "),
    ("how ", rf"how (?:might|may) i {INTENDED}", "how do I "),
    ("", rf"(can|should|must) one {DEED}{_NO_PERSON}", r"\1 I "),
    ("", rf"(what|when|where|why|which \w+) (can|should|must) one {DEED}{_NO_PERSON}", r"\1 \2 I "),
    (" does one ", rf"((?:wh\w+|how)(?: \w+)*?) does one (?=need|have to){_NO_PERSON}", r"\1 do I "),
    (" to ", rf"(?:am i|is one) (?:allowed|permitted) to {PERMITTED}", "can I "),
    (" to ", r"(?:am i|is one) (?:allowed|permitted) to (?=\w)", "is it allowed to "),
    ("ed ", rf"(?:is|are) (?!it\b|there\b){NOBODY}(?:an? )?((?:\w+ ){{1,3}}?){NEEDED}", r"do I need \1"),
    ("need to", r"what do i need to (?=(?:pack|bring|know|do|wear|take|eat|check|say|include|carry)\b)", "what should I "),
    (" tell ", r"how (?:can|do) i tell (?:if|whether) (?=\w)", "how do I know if "),
    (" whether ", r"how (?:can|do) i know whether (?=\w)", "how do I know if "),
    ("may i ", rf"may i {PERMITTED}", "can I "),
    (" way ", r"is there (?:a|any) way (?:for (?:me|us) )?to (?=\w)", "is it possible to "),
    ("do i ", r"do i (?:have|need) to (?=\w)", "must I "),
    ("do i ", r"((?:when|where|why|how often)(?: \w+){0,2}) do i (?:have|need) to (?=\w)", r"\1 must I "),
    ("do i ", r"(how (?:much|many|long)(?: \w+){0,2}) do i need to (?=\w)", r"\1 must I "),  # how long do I have to pay?
    ("ed to", r"am i (?:required|obliged) to (?=\w)", "is it required to "),
    ("is it ", r"is it necessary(?: for me)? to (?=\w)", "must I "),
    # manner
    ("ways to", r"(?:what are )?(?:some |the )?ways to (?!die\b)(?=\w)", "how do I "),
    ("what", rf"what(?: is|'s) (?:the|a) (?:(?:best|right|proper|correct) )?{_WAY} (?:to|of|for) (?!die\b)(?=\w)", "how to "),
    ("what ", r"what (?:is|are) the (?:steps?|procedure|process|instructions) (?:to|for) (?=\w+)", "how do I "),
    (" i ", r"what (?:can|should|must|do) i (?:need to |have to )?do (?:in order )?to (?=\w)", "how do I "),
    # time, place, person, reason
    (" be", rf"when will (.+) be{_END}", r"when is \1"),
    ("what causes ", r"what causes (.+) to (?=\w)", r"why does \1 "),
    (" cause", rf"what (?:does|do|can) (.+) cause{_END}", r"what is the effect of \1"),
    (" cause", rf"what did (.+) cause{_END}", r"what was the effect of \1"),
    ("what time ", rf"(?:at )?what time (does|do|is|will) (?!.*\bnew\b)(.+?) (open|close)s?{_THERE}", r"when \1 \2 \3"),
    ("", rf"(?:in |on |at )?(?:what|which) (year|date|month|day|time) {_AUXILIARY}", r"when\1 "),
    ("time in", r"what is the (?:current )?time (?=in\b)", "whentime is it "),
    ("what is the", r"what is (?=the (?:\w+ )?(?:time|date|deadline)\b)", "when is "),
    ("in ", rf"in (?:what|which) {_PLACE} {_AUXILIARY}", r"where\1 "),
    (" in", rf"(?:what|which) {_PLACE} (is|are|was|were) (.+?) (?:located |situated )?in{_END}", r"where\1 \2 \3"),
    ("ated", rf"(where(?:{_PLACE[1:-1]})?) (is|are|was|were) (.+?) (?:located|situated)\b", r"\1 \2 \3"),
    ("", rf"(?:which|what) {_GROUP} {_DONE}", r"who\1 "),
    ("", r"(?:what is the name of|who is) the (?:person|one) (?:who|that) (?=\w)|who is it that (?=\w)", "who "),
    ("number of", r"what (?:is the )?number of (?!(?:the|my|your|our|his|her)\b)(?=\w)", "how many "),
    ("by whom", rf"(?:by whom (?:was|were) (.+) (\w+)){_END}", r"who \2 \1"),
    (" by", rf"who (?:was|were) (.+) (\w+) by{_END}", r"who \2 \1"),
    ("who is the ", r"who is the (?:current|present) (?=\w)", "who is the "),
    ("current", r"what is the current (?=(?:population|price|temperature|time|version|value|weather|age)\b)", "what is the "),
    ("how come", r"how come (?=\w)", "why "),
    ("reason", r"(?:for )?what reasons? (?=(?:do|does|did|is|are|was|were)\b(?! there\b|.*\bgive\b))", "why "),
    ("reason", r"what is the reason (?!(?:for|of|to|behind|in|is)\b)(?:why |that )?(?=\w)", "why "),
    ("what caused ", r"what caused (?=\w)", "what was the cause of "),
    # measures
    ("how long ", r"how long (is|are|was|were) (?=\w)", r"what length \1 "),
    ("how ", rf"how (?:expensive|much) (is|are) {_AMOUNTS}(?=\w)", r"what \1 the price of "),
    (" weigh", rf"how much (?:does|do) (.+?) weigh{_END}", r"what is the weight of \1"),
    ("how many people", r"how many people live in (?=\w)", "what is the population of "),
    ("how far ", r"how far (?:is|are) (?:it )?(?:from )?(.+?) (?:to|from) (?=\w)", r"what the distance between \1 and "),
    ("distance from ", r"(?:what is )?the distance from (.+?) to (?=\w)", r"what the distance between \1 and "),
    # meaning, purpose, difference
    (" mean", rf"what (?:does|do) (?:the (?:word|term) )?(.+?) mean{_END}", r"what is the meaning of \1"),
    ("", rf"(?:what is meant by|define) (?:the (?:word|term) )?{_DEEP}(?=\w)", "what is the meaning of "),
    ("of ", rf"(?:what is the )?definition of (?:the (?:word|term) )?{_DEEP}(?=\w)", "what is the meaning of "),
    ("of ", r"(?:what is )?(?:the )?meaning of (?:the (?:word|term) )?(?=\w)", "what is the meaning of "),
    (" means", rf"what (?:the (?:word|term) )?(.+?) means{_END}", r"what is the meaning of \1"),
    (" for", rf"what (?:is|are) (.+?) (?:short|an abbreviation) for{_END}", r"what does \1 stand for"),
    (" for", rf"what (?:is|are) (.+?) (?:used )?for{_END}", r"what is the purpose of \1"),
    (" for", rf"what (?:do|can) {_PEOPLE} use (.+?) for{_END}", r"what is the purpose of \1"),
    ("what is the ", r"what is the use of (?!\w+ing\b)(?=\w)", "what is the purpose of "),
    (" differ", r"how (?:does|do) (.+?) differ from (?=\w)", r"what is the difference between \1 and "),
    (" differ", r"how (?:is|are) (.+?) different (?:from|than|to) (?=\w)", r"what is the difference between \1 and "),
    (" differ", rf"how (?:do|are) (.+? and .+?) (?:differ|different){_END}", r"what is the difference between \1"),
    (" from ", r"what (?:distinguishes|differentiates) (.+?) from (?=\w)", r"what is the difference between \1 and "),
    ("compare ", r"compare (.+?) (?:with|to|against) (?=\w)", r"compare \1 and "),
    # nouns and verbs
    (" do", rf"what (does|do|did) (.+?) do{_END}", r"whatdo \1 \2"),
    (" do", rf"what (?!do)(.+?) (does|do){_END}", r"whatdo \2 \1"),
    (" call ", r"what do (?:you|we) call (?=an? (?:baby|young|male|female|group|person)\b)", "what is the name of "),
    (" or ", rf"(?:which|what)(?: one)? is ((?:more )?\w+)[,:] (.+? or .+?){_END}", r"is \2 \1"),
    ("", rf"(?:is|are) (.+?) (?:the )?({_ALIKE}) (.+?){_END}", r"are \1 and \3 \2"),
    (" have", rf"what ((?:\w+ )?{_HAD} )(?:does|do) (.+?) have{_END}", r"what is the \1of \2"),
    (" cause", rf"what ((?:\w+ )?(?:effects?|symptoms?) )(?:does|do|can) (.+?) cause{_END}", r"what is the \1of \2"),
    ("ed", rf"what (?:is|are) (.+?) (?:called|named){_END}", r"what is the name of \1"),
    ("t", rf"(?:which|what) (\w+(?: \w+){{0,4}}?) (is|are|was|were) (?:the )?(worst|{SUPERLATIVE})\b", r"what \2 the \3 \1"),
)  # fmt: skip
# What else would be left out: who it is for, and that it is one. Behind all others.
_SAID: Final = _compiled(
    (" for ", rf"{_NO_TASK}(.+) for (me|us)\b(?! to\b)", r"\1 foronly\2"),
    (" a", rf"((?:{_ASKED_FOR})(?: me| us)?) an? (?!(?:few|couple|lot|bit|number|little)\b)(?=\w)", r"\1 onething "),
)
_MAKER: Final = re.compile(
    rf"who (?:is|was|are|were) the (?:original )?(?!winners)({'|'.join(_MAKERS)})s? (?:of|behind) (?=\w)", re.IGNORECASE
)
# How money is made and how teachers are paid is not what I do.
_DONE_TO: Final = re.compile(rf"how (?:is|are) (.+?) (calculated|computed|measured|cooked){_END}", re.IGNORECASE)
_DOING: Final = re.compile(
    rf"is {DOING}(\w+ing) (.+) "
    rf"(safe|unsafe|dangerous|bad|good|legal|illegal|allowed|(?:un)?healthy|harmful|hard)((?: for \w+)?){_END}",
    re.IGNORECASE,
)  # is eating fish safe? - is it safe to eat fish?
_MEASURE: Final = re.compile(rf"\bhow ({'|'.join(_MEASURES)})\b", re.IGNORECASE)
_COSTS: Final = re.compile(r"\bhow much (?=(?:\S+ )*(?:costs?|charged?)\b)", re.IGNORECASE)


def rephrased(core: str) -> str:
    """The text in the words that the guards compare; as it is when it is long."""
    if len(core) > _LONGEST:
        return core
    capital = core[:1].isupper()
    if not _ABOUT_WORDS.search(core):
        core = _SHORTENED.sub(lambda found: _SHORT[found[0].upper()], core)  # the UK is the United Kingdom
        core = _NUMBERED.sub(lambda found: _ROMAN[found[0]], core)  # Henry VIII is Henry 8
        low = core.lower()
        for hint, pattern, instead in _ANYWHERE:
            if hint in low:
                core = pattern.sub(instead, core)
                low = core.lower()
    low = core.lower()
    for hint, pattern, instead in (*_AT_START, *_SAID):
        found = pattern.match(core) if hint in low else None
        if found is not None:
            core = found.expand(instead) + core[found.end() :]
            low = core.lower()
    doing = _DOING.match(core)
    if doing is not None and gerund_of(doing[1].lower()) != doing[1].lower():
        core = f"is it {doing[3]} to {gerund_of(doing[1].lower())} {doing[2]}{doing[4]}"
    done = _DONE_TO.match(core)
    if done is not None:
        core = f"how do I {lemma(done[2].lower())} {done[1]}"
    maker = _MAKER.match(core)
    if maker is not None:
        core = f"who {_MAKERS[maker[1].lower()]} {core[maker.end() :]}"
    if "how " in low:
        core = _COSTS.sub("what ", core)
        core = _MEASURE.sub(lambda found: f"what {_MEASURES[found[1].lower()]}", core)
    return core[:1].upper() + core[1:] if capital else core  # it says that the writer uses capitals
