"""Command `doctor`: run every check, print the findings, and check Kaggle itself on request.

No check depends on another: without a network or credentials the others are still run. Checks change nothing.
"""

import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from launch import ROOT
from launch.campaign.spec import service_name, uses_emulator
from launch.campaign.waits import Timeouts, stamp
from launch.doctor.account import (
    Account,
    SkippedError,
    check_credentials,
    check_owner,
    check_phone,
    check_quota,
    check_rules,
    check_slugs,
    check_submissions,
)
from launch.doctor.credentials import find_credentials
from launch.doctor.environment_check import EMULATOR_TIMEOUTS, kept_results, run_environment_checks
from launch.doctor.finding import OK, PROBLEM, WARNING, Finding, first_line, problem, warning
from launch.doctor.gated import check_gated_encoders
from launch.doctor.machine import (
    check_client,
    check_clock,
    check_disk,
    check_environment,
    check_python,
    check_scripts,
)
from launch.errors import LaunchError
from launch.experiments import Experiment
from launch.kaggle_api.calls import RetryPolicy
from launch.kaggle_api.client import Kaggle, connect
from launch.kaggle_api.errors import ClientError
from launch.packaging.secret_scan import clean, own_secrets

logger = logging.getLogger(__name__)

CHECK_FOLDER = ROOT / "runs" / "environment-check"
# Short, because a person waits for the checks.
_RETRY_POLICY = RetryPolicy(call_timeout=20.0, attempts=2, delay=1.0, max_delay=5.0)
DOCTOR_FORMAT = 1  # of the JSON document; it changes when a key is removed or means something else
_STYLES = {OK: "green", WARNING: "yellow", PROBLEM: "bold red"}


@dataclass(frozen=True)
class Examination:
    """The findings of one call of `doctor`.

    Attributes:
        experiments: names of those that are about to be run.
        findings: of the checks that change nothing.
        environment_check: findings of the environment check on Kaggle; a warning where there was none.
        checked_at: when the environment check ran, RFC 3339; empty where it did not.
    """

    experiments: tuple[str, ...]
    findings: tuple[Finding, ...]
    environment_check: tuple[Finding, ...]
    checked_at: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The document of `doctor --json`; docs/json.md describes its keys."""

        def plain(finding: Finding) -> dict[str, str]:
            return {
                "check": finding.name,
                "level": finding.level,
                "text": finding.text,
                "remedy": finding.remedy,
            }

        levels = [finding.level for finding in (*self.findings, *self.environment_check)]
        return {
            "format": DOCTOR_FORMAT,
            "service": service_name(),
            "experiments": list(self.experiments),
            "problems": levels.count(PROBLEM),
            "warnings": levels.count(WARNING),
            "findings": [plain(finding) for finding in self.findings],
            "environment_check": {
                "at": self.checked_at or None,
                "findings": [plain(finding) for finding in self.environment_check],
            },
        }

    def conclude(self) -> str:
        """A sentence that says how many warnings there are.

        Raises:
            LaunchError: there are problems; the message lists them.
        """
        findings = (*self.findings, *self.environment_check)
        problems = [finding for finding in findings if finding.level == PROBLEM]
        if problems:
            count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
            lines = [f"  - {finding.name}: {first_line(finding.text)}" for finding in problems]
            raise LaunchError("\n".join([f"{count}; the remedies are printed above:", *lines]))
        warnings = sum(finding.level == WARNING for finding in findings)
        return "no problems" + (f", {warnings} warning{'s' if warnings > 1 else ''}" if warnings else "")


def doctor(experiments: Sequence[Experiment], **options: Any) -> None:
    """Run the checks and print their findings; the options are those of `examine`.

    Raises:
        LaunchError: there are problems; the message lists them.
    """
    print(examine(experiments, show=print_findings, **options).conclude())


def examine(
    experiments: Sequence[Experiment],
    *,
    check_kaggle: bool,
    check_gated: bool = False,
    folder: Path,
    retry_policy: RetryPolicy | None = None,
    timeouts: Timeouts | None = None,
    show: Callable[[Sequence[Finding]], None] = lambda findings: None,
) -> Examination:
    """Run the checks.

    Args:
        experiments: that are about to be run.
        check_kaggle: push the environment checks; otherwise their last results are shown again.
        check_gated: call the model hub, too: which gated encoders are open to the user's token.
        folder: of the results of environment checks.
        retry_policy: time limits of requests to Kaggle.
        timeouts: waits for the environment checks.
        show: receives the findings as soon as there are some.
    """
    if uses_emulator():
        folder = folder / "emulator"  # what is measured on the emulator says nothing about Kaggle
        timeouts = timeouts or EMULATOR_TIMEOUTS
    kaggle, connect_error = _connect(retry_policy or _RETRY_POLICY)
    logger.info("checking credentials, rules, quota, slugs, versions and sizes; about half a minute")
    findings = run_checks(
        kaggle, experiments=experiments, folder=folder, connect_error=connect_error, gated=check_gated
    )
    show(findings)
    results: list[Finding] = []
    checked_at = ""
    if check_kaggle:
        blocking = [
            finding.name
            for finding in findings
            if finding.level == PROBLEM and finding.name in ("credentials", "connection")
        ]
        if kaggle is None or blocking:
            remedy = f"See {' and '.join(blocking)} above."
            results = [problem("environment check", "not pushed: Kaggle cannot be reached", remedy)]
        else:
            # The environment checks take minutes: their requests may take longer, except on the emulator.
            kaggle.retry_policy = retry_policy or (
                _RETRY_POLICY if timeouts is EMULATOR_TIMEOUTS else RetryPolicy()
            )
            results = run_environment_checks(kaggle, folder, timeouts=timeouts)
            checked_at = stamp()
    elif (kept := kept_results(folder)) is not None:
        date, _, results = kept
        checked_at = stamp(date)
        logger.info(
            "results of the environment check of %s UTC (doctor --check-kaggle repeats it):",
            f"{date:%d %b %Y %H:%M}",
        )
    else:
        remedy = "doctor --check-kaggle pushes three kernels of a few minutes, about 0.1 h of GPU quota."
        results = [warning("environment check", "not run on your account yet", remedy)]
    show(results)
    names = tuple(experiment.name for experiment in experiments)
    return Examination(names, tuple(findings), tuple(results), checked_at)


def _connect(retry_policy: RetryPolicy) -> tuple[Kaggle | None, LaunchError | None]:
    """The account, or the error that says why there is none; neither where there are no credentials."""
    if not find_credentials(os.environ, Path.home()):
        return None, None
    try:
        return connect(retry_policy), None
    except ClientError as error:
        return None, error
    except Exception as error:  # the client itself fails to import, whatever the error is
        return None, LaunchError(f"the Kaggle client cannot be used ({type(error).__name__})")


def run_checks(
    kaggle: Kaggle | None,
    *,
    experiments: Sequence[Experiment],
    folder: Path,
    connect_error: LaunchError | None = None,
    gated: bool = False,
    environment: Mapping[str, str] | None = None,
    home: Path | None = None,
    root: Path = ROOT,
) -> list[Finding]:
    """Run every check, whatever becomes of the others.

    Args:
        kaggle: the account, or None where there is no connection.
        experiments: that are about to be run.
        folder: of the results of environment checks.
        connect_error: why there is no connection.
        gated: call the model hub, too, about gated encoders.
        environment: of this process.
        home: home folder of the user.
        root: of the checkout.
    """
    environment = os.environ if environment is None else environment
    home = home or Path.home()
    account = Account(kaggle, connect_error)
    secrets = own_secrets(environment, home)  # an error's text may quote one
    checks: dict[str, Callable[[], list[Finding]]] = {
        "Python": check_python,
        "Kaggle client": check_client,
        "environment": lambda: check_environment(environment),
        "disk": lambda: check_disk(folder),
        "scripts": lambda: check_scripts(experiments, root=root),
        "clock": check_clock,
        "owner": lambda: check_owner(account, root),
        "rules": lambda: check_rules(account),
        "submissions": lambda: check_submissions(account),
        "quota": lambda: check_quota(account, experiments),
        "slugs": lambda: check_slugs(account, experiments),
        "phone": lambda: check_phone(folder),
    }
    if gated:
        checks["gated encoders"] = lambda: check_gated_encoders(experiments, environment, home)
    findings = []
    for name, check in checks.items():
        findings += _run_check(name, check, secrets)
    # Run last, because the other requests show whether the credentials are accepted; reported first.
    credentials = _run_check("credentials", lambda: check_credentials(account, environment, home), secrets)
    return credentials + findings


def _run_check(name: str, check: Callable[[], list[Finding]], secrets: tuple[str, ...]) -> list[Finding]:
    """The findings of one check without secrets; an error of the check is a finding, too."""
    try:
        findings = check()
    except SkippedError as error:
        findings = [warning(name, f"not checked: {error}")]
    except ClientError as error:
        remedy = "Run this command again. status.kaggle.com reports outages."
        findings = [warning(name, f"unknown: {error}", remedy)]
    except LaunchError as error:
        findings = [problem(name, str(error))]
    except Exception as error:  # one defective check must not hide the results of the others
        findings = [warning(name, f"this check itself failed ({type(error).__name__})", "Please report it.")]
    return [
        replace(finding, text=clean(finding.text, secrets), remedy=clean(finding.remedy, secrets))
        for finding in findings
    ]


def print_findings(findings: Sequence[Finding]) -> None:
    """Print one line for each finding and its remedy below it; in colour on a terminal, plain elsewhere."""
    for finding in findings:
        first, *details = [line for line in finding.text.splitlines() if line.strip()] or [""]
        if finding.level != OK:
            details += finding.remedy.splitlines()
        if not sys.stdout.isatty():
            print(f"{finding.level:<7} {finding.name}: {first}", flush=True)
            for line in details:
                print(f"        {line}", flush=True)
            continue
        from rich.console import Console
        from rich.padding import Padding
        from rich.text import Text

        console = Console(highlight=False)
        level = (f"{finding.level:<7} ", _STYLES[finding.level])
        console.print(Text.assemble(level, (f"{finding.name}: ", "bold"), first))
        for line in details:
            console.print(Padding(Text(line), (0, 0, 0, 8)))
