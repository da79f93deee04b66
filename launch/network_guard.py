"""Network guard of a kernel that runs without namespaces: sockets refuse every address outside this machine.

launch.sandbox copies this file to a folder on the kernel's PYTHONPATH as `sitecustomize.py`, which Python
imports at start.
"""

import socket
from collections.abc import Callable
from typing import Any

_LOCAL_HOSTS = ("127.0.0.1", "::1", "localhost")


def guard_sockets() -> None:
    """Replace the socket methods that name an address by ones that raise OSError for a remote address."""
    for name in ("connect", "connect_ex", "sendto"):
        setattr(socket.socket, name, _guarded(getattr(socket.socket, name)))


def _guarded(method: Callable[..., Any]) -> Callable[..., Any]:
    def call(self: socket.socket, *arguments: Any) -> Any:
        address = arguments[-1]
        if not _is_local(self, address):
            raise OSError(f"no network in this kernel (enable_internet is false): {address!r}")
        return method(self, *arguments)

    return call


def _is_local(connection: socket.socket, address: object) -> bool:
    if connection.family == getattr(socket, "AF_UNIX", None):
        return True
    return isinstance(address, tuple) and str(address[0]) in _LOCAL_HOSTS


if __name__ == "sitecustomize":
    guard_sockets()
