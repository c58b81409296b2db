"""Find TCP ports for the embedded stack: the wanted one, or the next free one."""

import socket

_SEARCHED = 200


def is_free(port: int) -> bool:
    """True if nothing on this machine listens on the port, on any IPv4 address."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            # All addresses on purpose: a listener on any one of them would disturb the server that follows.
            probe.bind(("0.0.0.0", port))  # noqa: S104
        except OSError:
            return False
        return True


def choose_port(wanted: int, taken: set[int]) -> int:
    """The wanted port if it is free, else the next free one; 0 lets the kernel choose. Adds the choice to `taken`.

    Raises RuntimeError if none of the ports above the wanted one is free.
    """
    if wanted == 0:
        return _any_port(taken)
    for port in range(wanted, min(wanted + _SEARCHED, 65536)):
        if port not in taken and is_free(port):
            taken.add(port)
            return port
    raise RuntimeError(f"no free TCP port from {wanted} to {wanted + _SEARCHED}; end what listens there or set another port")


def _any_port(taken: set[int]) -> int:
    for _ in range(_SEARCHED):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.bind(("0.0.0.0", 0))  # noqa: S104 - see is_free
            port = int(probe.getsockname()[1])
        if port not in taken:
            taken.add(port)
            return port
    raise RuntimeError("the kernel offers no free TCP port")
