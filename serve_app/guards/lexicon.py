"""English words from WordNet: which exist, which mean the same, which are opposites, and their plain inflections.

The data file is made by scripts/make-lexicon; one line per word: word, parts of speech, synonyms, antonyms.
"""

import gzip
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

from serve_app.guards.closed import FREE, QUESTION_WORDS, RELATIONS
from serve_app.guards.synonyms import APART, PARTNERS

_FILE: Final = Path(__file__).with_name("english.txt.gz")
_SHORTEST_TYPO: Final = 6  # letters; shorter words have too many neighbours
_OPPOSING: Final = ("un", "in", "im", "il", "ir", "non", "dis", "de", "mis", "anti", "over", "under", "hyper", "hypo")
_SUFFIXES: Final = (
    *(("sses", "ss"), ("ies", "y"), ("ches", "ch"), ("shes", "sh")),
    *(("xes", "x"), ("oes", "o"), ("zes", "z"), ("ses", "s"), ("s", "")),
)
_VERB_SUFFIXES: Final = (("ied", "y"), ("ed", "e"), ("ed", ""), ("ing", "e"), ("ing", ""))
_PLURALS: Final = "children child men man women woman feet foot teeth tooth mice mouse people person"
_PASTS: Final = (
    "became become began begin broke break brought bring built build bought buy caught catch chose choose came come cost cost "
    "dealt deal drew draw drank drink drove drive ate eat fell fall felt feel fought fight found find flew fly forgot forget "
    "froze freeze gave give went go grew grow heard hear held hold kept keep knew know led lead left leave lent lend lost lose "
    "made make meant mean met meet paid pay ran run said say "
    "sold sell sent send slept sleep spent spend spoke speak stole steal "
    "stood stand swam swim taught teach told tell took take thought think threw throw understood understand woke wake won win "
    "wore wear wrote write"
)
_PARTICIPLES: Final = (
    "begun begin broken break chosen choose drawn draw driven drive "
    "eaten eat fallen fall flown fly forgotten forget frozen freeze "
    "given give gone go grown grow known know shown show spoken speak "
    "stolen steal swum swim taken take thrown throw worn wear written write"
)


def _pairs(listed: str) -> dict[str, str]:
    words = listed.split()
    return dict(zip(words[::2], words[1::2], strict=True))


_PAST_FORMS: Final = {form: base for form, base in (_pairs(_PASTS) | _pairs(_PARTICIPLES)).items() if form != base}
_IRREGULAR: Final = _pairs(_PLURALS) | _PAST_FORMS


class Lexicon(NamedTuple):
    """Lower-case words. `parts` holds letters of n, v, a, r."""

    parts: dict[str, str]
    synonyms: dict[str, str]  # with commas between and around them
    antonyms: dict[str, str]


@cache
def lexicon() -> Lexicon:
    """The data file in memory: about 20 MB, read once per process in about 0.15 s."""
    parts: dict[str, str] = {}
    synonyms, antonyms = {}, {}
    kinds: dict[str, str] = {}
    for line in gzip.decompress(_FILE.read_bytes()).decode().splitlines():
        word, part, same, opposite = line.split("\t")
        parts[word] = kinds.setdefault(part, part)
        if same:
            synonyms[word] = f",{same},"
        if opposite:
            antonyms[word] = f",{opposite},"
    return Lexicon(parts, synonyms, antonyms)


def known(word: str) -> bool:
    """Whether it is an English word or a plain inflection of one."""
    parts = lexicon().parts
    return word in parts or lemma(word) in parts


def may_be_verb(word: str) -> bool:
    """Whether it can be the base form of a verb."""
    return "v" in lexicon().parts.get(word, "")


def lemma(word: str) -> str:
    """The word without plural, -ed or -ing; the word itself where that form is a word of its own (glasses, meeting)."""
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    parts = lexicon().parts
    if "n" in parts.get(word, "") or "v" in parts.get(word, ""):
        return word
    for ending, instead in _SUFFIXES:
        base = word.removesuffix(ending) + instead
        if word.endswith(ending) and len(base) > 2 and _is(base, "nv"):
            return base
    for ending, instead in _VERB_SUFFIXES:
        base = word.removesuffix(ending) + instead
        if word.endswith(ending) and len(base) > 2:
            if _is(base, "v"):
                return base
            if not instead and base[-1] == base[-2] and _is(base[:-1], "v"):  # cancelled, running
                return base[:-1]
    return word


def gerund_of(word: str) -> str:
    """The verb of which this is the -ing form, even where that is a noun of its own; the word itself if there is none."""
    base = word.removesuffix("ing")
    verbs = (form for form in (base, f"{base}e", base[:-1]) if len(form) > 1 and _is(form, "v"))
    return next(verbs, word) if base != word else word


def past_form(word: str) -> bool:
    """Whether it is the past or the participle of a verb."""
    return word in _PAST_FORMS or (word.endswith("ed") and lemma(word) != word)


def same_meaning(left: str, right: str) -> bool:
    """Whether two words are one word in another form or spelling, or synonyms in their main sense."""
    left, right = lemma(left), lemma(right)
    if frozenset((left, right)) in APART:
        return False
    if left == right or right in PARTNERS.get(left, ()) or _in(right, lexicon().synonyms.get(left, "")):
        return True
    one, other = _compared(left), _compared(right)
    return one is not None and other is not None and one[1] == other[1] and same_meaning(one[0], other[0])


def _compared(word: str) -> tuple[str, str] | None:
    """The adjective and the ending of a comparative or superlative: largest is large, est."""
    ending = next((e for e in ("est", "er") if word.endswith(e)), None)
    if ending is None or word in lexicon().parts:
        return None
    base = word.removesuffix(ending)
    forms = (base, f"{base}e", base[:-1], f"{base[:-1]}y")
    return next(((form, ending) for form in forms if len(form) > 1 and _is(form, "a")), None)


def opposites(left: str, right: str) -> bool:
    """Whether two words are antonyms, or differ by a prefix that turns the meaning (safe, unsafe)."""
    antonyms = lexicon().antonyms
    if _in(right, antonyms.get(left, "")) or _in(left, antonyms.get(right, "")):
        return True
    left, right = lemma(left), lemma(right)
    if _in(right, antonyms.get(left, "")) or _in(left, antonyms.get(right, "")):
        return True
    return any(
        short == long.removeprefix(p) and short != long for p in _OPPOSING for short, long in ((left, right), (right, left))
    )


@cache
def _twisted() -> dict[str, str]:
    """Words of grammar with two neighbouring letters swapped, where that is no word and no other's: teh, waht, adn."""
    found: dict[str, set[str]] = {}
    for word in (FREE | RELATIONS | QUESTION_WORDS.keys()) - {"them"}:
        for i in range(len(word) - 1) if 3 <= len(word) <= 7 else ():
            found.setdefault(word[:i] + word[i + 1] + word[i] + word[i + 2 :], set()).add(word)
    return {slip: min(words) for slip, words in found.items() if len(words) == 1 and not known(slip) and slip not in words}


def untwisted(word: str) -> str:
    """The word of grammar that this is a slip of, or the word itself."""
    meant = _twisted().get(word.lower())
    return word if meant is None else meant.capitalize() if word[0].isupper() else meant


def typo(left: str, right: str) -> bool:
    """Whether one is no word and one slip (a letter more, less, another, or two swapped) away from the other, which is."""
    if sorted(left) == sorted(right) and len(left) > 3 and (left in RELATIONS) != (right in RELATIONS):
        return one_slip(left, right)  # flights form Rome
    if min(len(left), len(right)) < _SHORTEST_TYPO or known(left) == known(right) or left[0] != right[0]:
        return False
    return one_slip(left, right)


def one_slip(left: str, right: str) -> bool:
    """Whether the optimal string alignment distance is 1."""
    if len(left) > len(right):
        left, right = right, left
    start = 0
    while start < len(left) and left[start] == right[start]:
        start += 1
    if len(left) < len(right):
        return len(right) - len(left) == 1 and left[start:] == right[start + 1 :]
    swapped = left[start : start + 2] == right[start : start + 2][::-1]
    return left[start + 1 :] == right[start + 1 :] or (swapped and left[start + 2 :] == right[start + 2 :])


def _in(word: str, listed: str) -> bool:
    return f",{word}," in listed


def _is(word: str, kinds: str) -> bool:
    part = lexicon().parts.get(word, "")
    return any(kind in part for kind in kinds)
