"""The real `kaggle` package behind typed calls that never report a failure as success.

Every call has a deadline, says what was asked when it fails, and reads what the service answered, not an exit code. Calls
that change nothing are repeated when the service is busy or the connection breaks; a push, an upload and a submission
never are: whether they happened is for the caller to prove (`pull`, `dataset`, `submissions`) before it asks again.
Works with kaggle 2.2.4 and 2.2.5.
"""

import contextlib
import copy
import io
import operator
import random
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from launch.errors import LaunchError
from launch.packaging.secret_scan import clean, own_secrets, refuse_secrets, texts_in
from lib.runtime.session import COMPETITION

T = TypeVar("T")

CREDENTIALS = (
    "Make an API token at kaggle.com/settings/api and put it into ~/.kaggle/access_token (or the environment variable "
    "KAGGLE_API_TOKEN), or a legacy kaggle.json into ~/.kaggle."
)
RULES = f"Accept the rules once in the browser: kaggle.com/competitions/{COMPETITION}/rules"
# What the service calls the states of a run (kagglesdk KernelWorkerStatus); ABSENT is ours: there is no run to speak of.
QUEUED, RUNNING, COMPLETE, ERROR = "QUEUED", "RUNNING", "COMPLETE", "ERROR"
CANCEL_REQUESTED, CANCELLED, NEW, ABSENT = "CANCEL_REQUESTED", "CANCEL_ACKNOWLEDGED", "NEW_SCRIPT", "ABSENT"
ACTIVE = (QUEUED, RUNNING, CANCEL_REQUESTED, NEW)  # holds a slot
_PAGES = 500  # of a listing; more means that its page tokens go in a circle
_PAGE_SIZE = 200
_RECORD_LIMIT = 16 << 20  # bytes of a run.json; more is not one
# What decoding an unexpected answer raises, the client's and ours.
_STRANGE = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)


class ClientError(LaunchError):
    """The Kaggle client or service refused; the message says what was asked, what came back, and what to do."""


class CredentialsError(ClientError):
    """No credentials, or credentials that the service does not accept."""


class RefusedError(ClientError):
    """The service said no, in so many words: what was asked did not happen."""

    def __init__(self, message: str, *, status: int = 200) -> None:
        super().__init__(message)
        self.status = status


class CapacityError(RefusedError):
    """As many sessions are running as the account may have."""


class QuotaError(RefusedError):
    """The week's GPU hours are spent."""


class EmptyKernelError(RefusedError):
    """`Notebook not found` on a push: what a refused first push of a slug leaves behind."""


class NoResponseError(ClientError):
    """Nothing that can be understood came back: whether it happened is unknown."""

    def __init__(self, message: str, *, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after  # seconds the service asked us to wait


class UnexpectedResponseError(ClientError):
    """The service answered with something this code does not know; doubt is not success."""


class SourcesDroppedError(ClientError):
    """The push happened, but without some of its inputs: the version that runs now cannot succeed."""

    def __init__(self, message: str, *, version: int | None) -> None:
        super().__init__(message)
        self.version = version


@dataclass(frozen=True)
class RunStatus:
    """How the latest run of a kernel stands; `name` is the service's own word, or ABSENT."""

    name: str
    message: str = ""


@dataclass(frozen=True)
class PulledKernel:
    """What the service holds of a kernel: the source of its latest version, and on what it runs."""

    source: str
    version: int | None
    machine_shape: str
    internet: bool


@dataclass(frozen=True)
class Pushed:
    """An accepted push."""

    version: int | None
    url: str


@dataclass(frozen=True)
class Listing:
    """The output of a kernel's run: where each file can be fetched, and the log as text."""

    files: dict[str, str]
    log: str


@dataclass(frozen=True)
class Quota:
    """GPU hours of the week."""

    used: float
    allowed: float
    refresh: datetime | None

    @property
    def left(self) -> float:
        """Hours that may still be spent."""
        return max(0.0, self.allowed - self.used)


@dataclass(frozen=True)
class DatasetState:
    """A dataset: `status` in lower case (ready, failed, ...), and the number of its current version."""

    status: str
    version: int


@dataclass(frozen=True)
class Submission:
    """A submission as the service lists it; scores are None while there are none."""

    ref: int
    message: str
    status: str
    public: float | None
    private: float | None
    error: str
    date: str


@dataclass(frozen=True)
class RetryPolicy:
    """How long to wait for an answer, and how often to ask again where that is safe; seconds."""

    answer: float = 120.0
    upload: float = 3600.0
    tries: int = 6
    delay: float = 2.0
    longest_delay: float = 60.0


def message_of(error: Any) -> str:
    """What the service said in an HTTP error."""
    try:
        return str(error.response.json()["message"])
    except _STRANGE:
        return str(error).split(" for url:")[0]


@contextlib.contextmanager
def _reading(what: str, error: type[ClientError] = UnexpectedResponseError) -> Iterator[None]:
    """Name what is met while an answer's values are read: a word where a number belongs, a list where a date does.

    Raises:
        StrangeAnswerError: or the error given.
    """
    try:
        yield
    except _STRANGE as problem:
        raise error(
            f"Kaggle's answer about {what} holds a value that cannot be read ({type(problem).__name__})"
        ) from None


@dataclass
class Kaggle:
    """An authenticated account.

    Attributes:
        api: the package's own `KaggleApi`.
        user: who the service says we are.
        patience: deadlines and retries.
    """

    api: Any
    user: str
    patience: RetryPolicy = RetryPolicy()
    _secrets: tuple[str, ...] = field(default=(), repr=False)

    # --- kernels -----------------------------------------------------------------------------------------------------

    @_reading("a push", NoResponseError)
    def push(self, folder: Path, *, limit: float) -> Pushed:
        """Push the kernel in `folder`, to be ended by the service after `limit` seconds. Asked once, never repeated.

        Raises:
            CapacityError, QuotaError, GhostError, RefusedError: it did not happen, and why.
            SourcesDroppedError: it happened, without some of its inputs.
            NoAnswerError: unknown whether it happened; `pull` proves it.
            StrangeAnswerError: it was filed elsewhere, or nobody knows what was meant.
        """
        import json

        wanted = str(json.loads((folder / "kernel-metadata.json").read_text(encoding="utf-8"))["id"])
        what = f"push {wanted}"
        self._refuse_secrets(what, folder)
        answer = self._once(what, lambda: self.api.kernels_push(str(folder), timeout=str(int(limit))))
        if said := _text(answer.error):
            low = said.lower()
            kinds = {
                "session count": CapacityError,
                "quota": QuotaError,
                "notebook not found": EmptyKernelError,
            }
            kind = next((kind for text, kind in kinds.items() if text in low), RefusedError)
            raise kind(self.clean(f"Kaggle refused to {what}: {said}"))
        version = int(answer.version_number or 0) or None
        filed = _text(answer.ref).removeprefix("/code/").strip("/")
        if filed and filed.split("/")[-1].lower() != wanted.split("/")[-1].lower():
            raise UnexpectedResponseError(
                f"{wanted} was filed as {filed}: Kaggle derives the address from the title. Delete {filed} in the browser, "
                "build again and push again"
            )
        dropped = []
        for kind_of, values in (
            ("dataset", answer.invalid_dataset_sources),
            ("kernel", answer.invalid_kernel_sources),
            ("competition", answer.invalid_competition_sources),
            ("model", answer.invalid_model_sources),
        ):
            dropped += [f"{kind_of} {value}" for value in values or []]
        if dropped:
            text = f"Kaggle pushed {wanted} without some of its inputs ({', '.join(dropped)}): they do not exist or are not yours"
            raise SourcesDroppedError(self.clean(text), version=version)
        if version is None:
            raise NoResponseError(f"Kaggle answered the push of {wanted} with neither a version nor an error")
        return Pushed(version, _text(answer.url))

    @_reading("a kernel's status")
    def status(self, slug: str) -> RunStatus:
        """How the latest run of a kernel stands; ABSENT when the service knows of none (404), or will not say (403).

        Raises:
            StrangeAnswerError: a status nobody knows.
        """
        from kagglesdk.kernels.types.kernels_api_service import ApiGetKernelSessionStatusRequest as Request

        request = Request()
        request.user_name, request.kernel_slug = self.user, slug
        try:
            answer = self._read(
                f"ask for the status of {slug}",
                "kernels.kernels_api_client.get_kernel_session_status",
                request,
            )
        except RefusedError as error:
            if error.status in (403, 404):
                return RunStatus(ABSENT, str(error))
            raise
        return RunStatus(_word(answer.status, f"the status of {slug}"), _text(answer.failure_message))

    @_reading("a kernel")
    def pull(self, slug: str) -> PulledKernel | None:
        """What the service holds of a kernel; None when it holds none (404), or will not say (403).

        Raises:
            NoAnswerError: the service failed, as it does for the ghost of a refused first push.
        """
        from kagglesdk.kernels.types.kernels_api_service import ApiGetKernelRequest as Request

        request = Request()
        request.user_name, request.kernel_slug = self.user, slug
        try:
            answer = self._read(f"pull {slug}", "kernels.kernels_api_client.get_kernel", request)
        except RefusedError as error:
            if error.status in (403, 404):
                return None
            raise
        if answer.blob is None or answer.metadata is None:
            return None
        number = answer.metadata.current_version_number
        return PulledKernel(
            source=_text(answer.blob.source),
            version=int(number) if number else None,
            machine_shape=_text(answer.metadata.machine_shape),
            internet=bool(answer.metadata.enable_internet),
        )

    def delete(self, slug: str) -> None:
        """Delete a kernel and its run."""
        self._once(f"delete {slug}", lambda: self.api.kernels_delete(f"{self.user}/{slug}", no_confirm=True))

    @_reading("an output")
    def output(self, slug: str) -> Listing:
        """The output of the latest run, all pages.

        Raises:
            StrangeAnswerError: pages that go in a circle, or a name twice.
        """
        from kagglesdk.kernels.types.kernels_api_service import ApiListKernelSessionOutputRequest as Request

        request = Request()
        request.user_name, request.kernel_slug = self.user, slug
        files: dict[str, str] = {}
        log = ""
        for answer in self._pages(
            f"the output of {slug}", "kernels.kernels_api_client.list_kernel_session_output", request
        ):
            for item in answer.files or []:
                files[_text(item.file_name)] = _text(item.url)
            log = log or _text(answer.log)
        return Listing(files, _log_text(log))

    def _pages(self, what: str, method: str, request: Any, *, numbered: bool = False) -> Iterator[Any]:
        """The answers to a listing, page after page; some want the first page numbered, as the client does."""
        token = ""
        for _ in range(_PAGES):
            page = copy.copy(request)
            page.page_size, page.page_token = _PAGE_SIZE, token
            if numbered and not token:
                page.page = 1
            answer = self._read(f"list {what}", method, page)
            yield answer
            token = _text(answer.next_page_token)
            if not token:
                return
        raise UnexpectedResponseError(f"{what} has more than {_PAGES} pages: its page tokens go in a circle")

    def follow(self, slug: str) -> Iterator[str]:
        """The lines of a kernel's log, as they come while it runs."""
        import requests

        try:
            for event in self.api.kernels_logs_stream(f"{self.user}/{slug}"):
                yield from str(event.get("data", "")).splitlines()
        except (requests.RequestException, *_STRANGE) as error:
            raise self._named(f"follow the log of {slug}", error) from None

    @_reading("the quota")
    def quota(self) -> Quota | None:
        """The week's GPU hours; None when the service does not say."""
        from kagglesdk.kernels.types.kernels_api_service import (
            ApiGetAcceleratorQuotaStatisticsRequest as Request,
        )

        answer = self._read(
            "ask for the quota",
            "kernels.kernels_api_client.get_accelerator_quota_statistics",
            Request(),
        )
        if answer.gpu_quota is None or answer.gpu_quota.total_time_allowed is None:
            return None
        used = answer.gpu_quota.time_used
        refresh = answer.quota_refresh_time
        if refresh is not None and refresh.tzinfo is None:
            refresh = refresh.replace(tzinfo=UTC)
        return Quota(
            used=used.total_seconds() / 3600 if used is not None else 0.0,
            allowed=answer.gpu_quota.total_time_allowed.total_seconds() / 3600,
            refresh=refresh,
        )

    # --- datasets ----------------------------------------------------------------------------------------------------

    @_reading("a dataset")
    def dataset(self, slug: str) -> DatasetState | None:
        """The state of one of the account's datasets; None when there is none."""
        from kagglesdk.datasets.types import dataset_api_service as types

        status, current = types.ApiGetDatasetStatusRequest(), types.ApiGetDatasetRequest()
        for request in (status, current):
            request.owner_slug, request.dataset_slug = self.user, slug
        try:
            state = self._read(
                f"ask for the status of the dataset {slug}",
                "datasets.dataset_api_client.get_dataset_status",
                status,
            )
            facts = self._read(
                f"ask for the version of the dataset {slug}",
                "datasets.dataset_api_client.get_dataset",
                current,
            )
        except RefusedError as error:
            if error.status in (403, 404):
                return None
            raise
        return DatasetState(
            _word(state.status, f"the status of the dataset {slug}").lower(),
            int(facts.current_version_number or 0),
        )

    @_reading("a dataset's files")
    def dataset_files(self, slug: str) -> dict[str, int]:
        """Names and bytes of the files in the current version of a dataset."""
        from kagglesdk.datasets.types.dataset_api_service import ApiListDatasetFilesRequest as Request

        request = Request()
        request.owner_slug, request.dataset_slug = self.user, slug
        files: dict[str, int] = {}
        for answer in self._pages(
            f"the dataset {slug}", "datasets.dataset_api_client.list_dataset_files", request
        ):
            if said := _text(answer.error_message):
                raise UnexpectedResponseError(self.clean(f"Kaggle could not list the dataset {slug}: {said}"))
            for item in answer.dataset_files or []:
                files[_text(item.name)] = int(item.total_bytes or 0)
        return files

    def upload_dataset(self, folder: Path, *, notes: str, new: bool, temporary: Path) -> None:
        """Upload the dataset in `folder`: a new one, or a new version of it. Asked once, never repeated.

        The client's own upload resumes within a file; the request that makes a version of the files is sent here, because
        the client repeats it on a lost connection, and would make two. Folders travel as archives, which Kaggle unpacks.

        Args:
            folder: files, folders and dataset-metadata.json.
            notes: what the version says of itself.
            new: create the dataset; otherwise a version is added.
            temporary: where the client notes how far an upload came; its own, because the client trusts the notes.

        Raises:
            RefusedError: it did not happen, and why.
            NoAnswerError: unknown whether it happened; `dataset` proves it.
        """
        import json

        from kagglesdk.blobs.types.blob_api_service import ApiBlobType
        from kagglesdk.datasets.types import dataset_api_service as types

        metadata = json.loads((folder / "dataset-metadata.json").read_text(encoding="utf-8"))
        slug = str(metadata["id"]).split("/")[1]
        expected = [path.name for path in folder.iterdir() if path.name != "dataset-metadata.json"]
        request: Any
        body: Any
        if new:
            body = request = types.ApiCreateDatasetRequest()
            request.title, request.slug, request.owner_slug = metadata["title"], slug, self.user
            request.license_name, request.is_private = metadata["licenses"][0]["name"], True
        else:
            request, body = types.ApiCreateDatasetVersionRequest(), types.ApiCreateDatasetVersionRequestBody()
            request.owner_slug, request.dataset_slug, request.body = self.user, slug, body
            body.version_notes = notes
        body.subtitle, body.description = metadata.get("subtitle"), metadata.get("description")
        body.files, body.category_ids = [], []
        temporary.mkdir(parents=True, exist_ok=True)
        what = f"upload the dataset {slug}"
        self._refuse_secrets(what, folder)

        def send_files() -> None:
            from kaggle.api.kaggle_api_extended import ResumableUploadContext

            with ResumableUploadContext() as context:
                self.api.upload_files(
                    body, None, str(folder), ApiBlobType.DATASET, context, True, "zip", None
                )

        with _temporary_folder(temporary):
            self._once(what, send_files, seconds=self.patience.upload, changes=False)
        if len(body.files) != len(expected) or any(not _text(file.token) for file in body.files):
            raise NoResponseError(
                f"{what}: only {len(body.files)} of {len(expected)} files and folders arrived"
            )
        with self.api.build_kaggle_client() as kaggle:
            service = kaggle.datasets.dataset_api_client
            answer = self._once(
                what, lambda: (service.create_dataset if new else service.create_dataset_version)(request)
            )
        if said := _text(answer.error):
            raise RefusedError(self.clean(f"Kaggle refused to {what}: {said}"))

    # --- the competition ---------------------------------------------------------------------------------------------

    @_reading("the competition")
    def has_entered(self) -> bool:
        """Whether the account has accepted the competition's rules."""
        from kagglesdk.competitions.types.competition_api_service import ApiGetCompetitionRequest as Request

        request = Request()
        request.competition_name = COMPETITION
        answer = self._read(
            "ask for the competition", "competitions.competition_api_client.get_competition", request
        )
        return bool(answer.user_has_entered)

    def submit(self, path: Path, *, message: str) -> str:
        """Send a submission; the answer is what the service says. Asked once, never repeated.

        Raises:
            RefusedError: it did not happen: the day's allowance, the rules, a closed competition.
            NoAnswerError: unknown whether it happened; `submissions` proves it.
        """
        answer = self._once(
            "submit",
            lambda: self.api.competition_submit(str(path), message, COMPETITION, quiet=True),
            seconds=self.patience.upload,
        )
        said = _text(answer.message)
        if said == self.api.COMPETITION_SUBMIT_UPLOAD_FAILED_MESSAGE:
            raise NoResponseError("the upload of the submission broke off")
        return said

    @_reading("the submissions")
    def submissions(self) -> list[Submission]:
        """The account's submissions, the newest first."""
        from kagglesdk.competitions.types.competition_api_service import ApiListSubmissionsRequest as Request

        request = Request()
        request.competition_name = COMPETITION
        found: list[Submission] = []
        method = "competitions.competition_api_client.list_submissions"
        for answer in self._pages("the submissions", method, request, numbered=True):
            for item in answer.submissions or []:
                found.append(
                    Submission(
                        ref=int(item.ref or 0),
                        message=_text(item.description),
                        status=_word(item.status, "the status of a submission"),
                        public=_number(item.public_score),
                        private=_number(item.private_score),
                        error=_text(item.error_description),
                        date=item.date.isoformat() if item.date else "",
                    )
                )
        return found

    # --- files -------------------------------------------------------------------------------------------------------

    def fetch(self, url: str, path: Path, *, size: int | None = None, sha256: str = "") -> None:
        """Fetch one output file, streamed; it appears at `path` whole, of the size and hash asked for, or not at all.

        The address is signed: it carries no credentials of ours, and is shown in no message.

        Raises:
            NoAnswerError: it could not be had, or what came is not what was recorded.
            OSError: it cannot be written.
        """
        import hashlib

        import requests

        beside = path.with_name(f".{path.name}.part")
        path.parent.mkdir(parents=True, exist_ok=True)
        digest, received = hashlib.sha256(), 0
        until = time.monotonic() + self.patience.upload
        most = size if size is not None else _RECORD_LIMIT
        try:
            with requests.get(
                url, stream=True, timeout=(self.patience.answer, self.patience.answer)
            ) as answer:
                if answer.status_code != 200:
                    raise NoResponseError(
                        f"{path.name} could not be fetched: HTTP {answer.status_code}, a link may expire"
                    )
                with beside.open("wb") as stream:
                    for block in answer.iter_content(1 << 20):
                        received += len(block)
                        if received > most or time.monotonic() > until:
                            raise NoResponseError(
                                f"{path.name} is larger or slower than it can be: {received:,} bytes so far"
                            )
                        digest.update(block)
                        stream.write(block)
            if size is not None and received != size:
                raise NoResponseError(f"{path.name} came with {received:,} of {size:,} bytes")
            if sha256 and digest.hexdigest() != sha256:
                raise NoResponseError(f"{path.name} is damaged: its SHA-256 is not the recorded one")
            beside.replace(path)
        except requests.RequestException as error:
            raise NoResponseError(f"{path.name} could not be fetched: {type(error).__name__}") from None
        finally:
            beside.unlink(missing_ok=True)

    # --- how calls are made ------------------------------------------------------------------------------------------

    def _read(self, what: str, method: str, request: Any) -> Any:
        """A call that changes nothing: repeated, with growing pauses, while the service is busy or out of reach."""

        def ask() -> Any:
            with self.api.build_kaggle_client() as kaggle:
                return operator.attrgetter(method)(kaggle)(request)

        for attempt in range(1, self.patience.tries + 1):
            try:
                return self._once(what, ask, changes=False)
            except NoResponseError as error:
                if attempt == self.patience.tries:
                    raise NoResponseError(f"{error} (asked {attempt} times)") from None
                pause = min(self.patience.delay * 2 ** (attempt - 1), self.patience.longest_delay)
                time.sleep(max(pause * random.uniform(0.5, 1.0), error.retry_after))
        raise AssertionError("unreachable")

    def _once(
        self, what: str, call: Callable[[], T], *, seconds: float | None = None, changes: bool = True
    ) -> T:
        """One call with a deadline and its errors named."""
        import requests
        import urllib3

        try:
            return _within(seconds or self.patience.answer, call)
        except (
            requests.RequestException,
            urllib3.exceptions.HTTPError,
            TimeoutError,
            SystemExit,
            OSError,
            *_STRANGE,
        ) as error:
            raise self._named(what, error, changes=changes) from None

    def _named(self, what: str, error: BaseException, *, changes: bool = False) -> ClientError:
        """The error of ours that says what happened."""
        import requests

        response = getattr(error, "response", None)
        status = response.status_code if response is not None else 0
        if isinstance(error, requests.HTTPError) and response is not None and status >= 400:
            said = self.clean(message_of(error))[:300]
            text = f"Kaggle refused to {what} (HTTP {status}: {said})"
            if status == 401:
                return CredentialsError(f"{text}.\n{CREDENTIALS}")
            if status == 429 or status >= 500:
                pause = _seconds(response.headers.get("Retry-After"))
                return NoResponseError(f"Kaggle could not {what} (HTTP {status}: {said})", retry_after=pause)
            return RefusedError(text, status=status)
        if isinstance(error, KeyError) and not isinstance(error, requests.RequestException):
            unknown = UnexpectedResponseError if not changes else NoResponseError
            return unknown(f"Kaggle's answer to {what} holds {error}, which nobody knows")
        if isinstance(error, ValueError) and "Upload unsuccessful" in str(error):  # kaggle 2.2.5
            return NoResponseError(f"could not {what}: {self.clean(str(error))}")
        if isinstance(error, _STRANGE) and not isinstance(error, OSError):
            return NoResponseError(f"Kaggle's answer to {what} cannot be read ({type(error).__name__})")
        return NoResponseError(f"no answer from Kaggle to {what} ({type(error).__name__})")

    def clean(self, text: str) -> str:
        """A message without our credentials, and without what looks like anybody's."""
        return clean(text, self._secrets)

    def _refuse_secrets(self, what: str, folder: Path) -> None:
        """The last look at what is about to be sent; what is built here was looked through before.

        Raises:
            RefusedError: a file holds what looks like a secret. Nothing was sent.
        """
        try:
            refuse_secrets(texts_in(folder), own={*self._secrets, *own_secrets()})
        except LaunchError as error:
            raise RefusedError(f"did not {what}: {error}") from None


def connect(patience: RetryPolicy | None = None) -> Kaggle:
    """The account whose credentials the client finds.

    Raises:
        CredentialsError: there are none, or they are not accepted.
        NoAnswerError: the service could not be asked.
    """
    import requests

    patience = patience or RetryPolicy()
    printed = io.StringIO()
    secrets = own_secrets()
    for attempt in range(1, patience.tries + 1):
        try:
            # The package authenticates when it is imported, prints what it misses, and may leave by sys.exit.
            with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
                api = _within(patience.answer, _authenticate, quiet=False)
            break
        except (requests.ConnectionError, requests.Timeout, TimeoutError, requests.HTTPError) as error:
            response = getattr(error, "response", None)
            status = response.status_code if response is not None else 0
            if status in (401, 403):
                raise CredentialsError(
                    f"Kaggle does not accept the credentials (HTTP {status}).\n{CREDENTIALS}"
                ) from None
            if attempt == patience.tries:
                what = f"HTTP {status}" if status else type(error).__name__
                raise NoResponseError(
                    f"Kaggle could not be asked who you are ({what}, asked {attempt} times)"
                ) from None
            time.sleep(min(patience.delay * 2 ** (attempt - 1), patience.longest_delay))
        except (SystemExit, OSError, *_STRANGE) as error:
            said = clean(
                printed.getvalue().strip() or str(error) or type(error).__name__, secrets
            ).splitlines()[0]
            raise CredentialsError(
                f"the Kaggle client found no credentials it can use: {said}\n{CREDENTIALS}"
            ) from None
    values = api.config_values
    held = tuple(str(values[name]) for name in ("token", "key") if values.get(name))
    user = str(values.get("username") or "")
    if not user:
        raise CredentialsError(f"the Kaggle client found credentials without a user name.\n{CREDENTIALS}")
    return Kaggle(api, user, patience, secrets + held)


def _authenticate() -> Any:
    from kaggle.api.kaggle_api_extended import KaggleApi

    api = KaggleApi()
    api.authenticate()
    return api


def _within(seconds: float, call: Callable[[], T], *, quiet: bool = True) -> T:
    """Run a call that has no deadline of its own; what the client prints meanwhile is not for our terminal.

    Raises:
        TimeoutError: it has not come back; its thread is left to end by itself.
    """
    outcome: list[Any] = []

    def work() -> None:
        try:
            outcome.append((True, call()))
        except BaseException as error:  # noqa: B036  SystemExit too: it is handed to the caller
            outcome.append((False, error))

    thread = threading.Thread(target=work, daemon=True)
    hidden = io.StringIO()
    with contextlib.ExitStack() as stack:
        if quiet:
            stack.enter_context(contextlib.redirect_stdout(hidden))
            stack.enter_context(contextlib.redirect_stderr(hidden))
        thread.start()
        thread.join(seconds)
    if not outcome:
        raise TimeoutError(f"no answer within {seconds:.0f} s")
    done, value = outcome[0]
    if not done:
        raise value
    result: T = value
    return result


@contextlib.contextmanager
def _temporary_folder(folder: Path) -> Iterator[None]:
    """Let the client keep its notes of uploads here: it trusts what it finds by path, size and time alone."""
    before = tempfile.tempdir
    tempfile.tempdir = str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = before


def _log_text(log: str) -> str:
    """The text of a log that comes as a JSON array of {stream_name, time, data}, or as it is."""
    import json

    try:
        events = json.loads(log)
    except (ValueError, RecursionError):
        return log
    if not isinstance(events, list):
        return log
    return "".join(str(event.get("data", "")) for event in events if isinstance(event, dict))


def _word(value: Any, what: str) -> str:
    """The name of one of the client's enum values; its decoder lets some words through that are none."""
    from enum import Enum

    if not isinstance(value, Enum):
        raise UnexpectedResponseError(f"Kaggle's answer holds {what} in a word that nobody knows")
    return value.name


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _seconds(value: Any) -> float:
    return min(max(_number(value) or 0.0, 0.0), 600.0)


def now() -> datetime:
    """The time, with its zone."""
    return datetime.now(UTC)
