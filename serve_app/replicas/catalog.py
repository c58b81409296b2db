"""Which model ids may be asked for, and what each one means."""

import hashlib
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from serve_app.configured import AdapterConfig, ModelConfig
from serve_app.errors import NotFound
from serve_app.ports import ModelCard

ADAPTER_CONFIG_FILE: Final = "adapter_config.json"
_ADAPTER_NAME: Final = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")
_UNFIT_FOR_A_NAME: Final = re.compile(r"[^A-Za-z0-9._-]")
_LISTED_IDS: Final = 50  # ids named in an error message
_LISTING_S: Final = 1.0  # how old the list of a directory's adapters may be; a directory may be large, or far away


def deployment_name(model_id: str) -> str:
    """The Serve deployment that runs a model: `model-{model_id}`.

    Characters that a deployment name cannot hold become `-`, and a short hash keeps two such ids apart.
    """
    fit = _UNFIT_FOR_A_NAME.sub("-", model_id)
    if fit != model_id:
        fit = f"{fit}-{hashlib.sha256(model_id.encode()).hexdigest()[:6]}"
    return f"model-{fit}"


def is_local(adapters: AdapterConfig) -> bool:
    """Whether the adapters lie in a directory of this machine, not in a cloud bucket."""
    return "://" not in adapters.directory


def valid_adapter_name(name: str) -> bool:
    """Up to 128 letters, digits, `.`, `_`, `-`, not starting with a dot: such a name cannot leave its directory."""
    return _ADAPTER_NAME.fullmatch(name) is not None


def local_adapter(directory: Path, name: str) -> Path | None:
    """Where adapter `name` lies, or None. What a name or a link leads to outside of `directory` does not count."""
    if not valid_adapter_name(name):
        return None
    root, path = directory.resolve(), (directory / name).resolve()
    inside = path != root and path.is_relative_to(root)
    return path if inside and (path / ADAPTER_CONFIG_FILE).is_file() else None


class Catalog:
    """The configured models and their adapters. Local adapters are looked up afresh, so one can be added while running."""

    def __init__(self, models: Sequence[ModelConfig]) -> None:
        self._models = {model.model_id: model for model in models}
        self._listed: dict[str, tuple[float, list[str]]] = {}

    def __iter__(self) -> Iterator[ModelConfig]:
        return iter(self._models.values())

    def cards(self) -> list[ModelCard]:
        """Every id of /v1/models. Adapters in a bucket are usable but not listed: `any_adapter` says so."""
        cards: list[ModelCard] = []
        for model in self._models.values():
            length = model.engine_args.get("max_model_len")
            max_len = length if isinstance(length, int) else None
            unlisted = model.adapters is not None and not is_local(model.adapters)
            cards.append(ModelCard(model.model_id, max_model_len=max_len, any_adapter=unlisted))
            cards += [
                ModelCard(f"{model.model_id}:{name}", parent=model.model_id, max_model_len=max_len)
                for name in self._adapters(model)
            ]
        return cards

    def known_ids(self) -> list[str]:
        """What may be asked for, with `model:*` where any adapter may exist."""
        cards = self.cards()
        return [card.model_id for card in cards] + [f"{card.model_id}:*" for card in cards if card.any_adapter]

    def resolve(self, model_id: str) -> tuple[ModelConfig, str | None]:
        """The model and the adapter behind `model` or `model:adapter`. Raises NotFound that lists the known ids."""
        base, colon, adapter = model_id.partition(":")
        model = self._models.get(base)
        if model is None or (colon and not _has_adapter(model, adapter)):
            known = self.known_ids()
            more = f" and {len(known) - _LISTED_IDS} more" if len(known) > _LISTED_IDS else ""
            listed = ", ".join(known[:_LISTED_IDS])
            raise NotFound(
                f"model {model_id!r} does not exist; use one of: {listed}{more}", param="model", code="model_not_found"
            )
        return model, adapter if colon else None

    def _adapters(self, model: ModelConfig) -> list[str]:
        read_at, names = self._listed.get(model.model_id, (-_LISTING_S, []))
        if time.monotonic() - read_at >= _LISTING_S:
            names = adapter_names(model)
            self._listed[model.model_id] = (time.monotonic(), names)
        return names


def adapter_names(model: ModelConfig) -> list[str]:
    """Names of the local adapters of a model, sorted; empty when it has none or they are in a bucket."""
    if model.adapters is None or not is_local(model.adapters):
        return []
    directory = Path(model.adapters.directory)
    if not directory.is_dir():
        return []
    return sorted(entry.name for entry in directory.iterdir() if local_adapter(directory, entry.name))


def _has_adapter(model: ModelConfig, name: str) -> bool:
    if model.adapters is None or not valid_adapter_name(name):
        return False
    # What a bucket holds only the replica can tell; it answers with 404.
    return not is_local(model.adapters) or local_adapter(Path(model.adapters.directory), name) is not None
