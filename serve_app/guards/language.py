"""Texts that the other guards cannot read: other scripts, other languages, no words at all."""

import re
from typing import Final

from serve_app.guards.closed import RELATIONS, words
from serve_app.guards.guard import Guard
from serve_app.guards.lexicon import known
from serve_app.guards.reading import Reading

# ASCII, accented Latin letters, dashes, curly quotation marks, ellipsis, currencies, degree, times, divided by, plus-minus.
_FOREIGN_CHARACTER: Final = re.compile(r"[^\t\n\r -~\u00a0£¥€°±×÷À-ÖØ-öø-ɏ‐-―‘-”…−]")
_FOREIGN_WORDS: Final = words(
    "le la les un une des du et est que qui dans pour sur avec ce cette pas vous je il elle nous au aux mon ma "
    "der die das den dem des ein eine einen und ist nicht ich sie wir wie ihr mit auf fur für von zu zum zur im "
    "el los las una unos y es en por para con del al mi su como cual donde "
    "lo gli di da che non per sono si nel della dello dei il e o come posso "
    "os um uma do dos nao não em no na com qual onde meu "
    "de het een van ik je niet op te zijn met hoe wat naar "
    "og er det på til av den att och som jag hur är vad jeg hvad hvor "
    "jak co jest nie się czy ile gdzie na w z mam "
    "mikä on ja missä miten kuinka ei "
    "ve bir bu ne nasıl nerede için mi "
    "apa di yang dan saya berapa bagaimana ini itu"
)


class Language(Guard):
    """Only English written in Latin letters is compared by meaning; all else is answered by its exact twin only."""

    name = "language"

    def refuse(self, text: Reading) -> str | None:
        """See Guard."""
        if _FOREIGN_CHARACTER.search(text.text):
            return "characters that are not Latin"
        words = [w for w in text.words if w.raw[0].isalpha()]
        if not words:
            return "no words"
        alien = sum(w.kind == "content" and w.low in _FOREIGN_WORDS for w in words)
        native = sum(w.kind != "content" or w.low in RELATIONS or (known(w.low) and w.low not in _FOREIGN_WORDS) for w in words)
        names = sum(w.kind == "content" and w.at > 0 and w.raw[0].isupper() and not known(w.low) for w in words)
        return "not English" if 2 * native <= len(words) - names or alien > 1 else None
