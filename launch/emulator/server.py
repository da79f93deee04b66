"""HTTP server of the emulated Kaggle: the API of the unmodified client, with its faults."""

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

from launch.emulator.account import ApiError, JsonObject
from launch.emulator.faults import REFUSALS, Fault
from launch.emulator.kaggle import EmulatedKaggle
from launch.errors import LaunchError

_HTML = "<!doctype html><html><body>Something went wrong</body></html>"
# Methods that change the state; the request log marks them.
_CHANGING = (
    "StartBlobUpload",
    "StartSubmissionUpload",
    "CreateDataset",
    "CreateDatasetVersion",
    "SaveKernel",
    "DeleteKernel",
    "CreateSubmission",
)
_LOG_POLL = 0.2  # seconds between reads of a running kernel's log
_CHUNK = 1 << 20  # bytes of an upload in memory at a time
_SHUTDOWN_POLL = 0.05  # seconds between checks for the end of the server
_DELIVERY = 0.05  # seconds for half of an answer to arrive before the connection is reset


class _QuietHandler(WSGIRequestHandler):
    def log(self, type: str, message: str, *args: Any) -> None:  # noqa: A002  the name is werkzeug's
        """Log nothing; the account has a request log."""

    def connection_dropped(self, error: BaseException, environ: Any = None) -> None:
        """Close the connection."""
        self.close_connection = True


class Server:
    """A context in which the emulated Kaggle answers on a port of this machine.

    Args:
        kaggle: the service.
        port: 0 chooses a free one.
        host: the address.

    Raises:
        LaunchError: the port cannot be used.
    """

    def __init__(self, kaggle: EmulatedKaggle, *, port: int = 0, host: str = "127.0.0.1") -> None:
        self.kaggle, self.host = kaggle, host
        try:
            self._server = make_server(
                host, port, self._respond, threaded=True, request_handler=_QuietHandler
            )
        except (OSError, SystemExit) as error:  # werkzeug calls sys.exit where the port is in use
            raise LaunchError(f"port {port} cannot be used: choose another, or 0 for a free one") from error
        self.port = int(self._server.server_port)
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(_SHUTDOWN_POLL,), daemon=True
        )

    def __enter__(self) -> "Server":
        self.kaggle.sessions.resume()  # before the first push, which would be started twice
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self.kaggle.close()

    def environment(self) -> dict[str, str]:
        """The variables that point an unmodified client here: a proxy maps `http://localhost` to the port."""
        proxy = f"http://{self.host}:{self.port}"
        return {
            "KAGGLE_API_ENVIRONMENT": "LOCALHOST",
            "HTTP_PROXY": proxy,
            "http_proxy": proxy,
            "NO_PROXY": "",
            "no_proxy": "",
            "KAGGLE_API_TOKEN": self.kaggle.account.token,  # takes precedence over the user's credentials
            "KAGGLE_CONFIG_DIR": str(self.kaggle.account.folder / "config"),
        }

    # --- one request
    # ------------------------------------------------------------------------------------------

    def _respond(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        request = Request(environ)
        started = time.time()
        method, slug = self._identify(request)
        log_entry: JsonObject = {}
        try:
            response = self._route(request, method, slug, log_entry)
        except ApiError as error:
            response = _error(error.status, error.message)
            if isinstance(error, _TooManyRequestsError):
                response.headers["Retry-After"] = error.retry_after
        except _HtmlPage:
            response = _html_page()
        except _ConnectionReset as reset:
            self._log(started, method, slug, 0, log_entry)
            return self._reset_connection(environ, reset.first_half)
        except Exception:  # an error of the emulator: the client sees what it would see of an error of Kaggle
            traceback.print_exc()
            log_entry["internal_error"] = True
            response = _error(500, "Internal error")
        self._log(started, method, slug, response.status_code, log_entry)
        response.headers["Connection"] = "close"
        return response(environ, start_response)

    def _identify(self, request: Request) -> tuple[str, str]:
        """The method, and the kernel, dataset or file of a request; never a secret part of its address."""
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
            full_slug = str(body.get("kernelSlug") or body.get("datasetSlug") or body.get("slug") or "")
            return parts[-1], full_slug.split("/")[-1]
        return "unknown", ""

    @staticmethod
    def _body(request: Request) -> JsonObject:
        body = request.get_json(force=True, silent=True)
        return body if isinstance(body, dict) else {}

    def _log(self, started: float, method: str, slug: str, status: int, log_entry: JsonObject) -> None:
        entry = {"time": round(started, 3), "method": method, "slug": slug, "status": status}
        seconds = round(time.time() - started, 3)
        self.kaggle.account.log_request({**entry, "seconds": seconds, **log_entry})

    @staticmethod
    def _reset_connection(environ: dict[str, Any], first_half: bytes) -> Iterable[bytes]:
        """Reset the connection, after the first half of an answer where there is one."""
        connection: socket.socket = environ["werkzeug.socket"]
        with contextlib.suppress(OSError):
            if first_half:
                head = (
                    "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
                    f"Content-Length: {2 * len(first_half)}\r\n\r\n"
                )
                connection.sendall(head.encode() + first_half)
                time.sleep(_DELIVERY)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            # The handler's files keep the socket open after close(), and shutdown() would end it without a
            # reset.
            socket.close(connection.detach())
        raise ConnectionResetError("reset by a fault")

    def _route(self, request: Request, method: str, slug: str, log_entry: JsonObject) -> Response:
        path = urllib.parse.unquote(request.path).strip("/")
        parts = path.split("/")
        if method == "upload" and request.method == "PUT":
            return self._upload(request, parts[-1], log_entry)
        if method == "output" and request.method == "GET":
            return self._output(request, slug, "/".join(parts[1:]), log_entry)
        if method == "data" and request.method == "GET":
            return self._file(request, self.kaggle.competition.file(self._linked_name(request, "data")))
        if parts[:2] != ["api", "v1"]:
            raise ApiError(404, "no such address")
        self._authenticate(request, path)
        if method == "log":
            return self._stream_log(request, slug, "/".join(parts[5:-1]), log_entry)
        return self._rpc(request, method, slug, log_entry)

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

    def _rpc(self, request: Request, method: str, slug: str, log_entry: JsonObject) -> Response:
        fault = self._take_fault(method, slug, log_entry)
        if fault is not None and fault.kind == "empty":
            return _json({})
        answer = self._call(method, self._body(request), fault)
        if isinstance(answer, Response):
            return answer
        if method in _CHANGING and not answer.get("error"):
            log_entry["changes"] = True
        if method == "SaveKernel" and "versionNumber" in answer:
            log_entry["version"] = answer["versionNumber"]
        if fault is not None and fault.kind == "timeout":
            time.sleep(float(fault.value or 1.0))
            raise _ConnectionReset
        if fault is not None and fault.kind == "reset-after":
            text = json.dumps(answer).encode()
            raise _ConnectionReset(text[: max(1, len(text) // 2)])
        if fault is not None and fault.kind == "html-after":
            return _html_page()
        return _json(answer)

    def _take_fault(
        self, on: str, slug: str, log_entry: JsonObject, *, deferred: tuple[str, ...] = ()
    ) -> Fault | None:
        """The fault of this request; raises where it prevents the request, unless its kind is deferred."""
        fault = self.kaggle.account.faults.take(on, slug)
        if fault is None:
            return None
        log_entry["fault"] = fault.kind
        if fault.kind in deferred:
            return fault
        if fault.kind == "reset-before":
            raise _ConnectionReset
        if fault.kind == "429":
            raise _TooManyRequestsError(str(fault.value if fault.value is not None else 1))
        if fault.kind in REFUSALS:
            raise ApiError(int(fault.kind), str(fault.value or REFUSALS[fault.kind]))
        if fault.kind == "html":
            raise _HtmlPage
        return fault

    def _call(self, method: str, body: JsonObject, fault: Fault | None) -> JsonObject | Response:
        kaggle, account, base = self.kaggle, self.kaggle.account, f"http://{self.host}:{self.port}"
        if method == "IntrospectToken":
            valid = body.get("token") == account.token
            return {"active": valid, **({"username": account.owner} if valid else {})}
        account.check_owner(str(body.get("userName") or body.get("ownerSlug") or ""))
        kaggle.competition.check(body)
        if method in ("StartBlobUpload", "StartSubmissionUpload"):
            return kaggle.uploads.start(method, body, base)
        if method in ("DownloadDataFiles", "DownloadDataFile"):
            return Response(status=302, headers={"Location": kaggle.competition.link(body, base)})
        methods: dict[str, Callable[[JsonObject], JsonObject]] = {
            "GetDatasetStatus": kaggle.datasets.status,
            "GetDataset": kaggle.datasets.get,
            "ListDatasetFiles": lambda request: kaggle.datasets.files(request, fault),
            "CreateDataset": kaggle.datasets.create,
            "CreateDatasetVersion": kaggle.datasets.create_version,
            "SaveKernel": lambda request: kaggle.kernels.push(request, fault),
            "GetKernelSessionStatus": lambda request: kaggle.kernels.status(request, fault),
            "ListKernelSessionOutput": lambda request: kaggle.kernels.output(request, fault, base),
            "ListKernelFiles": kaggle.kernels.files,
            "GetKernel": kaggle.kernels.get,
            "ListKernels": kaggle.kernels.listing,
            "DeleteKernel": kaggle.kernels.delete,
            "GetAcceleratorQuotaStatistics": lambda _: kaggle.sessions.quota(fault),
            "GetCompetition": lambda _: kaggle.competition.get(),
            "ListCompetitions": lambda _: {"competitions": [kaggle.competition.get()]},
            "ListDataFiles": lambda _: kaggle.competition.files(),
            "CreateSubmission": kaggle.submissions.submit,
            "ListSubmissions": kaggle.submissions.listing,
            "GetSubmission": kaggle.submissions.get,
            "GetSubmissionLimits": lambda _: kaggle.submissions.limits(),
        }
        if method not in methods:
            raise ApiError(404, f"unknown method {method}")
        with account.lock:
            return methods[method](body)

    # --- files
    # ------------------------------------------------------------------------------------------------

    def _upload(self, request: Request, token: str, log_entry: JsonObject) -> Response:
        """Receive the bytes of a file, by Google's resumable protocol."""
        entry, path = self.kaggle.uploads.blob(token)
        received = path.stat().st_size if path.is_file() else 0
        content_range = request.headers.get("Content-Range", "")
        if entry["complete"]:
            return Response(status=200)
        if content_range.startswith("bytes */"):
            return _incomplete(received)
        fault = self._take_fault("upload", entry["name"], log_entry, deferred=("503",))
        start = int(content_range.removeprefix("bytes ").split("-")[0]) if content_range else 0
        if start > received:
            return _incomplete(received)
        with path.open("r+b" if path.is_file() else "wb") as stream:
            stream.seek(start)
            with contextlib.suppress(ClientDisconnected):  # the client sends the rest later
                while chunk := request.stream.read(_CHUNK):
                    stream.write(chunk)
            if fault is not None:
                stream.seek(start + (stream.tell() - start) // 2)
            received = stream.tell()
            stream.truncate()
        if fault is not None and fault.kind == "503":
            return _error(503, REFUSALS["503"])
        if fault is not None and fault.kind == "reset":
            raise _ConnectionReset
        if received < entry["size"]:
            return _incomplete(received)
        self.kaggle.uploads.complete(token)
        log_entry["changes"] = True
        return Response(status=200)

    def _output(self, request: Request, slug: str, place: str, log_entry: JsonObject) -> Response:
        """An output file of a kernel."""
        fault = self._take_fault("output", slug, log_entry)
        kind = fault.kind if fault is not None else ""
        if kind == "expired":
            return _html_page(403)
        path = self.kaggle.kernels.output_file(place, self._linked_name(request, place))
        if fault is None:
            return self._file(request, path)
        content = path.read_bytes()
        if kind == "cut":
            raise _ConnectionReset(content[: max(1, len(content) // 2)])
        if kind == "timeout":
            time.sleep(float(fault.value or 1.0))
            raise _ConnectionReset
        return Response(content[: len(content) // 2], content_type="application/octet-stream")  # short

    def _linked_name(self, request: Request, place: str) -> str:
        """The name of the file of a link, once the link is checked."""
        query = request.args
        name, until, signature = (query.get(key, "") for key in ("name", "until", "signature"))
        self.kaggle.account.check_link(place, name, until=until, signature=signature)
        return name

    @staticmethod
    def _file(request: Request, path: Path) -> Response:
        """A file, or the requested range of it."""
        return send_file(
            path.resolve(), request.environ, mimetype="application/octet-stream", conditional=True
        )

    def _stream_log(self, request: Request, slug: str, owner: str, log_entry: JsonObject) -> Response:
        fault = self._take_fault("log", slug, log_entry)
        surrogates = fault is not None and fault.kind == "surrogates"
        if fault is not None and not surrogates:  # timeout
            time.sleep(float(fault.value or 1.0))
            raise _ConnectionReset
        kaggle, label = self.kaggle, request.args.get("versionLabel", "")
        kaggle.account.check_owner(owner)
        over, events = kaggle.kernels.log_events(slug, label, surrogates=surrogates)
        if over:
            return _json(events)

        def lines() -> Iterator[str]:
            sent, over = 0, False
            while not over and not kaggle.closed.is_set():
                try:
                    over, events = kaggle.kernels.log_events(slug, label, surrogates=surrogates)
                except ApiError:  # the kernel was deleted meanwhile
                    return
                for event in events[sent:]:
                    yield f"data: {json.dumps(event)}\n\n"
                sent = max(sent, len(events))
                if not over:
                    kaggle.closed.wait(_LOG_POLL)
            if over:
                yield "data: END_OF_LOG\n\n"

        return Response(lines(), content_type="text/event-stream")


class _ConnectionReset(Exception):  # noqa: N818  a control signal, not an error of the emulator
    """The connection is to be reset, after the first half of an answer where there is one."""

    def __init__(self, first_half: bytes = b"") -> None:
        super().__init__()
        self.first_half = first_half


class _HtmlPage(Exception):  # noqa: N818  a control signal, not an error of the emulator
    """The answer is to be an HTML page."""


class _TooManyRequestsError(ApiError):
    def __init__(self, retry_after: str) -> None:
        super().__init__(429, REFUSALS["429"])
        self.retry_after = retry_after


def _json(answer: Any) -> Response:
    return Response(json.dumps(answer), content_type="application/json")


def _html_page(status: int = 200) -> Response:
    return Response(_HTML, status=status, content_type="text/html")


def _error(status: int, message: str) -> Response:
    return Response(
        json.dumps({"code": status, "message": message}), status=status, content_type="application/json"
    )


def _incomplete(received: int) -> Response:
    """The range of an upload that has arrived."""
    return Response(status=308, headers={"Range": f"bytes=0-{received - 1}"} if received else {})
