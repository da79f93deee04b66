"""A model hub on loopback, so that a rehearsal can run the weights kernel without a network.

It serves the weights that were fetched to this machine where there are any, and random ones of the same shapes elsewhere:
the kernels do what they will do on Kaggle, and the rehearsal says that its scores are none of pretrained weights.
"""

import fcntl
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from werkzeug.exceptions import HTTPException
from werkzeug.serving import WSGIRequestHandler, make_server
from werkzeug.wrappers import Request, Response
from werkzeug.wsgi import wrap_file

from launch.errors import LaunchError
from lib.files import sha256_of, write_atomic
from lib.runtime.run_record import RECORD_NAME, RunRecord, RunRecordError, read_run_record

Source = Literal["fetched", "random"]

_WEIGHTS, _CONFIG, _ABOUT = "model.safetensors", "config.json", "about.json"
_MAKE_LIMIT = 300.0  # seconds
_BLOCK = 1 << 20  # bytes of a file in memory at a time
_HUB_PREFIX = "hf-hub:"
# Runs in a process of its own: nothing on the user's side of the project imports torch. Made weights are loaded once as timm
# loads fetched ones, strictly and through whatever it converts, so that what cannot be rehearsed is known before it starts.
_ASK_TIMM = """
import json, sys
import timm, torch
from safetensors.torch import save_file
from timm.models import get_pretrained_cfg
name, seed, path = sys.argv[1:]
settings = get_pretrained_cfg(name, allow_unregistered=False)
if path and settings.hf_hub_id:
    torch.manual_seed(int(seed))
    network = timm.create_model(name, pretrained=False)
    save_file({key: tensor.contiguous().clone() for key, tensor in network.state_dict().items()}, path)
    timm.create_model(name, pretrained=True, pretrained_cfg_overlay={"file": path, "custom_load": False})
print(json.dumps({"repository": settings.hf_hub_id or ""}))
"""


@dataclass(frozen=True)
class _ServedEncoder:
    """An encoder that is served: the folder of its files, and the SHA-256 of each by name."""

    folder: Path
    hashes: Mapping[str, str]
    source: Source

    @property
    def commit(self) -> str:
        """What stands for the commit of its repository: other files, another commit."""
        return hashlib.sha256(json.dumps(dict(sorted(self.hashes.items()))).encode()).hexdigest()[:40]


class _QuietHandler(WSGIRequestHandler):
    def log(self, type: str, message: str, *args: Any) -> None:  # noqa: A002  the name is werkzeug's
        """Requests for weights are no news."""


class Hub:
    """A context in which a hub answers on a port of this machine.

    Args:
        folder: where made weights are kept.
        encoders: timm names with the tags of their weights.
        fetched: where a weights kernel of this machine leaves its output; None, an absent folder or one without run.json
            hold nothing.
        say: takes a line, one for each encoder that is served random numbers.

    Raises:
        LaunchError: timm does not know an encoder or takes it from no hub, or fetched weights are damaged.
    """

    def __init__(
        self, folder: Path, *, encoders: Sequence[str], fetched: Path | None, say: Callable[[str], None]
    ) -> None:
        self._held: dict[str, _ServedEncoder] = {}  # by encoder
        self._repositories: dict[str, _ServedEncoder] = {}  # by OWNER/NAME
        record = _read_fetched(fetched)
        for encoder in dict.fromkeys(encoders):
            held = (
                _find_fetched(encoder, fetched, record)
                if fetched is not None and record is not None
                else None
            )
            if encoder.startswith(_HUB_PREFIX):
                if held is None:
                    raise LaunchError(
                        f"the weights of {encoder} are not on this machine: fetch them with build_kernel.py weights, or rehearse "
                        "with --set weights=none and a backbone that timm knows by name"
                    )
                repository = encoder.removeprefix(_HUB_PREFIX).split("@")[0]  # a revision may follow
            else:
                about = _ask_timm(encoder, folder, make=held is None)
                repository = about["repository"].split("@")[0]
            if held is None:
                held = _ServedEncoder(_place(folder, encoder), {_WEIGHTS: about["sha256"]}, "random")
                say(
                    f"the weights of {encoder} are not on this machine (build_kernel.py weights fetches them): the rehearsal's "
                    "own hub serves random numbers in their place, so the scores say nothing about pretrained weights"
                )
            self._held[encoder] = self._repositories[repository] = held
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True, request_handler=_QuietHandler)
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
        )

    def __enter__(self) -> "Hub":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def random(self) -> list[str]:
        """The encoders for which it serves random numbers."""
        return [encoder for encoder, held in self._held.items() if held.source == "random"]

    def source(self, encoder: str) -> Source:
        """Whether an encoder's weights are real ones (`fetched`) or `random`."""
        return self._held[encoder].source

    def environment(self) -> dict[str, str]:
        """What makes a kernel with a network ask this hub, past any proxy of the user's and without the user's token.

        Nothing else is needed: huggingface_hub uses Xet only where an answer names a Xet hash, and whatever it tells or asks
        its endpoint beside the files (telemetry, a registry of agents) may fail.
        """
        around = [
            name
            for name in (os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or "").split(",")
            if name.strip()
        ]
        direct = ",".join([*around, "127.0.0.1", "localhost"])
        return {
            "HF_ENDPOINT": f"http://127.0.0.1:{self._server.server_port}",
            "HF_TOKEN": "",
            "NO_PROXY": direct,
            "no_proxy": direct,
        }

    def _answer(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        """HEAD and GET of /OWNER/NAME/resolve/REVISION/FILE, as huggingface_hub 2.4 asks and reads the answer."""
        request = Request(environ)
        parts = request.path.strip("/").split("/")
        held = (
            self._repositories.get("/".join(parts[:2])) if len(parts) > 3 and parts[2] == "resolve" else None
        )
        if held is None:
            return Response(status=404, headers={"X-Error-Code": "RepoNotFound"})(environ, start_response)
        headers = {"X-Repo-Commit": held.commit, "Connection": "close"}
        name = "/".join(parts[4:])
        if name not in held.hashes:
            return Response(status=404, headers={**headers, "X-Error-Code": "EntryNotFound"})(
                environ, start_response
            )
        path = held.folder / name
        size = path.stat().st_size
        content = wrap_file(environ, path.open("rb"), buffer_size=_BLOCK) if request.method == "GET" else None
        response = Response(
            content, headers={**headers, "Content-Length": str(size)}, direct_passthrough=True
        )
        response.set_etag(held.hashes[name])
        try:
            response.make_conditional(request, accept_ranges=True, complete_length=size)
        except HTTPException as error:  # a range beyond the end
            response.close()
            response = Response(status=error.code, headers={"Content-Range": f"bytes */{size}"})
        return response(environ, start_response)


def _place(folder: Path, encoder: str) -> Path:
    """The folder of an encoder, named as lib.model.weights.encoder_folder, which needs torch, names it."""
    return folder / encoder.replace("/", "--").replace(":", "--")


def _read_fetched(fetched: Path | None) -> RunRecord | None:
    """The record of the weights kernel's output on this machine, held against its files; None where there is none.

    Raises:
        LaunchError: the output is damaged.
    """
    if fetched is None or not (fetched / RECORD_NAME).is_file():
        return None
    try:
        return read_run_record(fetched, kind="weights")
    except RunRecordError as error:
        raise LaunchError(
            f"the weights that were fetched to this machine cannot be used: {error}\n"
            f"Fetch them again (build_kernel.py weights), or delete {fetched} to rehearse with random numbers."
        ) from error


def _find_fetched(encoder: str, fetched: Path, record: RunRecord) -> _ServedEncoder | None:
    """The files of an encoder in the weights kernel's output, or None when it holds no such encoder."""
    place = _place(fetched, encoder)
    hashes = {name: record.files.get(f"{place.name}/{name}") for name in (_WEIGHTS, _CONFIG)}
    listed = {name: entry.sha256 for name, entry in hashes.items() if entry is not None}
    return _ServedEncoder(place, listed, "fetched") if len(listed) == len(hashes) else None


def _ask_timm(encoder: str, folder: Path, *, make: bool) -> dict[str, str]:
    """What timm says of an encoder, and, to `make`, its random weights: the same bytes for the same name.

    Both are kept for the next rehearsal, for as long as timm and torch keep their versions; weights that are damaged are
    made anew.

    Returns:
        `repository`: OWNER/NAME that timm fetches it from; `sha256` of the made weights, empty when there are none.

    Raises:
        LaunchError: timm does not know the encoder, takes its weights from no hub, or was not done in time.
    """
    place = _place(folder, encoder)
    note, weights = place / _ABOUT, place / _WEIGHTS
    identity = {"encoder": encoder, "timm": version("timm"), "torch": version("torch")}
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another rehearsal may be making it: _MAKE_LIMIT at most
        about = _read_about(note)
        whole = not make or (
            about is not None and weights.is_file() and sha256_of(weights) == about["sha256"]
        )
        if about is not None and identity.items() <= about.items() and whole:
            return about
        beside = folder / f".{place.name}.part.safetensors"  # timm goes by the suffix
        beside.unlink(missing_ok=True)
        try:
            repository = _run_timm(encoder, beside if make else None)
            place.mkdir(exist_ok=True)
            if make:
                beside.replace(weights)
        finally:
            beside.unlink(missing_ok=True)
        about = {**identity, "repository": repository, "sha256": sha256_of(weights) if make else ""}
        write_atomic(note, json.dumps(about, indent=1) + "\n")
    return about


def _read_about(note: Path) -> dict[str, str] | None:
    try:
        content = json.loads(note.read_bytes())
    except (OSError, ValueError):
        return None
    return (
        content
        if isinstance(content, dict) and isinstance(content.get("repository"), str) and "sha256" in content
        else None
    )


def _run_timm(encoder: str, weights: Path | None) -> str:
    """The repository of an encoder; random weights in the file where one is named."""
    seed = int(hashlib.sha256(encoder.encode()).hexdigest()[:8], 16)
    command = [sys.executable, "-c", _ASK_TIMM, encoder, str(seed), str(weights or "")]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_MAKE_LIMIT, check=False)
    except subprocess.TimeoutExpired as error:
        raise LaunchError(f"random weights of {encoder} were not made within {_MAKE_LIMIT:.0f} s") from error
    if done.returncode != 0:
        said = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise LaunchError(
            f"timm cannot make {encoder}: {said}\nCheck the backbone's name, with the tag of its weights."
        )
    repository = str(json.loads(done.stdout.strip().splitlines()[-1])["repository"])
    if not repository:
        raise LaunchError(
            f"timm takes the weights of {encoder} from no model hub, so the weights kernel cannot be rehearsed with them: "
            "rehearse with --set weights=none, or choose another tag"
        )
    return repository
