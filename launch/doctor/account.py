"""Checks of the Kaggle account: credentials, owner, competition rules, submissions, quota, slugs, phone."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from launch.campaign.quota import expected_hours, next_reset, plan_over_weeks, read_before
from launch.doctor.credentials import check_local_credentials, find_credentials
from launch.doctor.environment_check import CPU, GPU, kept_results, plan_environment_checks
from launch.doctor.finding import Finding, first_line, ok, problem, warning
from launch.errors import LaunchError
from launch.experiments import Experiment
from launch.kaggle_api.client import Kaggle
from launch.kaggle_api.errors import RULES, CredentialsError, NoResponseError
from launch.kaggle_api.types import ABSENT, ACTIVE
from launch.packaging.metadata import METADATA, PLACEHOLDER_OWNER, owner_of, read_base
from launch.plan import LIBRARY_SLUG, plan_kernels
from lib.runtime.inputs import COMPETITION

T = TypeVar("T")

_MAX_SILENT_REQUESTS = 2  # requests in a row without a response, after which no more are sent

_HOW_TO_GET_A_TOKEN = """\
1. Make an account at kaggle.com.
   Verify your phone number at kaggle.com/settings: GPU and internet need it.
2. Open kaggle.com/settings/api and press "Generate New Token". It is shown once; it starts with KGAT_.
3. Create the file ~/.kaggle/access_token:
       mkdir -p ~/.kaggle && touch ~/.kaggle/access_token && chmod 600 ~/.kaggle/access_token
   Paste the token into it with an editor, as its only line. A shell would keep the token in its history.
4. Run this command again."""
_NEW_TOKEN = "Make a new token at kaggle.com/settings/api and put it into ~/.kaggle/access_token."


class SkippedError(Exception):
    """A request was not sent; the message says why."""


@dataclass
class Account:
    """The account, or why there is none; after two requests in a row without a response no more are sent.

    Attributes:
        kaggle: the connection; None where there is none.
        connect_error: why there is no connection; None where there are no credentials to connect with.
        skip_reason: why requests are not sent; empty while they are.
        refusal: Kaggle's message where it did not accept the credentials.
        answered: whether any request had a response.
    """

    kaggle: Kaggle | None
    connect_error: LaunchError | None = None
    skip_reason: str = ""
    refusal: str = ""
    answered: bool = False
    _silent_requests: int = 0

    def __post_init__(self) -> None:
        if self.kaggle is None:
            unusable = self.connect_error is None or isinstance(self.connect_error, CredentialsError)
            self.skip_reason = "no usable credentials" if unusable else "Kaggle could not be reached"

    def request(self, send: Callable[[Kaggle], T], *, may_fail: bool = False) -> T:
        """Send one request.

        Args:
            send: sends it.
            may_fail: a missing response is a result, and says nothing about the connection.

        Raises:
            SkippedError: it was not sent, or the credentials are not accepted.
            ClientError: as the client raises it.
        """
        if self.kaggle is None or self.skip_reason:
            raise SkippedError(self.skip_reason)
        try:
            result = send(self.kaggle)
        except CredentialsError as error:
            self.skip_reason, self.refusal = "the credentials are not accepted", str(error)
            raise SkippedError(self.skip_reason) from None
        except NoResponseError:
            self._silent_requests += not may_fail
            if self._silent_requests >= _MAX_SILENT_REQUESTS:
                self.skip_reason = "Kaggle does not respond"
            raise
        self.answered, self._silent_requests = True, 0
        return result


def check_credentials(account: Account, environment: Mapping[str, str], home: Path) -> list[Finding]:
    """The credentials: present, accepted by Kaggle, and valid for as long as a campaign takes.

    This check sends no request of its own. It runs after the others and uses what their requests showed.
    """
    name = "credentials"
    local = check_local_credentials(environment, home)
    credentials = find_credentials(environment, home)
    if not credentials:
        return [problem(name, "none on this machine", _HOW_TO_GET_A_TOKEN), *local]
    used = credentials[0]
    text = f"{used.kind} in {used.place}"
    unreached = warning(name, f"{text}; not checked: Kaggle could not be reached")
    if account.kaggle is None:
        error = account.connect_error
        if error is None or isinstance(error, CredentialsError):
            return [problem(name, f"{text}: {first_line(error)}", _NEW_TOKEN), *local]
        return [unreached, _connection_problem(str(error)), *local]
    method = str(account.kaggle.api.config_values.get("auth_method") or used.method)
    if method != used.method:
        text += " is not accepted"
        other = next((credential for credential in credentials if credential.method == method), None)
        if other is not None:
            text += f"; the client uses the {other.kind} in {other.place} instead, but still sends the first"
        remedy = f"Remove the {used.kind} in {used.place}. {_NEW_TOKEN}"
        return [problem(name, text, remedy), *local]
    if account.refusal:
        return [problem(name, f"{text}: {first_line(account.refusal)}", _NEW_TOKEN), *local]
    if not account.answered:
        reason = account.skip_reason or "Kaggle responds to no request"
        return [unreached, _connection_problem(reason), *local]
    if method == "OAUTH":
        remedy = f"It is valid for about 12 h, and a campaign takes longer. {_NEW_TOKEN}"
        return [warning(name, f"{text}, accepted", remedy), *local]
    return [ok(name, f"{text}, accepted"), *local]


def _connection_problem(reason: str) -> Finding:
    remedy = (
        "Check the network and proxies. status.kaggle.com reports outages. Until then the rest is unknown."
    )
    return problem("connection", reason, remedy)


def check_owner(account: Account, root: Path) -> list[Finding]:
    """The owner in kernel-metadata.json against the account."""
    owner = owner_of(read_base(root))
    if account.kaggle is None:
        if owner == PLACEHOLDER_OWNER:
            text = f"{METADATA} still contains {owner}"
            return [problem("owner", text, f"Write your user name into {METADATA}.")]
        return [warning("owner", f"{METADATA} contains {owner}; not compared: {account.skip_reason}")]
    user = account.kaggle.user
    if owner == PLACEHOLDER_OWNER:
        remedy = (
            f"`run` pushes as {user} and needs no change. For `build` and the plain client write "
            f'"{user}" into {METADATA}, or pass --owner {user}.'
        )
        return [warning("owner", f"you are {user}; {METADATA} still contains the placeholder", remedy)]
    if owner.lower() != user.lower():
        text = f"you are {user} and push as {user}, but {METADATA} contains {owner}"
        remedy = f'Write "{user}" into {METADATA}, or use the credentials of {owner}.'
        return [problem("owner", text, remedy)]
    return [ok("owner", f"{user}, as in {METADATA}")]


def check_rules(account: Account) -> list[Finding]:
    """The rules of the competition are accepted."""
    if account.request(lambda kaggle: kaggle.has_entered()):
        return [ok("rules", f"of {COMPETITION} accepted")]
    text = f"of {COMPETITION} not accepted: neither data nor submissions are possible"
    return [problem("rules", text, f"{RULES}.")]


def check_submissions(account: Account) -> list[Finding]:
    """Submissions can be listed, as the campaign does to find its own."""
    submissions = account.request(lambda kaggle: kaggle.submissions())
    scores = [submission.public for submission in submissions if submission.public is not None]
    best = f", the best public score {max(scores):.4f}" if scores else ""
    return [ok("submissions", f"can be listed: {len(submissions)} so far{best}")]


def check_quota(account: Account, experiments: Sequence[Experiment]) -> list[Finding]:
    """GPU hours left this week against the expected cost of the experiments."""
    kernels = [kernel for kernel in plan_kernels(experiments) if kernel.needs_gpu] if experiments else []
    hours = {kernel.slug: expected_hours(kernel) for kernel in kernels}
    cost = sum(hours.values())
    planned = "nothing planned"
    if hours:
        names = ", ".join(experiment.name for experiment in experiments)
        planned = f"{names} is expected to cost {cost:.1f} h (estimated, not measured)"
    quota = account.request(lambda kaggle: kaggle.quota())
    if quota is None:
        return [
            warning("quota", f"Kaggle does not return the hours left; {planned}", "See kaggle.com/settings.")
        ]
    reset = f"{next_reset(quota):%a %d %b %H:%M} UTC"
    text = f"{quota.left:.1f} of {quota.allowed:.0f} h left until {reset}; {planned}"
    if max(hours.values(), default=0.0) > quota.allowed:
        remedy = (
            "One kernel is expected to take longer than a week's quota: make it cheaper, or correct its "
            "expected hours (--set expected_hours=...)."
        )
        return [problem("quota", text, remedy)]
    if cost > quota.left:
        weeks = plan_over_weeks(hours, quota, after=read_before(plan_kernels(experiments)))
        return [warning("quota", text, "\n".join(["A campaign waits for the next quota by itself:", *weeks]))]
    return [ok("quota", text)]


def check_slugs(account: Account, experiments: Sequence[Experiment]) -> list[Finding]:
    """The slugs of the planned kernels and of the library dataset are free, or used by the same kernels."""
    kernels = [*(plan_kernels(experiments) if experiments else []), *plan_environment_checks()]
    findings = [finding for kernel in kernels for finding in _check_slug(account, kernel.slug)]
    if account.request(lambda kaggle: kaggle.pull(LIBRARY_SLUG)) is not None:
        text = f"you have a kernel {LIBRARY_SLUG}: Kaggle refuses the dataset with the same slug"
        findings.append(problem("slugs", text, "Rename or delete that kernel in the browser."))
    free = ok(
        "slugs", f"{len(kernels)} kernels and one dataset: all slugs are free or yours, none is running"
    )
    return findings or [free]


def _check_slug(account: Account, slug: str) -> list[Finding]:
    findings = []
    status = account.request(lambda kaggle: kaggle.status(slug))
    if status.name in ACTIVE:
        remedy = (
            "If a campaign of yours pushed it, all is well. Otherwise the next campaign waits for its end."
        )
        findings.append(warning("slugs", f"a run of {slug} is {status.name} now", remedy))
    if status.name == ABSENT:
        try:
            account.request(lambda kaggle: kaggle.pull(slug), may_fail=True)
        except NoResponseError:
            user = account.kaggle.user if account.kaggle is not None else ""
            text = f"{slug} has no run and cannot be pulled: a refused first push left an empty kernel"
            remedy = (
                f"A campaign deletes it and pushes again. By hand: kaggle kernels delete {user}/{slug} -y"
            )
            findings.append(warning("slugs", text, remedy))
    if account.request(lambda kaggle: kaggle.dataset(slug)) is not None:
        text = f"you have a dataset {slug}: Kaggle refuses a kernel with the same slug"
        findings.append(problem("slugs", text, "Rename or delete the dataset in the browser."))
    return findings


def check_phone(folder: Path) -> list[Finding]:
    """The phone number is verified: no request tells, but an environment check can prove it."""
    results = kept_results(folder)
    if results is not None:
        date, records, _ = results
        gpus = records.get(GPU, {}).get("scores", {}).get("gpus")
        internet = records.get(CPU, {}).get("scores", {}).get("internet", {})
        has_internet = isinstance(internet, dict) and "reached" in internet.values()
        if (isinstance(gpus, list) and gpus) or has_internet:
            text = f"verified: the environment check of {date:%d %b %Y} had a GPU or internet"
            return [ok("phone", text)]
    remedy = (
        "See kaggle.com/settings: without a verified number Kaggle gives neither a GPU nor internet. "
        "doctor --check-kaggle proves it."
    )
    return [warning("phone", "no request tells whether the phone number is verified", remedy)]
