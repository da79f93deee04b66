"""HTTP for the loopback Kaggle: the wire format that the unmodified client speaks, and everything that can go wrong on it."""

import contextlib
import json
import socket
import struct
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from werkzeug.serving import WSGIRequestHandler, make_server
from werkzeug.wrappers import Request, Response

from launch.errors import LaunchError
from launch.rehearsal.faults import Fault
from launch.rehearsal.service import ApiError, Json, LoopbackKaggle

_HTML = "<!doctype html><html><body>Something went wrong</body></html>"
_REFUSALS = {
    "400": "Bad request",
    "401": "Unauthenticated",
    "403": "Permission denied",
    "404": "Not found",
    "409": "Conflict",
    "429": "Too many requests",
    "500": "Internal error",
    "502": "Bad gateway",
    "503": "Service unavailable",
}
_LOG_LOOK = 0.2  # seconds between looks at the log of a running kernel


class _QuietHandler(WSGIRequestHandler):
    def log(self, type: str, message: str, *args: Any) -> None:  # noqa: A002  the name is werkzeug's
        """The request log is ours."""


class Server:
    """A context in which the loopback Kaggle answers on a port of this machine.

    Args:
        kaggle: what answers.
        port: 0 takes a free one.
        host: the address.
    """

    def __init__(self, kaggle: LoopbackKaggle, *, port: int = 0, host: str = "127.0.0.1") -> None:
        self.kaggle, self.host = kaggle, host
        try:
            self._server = make_server(host, port, self._answer, threaded=True, request_handler=_QuietHandler)
        except (OSError, SystemExit) as error:  # werkzeug leaves by sys.exit where the port is taken
            raise LaunchError(f"port {port} cannot be used: choose another, or 0 for a free one") from error
        self.port = int(self._server.server_port)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> "Server":
        self._thread.start()
        self.kaggle.resume()
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
            "KAGGLE_API_TOKEN": self.kaggle.token,  # beats whatever credentials the user has
            "KAGGLE_CONFIG_DIR": str(self.kaggle.folder / "config"),
        }

    # --- one request -------------------------------------------------------------------------------------------------

    def _answer(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        request = Request(environ)
        began = time.time()
        method, slug = "", ""
        note: Json = {}
        try:
            method, slug, response = self._route(request, note)
        except ApiError as error:
            response = _error(error.status, error.message)
            if isinstance(error, _TooMany):
                response.headers["Retry-After"] = error.after
        except _Cut as cut:
            note["fault"] = cut.fault.what
            self._log(began, request, method or cut.method, slug or cut.slug, 0, note)
            return self._break(environ, cut.half)
        self._log(began, request, method, slug, response.status_code, note)
        response.headers["Connection"] = "close"
        return response(environ, start_response)

    def _log(self, began: float, request: Request, method: str, slug: str, status: int, note: Json) -> None:
        entry = {"at": round(began, 3), "method": method or request.path, "slug": slug, "status": status}
        self.kaggle.note({**entry, "seconds": round(time.time() - began, 3), **note})

    @staticmethod
    def _break(environ: dict[str, Any], half: bytes) -> Iterable[bytes]:
        """End the connection with a reset, after half of an answer where there is one."""
        connection: socket.socket = environ["werkzeug.socket"]
        with contextlib.suppress(OSError):
            if half:
                head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {2 * len(half)}\r\n\r\n"
                connection.sendall(head.encode() + half)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.shutdown(socket.SHUT_RDWR)  # the handler's own files keep the socket open beyond a close
            connection.close()
        raise ConnectionResetError("broken on purpose")

    def _route(self, request: Request, note: Json) -> tuple[str, str, Response]:
        path = urllib.parse.unquote(request.path)
        if path.startswith("/upload/") and request.method == "PUT":
            return "upload", "", self._upload(request, path.removeprefix("/upload/"), note)
        if path.startswith("/output/") and request.method == "GET":
            slug = path.split("/")[2]
            return "output", slug, self._output(request, slug, path.split("/")[3], note)
        if path.startswith("/archive/") and request.method == "GET":
            return "archive", "", _download(self.kaggle.archive(), request)
        prefix = "/api/v1/"
        if not path.startswith(prefix):
            raise ApiError(404, f"no such address: {path}")
        self._authenticate(request, path)
        rest = path.removeprefix(prefix)
        if rest.startswith("kernels/logs/stream/"):
            slug = rest.split("/")[-1]
            return "log", slug, self._stream_log(slug, note)
        return self._rpc(request, rest.split("/")[-1], note)

    def _authenticate(self, request: Request, path: str) -> None:
        if path.endswith("/IntrospectToken"):
            return
        given = request.authorization
        token = ""
        if given is not None:
            token = str(given.token or "") if given.type == "bearer" else str(given.password or "")
        if token != self.kaggle.token:
            raise ApiError(401, "Unauthenticated")

    def _rpc(self, request: Request, method: str, note: Json) -> tuple[str, str, Response]:
        try:
            body = request.get_json(force=True, silent=True) or {}
        except ValueError:
            body = {}
        slug = str(body.get("kernelSlug") or body.get("datasetSlug") or body.get("slug") or "").split("/")[-1]
        fault = self.kaggle.faults.take(method, slug)
        if fault is not None:
            note["fault"] = fault.what
            _strike_before(fault, method, slug)
        if fault is not None and fault.what == "html":
            return method, slug, Response(_HTML, content_type="text/html")
        if fault is not None and fault.what == "empty":
            return method, slug, _json({})
        answer = self._call(method, body, fault)
        if isinstance(answer, Response):
            return method, slug, answer
        if method == "SaveKernel" and "versionNumber" in answer:
            note["version"] = answer["versionNumber"]
        if fault is not None and fault.what == "timeout":
            time.sleep(float(fault.value or 1.0))
            raise _Cut(fault, method, slug)
        if fault is not None and fault.what == "reset-after":
            text = json.dumps(answer).encode()
            raise _Cut(fault, method, slug, half=text[: max(1, len(text) // 2)])
        if fault is not None and fault.what == "html-after":
            return method, slug, Response(_HTML, content_type="text/html")
        return method, slug, _json(answer)

    def _call(self, method: str, body: Json, fault: Fault | None) -> Json | Response:
        kaggle, base = self.kaggle, f"http://{self.host}:{self.port}"
        if method == "IntrospectToken":
            right = body.get("token") == kaggle.token
            return {"active": right, **({"username": kaggle.owner} if right else {})}
        if method in ("StartBlobUpload", "StartSubmissionUpload"):
            return kaggle.start_upload(method, body, base)
        if method in ("DownloadDataFiles", "DownloadDataFile"):
            kaggle.archive()
            return Response(status=302, headers={"Location": f"{base}/archive/data.zip?signature=x"})
        plain: dict[str, Callable[[Json], Json]] = {
            "GetDatasetStatus": kaggle.dataset_status,
            "GetDataset": kaggle.get_dataset,
            "ListDatasetFiles": kaggle.dataset_files,
            "CreateDataset": kaggle.create_dataset,
            "CreateDatasetVersion": kaggle.create_dataset_version,
            "GetKernel": kaggle.get_kernel,
            "ListKernels": kaggle.list_kernels,
            "ListKernelFiles": kaggle.kernel_files,
            "DeleteKernel": kaggle.delete_kernel,
            "CreateSubmission": kaggle.submit,
            "ListSubmissions": kaggle.list_submissions,
            "GetSubmission": kaggle.get_submission,
            "GetSubmissionLimits": lambda _: kaggle.submission_limits(),
            "GetAcceleratorQuotaStatistics": lambda _: kaggle.quota(),
            "GetCompetition": lambda _: kaggle.competition(),
            "ListCompetitions": lambda _: {"competitions": [kaggle.competition()]},
            "ListDataFiles": lambda _: kaggle.competition_files(),
            "SaveKernel": lambda given: kaggle.save_kernel(given, fault),
            "GetKernelSessionStatus": lambda given: kaggle.kernel_status(given, fault),
            "ListKernelSessionOutput": lambda given: kaggle.kernel_output(given, fault, base),
        }
        if method not in plain:
            raise ApiError(404, f"unknown method {method}")
        with kaggle.lock:
            return plain[method](body)

    # --- files -------------------------------------------------------------------------------------------------------

    def _upload(self, request: Request, token: str, note: Json) -> Response:
        """The PUT of a file, by Google's resumable protocol."""
        entry, path = self.kaggle.blob(token)
        asked = request.headers.get("Content-Range", "")
        if asked.startswith("bytes */"):
            have = path.stat().st_size if path.is_file() else 0
            if entry["complete"]:
                return Response(status=200)
            return Response(status=308, headers={"Range": f"bytes=0-{have - 1}"} if have else {})
        fault = self.kaggle.faults.take("upload", entry["name"])
        if fault is not None:
            note["fault"] = fault.what
        start = int(asked.removeprefix("bytes ").split("-")[0]) if asked else 0
        body = request.get_data()
        cut = fault is not None and fault.what in ("503", "reset")
        with path.open("r+b" if path.is_file() else "wb") as stream:
            stream.seek(start)
            stream.write(body[: len(body) // 2] if cut else body)
            stream.truncate()
        if fault is not None and fault.what == "404":
            raise ApiError(404, "the upload has expired")
        if fault is not None and fault.what == "503":
            return _error(503, "Service unavailable")
        if fault is not None and fault.what == "reset":
            raise _Cut(fault, "upload", entry["name"])
        self.kaggle.complete_blob(token)
        return Response(status=200)

    def _output(self, request: Request, slug: str, version: str, note: Json) -> Response:
        fault = self.kaggle.faults.take("output", slug)
        what = fault.what if fault is not None else ""
        note |= {"fault": what} if what else {}
        name = request.args.get("name", "")
        if what in ("expired", "403", "404"):
            return Response(_HTML, status=404 if what == "404" else 403, content_type="text/html")
        if what == "html":
            return Response(_HTML, content_type="text/html")
        if fault is not None:
            _strike_before(fault, "output", slug)
        path = self.kaggle.output_file(slug, version, name, request.args.get("until", ""), request.args.get("signature", ""))
        content = path.read_bytes()
        if what == "short":
            content = content[: len(content) // 2]
        if what == "cut" and fault is not None:
            raise _Cut(fault, "output", slug, half=content[: max(1, len(content) // 2)])
        return Response(content, content_type="application/octet-stream")

    def _stream_log(self, slug: str, note: Json) -> Response:
        fault = self.kaggle.faults.take("log", slug)
        if fault is not None:
            note["fault"] = fault.what
            _strike_before(fault, "log", slug)
        over, events = self.kaggle.log_events(slug)
        if over:
            return _json(events)

        def lines() -> Iterator[str]:
            sent, over = 0, False
            while not over:
                over, events = self.kaggle.log_events(slug)
                for event in events[sent:]:
                    yield f"data: {json.dumps(event)}\n\n"
                sent = max(sent, len(events))
                if not over:
                    time.sleep(_LOG_LOOK)
            yield "data: END_OF_LOG\n\n"

        return Response(lines(), content_type="text/event-stream")


class _Cut(Exception):  # noqa: N818  not an error of ours
    """The connection is to be broken."""

    def __init__(self, fault: Fault, method: str, slug: str, half: bytes = b"") -> None:
        super().__init__(fault.what)
        self.fault, self.method, self.slug, self.half = fault, method, slug, half


def _strike_before(fault: Fault, method: str, slug: str) -> None:
    """What a fault does before the request takes effect."""
    if fault.what == "reset-before":
        raise _Cut(fault, method, slug)
    if fault.what == "429":
        raise _TooMany(str(fault.value if fault.value is not None else 1))
    if fault.what in _REFUSALS:
        raise ApiError(int(fault.what), str(fault.value or _REFUSALS[fault.what]))


class _TooMany(ApiError):
    def __init__(self, after: str) -> None:
        super().__init__(429, _REFUSALS["429"])
        self.after = after


def _json(answer: Any) -> Response:
    return Response(json.dumps(answer), content_type="application/json")


def _error(status: int, message: str) -> Response:
    return Response(json.dumps({"code": status, "message": message}), status=status, content_type="application/json")


def _download(content: bytes, request: Request) -> Response:
    """A file that can be fetched in parts."""
    wanted = request.headers.get("Range", "")
    start = int(wanted.removeprefix("bytes=").split("-")[0]) if wanted.startswith("bytes=") else 0
    headers = {"Accept-Ranges": "bytes", "ETag": '"one"', "Last-Modified": "Mon, 01 Jun 2026 10:00:00 GMT"}
    if start:
        headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
    return Response(content[start:], status=206 if start else 200, headers=headers, content_type="application/zip")
