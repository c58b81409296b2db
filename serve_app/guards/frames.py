"""What people put around a question: greetings, thanks, "could you please tell me". Taken off before two are compared."""

import re
from typing import Final

from serve_app.guards.closed import LITERAL, words
from serve_app.guards.lexicon import past_form

PUNCTUATION: Final = " .,;:!?-"
_FRAMES: Final = 6  # openings or closings taken off at most
_LONGEST_CLOSING: Final = 40  # characters
_ASKED: Final = r"(?:how|what|when|where|who|whom|whose|why|which|can|could|do|does|did|is|are|was|were|should|will)\b"
_POLITELY: Final = r"(?:please |pls |kindly |just |maybe |perhaps |possibly |quickly |briefly )*"
_YOU: Final = r"(?:you|u|someone|somebody|anyone|anybody)"
# What one asks somebody to do with words. Others ("can you swim?") may be questions about the one who is asked.
_REQUESTS: Final = (
    r"(?:explain|give|list|write|describe|help|show|name|summari[sz]e|find|translate|convert|calculate|compute|compare|recommend|"
    r"suggest|define|teach|tell|provide|share|walk|clarify|draft|compose|generate|outline|solve|answer|elaborate|let|say|"
    r"demonstrate|illustrate)"
)
_HELLO: Final = (
    r"(?:hi|hello|hey|hiya|howdy|greetings)(?: (?:there|team|all|everyone|guys|folks|assistant|bot|ai|buddy|friend))?|"
    r"dear (?:team|assistant|all)|good (?:morning|afternoon|evening|day)"
)
_FILLER: Final = (
    r"sorry to bother you|excuse me|just wondering|just curious|by the way|btw|"
    r"so|ok|okay|yeah|um|uh|er|erm|hmm|please|pls|plz|kindly"
)
# Hello in Japanese, please or thank you, the meaning of OK: there they are what is asked about.
_ABOUT_IT: Final = (
    r"(?![\s,.:!-]*(?:in|into|as|is|or|and|vs|versus|by|for|means?|meaning|definition|synonyms?|translation|lyrics)\b)"
)
_LANGUAGES: Final = (
    r"(?:english|french|german|spanish|italian|portuguese|dutch|latin|greek|russian|polish|czech|hungarian|turkish|arabic|hebrew|"
    r"persian|farsi|hindi|urdu|bengali|chinese|mandarin|cantonese|japanese|korean|thai|vietnamese|indonesian|malay|tagalog|swahili|"
    r"swedish|norwegian|danish|finnish|icelandic|irish|welsh|gaelic|ukrainian|romanian|hawaiian|sign language|asl)"
)
_ABOUT_WORDS: Final = re.compile(
    rf"\b(?:{'|'.join(sorted(LITERAL))}|say|says|saying|said|phrase|sentence|(?:in|to|into) {_LANGUAGES})\b", re.IGNORECASE
)
# Also ordinary words ("evening classes", "right knee"): a greeting only before a mark.
_INTERJECTION: Final = (
    r"morning|afternoon|evening|sorry|pardon me|yes|well|right|but|anyway|basically|honestly|seriously|out of curiosity|"
    r"if you don't mind|if possible|if you can|i am curious|i'm curious|i am confused|i'm confused|"
    r"(?:a )?(?:quick|silly|random|simple|another|stupid|dumb|basic) (?:question|one)|question|"
    r"(?:i have|i've got|got) (?:a|one) (?:\w+ )?question(?: (?:for you|about this))?|"
    rf"(?:can|could) {_YOU} (?:please )?help(?: me)?(?: out)?|(?:i )?need (?:some |your )?help"
)
_NEXT: Final = rf"(?=[,:;]? (?:{_ASKED}|if |whether ))"
_IF: Final = r"(?: (?:if|whether)(?= ))?"  # do you know if it rains - does it rain?
_ASKING: Final = (
    rf"(?:can|could|would|will) {_YOU} {_POLITELY}(?:tell|explain to|inform|show|let) me(?: know)?{_NEXT}{_IF}|"
    rf"{_POLITELY}(?:tell me|let me know){_NEXT}{_IF}|"
    rf"(?:do|does|did|would) {_YOU} (?:happen to )?(?:know|have any idea|remember){_NEXT}{_IF}|"
    rf"(?:do|does) {_YOU} (?:happen to )?know(?= the )|"
    rf"any idea(?: (?=if |whether )){_IF}|any idea|any chance {_YOU} (?:can|could)|is there any chance {_YOU} (?:can|could)|"
    rf"i (?:would|'d|d) (?:like|love) to (?:know|ask|hear){_IF}|i'd (?:like|love) to (?:know|ask|hear){_IF}|"
    rf"i (?:want|need|wanted) to (?:know|ask){_IF}|"
    rf"i(?:'d| would)? (?:want|need|like|love|wish) to (?:understand|learn|find out|see|figure out|be told){_NEXT}{_IF}|"
    rf"i(?: am|'m|m)(?: just)? (?:trying to (?:understand|learn|find out|figure out)|curious(?: about| to know)?){_NEXT}{_IF}|"
    rf"i(?: am|'m|m)(?: just| also)? wondering{_IF}|"
    rf"i was (?:just )?wondering(?: if you (?:could|can|would) (?=\w)(?:tell me)?)?{_IF}|"
    rf"i wonder{_IF}|"
    r"i(?: would|'d|d)? (?:really )?(?:want|need|like)(?: for)? you to|"
    r"(?:can|could|may|might) i (?:please |just )*(?:ask|know|get you to|have you|ask you to)|let me ask(?: you)?|"
    rf"(?:is|would) it (?:be )?possible for you to|(?:are|would) you (?:be )?(?:able|willing|so kind as) to(?= {_REQUESTS}\b)|"
    r"(?:i(?: would|'d) (?:really )?(?:appreciate it|be (?:very |so )?(?:grateful|happy|glad)|love it)|"
    r"it would be (?:great|nice|helpful|good)) if you (?:could|would|can)|"
    r"(?:would|do) you mind(?= \w+ing\b)|"
    rf"(?:can|could|would|will) (?:you|u) {_POLITELY}(?={_REQUESTS}\b)|(?:could|would) {_YOU} (?:please|kindly)|"
    rf"(?:can|could|would|will) {_YOU} {_POLITELY}(?=(?:explain|recommend|suggest|clarify|(?:give|show|tell|help) me)\b)|"
    rf"(?:can|could|would) {_YOU} help me(?: to)?(?= {_REQUESTS}\b)|help me(?: to)?(?= {_REQUESTS}\b)|"
    rf"(?:can|could) {_YOU} (?:please )?help me understand(?= {_ASKED})|help me understand(?= {_ASKED})"
)
_MARKS: Final = r"\s*[,.:;!?–—-][\s,.:;!?–—-]*"
_OPENING: Final = re.compile(
    rf"\s*(?:(?:{_HELLO})(?:\s*[,.:!–—-][\s,.:!–—-]*|\s+(?={_ASKED}|{_REQUESTS}\b|{_FILLER}\b|(?:i|we|my|any|tell)\b))(?=\S){_ABOUT_IT}|"
    rf"(?:{_FILLER})\b(?!-){_ABOUT_IT}[\s,.:!–—-]*(?=\S)|"
    rf"(?:{_INTERJECTION})(?:{_MARKS}|\s+(?={_ASKED}))(?=\S)|(?:{_ASKING})[\s,:;–—-]*)",
    re.IGNORECASE,
)
_THANKS: Final = (
    r"(?:thanks(?: a lot| so much| very much| in advance)?|many thanks|thank you(?: so much| very much| in advance)?|"
    r"please(?: help(?: me)?)?|pls|plz)"
)
_CLOSING: Final = re.compile(
    rf"(?:(?<=[,.;!?])| -) *(?:{_THANKS}|thx|ty|cheers|kindly|much appreciated|if you can|if possible|if you don't mind|"
    r"if you know|any help(?: is| would be)? (?:much |greatly )?appreciated|any ideas|any tips|"
    r"i wonder|i'm curious|just curious|by the way|btw)$",
    re.IGNORECASE,
)
_BARE_CLOSING: Final = re.compile(rf"(?<![\w'-])([\w']{{1,40}}) {_THANKS}$")  # in small letters: who wrote Please?
_GREETED_CLOSING: Final = re.compile(rf"(?<![\w'-])([\w']{{1,40}}) {_THANKS}$", re.IGNORECASE)
_BELONGING: Final = words(
    "to of is are was a an the for and or my your his her their with without by in on as not no use using from like than word "
    "sing sings sang sung sign signs write writes type typing mean means hear hate spell reply"
)


def unframed(text: str) -> str:
    """The question without its frame; never empty unless the text is."""
    greeted = False
    for _ in range(_FRAMES):
        opening = _OPENING.match(text)
        if opening is None or opening.end() >= len(text):
            break
        text, greeted = text[opening.end() :].lstrip(PUNCTUATION), True
    for _ in range(_FRAMES):
        bare = text.rstrip(PUNCTUATION)
        start = _closing(bare, greeted=greeted)
        if start == 0 or _ABOUT_WORDS.search(text):
            break
        text = bare[:start]
    return text


def _closing(bare: str, *, greeted: bool) -> int:
    """Where the thanks begin with which it ends, 0 if it ends with none."""
    marked = _CLOSING.search(bare, max(0, len(bare) - _LONGEST_CLOSING))
    if marked is not None:
        return marked.start()
    found = (_GREETED_CLOSING if greeted else _BARE_CLOSING).search(bare, max(0, len(bare) - 2 * _LONGEST_CLOSING))
    belongs = found is None or found[1].lower() in _BELONGING or past_form(found[1].lower())  # who sang thank you?
    return 0 if found is None or belongs else found.end(1)
