"""HTTP for the emulated Kaggle: the wire format that the unmodified client speaks, and everything that can go wrong on it."""

import contextlib
import json
import socket
import struct
import threading
import time
import traceback
import urllib.parse
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from werkzeug.exceptions import ClientDisconnected
from werkzeug.serving import WSGIRequestHandler, make_server
from werkzeug.utils import send_file
from werkzeug.wrappers import Request, Response

from launch.emulator.account import ApiError, Json
from launch.emulator.faults import REFUSALS, Fault
from launch.emulator.kaggle import EmulatedKaggle
from launch.errors import LaunchError

_HTML = "<!doctype html><html><body>Something went wrong</body></html>"
# What leaves something behind at the service, where it is not refused; the request log marks it.
_CHANGING = (
    "StartBlobUpload", "StartSubmissionUpload", "upload", "CreateDataset", "CreateDatasetVersion",
    "SaveKernel", "DeleteKernel", "CreateSubmission",
)  # fmt: skip
_LOG_LOOK = 0.2  # seconds between looks at the log of a running kernel
_CHUNK = 1 << 20
_SHUTDOWN_LOOK = 0.05  # seconds between looks at the wish to end
_DELIVERY = 0.05  # seconds a part of an answer gets to arrive before the connection is reset


class _QuietHandler(WSGIRequestHandler):
    def log(self, type: str, message: str, *args: Any) -> None:  # noqa: A002  the name is werkzeug's
        """The request log is ours."""

    def connection_dropped(self, error: BaseException, environ: Any = None) -> None:
        """Nothing more is to be read from it."""
        self.close_connection = True


class Server:
    """A context in which the emulated Kaggle answers on a port of this machine.

    Args:
        kaggle: what answers.
        port: 0 takes a free one.
        host: the address.
    """

    def __init__(self, kaggle: EmulatedKaggle, *, port: int = 0, host: str = "127.0.0.1") -> None:
        self.kaggle, self.host = kaggle, host
        try:
            self._server = make_server(host, port, self._answer, threaded=True, request_handler=_QuietHandler)
        except (OSError, SystemExit) as error:  # werkzeug leaves by sys.exit where the port is taken
            raise LaunchError(f"port {port} cannot be used: choose another, or 0 for a free one") from error
        self.port = int(self._server.server_port)
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(_SHUTDOWN_LOOK,), daemon=True
        )

    def __enter__(self) -> "Server":
        self.kaggle.sessions.resume()  # before anything is pushed, which would be started twice
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self.kaggle.close()

    def environment(self) -> dict[str, str]:
        """What points an unmodified client here: the proxy carries `http://localhost` to our port."""
        proxy = f"http://{self.host}:{self.port}"
        return {
            "KAGGLE_API_ENVIRONMENT": "LOCALHOST",
            "HTTP_PROXY": proxy,
            "http_proxy": proxy,
            "NO_PROXY": "",
            "no_proxy": "",
            "KAGGLE_API_TOKEN": self.kaggle.account.token,  # beats whatever credentials the user has
            "KAGGLE_CONFIG_DIR": str(self.kaggle.account.folder / "config"),
        }

    # --- one request -------------------------------------------------------------------------------------------------

    def _answer(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        request = Request(environ)
        began = time.time()
        method, slug = self._named(request)
        note: Json = {}
        try:
            response = self._route(request, method, slug, note)
        except ApiError as error:
            response = _error(error.status, error.message)
            if isinstance(error, _TooMany):
                response.headers["Retry-After"] = error.after
        except _Page:
            response = _page()
        except _Cut as cut:
            self._log(began, method, slug, 0, note)
            return self._break(environ, cut.half)
        except Exception:  # a mistake of ours; the client sees what it would see of a mistake of Kaggle's
            traceback.print_exc()
            note["broke"] = True
            response = _error(500, "Internal error")
        self._log(began, method, slug, response.status_code, note)
        response.headers["Connection"] = "close"
        return response(environ, start_response)

    def _named(self, request: Request) -> tuple[str, str]:
        """What is asked, and about which kernel, dataset or file; no part of an address that is a secret."""
        parts = urllib.parse.unquote(request.path).strip("/").split("/")
        if parts[0] == "upload":
            with contextlib.suppress(ApiError):
                return "upload", str(self.kaggle.uploads.blob(parts[-1])[0]["name"])
            return "upload", ""
        if parts[0] == "output":
            return "output", parts[1] if len(parts) > 1 else ""
        if parts[0] == "data":
            return "data", parts[-1]
        if parts[:5] == ["api", "v1", "kernels", "logs", "stream"]:
            return "log", parts[-1]
        if parts[:2] == ["api", "v1"]:
            body = self._body(request)
            full = str(body.get("kernelSlug") or body.get("datasetSlug") or body.get("slug") or "")
            return parts[-1], full.split("/")[-1]
        return "nothing", ""

    @staticmethod
    def _body(request: Request) -> Json:
        body = request.get_json(force=True, silent=True)
        return body if isinstance(body, dict) else {}

    def _log(self, began: float, method: str, slug: str, status: int, note: Json) -> None:
        entry = {"at": round(began, 3), "method": method, "slug": slug, "status": status}
        self.kaggle.account.note({**entry, "seconds": round(time.time() - began, 3), **note})

    @staticmethod
    def _break(environ: dict[str, Any], half: bytes) -> Iterable[bytes]:
        """End the connection with a reset, after half of an answer where there is one."""
        connection: socket.socket = environ["werkzeug.socket"]
        with contextlib.suppress(OSError):
            if half:
                head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {2 * len(half)}\r\n\r\n"
                connection.sendall(head.encode() + half)
                time.sleep(_DELIVERY)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            # The handler's own files keep the socket open beyond a close, and a shutdown would end it politely.
            socket.close(connection.detach())
        raise ConnectionResetError("broken on purpose")

    def _route(self, request: Request, method: str, slug: str, note: Json) -> Response:
        path = urllib.parse.unquote(request.path).strip("/")
        parts = path.split("/")
        if method == "upload" and request.method == "PUT":
            return self._upload(request, parts[-1], note)
        if method == "output" and request.method == "GET":
            return self._output(request, slug, "/".join(parts[1:]), note)
        if method == "data" and request.method == "GET":
            return self._file(request, self.kaggle.competition.file(self._signed(request, "data")))
        if parts[:2] != ["api", "v1"]:
            raise ApiError(404, "no such address")
        self._authenticate(request, path)
        if method == "log":
            return self._stream_log(request, slug, "/".join(parts[5:-1]), note)
        return self._rpc(request, method, slug, note)

    def _authenticate(self, request: Request, path: str) -> None:
        if path.endswith("/IntrospectToken"):
            return
        account, given = self.kaggle.account, request.authorization
        if given is not None and given.type == "bearer" and given.token == account.token:
            return
        if given is not None and given.type == "basic":
            name, key = str(given.username or ""), str(given.password or "")
            if key == account.token and name.lower() == account.owner.lower():
                return
        raise ApiError(401, "Unauthenticated")

    def _rpc(self, request: Request, method: str, slug: str, note: Json) -> Response:
        fault = self._strikes(method, slug, note)
        if fault is not None and fault.what == "empty":
            return _json({})
        answer = self._call(method, self._body(request), fault)
        if isinstance(answer, Response):
            return answer
        if method in _CHANGING and not answer.get("error"):
            note["changes"] = True
        if method == "SaveKernel" and "versionNumber" in answer:
            note["version"] = answer["versionNumber"]
        if fault is not None and fault.what == "timeout":
            time.sleep(float(fault.value or 1.0))
            raise _Cut
        if fault is not None and fault.what == "reset-after":
            text = json.dumps(answer).encode()
            raise _Cut(text[: max(1, len(text) // 2)])
        if fault is not None and fault.what == "html-after":
            return _page()
        return _json(answer)

    def _strikes(self, on: str, slug: str, note: Json, later: tuple[str, ...] = ()) -> Fault | None:
        """The fault of this request; what strikes before it takes effect has struck, but for those named."""
        fault = self.kaggle.account.faults.take(on, slug)
        if fault is None:
            return None
        note["fault"] = fault.what
        if fault.what in later:
            return fault
        if fault.what == "reset-before":
            raise _Cut
        if fault.what == "429":
            raise _TooMany(str(fault.value if fault.value is not None else 1))
        if fault.what in REFUSALS:
            raise ApiError(int(fault.what), str(fault.value or REFUSALS[fault.what]))
        if fault.what == "html":
            raise _Page
        return fault

    def _call(self, method: str, body: Json, fault: Fault | None) -> Json | Response:
        kaggle, account, base = self.kaggle, self.kaggle.account, f"http://{self.host}:{self.port}"
        if method == "IntrospectToken":
            right = body.get("token") == account.token
            return {"active": right, **({"username": account.owner} if right else {})}
        account.check_owner(str(body.get("userName") or body.get("ownerSlug") or ""))
        kaggle.competition.check(body)
        if method in ("StartBlobUpload", "StartSubmissionUpload"):
            return kaggle.uploads.start(method, body, base)
        if method in ("DownloadDataFiles", "DownloadDataFile"):
            return Response(status=302, headers={"Location": kaggle.competition.link(body, base)})
        plain: dict[str, Callable[[Json], Json]] = {
            "GetDatasetStatus": kaggle.datasets.status,
            "GetDataset": kaggle.datasets.get,
            "ListDatasetFiles": kaggle.datasets.files,
            "CreateDataset": kaggle.datasets.create,
            "CreateDatasetVersion": kaggle.datasets.create_version,
            "SaveKernel": lambda given: kaggle.kernels.push(given, fault),
            "GetKernelSessionStatus": lambda given: kaggle.kernels.status(given, fault),
            "ListKernelSessionOutput": lambda given: kaggle.kernels.output(given, fault, base),
            "ListKernelFiles": kaggle.kernels.files,
            "GetKernel": kaggle.kernels.get,
            "ListKernels": kaggle.kernels.listing,
            "DeleteKernel": kaggle.kernels.delete,
            "GetAcceleratorQuotaStatistics": lambda _: kaggle.sessions.quota(),
            "GetCompetition": lambda _: kaggle.competition.get(),
            "ListCompetitions": lambda _: {"competitions": [kaggle.competition.get()]},
            "ListDataFiles": lambda _: kaggle.competition.files(),
            "CreateSubmission": kaggle.submissions.submit,
            "ListSubmissions": kaggle.submissions.listing,
            "GetSubmission": kaggle.submissions.get,
            "GetSubmissionLimits": lambda _: kaggle.submissions.limits(),
        }
        if method not in plain:
            raise ApiError(404, f"unknown method {method}")
        with account.lock:
            return plain[method](body)

    # --- files -------------------------------------------------------------------------------------------------------

    def _upload(self, request: Request, token: str, note: Json) -> Response:
        """The PUT of a file, by Google's resumable protocol."""
        entry, path = self.kaggle.uploads.blob(token)
        have = path.stat().st_size if path.is_file() else 0
        asked = request.headers.get("Content-Range", "")
        if entry["complete"]:
            return Response(status=200)
        if asked.startswith("bytes */"):
            return _incomplete(have)
        fault = self._strikes("upload", entry["name"], note, later=("503",))
        start = int(asked.removeprefix("bytes ").split("-")[0]) if asked else 0
        if start > have:
            return _incomplete(have)
        with path.open("r+b" if path.is_file() else "wb") as stream:
            stream.seek(start)
            with contextlib.suppress(ClientDisconnected):  # what came stays, for the rest to follow
                while chunk := request.stream.read(_CHUNK):
                    stream.write(chunk)
            if fault is not None:
                stream.seek(start + (stream.tell() - start) // 2)
            have = stream.tell()
            stream.truncate()
        if fault is not None and fault.what == "503":
            return _error(503, REFUSALS["503"])
        if fault is not None and fault.what == "reset":
            raise _Cut
        if have < entry["size"]:
            return _incomplete(have)
        self.kaggle.uploads.complete(token)
        note["changes"] = True
        return Response(status=200)

    def _output(self, request: Request, slug: str, place: str, note: Json) -> Response:
        fault = self._strikes("output", slug, note)
        what = fault.what if fault is not None else ""
        if what == "expired":
            return _page(403)
        path = self.kaggle.kernels.output_file(place, self._signed(request, place))
        if fault is None:
            return self._file(request, path)
        content = path.read_bytes()
        if what == "cut":
            raise _Cut(content[: max(1, len(content) // 2)])
        if what == "timeout":
            time.sleep(float(fault.value or 1.0))
            raise _Cut
        return Response(content[: len(content) // 2], content_type="application/octet-stream")  # short

    def _signed(self, request: Request, place: str) -> str:
        """The name of the file a link is to, where the link is good."""
        given = request.args
        name, until, signature = (given.get(each, "") for each in ("name", "until", "signature"))
        self.kaggle.account.check_signed(place, name, until=until, signature=signature)
        return name

    @staticmethod
    def _file(request: Request, path: Path) -> Response:
        """A file, or the part of it that is asked for."""
        return send_file(
            path.resolve(), request.environ, mimetype="application/octet-stream", conditional=True
        )

    def _stream_log(self, request: Request, slug: str, owner: str, note: Json) -> Response:
        fault = self._strikes("log", slug, note)
        if fault is not None:  # timeout
            time.sleep(float(fault.value or 1.0))
            raise _Cut
        kaggle, label = self.kaggle, request.args.get("versionLabel", "")
        kaggle.account.check_owner(owner)
        over, events = kaggle.kernels.log_events(slug, label)
        if over:
            return _json(events)

        def lines() -> Iterator[str]:
            sent, over = 0, False
            while not over and not kaggle.closed.is_set():
                try:
                    over, events = kaggle.kernels.log_events(slug, label)
                except ApiError:  # deleted meanwhile
                    return
                for event in events[sent:]:
                    yield f"data: {json.dumps(event)}\n\n"
                sent = max(sent, len(events))
                if not over:
                    kaggle.closed.wait(_LOG_LOOK)
            if over:
                yield "data: END_OF_LOG\n\n"

        return Response(lines(), content_type="text/event-stream")


class _Cut(Exception):  # noqa: N818  not an error of ours
    """The connection is to be broken, after half of an answer where there is one."""

    def __init__(self, half: bytes = b"") -> None:
        super().__init__()
        self.half = half


class _Page(Exception):  # noqa: N818  not an error of ours
    """The answer is to be a page for people."""


class _TooMany(ApiError):
    def __init__(self, after: str) -> None:
        super().__init__(429, REFUSALS["429"])
        self.after = after


def _json(answer: Any) -> Response:
    return Response(json.dumps(answer), content_type="application/json")


def _page(status: int = 200) -> Response:
    return Response(_HTML, status=status, content_type="text/html")


def _error(status: int, message: str) -> Response:
    return Response(
        json.dumps({"code": status, "message": message}), status=status, content_type="application/json"
    )


def _incomplete(have: int) -> Response:
    """How much of an upload is there; the rest is to follow."""
    return Response(status=308, headers={"Range": f"bytes=0-{have - 1}"} if have else {})
