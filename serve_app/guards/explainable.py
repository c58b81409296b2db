"""Which X "explain X" and "what is X" ask alike: a concept. Of a value or a name one asks which it is, the other why."""

from typing import Final

from serve_app.guards.closed import SOFTWARE, SUPERLATIVE

EXPLAIN: Final = (
    r"explain(?:ing)?|(?:tell|teach)(?:ing)? (?:me|us)(?: more| a bit| a little| something)? about|"
    r"what can you tell (?:me|us) about|"
    r"(?:give|giving|provide)(?: (?:me|us))?(?: with)? (?:an? |some )?(?:overview|explanation|information|info) (?:of|on|about)"
)
_END: Final = r"\W*$"
_ASIDE: Final = (
    r"(?:of|in|at|on|for|to|from|by|with|without|about|under|over|per|between|during|after|before|since|as|than|that|which|who)"
)
# Two laws may be explained, but the tallest building, the legal limit and the normal weight are one thing each.
_NO_SINGLE: Final = (
    rf"(?!.*\b(?:{SUPERLATIVE}|worst|least|official|legal|national|average|median|maximum|minimum|max|min|normal|usual|typical|"
    r"standard|current|present|total|exact|ideal|optimal|fair|good|decent|healthy|safe|recommended|required|favou?rite|only|top|"
    r"(?:first|second|third|fourth|fifth|last|final|next|new|other) (?!law\b))\b)"
)
_VALUE: Final = (
    r"(?:prices?|pricing|costs?|fees?|fares?|tax(?:es)?|tariffs?|rates?|wages?|salar(?:y|ies)|pay|earnings|budget|debt|gdp|worth|"
    r"values?|populations?|capitals?|currenc(?:y|ies)|sizes?|ages?|heights?|weights?|mass|lengths?|widths?|depths?|speeds?|"
    r"distances?|area|density|temperatures?|voltages?|frequency|points?|limits?|scores?|records?|results?|answers?|ending|jokes?|"
    r"winners?|numbers?|names?|nicknames?|titles?|mottos?|mottoes|slogans?|symbols?|address(?:es)?|dates?|times?|hours?|"
    r"deadlines?|delays?|durations?|schedules?|odds|percentages?|doses?|dosages?|counts?|stocks?|shares?|forecast|weather|"
    r"colou?rs?|flag|anthem|mascot|animal|sports?|languages?|religion|lifespan|range|today|now|king|queen|president|minister|pope|ceo|mayor|governor|captain|champion|"
    r"(?:zip|area|post|postal|country) codes?)"
)
_FIELD: Final = (
    rf"(?:{'|'.join(sorted(SOFTWARE))}|sql|php|react|linux|html|css|economics|physics|chemistry|biology|psychology|philosophy|"
    r"statistics|math(?:s|ematics)?|programming|computing|accounting)"
)
_WORD: Final = rf"(?!{_ASIDE}\b)\w[\w.#-]*"
_OF: Final = r"(?: (?:(?:of|behind|for)\b|(?:in|on) (?!(?:the|this|that|my|our)\b))|\W*$)"  # which process is in the picture?
_HEAD: Final = (
    r"(?:(?:causes?(?! of death)|rules?|process(?:es)?|procedures?|polic(?:y|ies)|theor(?:y|ies)|theorem|paradox|hypothesis|"
    r"principles?|concepts?|ideas?|notion|plot|meaning|significance|importance|purpose|roles?|history|origins|structure|"
    r"functions?|methods?(?! of (?:payment|execution|delivery|transport|contact))|laws?|effects?|impact|consequences|cycle|"
    r"mechanisms?|phenomenon|reasons?|basics|fundamentals|(?:solar|immune|nervous|digestive|respiratory|metric) system)"
    rf"(?={_OF})|"
    r"(?:symptoms|signs|types|kinds|benefits|uses|advantages|disadvantages|drawbacks|pros|risks|dangers|stages|phases|features) "
    r"(?:of|for)\b)"
)
_MODIFIER: Final = rf"(?!(?:{_ASIDE}|an?|my|our|this|that|these|those)\b)[\w'-]+ "
_HEADED: Final = rf"(?:(?:the|your|its|their|his|her) )?(?:{_MODIFIER}){{0,2}}?{_HEAD}"
_COMPARED: Final = rf"(?:the )?(?:main |key |basic |major )?differences? between\b(?!.* {_VALUE}{_END})"
_NAMED: Final = rf"(?!.*\b{_VALUE}\b)(?-i:the [A-Z]\w*(?: [A-Z]\w*){{0,2}}){_END}"  # the Roman Empire
_BARE: Final = (
    rf"(?!(?:the|an?|my|our|your|his|her|their|its|this|that|these|those|it|them|him|me|us|you|yourself|some|any|all)\b)"
    rf"(?!.* {_VALUE}\b){_WORD}(?:,? {_WORD}){{0,5}}(?: in {_FIELD})?{_END}"
)
_ANY: Final = rf"an? (?!\w+ {_VALUE}{_END}){_WORD}(?: {_WORD})?(?: in {_FIELD})?{_END}"  # a mortgage, a time signature

# Of what stands behind "explain" or "tell me about"; to be matched at its start, consumes nothing.
EXPLAINABLE: Final = rf"{_NO_SINGLE}(?={_HEADED}|{_COMPARED}|{_NAMED}|{_BARE}|{_ANY})"
