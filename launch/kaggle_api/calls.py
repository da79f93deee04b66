"""Calls into the `kaggle` package: deadlines, retries, and exceptions translated into errors of this package.

A call that changes something on Kaggle is made once, because an exception does not tell whether it had its
effect. A call that only reads is repeated while the service is busy or cannot be reached.
"""

import contextlib
import io
import random
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from launch.kaggle_api.errors import (
    CREDENTIALS,
    ClientError,
    CredentialsError,
    NoResponseError,
    RefusedError,
    UnexpectedResponseError,
)
from launch.packaging.secret_scan import clean

T = TypeVar("T")

# What decoding an unexpected response raises, in the `kaggle` package and here.
DECODING_ERRORS = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)
# Of the check whether there is a network: seconds of an attempt and between two, and how many are made.
_NETWORK_TIMEOUT, _NETWORK_PAUSE, _NETWORK_ATTEMPTS = 4.0, 1.0, 2
_MAX_RETRY_AFTER = 600.0  # seconds; more is not waited for in one call


@dataclass(frozen=True)
class RetryPolicy:
    """Time limits of one call, and how often a call that only reads is repeated.

    Attributes:
        call_timeout: seconds until a call without a response is given up.
        upload_timeout: the same for uploads and downloads of files.
        attempts: how often a call that only reads is made.
        delay: seconds before the second attempt; the pause doubles with each attempt.
        max_delay: seconds that a pause never exceeds, unless the service wants a longer one.
    """

    call_timeout: float = 120.0
    upload_timeout: float = 3600.0
    attempts: int = 6
    delay: float = 2.0
    max_delay: float = 60.0

    def pause(self, attempt: int) -> float:
        """Seconds to wait after attempt number `attempt`, counted from 1."""
        return float(min(self.delay * 2 ** (attempt - 1), self.max_delay))


def call_once(
    action: str, call: Callable[[], T], *, timeout: float, secrets: tuple[str, ...], changes: bool = True
) -> T:
    """Make one call with a deadline.

    Args:
        action: the request in words that complete "Kaggle refused to ...".
        call: makes the request.
        timeout: seconds.
        secrets: removed from messages.
        changes: whether the request changes something on Kaggle.

    Raises:
        ClientError: the call failed; the class says how.
    """
    import requests
    import urllib3

    try:
        return call_with_deadline(call, timeout=timeout)
    except (
        requests.RequestException,
        urllib3.exceptions.HTTPError,
        TimeoutError,
        SystemExit,
        OSError,
        *DECODING_ERRORS,
    ) as error:
        raise translate(action, error, secrets=secrets, changes=changes) from None


def call_repeatedly(
    action: str, call: Callable[[], T], *, policy: RetryPolicy, secrets: tuple[str, ...]
) -> T:
    """Make a call that only reads, and repeat it with growing pauses while there is no response.

    Raises:
        ClientError: the last attempt failed, or an attempt failed in a way that a repetition cannot change.
    """
    for attempt in range(1, policy.attempts + 1):
        try:
            return call_once(action, call, timeout=policy.call_timeout, secrets=secrets, changes=False)
        except NoResponseError as error:
            if attempt == policy.attempts:
                raise NoResponseError(f"{error} ({attempt} attempts)") from None
            time.sleep(max(policy.pause(attempt) * random.uniform(0.5, 1.0), error.retry_after))
    raise AssertionError("unreachable")


def require_network() -> None:
    """Check that the service can be reached at all: any HTTP response is enough.

    Raises:
        NoResponseError: there is no network, no name service or no route, or a proxy does not answer.
    """
    import requests
    from kagglesdk.kaggle_env import get_endpoint, get_env

    endpoint = get_endpoint(get_env())
    for attempt in range(1, _NETWORK_ATTEMPTS + 1):
        try:
            requests.head(endpoint, timeout=_NETWORK_TIMEOUT, allow_redirects=False)
            return
        except requests.RequestException as error:
            if attempt == _NETWORK_ATTEMPTS:
                raise NoResponseError(
                    f"{endpoint} cannot be reached from this machine ({type(error).__name__}). Check the "
                    "network and the proxy settings, then rerun the command: it continues. "
                    "status.kaggle.com reports outages. Kernels that run on Kaggle are not affected."
                ) from None
            time.sleep(_NETWORK_PAUSE)


def call_with_deadline(call: Callable[[], T], *, timeout: float, quiet: bool = True) -> T:
    """Run a call that has no deadline of its own, in a thread; with `quiet` nothing that it prints is shown.

    Raises:
        TimeoutError: the call has not returned; its thread is left to end by itself.
    """
    outcome: list[Any] = []

    def work() -> None:
        try:
            outcome.append((True, call()))
        except BaseException as error:  # noqa: B036  SystemExit too: the caller handles it
            outcome.append((False, error))

    thread = threading.Thread(target=work, daemon=True)
    hidden = io.StringIO()
    with contextlib.ExitStack() as stack:
        if quiet:
            stack.enter_context(contextlib.redirect_stdout(hidden))
            stack.enter_context(contextlib.redirect_stderr(hidden))
        thread.start()
        thread.join(timeout)
    if not outcome:
        raise TimeoutError(f"no response within {timeout:.0f} s")
    succeeded, value = outcome[0]
    if not succeeded:
        raise value
    result: T = value
    return result


def translate(
    action: str, error: BaseException, *, secrets: tuple[str, ...], changes: bool = False
) -> ClientError:
    """Decide what an exception of the client means, and return the error of this package for it."""
    import requests

    response = getattr(error, "response", None)
    status = response.status_code if response is not None else 0
    if isinstance(error, requests.HTTPError) and response is not None and status >= 400:
        text = clean(service_message(error), secrets)[:300]
        if status == 401:
            return CredentialsError(f"Kaggle refused to {action} (HTTP {status}: {text}).\n{CREDENTIALS}")
        if status == 429 or status >= 500:
            pause = _retry_after(response.headers.get("Retry-After"))
            return NoResponseError(f"Kaggle could not {action} (HTTP {status}: {text})", retry_after=pause)
        return RefusedError(f"Kaggle refused to {action} (HTTP {status}: {text})", status=status)
    if isinstance(error, KeyError) and not isinstance(error, requests.RequestException):
        # An enum value that the client does not know. A request that changes something may still have worked.
        unknown = NoResponseError if changes else UnexpectedResponseError
        return unknown(f"Kaggle's response to the request to {action} holds the unknown value {error}")
    if isinstance(error, ValueError) and "Upload unsuccessful" in str(error):  # kaggle 2.2.5
        return NoResponseError(f"could not {action}: {clean(str(error), secrets)}")
    if isinstance(error, DECODING_ERRORS) and not isinstance(error, OSError):
        # An error of the client before the request, such as a wrong value in the metadata, looks the same.
        detail = clean(f"{type(error).__name__}: {error}", secrets)[:200]
        return NoResponseError(f"Kaggle's response to the request to {action} cannot be read ({detail})")
    return NoResponseError(f"no response from Kaggle to the request to {action} ({type(error).__name__})")


def service_message(error: Any) -> str:
    """The message of the service in an HTTP error."""
    try:
        return without_surrogates(str(error.response.json()["message"]))
    except DECODING_ERRORS:
        return str(error).split(" for url:")[0]


def without_surrogates(text: str) -> str:
    """A text that every encoding can write: U+FFFD in place of each half of a surrogate pair.

    JSON can hold such halves, and a kernel can print anything.
    """
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _retry_after(value: Any) -> float:
    """Seconds of a Retry-After header; 0 where it holds no number."""
    try:
        return min(max(float(value), 0.0), _MAX_RETRY_AFTER)
    except (TypeError, ValueError):
        return 0.0


@contextlib.contextmanager
def reading(subject: str, error: type[ClientError] = UnexpectedResponseError) -> Iterator[None]:
    """Raise `error` where a value of a response has the wrong type: a word for a number, a list for a date.

    Raises:
        ClientError: of the class `error`.
    """
    try:
        yield
    except DECODING_ERRORS as problem:
        name = type(problem).__name__
        raise error(f"Kaggle's response about {subject} holds a value that cannot be read ({name})") from None


@contextlib.contextmanager
def upload_notes_in(folder: Path) -> Iterator[None]:
    """Make the client keep the progress of its uploads in `folder`.

    It keeps it in the temporary folder, and trusts what it finds there by path, size and time alone.
    """
    before = tempfile.tempdir
    tempfile.tempdir = str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = before
