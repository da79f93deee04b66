"""The sandbox of a kernel: isolation, read-only inputs, no network, time limit, end with the command."""

import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from launch import sandbox
from launch.errors import LaunchError
from launch.sandbox import Mount, Outcome, isolation, run_script

ROOT = Path(__file__).resolve().parents[2]
namespaces = pytest.mark.skipif(isolation() != "namespaces", reason="no namespaces on this system")
DOCUMENTATION_ADDRESS = ("192.0.2.1", 9)  # reserved by RFC 5737: no host has it


def run(folder: Path, source: str, **options: Any) -> Outcome:
    """Run a few lines as a kernel."""
    script = folder / "written.py"
    script.write_text(source)
    keywords = {"mounts": [], "place": "rehearsal", "threads": 1, "network": False, "limit": 30.0, **options}
    return run_script(script, folder=folder / "run", **keywords)


def printed(outcome: Outcome) -> dict[str, Any]:
    """The JSON in the last line that the script printed."""
    lines = outcome.log.read_text().splitlines()
    assert outcome.code == 0, lines
    content: dict[str, Any] = json.loads(lines[-1])
    return content


def test_a_kernel_sees_no_repository_and_the_folders_of_kaggle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    source = """
import importlib.util, json, os, sys
facts = {
    "importable": [n for n in ("launch", "lib", "kernels") if importlib.util.find_spec(n)],
    "path": sys.path,
    "cwd": os.getcwd(),
    "here": os.listdir(),
    "script": os.listdir(os.path.dirname(__file__)),
    "environment": dict(os.environ),
}
print(json.dumps(facts))
"""
    facts = printed(run(tmp_path, source))
    assert facts["importable"] == []
    assert str(ROOT) not in facts["path"]
    assert facts["path"][0] == str(tmp_path / "run" / "src")
    assert facts["cwd"] == str(tmp_path / "run" / "working")
    assert facts["here"] == []
    assert facts["script"] == ["script.py"]
    assert facts["environment"]["HCD_PLACE"] == "rehearsal"
    assert facts["environment"]["KAGGLE_KERNEL_RUN_TYPE"] == "Batch"
    assert facts["environment"]["OMP_NUM_THREADS"] == "1"


def test_the_users_environment_variables_do_not_reach_the_kernel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SECRET_X", "KAGGLE_KEY", "KAGGLE_API_TOKEN", "HF_TOKEN", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "hidden-value")
    facts = printed(run(tmp_path, "import json, os; print(json.dumps(dict(os.environ)))"))
    assert "hidden-value" not in facts.values()
    assert Path(facts["HOME"]).parent == tmp_path / "run"
    assert Path(facts["TMPDIR"]).parent == tmp_path / "run"


@namespaces
def test_inputs_are_read_only(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "tile.tif").write_text("pixels")
    source = """
import json, os, pathlib
place = pathlib.Path(os.environ["HCD_INPUT"]) / "competitions" / "some"
facts = {"read": (place / "tile.tif").read_text()}
for name, act in {
    "change": lambda: (place / "tile.tif").write_text("other"),
    "add": lambda: (place / "new").write_text("new"),
    "remove": lambda: (place / "tile.tif").unlink(),
}.items():
    try:
        act()
        facts[name] = "done"
    except OSError as error:
        facts[name] = error.strerror
print(json.dumps(facts))
"""
    facts = printed(run(tmp_path, source, mounts=[Mount(tmp_path / "data", "competitions/some")]))
    refused = "Read-only file system"
    assert facts == {"read": "pixels", "change": refused, "add": refused, "remove": refused}
    assert (tmp_path / "data" / "tile.tif").read_text() == "pixels"


CONNECT = """
import json, socket, sys
facts = {{}}
for host, port in {addresses!r}:
    try:
        socket.create_connection((host, port), timeout=2).close()
        facts[host] = "connected"
    except OSError as error:
        facts[host] = str(error) or type(error).__name__
print(json.dumps(facts))
"""


@namespaces
def test_without_network_no_address_can_be_reached(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        source = CONNECT.format(addresses=[listener.getsockname()[:2], DOCUMENTATION_ADDRESS])
        facts = printed(run(tmp_path, source))
        assert "connected" not in facts.values()
        reached = printed(run(tmp_path, CONNECT.format(addresses=[listener.getsockname()[:2]]), network=True))
    assert reached == {"127.0.0.1": "connected"}


def test_guarded_sockets_refuse_a_remote_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "isolation", lambda: "guard")
    (tmp_path / "data").mkdir()
    outcome = run(
        tmp_path,
        CONNECT.format(addresses=[DOCUMENTATION_ADDRESS]),
        mounts=[Mount(tmp_path / "data", "datasets/a/b")],
    )
    assert (
        "no network in this kernel (enable_internet is false)" in printed(outcome)[DOCUMENTATION_ADDRESS[0]]
    )
    assert "isolation: no namespaces here: inputs are links, sockets guarded" in outcome.log.read_text()


def test_guarded_sockets_refuse_connect_ex_and_sendto(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sandbox, "isolation", lambda: "guard")
    source = f"""
import json, socket
facts = {{}}
stream, datagram = socket.socket(), socket.socket(type=socket.SOCK_DGRAM)
stream.settimeout(0.1)
for name, act in {{
    "connect_ex": lambda: stream.connect_ex({DOCUMENTATION_ADDRESS!r}),
    "sendto": lambda: datagram.sendto(b"x", {DOCUMENTATION_ADDRESS!r}),
}}.items():
    try:
        act()
        facts[name] = "allowed"
    except OSError as error:
        facts[name] = "no network in this kernel" in str(error)
print(json.dumps(facts))
"""
    assert printed(run(tmp_path, source)) == {"connect_ex": True, "sendto": True}


def test_the_guard_changes_sockets_only_as_sitecustomize() -> None:
    connect = socket.socket.connect
    importlib.import_module("launch.network_guard")
    assert socket.socket.connect is connect


def test_the_time_limit_ends_a_script_and_its_children(tmp_path: Path) -> None:
    source = """
import pathlib, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
pathlib.Path("child").write_text(str(child.pid))
time.sleep(60)
"""
    started = time.monotonic()
    outcome = run(tmp_path, source, limit=2.0)
    assert outcome.timed_out
    assert outcome.code != 0
    assert time.monotonic() - started < 10
    assert gone(int((tmp_path / "run" / "working" / "child").read_text()))


def test_the_exit_code_is_that_of_the_script(tmp_path: Path) -> None:
    outcome = run(tmp_path, "import sys; sys.exit('error: no')")
    assert (outcome.code, outcome.timed_out) == (1, False)
    assert outcome.log.read_text().endswith("error: no\n")


def test_the_working_folder_is_kept_and_the_rest_is_created_again(tmp_path: Path) -> None:
    run(tmp_path, "open('half', 'w').write('1'); import os; open(os.environ['TMPDIR'] + '/x', 'w')")
    facts = printed(
        run(tmp_path, "import json, os; print(json.dumps([os.listdir(), os.listdir(os.environ['TMPDIR'])]))")
    )
    assert facts == [["half"], []]


def test_a_second_run_in_the_same_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "_LOCK_WAIT", 0.2)
    running = threading.Thread(target=run, args=(tmp_path, "open('here', 'w'); import time; time.sleep(3)"))
    running.start()
    wait_for(tmp_path / "run" / "working" / "here")
    with pytest.raises(LaunchError, match="another run uses"):
        run_script(
            tmp_path / "written.py",
            folder=tmp_path / "run",
            mounts=[],
            place="rehearsal",
            threads=1,
            network=False,
            limit=5,
        )
    running.join()


def wait_for(path: Path, *, seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.02)


def gone(process: int, *, seconds: float = 5) -> bool:
    """Whether a process ends within a few seconds; a zombie has ended."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


@pytest.mark.skipif(sys.platform != "linux", reason="a kernel ends with its command on Linux only")
@pytest.mark.parametrize("kind", ["namespaces", "guard"])
def test_a_kernel_ends_when_its_command_is_killed(kind: str, tmp_path: Path) -> None:
    if kind == "namespaces" and isolation() != "namespaces":
        pytest.skip("no namespaces on this system")
    (tmp_path / "long.py").write_text(
        "import os, time; open('pid', 'w').write(str(os.getpid())); os.rename('pid', 'id'); time.sleep(60)"
    )
    command = f"""
from pathlib import Path
from launch import sandbox
sandbox.isolation = lambda: {kind!r}
sandbox.run_script(
    Path("long.py"),
    folder=Path("run").resolve(),
    mounts=[],
    place="local",
    threads=1,
    network=False,
    limit=None,
)
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", command], cwd=tmp_path, env=environment)
    try:
        wait_for(tmp_path / "run" / "working" / "id")
        kernel = int((tmp_path / "run" / "working" / "id").read_text())
        os.kill(kernel, 0)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert gone(kernel)
    # The folder is free for the next command.
    assert run(tmp_path, "print('{}')").code == 0
