"""Settings that change while a process runs: what Serve's `reconfigure` brings to gateways and debate workers."""

from typing import Any

from serve_app.settings import Settings
from serve_app.telemetry import logger


def accepted(given: Settings, user_config: dict[str, Any]) -> Settings | None:
    """`given`, the settings of the start, with the live ones replaced; None when they are wrong, which the log then tells.

    Raised, Serve would end this replica, and the next, for a typing error.
    """
    try:
        changed = given.with_live(user_config)
    except ValueError as error:
        logger.error("live settings refused, the old ones stay in force: {}", error)
        return None
    logger.info("live settings in force", **user_config)
    return changed
