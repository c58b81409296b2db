"""Whether a Ray cluster that the operator brings lets us in: `python -m serve_app.local.own_ray ADDRESS`.

Asked by a process of its own: Ray takes seconds to import, reads its login when it is, and waits long for a wrong address.
"""

import socket
import subprocess
import sys
from typing import Final

from serve_app.local.processes import child_environment

_TCP_TIMEOUT_S: Final = 2.0
_JOIN_TIMEOUT_S: Final = 60.0
_LONGEST_TEXT: Final = 300


def probe(address: str, timeout_s: float = _JOIN_TIMEOUT_S) -> str | None:
    """None if a driver here can join the cluster at `address` (host:port or auto), as `up` does; else what went wrong."""
    if (trouble := _unheard(address)) is not None:
        return trouble
    try:
        done = subprocess.run(
            [sys.executable, "-m", "serve_app.local.own_ray", address],
            env=child_environment({}),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"{address}: no Ray cluster answers there within {timeout_s:g} s"
    if done.returncode == 0:
        return None
    said = (done.stdout.strip() or done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
    return f"{address}: {said[:_LONGEST_TEXT]}"


def _unheard(address: str) -> str | None:
    """What is wrong if nothing listens at host:port; it is told at once, where Ray would try for long."""
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdecimal():
        return None  # `auto`, or something that Ray itself must judge
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_TCP_TIMEOUT_S):
            return None
    except (OSError, OverflowError) as error:
        return f"{address}: {error}"


def _join(address: str) -> int:
    import ray

    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, RuntimeError, ValueError) as error:
        sys.stdout.write(" ".join(str(error).split()) + "\n")
        return 1
    ray.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(_join(sys.argv[1]))
