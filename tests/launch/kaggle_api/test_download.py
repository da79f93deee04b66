"""Command `download` through the real Kaggle client, from a server that responds as Kaggle does."""

import io
import os
import subprocess
import sys
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
METHOD = "competitions.CompetitionApiService/DownloadDataFiles"


def archive(*, labels: bool = True) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as content:
        if labels:
            content.writestr("train_labels.csv", "id,label\naa,0\nbb,1\n")
        content.writestr("sample_submission.csv", "id,label\ncc,0\n")
        for name in ("train/aa.tif", "train/bb.tif", "test/cc.tif"):
            content.writestr(name, os.urandom(3000))
    return stream.getvalue()


class Kaggle:
    """A server with one RPC, which redirects to a signed address or refuses."""

    def __init__(self, content: bytes, *, status: int = 302, message: str = "", cut_after: int | None = None):
        kaggle = self
        self.requested: list[str] = []
        self.cuts = 1 if cut_after else 0

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):  # noqa: N802
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                path = self.path.removeprefix("http://localhost")
                kaggle.requested.append(path)
                if not path.endswith(METHOD):
                    return self._json(404, f"unknown method {path}")
                if status != 302:
                    return self._json(status, message)
                self.send_response(302)
                self.send_header(
                    "Location", f"http://localhost/signed/{'histopathologic-cancer-detection'}.zip?token=x"
                )
                self.send_header("Content-Length", "0")
                self.end_headers()
                return None

            def do_GET(self):  # noqa: N802
                kaggle.requested.append(self.path)
                start = 0
                if spec := self.headers.get("Range"):
                    start = int(spec.removeprefix("bytes=").split("-")[0])
                body = content[start:]
                self.send_response(206 if start else 200)
                self.send_header("Content-Length", str(len(body)))
                self.send_header("Accept-Ranges", "bytes")
                self.send_header("ETag", '"one"')
                self.send_header("Last-Modified", "Mon, 01 Jun 2026 10:00:00 GMT")
                if start:
                    self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
                self.end_headers()
                if kaggle.cuts:
                    kaggle.cuts -= 1
                    body = body[:cut_after]
                self.wfile.write(body)
                self.close_connection = True

            def _json(self, code: int, text: str):
                body = f'{{"code": {code}, "message": "{text}"}}'.encode()
                self.send_response(code)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *arguments):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def download(self, home: Path, *, credentials: bool = True) -> subprocess.CompletedProcess:
        proxy = f"http://127.0.0.1:{self.server.server_port}"
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "KAGGLE_API_ENVIRONMENT": "LOCALHOST",
            "HTTP_PROXY": proxy,
            "http_proxy": proxy,
            "NO_PROXY": "",
            "no_proxy": "",
        }
        if credentials:
            environment |= {"KAGGLE_USERNAME": "alice", "KAGGLE_KEY": "0" * 32}
        command = [sys.executable, "build_kernel.py", "download", "--out", str(home / "input" / "data")]
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)


@pytest.fixture
def serve():
    servers = []

    def start(*arguments, **options):
        servers.append(Kaggle(*arguments, **options))
        return servers[-1]

    yield start
    for kaggle in servers:
        kaggle.server.shutdown()
        kaggle.server.server_close()


def test_the_data_are_complete_and_the_archive_is_removed(serve, tmp_path):
    content = archive()
    kaggle = serve(content)
    done = kaggle.download(tmp_path)
    assert done.returncode == 0, done.stderr + done.stdout
    folder = tmp_path / "input" / "data"
    with zipfile.ZipFile(io.BytesIO(content)) as expected:
        for name in expected.namelist():
            assert (folder / name).read_bytes() == expected.read(name)
    assert sorted(path.name for path in folder.parent.iterdir()) == ["data"]
    again = kaggle.download(tmp_path)
    assert again.returncode == 0
    assert "is there already" in again.stdout


def test_a_broken_download_is_resumed(serve, tmp_path):
    kaggle = serve(archive(), cut_after=1500)
    done = kaggle.download(tmp_path)
    assert done.returncode == 0, done.stderr + done.stdout
    assert (tmp_path / "input" / "data" / "train_labels.csv").read_text().startswith("id,label")
    assert sum("signed" in path for path in kaggle.requested) >= 2


@pytest.mark.parametrize(
    ("status", "remedy"), [(403, "Accept the rules"), (401, "API token"), (500, "resumes the download")]
)
def test_a_refusal_shows_the_message_and_the_remedy(serve, tmp_path, status, remedy):
    done = serve(b"", status=status, message="the service says no").download(tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("error:")
    assert remedy in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "input" / "data").exists()


def test_without_credentials_the_message_says_how_to_get_them(serve, tmp_path):
    kaggle = serve(archive())
    done = kaggle.download(tmp_path, credentials=False)
    assert done.returncode == 1
    assert "kaggle.com/settings/api" in done.stderr
    assert not kaggle.requested


@pytest.mark.parametrize("content", [b"not a zip file at all", archive(labels=False)])
def test_an_archive_that_is_not_the_data_is_refused(serve, tmp_path, content):
    done = serve(content).download(tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("error:")
    assert "emove it" in done.stderr
    assert not (tmp_path / "input" / "data").exists()
