"""Typed calls of the Kaggle API through the real `kaggle` package (2.2.4 and 2.2.5).

A call returns only what the response proves; otherwise it raises an error of `launch.kaggle_api.errors`.
Calls that only read are repeated while the service is busy. A push, an upload and a submission are sent once.
After a NoResponseError the caller finds out with `pull`, `dataset` or `submissions` whether it happened.
"""

import contextlib
import copy
import io
import operator
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from launch.errors import LaunchError
from launch.kaggle_api.calls import (
    DECODING_ERRORS,
    RetryPolicy,
    call_once,
    call_repeatedly,
    call_with_deadline,
    reading,
    require_network,
    translate,
    upload_notes_in,
    without_surrogates,
)
from launch.kaggle_api.errors import (
    CREDENTIALS,
    CapacityError,
    CredentialsError,
    EmptyKernelError,
    NoResponseError,
    QuotaError,
    RefusedError,
    SourcesDroppedError,
    UnexpectedResponseError,
)
from launch.kaggle_api.types import (
    ABSENT,
    ACTIVE,
    ENDED,
    NEW,
    DatasetState,
    Listing,
    PulledKernel,
    Pushed,
    Quota,
    RunStatus,
    Submission,
)
from launch.packaging.secret_scan import clean, own_secrets, refuse_secrets, texts_in
from lib.runtime.inputs import COMPETITION

T = TypeVar("T")

_AUTHENTICATION_TIMEOUT = 20.0  # seconds of one attempt
_MAX_PAGES = 500  # of a listing; more means that its page tokens repeat
_PAGE_SIZE = 200
_MAX_RECORD_BYTES = 16 << 20  # of a run.json, the only file whose size is not known before it is fetched
# The refusals of a push that have a class of their own, by a part of their text in lower case.
_PUSH_REFUSALS = {
    "session count": CapacityError,
    "quota": QuotaError,
    "notebook not found": EmptyKernelError,
}


@dataclass
class Kaggle:
    """An authenticated account.

    Attributes:
        api: the `KaggleApi` of the package.
        user: the user name, as the service returned it.
        retry_policy: time limits and retries.
    """

    api: Any
    user: str
    retry_policy: RetryPolicy = RetryPolicy()
    _secrets: tuple[str, ...] = field(default=(), repr=False)

    # --- kernels --------------------------------------------------------------------------------------

    @reading("a push", NoResponseError)
    def push(self, folder: Path, *, limit: float) -> Pushed:
        """Push the kernel in `folder`; Kaggle ends its run after `limit` seconds. Sent once, never repeated.

        Raises:
            RefusedError: the push did not happen; CapacityError, QuotaError and EmptyKernelError say why.
            SourcesDroppedError: the push happened, but without some of its inputs.
            NoResponseError: it is unknown whether the push happened; `pull` shows it.
            UnexpectedResponseError: Kaggle stored the kernel under another slug.
        """
        import json

        ref = str(json.loads((folder / "kernel-metadata.json").read_text(encoding="utf-8"))["id"])
        action = f"push {ref}"
        self._refuse_secrets(action, folder)
        response = self._once(action, lambda: self.api.kernels_push(str(folder), timeout=str(int(limit))))
        if refusal := _text(response.error):
            text = refusal.lower()
            error = next((error for part, error in _PUSH_REFUSALS.items() if part in text), RefusedError)
            raise error(self.clean(f"Kaggle refused to {action}: {refusal}"))
        version = int(response.version_number or 0) or None
        stored = _text(response.ref).removeprefix("/code/").strip("/")
        if stored and stored.split("/")[-1].lower() != ref.split("/")[-1].lower():
            raise UnexpectedResponseError(
                f"Kaggle stored {ref} as {stored}, because it derives the address from the title. "
                f"Delete {stored} in the browser, build again and push again"
            )
        dropped = []
        for kind, values in (
            ("dataset", response.invalid_dataset_sources),
            ("kernel", response.invalid_kernel_sources),
            ("competition", response.invalid_competition_sources),
            ("model", response.invalid_model_sources),
        ):
            dropped += [f"{kind} {value}" for value in values or []]
        if dropped:
            text = (
                f"Kaggle pushed {ref} without some of its inputs ({', '.join(dropped)}): "
                "they do not exist or are not yours"
            )
            raise SourcesDroppedError(self.clean(text), version=version)
        if version is None:
            raise NoResponseError(
                f"Kaggle's response to the push of {ref} has neither a version nor an error"
            )
        return Pushed(version, _text(response.url))

    @reading("a kernel's status")
    def status(self, slug: str) -> RunStatus:
        """State of the latest run of a kernel; ABSENT when Kaggle shows none (404) or refuses access (403).

        Raises:
            UnexpectedResponseError: a state this code does not know.
        """
        from kagglesdk.kernels.types.kernels_api_service import ApiGetKernelSessionStatusRequest as Request

        request = Request()
        request.user_name, request.kernel_slug = self.user, slug
        try:
            response = self._read(
                f"get the status of {slug}",
                "kernels.kernels_api_client.get_kernel_session_status",
                request,
            )
        except RefusedError as error:
            if error.status in (403, 404):
                return RunStatus(ABSENT, str(error))
            raise
        name = _enum_name(response.status, f"the status of {slug}")
        if name not in (*ACTIVE, *ENDED, NEW):  # a newer client knows more states
            raise UnexpectedResponseError(f"Kaggle shows the status {name} of {slug}, unknown to this code")
        return RunStatus(name, _text(response.failure_message))

    @reading("a kernel")
    def pull(self, slug: str) -> PulledKernel | None:
        """The latest version of a kernel; None when Kaggle has no such kernel (404) or refuses access (403).

        Raises:
            NoResponseError: the service failed, as it does for the empty kernel of a refused first push.
        """
        from kagglesdk.kernels.types.kernels_api_service import ApiGetKernelRequest as Request

        request = Request()
        request.user_name, request.kernel_slug = self.user, slug
        try:
            response = self._read(f"pull {slug}", "kernels.kernels_api_client.get_kernel", request)
        except RefusedError as error:
            if error.status in (403, 404):
                return None
            raise
        if response.blob is None or response.metadata is None:
            return None
        number = response.metadata.current_version_number
        return PulledKernel(
            source=_text(response.blob.source),
            version=int(number) if number else None,
            machine_shape=_text(response.metadata.machine_shape),
            internet=bool(response.metadata.enable_internet),
        )

    def delete(self, slug: str) -> None:
        """Delete a kernel and its run."""
        self._once(f"delete {slug}", lambda: self.api.kernels_delete(f"{self.user}/{slug}", no_confirm=True))

    @reading("an output")
    def output(self, slug: str) -> Listing:
        """The output of the latest run, from all pages of the listing.

        Raises:
            UnexpectedResponseError: the page tokens repeat.
        """
        from kagglesdk.kernels.types.kernels_api_service import ApiListKernelSessionOutputRequest as Request

        request = Request()
        request.user_name, request.kernel_slug = self.user, slug
        files: dict[str, str] = {}
        log = ""
        for response in self._pages(
            f"list the output of {slug}", "kernels.kernels_api_client.list_kernel_session_output", request
        ):
            for item in response.files or []:
                files[_text(item.file_name)] = _text(item.url)
            log = log or _text(response.log)
        return Listing(files, _log_text(log))

    def follow(self, slug: str) -> Iterator[str]:
        """Yield the lines of a kernel's log while it runs."""
        import requests

        try:
            for event in self.api.kernels_logs_stream(f"{self.user}/{slug}"):
                yield from _text(event.get("data", "")).splitlines()
        except (requests.RequestException, *DECODING_ERRORS) as error:
            raise translate(f"follow the log of {slug}", error, secrets=self._secrets) from None

    @reading("the quota")
    def quota(self) -> Quota | None:
        """GPU hours of the week; None when Kaggle does not return them."""
        from kagglesdk.kernels.types.kernels_api_service import (
            ApiGetAcceleratorQuotaStatisticsRequest as Request,
        )

        response = self._read(
            "get the GPU quota",
            "kernels.kernels_api_client.get_accelerator_quota_statistics",
            Request(),
        )
        if response.gpu_quota is None or response.gpu_quota.total_time_allowed is None:
            return None
        used = response.gpu_quota.time_used
        refresh = response.quota_refresh_time
        if refresh is not None and refresh.tzinfo is None:
            refresh = refresh.replace(tzinfo=UTC)
        return Quota(
            used=used.total_seconds() / 3600 if used is not None else 0.0,
            allowed=response.gpu_quota.total_time_allowed.total_seconds() / 3600,
            refresh=refresh,
        )

    # --- datasets -------------------------------------------------------------------------------------

    @reading("a dataset")
    def dataset(self, slug: str, *, owner: str = "") -> DatasetState | None:
        """State of a dataset; None when there is none (404) or Kaggle refuses access (403).

        Args:
            slug: of the dataset.
            owner: of the dataset; the account by default.
        """
        from kagglesdk.datasets.types import dataset_api_service as types

        status, current = types.ApiGetDatasetStatusRequest(), types.ApiGetDatasetRequest()
        for request in (status, current):
            request.owner_slug, request.dataset_slug = owner or self.user, slug
        try:
            state = self._read(
                f"get the status of the dataset {slug}",
                "datasets.dataset_api_client.get_dataset_status",
                status,
            )
            dataset = self._read(
                f"get the version of the dataset {slug}",
                "datasets.dataset_api_client.get_dataset",
                current,
            )
        except RefusedError as error:
            if error.status in (403, 404):
                return None
            raise
        return DatasetState(
            _enum_name(state.status, f"the status of the dataset {slug}").lower(),
            int(dataset.current_version_number or 0),
        )

    @reading("a dataset's files")
    def dataset_files(self, slug: str) -> dict[str, int]:
        """Name and size in bytes of each file in the current version of a dataset."""
        from kagglesdk.datasets.types.dataset_api_service import ApiListDatasetFilesRequest as Request

        request = Request()
        request.owner_slug, request.dataset_slug = self.user, slug
        files: dict[str, int] = {}
        action = f"list the dataset {slug}"
        for response in self._pages(action, "datasets.dataset_api_client.list_dataset_files", request):
            if message := _text(response.error_message):
                raise UnexpectedResponseError(self.clean(f"Kaggle could not {action}: {message}"))
            for item in response.dataset_files or []:
                files[_text(item.name)] = int(item.total_bytes or 0)
        return files

    def upload_dataset(self, folder: Path, *, notes: str, new: bool, temporary: Path) -> None:
        """Upload the dataset in `folder`: a new one, or a new version of it. Sent once, never repeated.

        The client uploads the files, and resumes within a file. The request that makes a version of them is
        sent here, because the client would repeat it after a lost connection and make two versions. Folders
        are sent as archives, which Kaggle unpacks.

        Args:
            folder: files, folders and dataset-metadata.json.
            notes: description of the version.
            new: create the dataset; otherwise add a version to it.
            temporary: folder for the client's notes on the progress of uploads. No other upload may use it,
                because the client trusts the notes.

        Raises:
            RefusedError: the upload did not happen.
            NoResponseError: it is unknown whether the upload happened; `dataset` shows it.
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
        action = f"upload the dataset {slug}"
        self._refuse_secrets(action, folder)

        def send_files() -> None:
            from kaggle.api.kaggle_api_extended import ResumableUploadContext

            with ResumableUploadContext() as context:
                self.api.upload_files(
                    body, None, str(folder), ApiBlobType.DATASET, context, True, "zip", None
                )

        with upload_notes_in(temporary):
            self._once(action, send_files, timeout=self.retry_policy.upload_timeout, changes=False)
        if len(body.files) != len(expected) or any(not _text(file.token) for file in body.files):
            raise NoResponseError(
                f"could not {action}: only {len(body.files)} of {len(expected)} files and folders arrived"
            )
        with self.api.build_kaggle_client() as sdk:
            service = sdk.datasets.dataset_api_client
            send_request = service.create_dataset if new else service.create_dataset_version
            response = self._once(action, lambda: send_request(request))
        if refusal := _text(response.error):
            raise RefusedError(self.clean(f"Kaggle refused to {action}: {refusal}"))

    # --- the competition ------------------------------------------------------------------------------

    @reading("the competition")
    def has_entered(self) -> bool:
        """Whether the account has accepted the rules of the competition."""
        from kagglesdk.competitions.types.competition_api_service import ApiGetCompetitionRequest as Request

        request = Request()
        request.competition_name = COMPETITION
        response = self._read(
            "get the competition", "competitions.competition_api_client.get_competition", request
        )
        return bool(response.user_has_entered)

    def submit(self, path: Path, *, message: str) -> str:
        """Send a submission and return Kaggle's message about it. Sent once, never repeated.

        Raises:
            RefusedError: the submission did not happen: the daily limit, the rules, or a closed competition.
            NoResponseError: it is unknown whether the submission happened; `submissions` shows it.
        """
        response = self._once(
            "submit",
            lambda: self.api.competition_submit(str(path), message, COMPETITION, quiet=True),
            timeout=self.retry_policy.upload_timeout,
        )
        text = _text(response.message)
        if text == self.api.COMPETITION_SUBMIT_UPLOAD_FAILED_MESSAGE:
            raise NoResponseError("the upload of the submission was interrupted")
        return text

    @reading("the submissions")
    def submissions(self) -> list[Submission]:
        """The submissions of the account, the newest first."""
        from kagglesdk.competitions.types.competition_api_service import ApiListSubmissionsRequest as Request

        request = Request()
        request.competition_name = COMPETITION
        submissions: list[Submission] = []
        method = "competitions.competition_api_client.list_submissions"
        for response in self._pages("list the submissions", method, request, numbered=True):
            for item in response.submissions or []:
                submissions.append(
                    Submission(
                        ref=int(item.ref or 0),
                        message=_text(item.description),
                        status=_enum_name(item.status, "the status of a submission"),
                        public=_number(item.public_score),
                        private=_number(item.private_score),
                        error=_text(item.error_description),
                        date=item.date.isoformat() if item.date else "",
                    )
                )
        return submissions

    @reading("the submissions of today")
    def submissions_left(self) -> int | None:
        """Submissions that the account may still send today (UTC); None when Kaggle does not return it.

        Kaggle answers zeros for an account that never submitted. Then the submissions of today are counted
        in the list, against the competition's daily limit.
        """
        from kagglesdk.competitions.types import competition_api_service as types

        limits = types.ApiGetSubmissionLimitsRequest()
        limits.competition_name = COMPETITION
        method = "competitions.competition_api_client.get_submission_limits"
        response = self._read("get the submission limits", method, limits)
        if response.num_allowed_now or response.num_today or response.num_total:
            return int(response.num_allowed_now)
        request = types.ApiGetCompetitionRequest()
        request.competition_name = COMPETITION
        competition = self._read(
            "get the competition", "competitions.competition_api_client.get_competition", request
        )
        if not competition.max_daily_submissions:
            return None
        today = datetime.now(UTC).date().isoformat()
        sent = sum(submission.date.startswith(today) for submission in self.submissions())
        return max(0, int(competition.max_daily_submissions) - sent)

    # --- files ----------------------------------------------------------------------------------------

    def fetch(self, url: str, path: Path, *, size: int | None = None, sha256: str = "") -> None:
        """Fetch one output file; it appears at `path` whole, with the given size and hash, or not at all.

        The address is signed, so no credentials of ours are sent. No message shows it.

        Raises:
            NoResponseError: the file could not be fetched, or its size or hash differs from the given one.
            OSError: the file cannot be written.
        """
        import hashlib

        import requests

        part = path.with_name(f".{path.name}.part")
        path.parent.mkdir(parents=True, exist_ok=True)
        digest, received = hashlib.sha256(), 0
        timeout = self.retry_policy.call_timeout
        deadline = time.monotonic() + self.retry_policy.upload_timeout
        limit = size if size is not None else _MAX_RECORD_BYTES
        try:
            with requests.get(url, stream=True, timeout=(timeout, timeout)) as response:
                if response.status_code != 200:
                    text = f"HTTP {response.status_code} (the link may have expired)"
                    raise NoResponseError(f"{path.name} could not be fetched: {text}")
                with part.open("wb") as stream:
                    for block in response.iter_content(1 << 20):
                        received += len(block)
                        if received > limit:
                            raise NoResponseError(f"{path.name} is larger than {limit:,} bytes")
                        if time.monotonic() > deadline:
                            raise NoResponseError(
                                f"{path.name} took more than {self.retry_policy.upload_timeout:.0f} s: "
                                f"{received:,} bytes so far"
                            )
                        digest.update(block)
                        stream.write(block)
            if size is not None and received != size:
                raise NoResponseError(f"{path.name} has {received:,} of {size:,} bytes")
            if sha256 and digest.hexdigest() != sha256:
                raise NoResponseError(f"{path.name} is damaged: its SHA-256 is not the recorded one")
            part.replace(path)
        except requests.RequestException as error:
            raise NoResponseError(f"{path.name} could not be fetched: {type(error).__name__}") from None
        finally:
            part.unlink(missing_ok=True)

    # --- how calls are made ---------------------------------------------------------------------------

    def _read(self, action: str, method: str, request: Any) -> Any:
        """Send a request that only reads, through the method of the SDK's client with this dotted name."""

        def send() -> Any:
            with self.api.build_kaggle_client() as sdk:
                return operator.attrgetter(method)(sdk)(request)

        return call_repeatedly(action, send, policy=self.retry_policy, secrets=self._secrets)

    def _once(
        self, action: str, call: Callable[[], T], *, timeout: float | None = None, changes: bool = True
    ) -> T:
        """Make one call that changes something, or that is part of one that does."""
        timeout = timeout or self.retry_policy.call_timeout
        return call_once(action, call, timeout=timeout, secrets=self._secrets, changes=changes)

    def _pages(self, action: str, method: str, request: Any, *, numbered: bool = False) -> Iterator[Any]:
        """Yield the responses of a listing, page by page.

        With `numbered` the first page is requested by its number, as the client does for submissions.
        """
        token = ""
        for _ in range(_MAX_PAGES):
            page = copy.copy(request)
            page.page_size, page.page_token = _PAGE_SIZE, token
            if numbered and not token:
                page.page = 1
            response = self._read(action, method, page)
            yield response
            token = _text(response.next_page_token)
            if not token:
                return
        raise UnexpectedResponseError(
            f"Kaggle's response to the request to {action} has over {_MAX_PAGES} pages: its tokens repeat"
        )

    def clean(self, text: str) -> str:
        """A message without our credentials, and without anything that looks like a credential."""
        return clean(text, self._secrets)

    def _refuse_secrets(self, action: str, folder: Path) -> None:
        """Search the files for secrets once more before they are sent; the build did it before.

        Raises:
            RefusedError: a file holds what looks like a secret. Nothing was sent.
        """
        try:
            refuse_secrets(texts_in(folder), own={*self._secrets, *own_secrets()})
        except LaunchError as error:
            raise RefusedError(f"did not {action}: {error}") from None


def connect(retry_policy: RetryPolicy | None = None) -> Kaggle:
    """Authenticate with the credentials that the client finds on this machine.

    Without a network it fails within seconds: only a Kaggle that can be reached is tried again.

    Raises:
        CredentialsError: there are none, or Kaggle does not accept them.
        NoResponseError: Kaggle cannot be reached, or did not answer.
    """
    import requests

    policy = retry_policy or RetryPolicy()
    printed = io.StringIO()
    secrets = own_secrets()
    for attempt in range(1, policy.attempts + 1):
        try:
            # The package authenticates when it is imported, prints what it misses, and may end by sys.exit.
            with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
                timeout = min(policy.call_timeout, _AUTHENTICATION_TIMEOUT)
                api = call_with_deadline(_authenticate, timeout=timeout, quiet=False)
            break
        except (requests.ConnectionError, requests.Timeout, TimeoutError, requests.HTTPError) as error:
            response = getattr(error, "response", None)
            status = response.status_code if response is not None else 0
            if status in (401, 403):
                raise CredentialsError(
                    f"Kaggle does not accept the credentials (HTTP {status}).\n{CREDENTIALS}"
                ) from None
            if not status:
                require_network()
            if attempt == policy.attempts:
                cause = f"HTTP {status}" if status else type(error).__name__
                raise NoResponseError(
                    f"no response from Kaggle to the request to authenticate ({cause}, {attempt} attempts)"
                ) from None
            time.sleep(policy.pause(attempt))
        except (SystemExit, OSError, *DECODING_ERRORS) as error:
            text = printed.getvalue().strip() or str(error) or type(error).__name__
            first_line = clean(text, secrets).splitlines()[0]
            raise CredentialsError(
                f"the Kaggle client found no usable credentials: {first_line}\n{CREDENTIALS}"
            ) from None
    values = api.config_values
    used = tuple(str(values[name]) for name in ("token", "key") if values.get(name))
    user = str(values.get("username") or "")
    if not user:
        raise CredentialsError(f"the Kaggle client found credentials without a user name.\n{CREDENTIALS}")
    if values.get("key") and not values.get("token"):
        require_network()  # the client accepts a legacy key without a request
    return Kaggle(api, user, policy, secrets + used)


def _authenticate() -> Any:
    from kaggle.api.kaggle_api_extended import KaggleApi

    api = KaggleApi()
    api.authenticate()
    return api


def _log_text(log: str) -> str:
    """The text of a log, which comes as a JSON array of {stream_name, time, data} or as plain text."""
    import json

    try:
        events = json.loads(log)
    except (ValueError, RecursionError):
        return log
    if not isinstance(events, list):
        return log
    return _text("".join(str(event.get("data", "")) for event in events if isinstance(event, dict)))


def _enum_name(value: Any, subject: str) -> str:
    """Name of an enum value of the client, whose decoder passes some unknown values on as they are."""
    from enum import Enum

    if not isinstance(value, Enum):
        raise UnexpectedResponseError(f"Kaggle's response holds an unknown value for {subject}")
    return value.name


def _text(value: Any) -> str:
    return "" if value is None else without_surrogates(str(value))


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None
