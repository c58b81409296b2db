"""The ways to start a debate's own process: a command such as `systemctl start`, or a Ray job."""

import asyncio
from contextlib import suppress
from typing import Final, Protocol

from serve_app.errors import Unavailable
from serve_app.runs import Run
from serve_app.settings import Settings

_COMMAND_S: Final = 30.0
_TOLD_CHARS: Final = 400


class Starter(Protocol):
    """Starts `python -m dagster_project.entrypoints.run_debate` for a run, somewhere."""

    async def start(self, run: Run) -> None:
        """Returns when the process is on its way. Raises errors.Unavailable when it cannot be started."""
        ...


class CommandStarter:
    """Runs the setting `debate_command`; the command returns before the debate has begun."""

    def __init__(self, settings: Settings) -> None:
        self._command = settings.debate_command
        self._state_dir = str(settings.state_dir.resolve())

    async def start(self, run: Run) -> None:
        """See Starter."""
        # A trace_id is hex digits: it cannot be taken for an option or a path.
        command = [part.replace("{trace_id}", run.trace_id).replace("{state_dir}", self._state_dir) for part in self._command]
        told = ""
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
            )
        except OSError as error:
            raise Unavailable(f"debate_command {command[0]!r} cannot be started: {error}") from error
        try:
            async with asyncio.timeout(_COMMAND_S):
                _, stderr = await process.communicate()
            told = stderr.decode(errors="replace").strip()[-_TOLD_CHARS:]
        except TimeoutError as error:
            raise Unavailable(f"debate_command {command[0]!r} did not return within {_COMMAND_S:g} s") from error
        finally:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    process.kill()
        if process.returncode != 0:
            raise Unavailable(f"debate_command {command[0]!r} ended with {process.returncode}: {told or 'it said nothing'}")
