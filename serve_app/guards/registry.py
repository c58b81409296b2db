"""The guards by name, and those of the settings."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Final

from serve_app.guards.antonyms import Antonyms
from serve_app.guards.code import Code
from serve_app.guards.dates import Dates
from serve_app.guards.entities import Entities
from serve_app.guards.guard import Guard
from serve_app.guards.language import Language
from serve_app.guards.lexicon import lexicon
from serve_app.guards.negation import Negation
from serve_app.guards.numbers import Numbers
from serve_app.guards.pair import Pair
from serve_app.guards.persons import Persons
from serve_app.guards.quantifiers import Quantifiers
from serve_app.guards.questions import Questions
from serve_app.guards.reading import Reading
from serve_app.guards.roles import Roles
from serve_app.guards.substitution import Substitution
from serve_app.guards.units import Units
from serve_app.guards.wording import Wording

# The order decides which rule is named; the last one would find most of what the others find.
_BUILT_IN: Final[tuple[type[Guard], ...]] = (
    Language, Code, Wording, Numbers, Units, Dates, Negation, Quantifiers,
    Questions, Persons, Antonyms, Entities, Roles, Substitution,
)  # fmt: skip
GUARDS: Final = {guard.name: guard for guard in _BUILT_IN}


@dataclass(frozen=True, slots=True)
class Veto:
    """Which rule spoke against a stored answer, and why. It never quotes a question."""

    rule: str
    reason: str


class Guards:
    """A list of guards, asked in order; the first that objects decides. With an empty list nothing is refused."""

    def __init__(self, guards: Sequence[Guard]) -> None:
        self._guards = tuple(guards)

    def refuse(self, text: Reading) -> Veto | None:
        """Why this text may only be answered by its exact twin, or None."""
        return next((Veto(g.name, reason) for g in self._guards if (reason := g.refuse(text)) is not None), None)

    def veto(self, asked: Reading, stored: Reading) -> Veto | None:
        """Why the answer to `stored` must not be given to `asked`, or None."""
        pair = Pair(asked, stored)
        return next((Veto(g.name, reason) for g in self._guards if (reason := g.veto(pair)) is not None), None)


def load_guards(names: Iterable[str]) -> Guards:
    """The guards of these names: built-in ones, or your own as `module:Class`. Raises ValueError that says what is wrong."""
    guards = Guards([_guard(name) for name in names])
    lexicon()  # now, not while a request waits
    return guards


def _guard(name: str) -> Guard:
    found = GUARDS.get(name)
    if found is not None:
        return found()
    module, mark, attribute = name.partition(":")
    if not mark:
        raise ValueError(f"cache_guards: no guard {name!r}; use one of {', '.join(GUARDS)}, or your own as module:Class")
    try:
        guard = getattr(import_module(module), attribute)()
    except Exception as error:
        raise ValueError(f"cache_guards: {name!r} cannot be made: {type(error).__name__}: {error}") from error
    if not isinstance(guard, Guard) or not getattr(guard, "name", None):
        raise ValueError(f"cache_guards: {name!r} is not a serve_app.guards.Guard with a name")
    return guard
