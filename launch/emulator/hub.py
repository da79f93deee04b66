"""An emulated model hub (Hugging Face), so that a rehearsal can run the weights kernel without a network.

It serves the encoder weights that were downloaded to this machine, and real ImageNet weights that an
installed package holds (launch.emulator.encoder_weights). For other encoders it serves random weights of the
same shapes. The log and the rehearsal's report state which.
"""

import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock
from werkzeug.exceptions import HTTPException
from werkzeug.serving import WSGIRequestHandler, make_server
from werkzeug.wrappers import Request, Response
from werkzeug.wsgi import wrap_file

from launch.emulator.encoder_weights import PACKAGES, package_of
from launch.errors import LaunchError
from lib.files import sha256_of, write_atomic
from lib.runtime.run_record import RECORD_NAME, RunRecord, RunRecordError, read_run_record

logger = logging.getLogger(__name__)

Source = Literal["fetched", "packaged", "random"]

_WEIGHTS, _CONFIG, _ABOUT = "model.safetensors", "config.json", "about.json"
_CHILD = Path(__file__).with_name("encoder_weights.py")
_CHILD_TIMEOUT = 300.0  # seconds
_BLOCK = 1 << 20  # bytes of a file in memory at a time
_HUB_PREFIX = "hf-hub:"


@dataclass(frozen=True)
class _ServedEncoder:
    """An encoder that the hub serves.

    Attributes:
        folder: of its files.
        hashes: the SHA-256 of each file by name.
        source: of the weights.
        package: that they come from, as NAME VERSION; empty for other sources.
    """

    folder: Path
    hashes: Mapping[str, str]
    source: Source
    package: str = ""

    @property
    def commit(self) -> str:
        """The commit of its repository in the hub's answers: a hash of the files."""
        return hashlib.sha256(json.dumps(dict(sorted(self.hashes.items()))).encode()).hexdigest()[:40]


class _QuietHandler(WSGIRequestHandler):
    def log(self, type: str, message: str, *args: Any) -> None:  # noqa: A002  the name is werkzeug's
        """Log nothing."""


class Hub:
    """A context in which the hub answers on a port of this machine.

    Args:
        folder: where random weights, and those of packages, are kept.
        encoders: timm names with the tags of their weights.
        fetched: the output of a weights kernel on this machine. None, a missing folder, or a folder without
            run.json hold no weights.
        gated: repositories (OWNER/NAME) that only some tokens may read, with these tokens.
        tokens: further tokens that the hub knows; it refuses any other.

    Raises:
        LaunchError: timm does not know an encoder or names no hub for it, or downloaded weights are damaged.
    """

    def __init__(
        self,
        folder: Path,
        *,
        encoders: Sequence[str],
        fetched: Path | None,
        gated: Mapping[str, Collection[str]] | None = None,
        tokens: Collection[str] = (),
    ) -> None:
        self._gated = {name: frozenset(let_in) for name, let_in in (gated or {}).items()}
        self._tokens = frozenset(tokens).union(*self._gated.values())
        self._encoders: dict[str, _ServedEncoder] = {}
        self._repositories: dict[str, _ServedEncoder] = {}  # by OWNER/NAME
        record = _read_fetched(fetched)
        for encoder in dict.fromkeys(encoders):
            served = None
            if fetched is not None and record is not None:
                served = _find_fetched(encoder, fetched, record)
            if encoder.startswith(_HUB_PREFIX):
                if served is None:
                    raise LaunchError(
                        f"the weights of {encoder} are not on this machine: download them (build_kernel.py "
                        "weights), or rehearse with --set weights=none and a backbone that timm knows by name"
                    )
                repository = encoder.removeprefix(_HUB_PREFIX).split("@")[0]  # a revision may follow the @
            else:
                about = _describe_encoder(encoder, folder, make_weights=served is None)
                repository = about["repository"].split("@")[0]
            if served is None:
                served = _made_encoder(encoder, folder, about)
            self._encoders[encoder] = self._repositories[repository] = served
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
        """The encoders that are served with random weights."""
        return [encoder for encoder, served in self._encoders.items() if served.source == "random"]

    @property
    def packaged(self) -> dict[str, str]:
        """The encoders that are served with real weights of a package, with its name and version."""
        return {encoder: served.package for encoder, served in self._encoders.items() if served.package}

    def source(self, encoder: str) -> Source:
        """The source of an encoder's weights: `fetched`, `packaged` (both are real ones) or `random`."""
        return self._encoders[encoder].source

    def environment(self) -> dict[str, str]:
        """The variables with which a kernel calls this hub directly, without the user's proxy and token.

        No other variable is needed: huggingface_hub uses Xet only where an answer names a Xet hash, and its
        other requests (telemetry, a registry of agents) may fail.
        """
        user_hosts = (os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or "").split(",")
        direct = ",".join([*(host for host in user_hosts if host.strip()), "127.0.0.1", "localhost"])
        return {
            "HF_ENDPOINT": f"http://127.0.0.1:{self._server.server_port}",
            "HF_TOKEN": "",
            "NO_PROXY": direct,
            "no_proxy": direct,
        }

    def _answer(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        """Answer HEAD and GET of /OWNER/NAME/resolve/REVISION/FILE, as huggingface_hub 2.4 expects."""
        request = Request(environ)
        parts = request.path.strip("/").split("/")
        served = None
        if len(parts) > 3 and parts[2] == "resolve":
            served = self._repositories.get("/".join(parts[:2]))
        repository = "/".join(parts[:2])
        if (refusal := self._refusal(repository, request)) is not None:
            return refusal(environ, start_response)
        if served is None:
            code = "EntryNotFound" if repository in self._gated else "RepoNotFound"
            return Response(status=404, headers={"X-Error-Code": code})(environ, start_response)
        headers = {"X-Repo-Commit": served.commit, "Connection": "close"}
        name = "/".join(parts[4:])
        if name not in served.hashes:
            headers["X-Error-Code"] = "EntryNotFound"
            return Response(status=404, headers=headers)(environ, start_response)
        path = served.folder / name
        size = path.stat().st_size
        content = wrap_file(environ, path.open("rb"), buffer_size=_BLOCK) if request.method == "GET" else None
        response = Response(
            content, headers={**headers, "Content-Length": str(size)}, direct_passthrough=True
        )
        response.set_etag(served.hashes[name])
        try:
            response.make_conditional(request, accept_ranges=True, complete_length=size)
        except HTTPException as error:  # the range is beyond the end of the file
            response.close()
            response = Response(status=error.code, headers={"Content-Range": f"bytes */{size}"})
        return response(environ, start_response)

    def _refusal(self, repository: str, request: Request) -> Response | None:
        """The answer to a token that the hub does not know, or that may not read this repository."""
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in self._tokens:
            message = "Invalid credentials in Authorization header"
            return Response(status=401, headers={"X-Error-Message": message})
        if token in self._gated.get(repository, (token,)):
            return None
        message = f"Access to model {repository} is restricted"
        headers = {"X-Error-Code": "GatedRepo", "X-Error-Message": message}
        return Response(status=403 if token else 401, headers=headers)


def _encoder_folder(folder: Path, encoder: str) -> Path:
    """The folder of an encoder, by the rule of lib.runtime.inputs.encoder_folder."""
    return folder / encoder.replace("/", "--").replace(":", "--")


def _read_fetched(fetched: Path | None) -> RunRecord | None:
    """The checked record of the weights kernel's output on this machine; None without an output.

    Raises:
        LaunchError: the output is damaged.
    """
    if fetched is None or not (fetched / RECORD_NAME).is_file():
        return None
    try:
        return read_run_record(fetched, kind="weights")
    except RunRecordError as error:
        raise LaunchError(
            f"the weights that were downloaded to this machine cannot be used: {error}\n"
            f"Download them again (build_kernel.py weights), or delete {fetched}: then random ones are used."
        ) from error


def _find_fetched(encoder: str, fetched: Path, record: RunRecord) -> _ServedEncoder | None:
    """The files of an encoder in the weights kernel's output, or None where it does not hold the encoder."""
    folder = _encoder_folder(fetched, encoder)
    entries = {name: record.files.get(f"{folder.name}/{name}") for name in (_WEIGHTS, _CONFIG)}
    hashes = {name: entry.sha256 for name, entry in entries.items() if entry is not None}
    return _ServedEncoder(folder, hashes, "fetched") if len(hashes) == len(entries) else None


def _made_encoder(encoder: str, folder: Path, about: Mapping[str, Any]) -> _ServedEncoder:
    """An encoder whose weights were made on this machine, from a package or at random; the log says which."""
    made = _encoder_folder(folder, encoder)
    if about["package"]:
        logger.info(
            "the weights of %s are real ImageNet weights, from the package %s", encoder, about["package"]
        )
        return _ServedEncoder(made, about["files"], "packaged", about["package"])
    package = PACKAGES.get(encoder)
    absent = f" (the package {package} with real ones is not installed: make env)" if package else ""
    logger.warning(
        "the weights of %s are not on this machine%s: the rehearsal uses random numbers instead. "
        "Its scores say nothing about pretrained weights; build_kernel.py weights downloads them",
        encoder,
        absent,
    )
    return _ServedEncoder(made, about["files"], "random")


def _describe_encoder(encoder: str, folder: Path, *, make_weights: bool) -> dict[str, Any]:
    """The repository of an encoder according to timm, and weights: the same bytes for the same name.

    Both are kept for the next rehearsal with the same versions of timm, torch and the package with real
    weights. Damaged weights are made again.

    Returns:
        `repository`: OWNER/NAME from which timm downloads the encoder; `package` that the weights come from,
        empty for random ones; `files`: the SHA-256 of each file by name, empty without `make_weights`.

    Raises:
        LaunchError: timm does not know the encoder, names no hub for it, or took too long.
    """
    encoder_folder = _encoder_folder(folder, encoder)
    about_file = encoder_folder / _ABOUT
    identity = {
        "encoder": encoder,
        "timm": version("timm"),
        "torch": version("torch"),
        "package": package_of(encoder),
    }
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(
        folder / "lock"
    ):  # another rehearsal may be making the same weights: _CHILD_TIMEOUT at most
        about = _read_about(about_file)
        if about is not None and identity.items() <= about.items():
            files = about["files"]
            complete = files and all(
                (encoder_folder / name).is_file() and sha256_of(encoder_folder / name) == sha256
                for name, sha256 in files.items()
            )
            if complete or not make_weights:
                return about
        part = folder / f".{encoder_folder.name}.part"
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        try:
            answer = _run_timm(encoder, part if make_weights else None)
            files = {path.name: sha256_of(path) for path in sorted(part.iterdir())}
            about = {**identity, **answer, "files": files}
            write_atomic(part / _ABOUT, json.dumps(about, indent=1) + "\n")
            shutil.rmtree(encoder_folder, ignore_errors=True)
            part.rename(encoder_folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return about


def _read_about(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    valid = (
        isinstance(content, dict)
        and isinstance(content.get("repository"), str)
        and isinstance(content.get("files"), dict)
    )
    return content if valid else None


def _run_timm(encoder: str, folder: Path | None) -> dict[str, str]:
    """`repository` and `package` of an encoder; its weights are written into `folder` where that is given."""
    seed = int(hashlib.sha256(encoder.encode()).hexdigest()[:8], 16)
    # -P: this package's folder is not put on the module path of the child.
    command = [sys.executable, "-P", str(_CHILD), encoder, str(seed), str(folder or "")]
    try:
        child = subprocess.run(command, capture_output=True, text=True, timeout=_CHILD_TIMEOUT, check=False)
    except subprocess.TimeoutExpired as error:
        raise LaunchError(
            f"the weights of {encoder} were not made within {_CHILD_TIMEOUT:.0f} s: "
            "run the command again on a machine that is less busy"
        ) from error
    if child.returncode != 0:
        last_line = (child.stderr.strip().splitlines() or [f"exit code {child.returncode}"])[-1]
        raise LaunchError(
            f"timm cannot make {encoder}: {last_line}\n"
            "Check the name of the backbone and the tag of its weights."
        )
    answer: dict[str, str] = json.loads(child.stdout.strip().splitlines()[-1])
    if not answer["repository"]:
        raise LaunchError(
            f"timm downloads the weights of {encoder} from no model hub, so the weights kernel cannot be "
            "rehearsed with them: rehearse with --set weights=none, or choose another tag"
        )
    return answer
