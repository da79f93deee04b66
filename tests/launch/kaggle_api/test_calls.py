"""Calls of the Kaggle client: deadlines, retries, and one error of the package for each exception."""

import contextlib
import sys
import threading
from enum import Enum
from types import SimpleNamespace

import pytest
import requests

from launch.kaggle_api.calls import (
    RetryPolicy,
    call_once,
    call_repeatedly,
    call_with_deadline,
    reading,
    translate,
    upload_notes_in,
)
from launch.kaggle_api.client import Kaggle
from launch.kaggle_api.errors import (
    ClientError,
    CredentialsError,
    NoResponseError,
    RefusedError,
    UnexpectedResponseError,
)

SECRET = "the-token-in-use-123"
POLICY = RetryPolicy(call_timeout=5.0, attempts=3, delay=0.001, max_delay=0.002)


def http_error(
    status: int, message: str = "the message of the service", **headers: str
) -> requests.HTTPError:
    response = requests.Response()
    response.status_code = status
    response._content = f'{{"code": {status}, "message": "{message}"}}'.encode()
    response.headers.update(headers)
    return requests.HTTPError("HTTP error for url: http://localhost/x", response=response)


@pytest.mark.parametrize(
    ("error", "changes", "expected", "word"),
    [
        (http_error(400), True, RefusedError, "Kaggle refused to push x"),
        (http_error(403), False, RefusedError, "the message of the service"),
        (http_error(403, "half a pair: \\ud83d."), False, RefusedError, "half a pair: \ufffd."),
        (http_error(403, "a pair: \\ud83d\\udc00."), False, RefusedError, "a pair: \U0001f400."),
        (http_error(401), True, CredentialsError, "kaggle.com/settings/api"),
        (http_error(429), True, NoResponseError, "Kaggle could not push x"),
        (http_error(500), True, NoResponseError, "HTTP 500"),
        (requests.ConnectionError("reset"), True, NoResponseError, "no response from Kaggle"),
        (TimeoutError("5 s"), False, NoResponseError, "no response from Kaggle"),
        (SystemExit(1), True, NoResponseError, "no response from Kaggle"),
        # An enum value that the client does not know: a change may have had its effect, a reading call has
        # failed.
        (KeyError("NEW_STATE"), True, NoResponseError, "unknown value"),
        (KeyError("NEW_STATE"), False, UnexpectedResponseError, "unknown value 'NEW_STATE'"),
        (ValueError("Expecting value"), True, NoResponseError, "cannot be read"),
        (TypeError("None"), True, NoResponseError, "cannot be read"),
        (ValueError("Upload unsuccessful: a.zip"), True, NoResponseError, "a.zip"),
    ],
)
def test_each_exception_becomes_one_error(error, changes, expected, word):
    translated = translate("push x", error, secrets=(), changes=changes)
    assert type(translated) is expected
    assert word in str(translated)


def test_the_status_and_the_pause_of_the_service_are_kept():
    assert translate("pull x", http_error(404), secrets=()).status == 404
    error = translate("pull x", http_error(429, **{"Retry-After": "7"}), secrets=())
    assert error.retry_after == 7.0
    for value in ("-1", "soon", ""):
        assert translate("pull x", http_error(429, **{"Retry-After": value}), secrets=()).retry_after == 0.0
    assert translate("pull x", http_error(429, **{"Retry-After": "1e9"}), secrets=()).retry_after == 600.0


def test_no_secret_is_in_a_message():
    error = translate("push x", http_error(400, f"bad token {SECRET}"), secrets=(SECRET,))
    assert "bad token" in str(error)
    assert SECRET not in str(error)


def test_a_call_that_reads_is_repeated_until_there_is_a_response():
    errors = [requests.ConnectionError("reset"), http_error(503)]

    def call():
        if errors:
            raise errors.pop(0)
        return "response"

    assert call_repeatedly("pull x", call, policy=POLICY, secrets=()) == "response"
    assert not errors


def test_the_number_of_attempts_is_limited_and_named():
    calls = []

    def call():
        calls.append(1)
        raise requests.ConnectionError("reset")

    with pytest.raises(NoResponseError, match="3 attempts"):
        call_repeatedly("pull x", call, policy=POLICY, secrets=())
    assert len(calls) == 3


@pytest.mark.parametrize("error", [http_error(404), http_error(401), KeyError("NEW_STATE")])
def test_a_response_that_will_not_change_is_not_repeated(error):
    calls = []

    def call():
        calls.append(1)
        raise error

    with pytest.raises(ClientError):
        call_repeatedly("pull x", call, policy=POLICY, secrets=())
    assert len(calls) == 1


def test_a_call_that_changes_something_is_made_once():
    calls = []

    def call():
        calls.append(1)
        raise requests.ConnectionError("reset")

    with pytest.raises(NoResponseError):
        call_once("push x", call, timeout=5.0, secrets=())
    assert len(calls) == 1


def test_an_error_of_our_own_is_not_translated():
    def call():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        call_once("push x", call, timeout=5.0, secrets=())


def test_the_pauses_double_up_to_their_limit():
    policy = RetryPolicy(delay=2.0, max_delay=7.0)
    assert [policy.pause(attempt) for attempt in (1, 2, 3, 4)] == [2.0, 4.0, 7.0, 7.0]


def test_a_call_that_does_not_return_ends_at_its_deadline(capsys):
    released = threading.Event()
    with pytest.raises(TimeoutError, match="no response within"):
        call_with_deadline(lambda: released.wait(30), timeout=0.05)
    released.set()


def test_what_the_client_prints_is_hidden(capsys):
    def call():
        print("progress")
        print("progress", file=sys.stderr)
        return 1

    assert call_with_deadline(call, timeout=5.0) == 1
    assert capsys.readouterr() == ("", "")


def test_a_value_of_the_wrong_type_is_an_error():
    with pytest.raises(UnexpectedResponseError, match="about a dataset"), reading("a dataset"):
        int("three")
    with pytest.raises(NoResponseError), reading("a push", NoResponseError):
        len(3)


def test_the_notes_of_uploads_are_kept_in_the_given_folder(tmp_path):
    import tempfile

    before = tempfile.gettempdir()
    with upload_notes_in(tmp_path):
        assert tempfile.gettempdir() == str(tmp_path)
    assert tempfile.gettempdir() == before


def test_a_status_that_only_a_newer_client_knows_is_not_understood(monkeypatch):
    kaggle = Kaggle(api=None, user="alice")
    newer = Enum("KernelWorkerStatus", ["QUEUED", "WARMING_UP"])
    for name, known in (("QUEUED", True), ("WARMING_UP", False)):
        response = SimpleNamespace(status=newer[name], failure_message=None)
        monkeypatch.setattr(Kaggle, "_read", lambda self, *call, response=response: response)
        with contextlib.nullcontext() if known else pytest.raises(UnexpectedResponseError, match=name):
            assert kaggle.status("hcd-x").name == name
