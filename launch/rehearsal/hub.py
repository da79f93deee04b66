"""A model hub on loopback, so that a rehearsal can run the weights kernel without a network.

It serves the weights that were fetched to this machine where there are any, and random ones of the same shapes elsewhere:
the kernels do what they will do on Kaggle, and the rehearsal says that its scores are none of pretrained weights.
"""

import hashlib
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from werkzeug.serving import WSGIRequestHandler, make_server
from werkzeug.wrappers import Request, Response
from werkzeug.wsgi import wrap_file

from launch.errors import LaunchError
from lib.files import sha256_of

_WEIGHTS = "model.safetensors"
_MAKE_LIMIT = 300.0  # seconds
# Runs in a process of its own: nothing on the user's side of the project imports torch.
_MAKE = """
import sys
import timm, torch
from safetensors.torch import save_file
name, seed, path = sys.argv[1:]
torch.manual_seed(int(seed))
network = timm.create_model(name, pretrained=False)
save_file({key: tensor.contiguous() for key, tensor in network.state_dict().items()}, path)
"""


class _QuietHandler(WSGIRequestHandler):
    def log(self, type: str, message: str, *args: Any) -> None:  # noqa: A002  the name is werkzeug's
        """Requests for weights are no news."""


class Hub:
    """A context in which a hub answers on a port of this machine.

    Args:
        folder: where made weights are kept.
        encoders: timm names with the tags of their weights.
        fetched: the output of a weights kernel that ran on this machine, or None.
        say: takes a line.

    Raises:
        LaunchError: timm does not know an encoder.
    """

    def __init__(self, folder: Path, *, encoders: Sequence[str], fetched: Path | None, say: Callable[[str], None]) -> None:
        self._folders: dict[str, Path] = {}
        for encoder in dict.fromkeys(encoders):
            # Named as lib.model.weights.encoder_folder names it, which needs torch.
            held = fetched / encoder.replace("/", "--").replace(":", "--") if fetched is not None else None
            if held is not None and (held / _WEIGHTS).is_file():
                self._folders[_repository(encoder)] = held
                continue
            if encoder.startswith("hf-hub:"):
                raise LaunchError(
                    f"the weights of {encoder} are not on this machine: fetch them with build_kernel.py weights, or rehearse "
                    "with --set weights=none and a backbone that timm knows by name"
                )
            self._folders[_repository(encoder)] = _make(encoder, folder)
            say(
                f"the weights of {encoder} are not on this machine (build_kernel.py weights fetches them): the rehearsal's own "
                "hub serves random numbers in their place, so the scores say nothing about pretrained weights"
            )
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True, request_handler=_QuietHandler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> "Hub":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def environment(self) -> dict[str, str]:
        """What makes a kernel with a network ask this hub, past any proxy of the user's."""
        local = "127.0.0.1,localhost"
        return {"HF_ENDPOINT": f"http://127.0.0.1:{self._server.server_port}", "NO_PROXY": local, "no_proxy": local}

    def _file(self, address: str) -> Path | None:
        """The file behind /OWNER/NAME/resolve/REVISION/FILE; a name without a tag is found under its default tag, too."""
        parts = address.strip("/").split("/")
        if len(parts) != 5 or parts[2] != "resolve" or parts[4] not in (_WEIGHTS, "config.json"):
            return None
        names = (f"{parts[0]}/{parts[1]}", f"{parts[0]}/{parts[1].split('.')[0]}")
        folder = next((self._folders[name] for name in names if name in self._folders), None)
        path = folder / parts[4] if folder is not None else None
        return path if path is not None and path.is_file() else None

    def _answer(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        request = Request(environ)
        path = self._file(request.path)
        if path is None:
            return Response(status=404, headers={"X-Error-Code": "EntryNotFound"})(environ, start_response)
        headers = {
            "X-Repo-Commit": "0" * 40,
            "ETag": f'"{sha256_of(path)}"',
            "Content-Length": str(path.stat().st_size),
            "Connection": "close",
        }
        content = wrap_file(environ, path.open("rb"), buffer_size=1 << 20) if request.method == "GET" else None
        return Response(content, headers=headers, direct_passthrough=True)(environ, start_response)


def _repository(encoder: str) -> str:
    """Where timm looks for an encoder."""
    return encoder.removeprefix("hf-hub:") if encoder.startswith("hf-hub:") else f"timm/{encoder}"


def _make(encoder: str, folder: Path) -> Path:
    """A folder with random weights of an encoder, the same for the same name; kept for the next rehearsal."""
    digest = hashlib.sha256(encoder.encode()).hexdigest()
    path = folder / digest[:16] / _WEIGHTS
    if path.is_file():
        return path.parent
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".part")
    command = [sys.executable, "-c", _MAKE, encoder, str(int(digest[:8], 16)), str(beside)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_MAKE_LIMIT, check=False)
    except subprocess.TimeoutExpired as error:
        raise LaunchError(f"random weights of {encoder} were not made within {_MAKE_LIMIT:.0f} s") from error
    if done.returncode != 0:
        said = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise LaunchError(f"timm cannot make {encoder}: {said}\nCheck the backbone's name, with the tag of its weights.")
    beside.replace(path)
    return path.parent
