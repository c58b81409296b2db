"""Guards: what must hold before the answer to one question is given to another that is near to it by meaning. Pure."""

from serve_app.guards.guard import Guard
from serve_app.guards.pair import Pair
from serve_app.guards.reading import Reading, read
from serve_app.guards.registry import GUARDS, Guards, Veto, load_guards

__all__ = ["GUARDS", "Guard", "Guards", "Pair", "Reading", "Veto", "load_guards", "read"]
