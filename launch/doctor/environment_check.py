"""Environment check: three short kernels that measure what the code assumes about Kaggle.

The first runs on a CPU with internet, the second on 2 x T4 without, the third mounts the output of the
first and the competition's data. They are a small campaign: the campaign's code pushes them, waits for them
and fetches their outputs. An interrupted command is resumed when it is repeated.
"""

import functools
import json
import logging
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from launch.campaign.ledger import DROPPED, LEDGER_NAME, OPEN, Ledger, campaign_lock, new_ledger, read_ledger
from launch.campaign.loop import Campaign
from launch.campaign.outputs import OUTPUTS
from launch.campaign.quota import ENVIRONMENT_CHECK_HOURS, ENVIRONMENT_CHECK_LIMIT, PREPARE_HOURS
from launch.campaign.spec import CampaignSpec
from launch.campaign.state import CampaignState, CampaignStoppedError
from launch.campaign.waits import EMULATOR_TIMEOUTS as CAMPAIGN_TIMEOUTS
from launch.campaign.waits import Timeouts, stamp
from launch.doctor.finding import OK, Finding, ok, problem, warning
from launch.kaggle_api.client import Kaggle
from launch.kaggle_api.errors import RULES, ClientError, CredentialsError
from launch.packaging.builder import Checkout, read_checkout
from launch.packaging.secret_scan import clean
from launch.plan import Kernel
from lib.config import Config
from lib.files import write_atomic
from lib.runtime.hardware import TESTED_WITH
from lib.runtime.inputs import ADDED_BY_KAGGLE, COMPETITION, EXECUTED_NOTEBOOK
from lib.runtime.run_record import read_run_record
from lib.validation import UNREADABLE

logger = logging.getLogger(__name__)

RESULTS = "environment-check.json"
KIND = "environment_check"
CPU, GPU, MOUNT = "hcd-environment-check-cpu", "hcd-environment-check-gpu", "hcd-environment-check-mount"
_FORMAT = 2

# What the code assumes about Kaggle (KAGGLE.md, sections g and h). Sizes in bytes.
_WORKING, _INPUT = "/kaggle/working", "/kaggle/input"
_DISK, _DISK_NEEDED = 20e9, 9e9  # prepare writes 7.7 GB of tiles
_MEMORY, _MEMORY_NEEDED = 29e9, 12e9  # a fold holds 6.1 GB of tiles
_CORES = 4
_GPUS, _CAPABILITY = 2, "7.5"
_PYTHONS = ((3, 12), (3, 13))
_TILES = 277_483  # of the competition, train and test

_RUN_AGAIN = "Run doctor --check-kaggle again"
_PHONE = (
    "Verify your phone number at kaggle.com/settings: without it Kaggle gives neither internet nor a GPU."
)

# Each kernel is pushed once, and the waits are short: a person waits for the result.
TIMEOUTS = Timeouts(
    poll=15.0,
    session_retry=60.0,
    session_timeout=3600.0,
    queue_timeout=3600.0,
    foreign_run_timeout=3600.0,
    quota_timeout=0.0,
    overrun=600.0,
    outage_timeout=900.0,
    pushes=1,
)
EMULATOR_TIMEOUTS = replace(CAMPAIGN_TIMEOUTS, quota_timeout=0.0, foreign_run_timeout=60.0, pushes=1)


def plan_environment_checks() -> list[Kernel]:
    """The three kernels, in an order in which they can run."""
    common: dict[str, Any] = {"kind": KIND, "experiments": (), "configs": (Config(),)}
    return [
        Kernel(slug=CPU, internet=True, **common),
        Kernel(slug=GPU, needs_gpu=True, **common),
        Kernel(slug=MOUNT, competition=True, sources=(CPU,), **common),
    ]


# --- pushing and waiting ------------------------------------------------------------------------------------


def run_environment_checks(
    kaggle: Kaggle,
    folder: Path,
    *,
    timeouts: Timeouts | None = None,
    checkout: Checkout | None = None,
) -> list[Finding]:
    """Push the kernels, wait for them, and compare what they measured with what the code assumes.

    Args:
        kaggle: the account.
        folder: of the results (environment-check.json), the ledger and the pushed files. An interrupted run
            is resumed from it.
        timeouts: waits.
        checkout: what kernels are built from; the one of this file when None.

    Raises:
        CredentialsError: Kaggle does not accept the credentials.
        LaunchError: Kaggle has not responded for too long, or another environment check is running.
    """
    with campaign_lock(folder):
        ledger = _read_or_create_ledger(folder, kaggle)
        problems: dict[str, list[str]] = {}
        kernels = plan_environment_checks()
        missing_quota = _missing_quota(kaggle)
        if missing_quota and ledger.entry(GPU, KIND).open is None:
            problems[GPU] = [missing_quota, f"{_RUN_AGAIN} after the quota's weekly reset."]
            kernels = [kernel for kernel in kernels if kernel.slug != GPU]
        campaign = Campaign(
            kaggle=kaggle,
            source=checkout or read_checkout(owner=kaggle.user),
            kernels=kernels,
            ledger=ledger,
            folder=folder,
            dataset=None,
            timeouts=timeouts or TIMEOUTS,
        )
        try:
            campaign.run()
        except CampaignStoppedError:
            if not campaign.state.failures:  # an outage: the kernels still run, and the same command resumes
                raise
        for kernel in kernels:
            if kernel.slug in campaign.state.failures:
                problems[kernel.slug] = _describe_failure(campaign.state, kernel, kaggle.user)
            elif not campaign.state.progress.is_done(kernel):
                text = "not pushed: the kernel whose output it mounts did not finish"
                problems[kernel.slug] = [text, f"Fix the problem of {CPU} first."]
        records = {
            kernel.slug: asdict(read_run_record(folder / OUTPUTS / kernel.slug, kind=KIND, fetched_only=True))
            for kernel in kernels
            if kernel.slug not in problems
        }
        results = {
            "format": _FORMAT,
            "date": stamp(),
            "user": kaggle.user,
            "bundle_id": campaign.source.bundle,
            "records": records,
            "problems": problems,
        }
        write_atomic(folder / RESULTS, json.dumps(results, indent=1) + "\n")
        (folder / LEDGER_NAME).unlink()  # the next run pushes all kernels again
        logger.info("the results are in %s/%s", folder.name, RESULTS)
        return _findings(results)


def _read_or_create_ledger(folder: Path, kaggle: Kaggle) -> Ledger:
    """The ledger of an interrupted run of this account, or a new one."""
    ledger = read_ledger(folder)
    if ledger is not None and ledger.owner == kaggle.user:
        logger.info("an earlier environment check was interrupted: resuming it")
        for entry in ledger.kernels.values():
            if entry.last is not None and entry.last.state not in OPEN and entry.output is None:
                entry.series = len(entry.pushes)
        return ledger
    shutil.rmtree(folder / OUTPUTS, ignore_errors=True)
    logger.info(
        "pushing three private kernels of %s, a few minutes each: %s, %s, %s. "
        "The second costs about 0.05 to %s h of GPU quota (at most %.2f h), the others none",
        kaggle.user,
        CPU,
        GPU,
        MOUNT,
        ENVIRONMENT_CHECK_HOURS,
        ENVIRONMENT_CHECK_LIMIT / 3600,
    )
    return new_ledger(folder, campaign=KIND, spec=CampaignSpec(owner=kaggle.user))


def _missing_quota(kaggle: Kaggle) -> str:
    """Why the quota does not allow the GPU kernel; empty where it does, or where it is unknown."""
    try:
        quota = kaggle.quota()
    except CredentialsError:
        raise
    except ClientError:
        return ""  # an unknown quota does not stop the push: Kaggle refuses it if there is too little
    if quota is None or quota.left >= ENVIRONMENT_CHECK_HOURS:
        return ""
    return f"not pushed: {quota.left:.2f} of {quota.allowed:.0f} h of GPU quota are left"


def _describe_failure(state: CampaignState, kernel: Kernel, user: str) -> list[str]:
    """Why a kernel failed, and what to do."""
    last = state.ledger.entry(kernel.slug, KIND).last
    text = last.note if last is not None and last.state == DROPPED else state.failures[kernel.slug]
    lower = text.lower()
    if "without some of its inputs" in lower and kernel.competition:
        remedy = RULES
    elif "phone" in lower:
        remedy = _PHONE
    elif "session count" in lower:
        remedy = f"End the other sessions of your account. {_RUN_AGAIN}."
    elif "quota" in lower:
        remedy = f"{_RUN_AGAIN} after the quota's weekly reset."
    else:
        address = f"https://www.kaggle.com/code/{user}/{kernel.slug}"
        remedy = f"See {address}, fix the cause. {_RUN_AGAIN}."
    return [clean(text, ()), remedy]


def kept_results(folder: Path) -> tuple[datetime, dict[str, Any], list[Finding]] | None:
    """The last run's date, its records by slug, and the findings about them; None where there was none."""
    try:
        results = json.loads((folder / RESULTS).read_bytes())
        if results["format"] != _FORMAT:
            return None
        return datetime.fromisoformat(results["date"]), dict(results["records"]), _findings(results)
    except (KeyError, TypeError, AttributeError, *UNREADABLE):
        return None


def _findings(results: Mapping[str, Any]) -> list[Finding]:
    problems = [problem(slug, text, remedy) for slug, (text, remedy) in results["problems"].items()]
    return problems + compare_with_assumptions(results["records"])


# --- comparing what was measured with what the code assumes -------------------------------------------------

_Check = Callable[
    [str, Mapping[str, Any], Mapping[str, Any]], Finding
]  # of a name, run.json's scores, run.json


class _NotMeasuredError(Exception):
    """The kernel could not measure something; the message says why."""


def compare_with_assumptions(records: Mapping[str, Mapping[str, Any]]) -> list[Finding]:
    """Compare the measurements in each run.json, by slug, with what the code assumes."""
    findings = []
    for slug, record in records.items():
        checks: dict[str, _Check] = {
            "place": _check_place,
            "paths": _check_paths,
            "Python": _check_python,
            "packages": _check_packages,
            "disk and memory": _check_disk_and_memory,
        }
        checks |= (
            {"internet on": _check_internet_on} if slug == CPU else {"internet off": _check_internet_off}
        )
        if slug == GPU:
            checks |= {"GPUs": _check_gpus, "all-reduce": _check_all_reduce}
        if slug == MOUNT:
            push_id = records.get(CPU, {}).get("push_id")
            mounted_output = functools.partial(_check_mounted_output, push_id=push_id)
            checks |= {
                "mounted output": mounted_output,
                "competition": _check_competition,
                "reading tiles": _check_reading,
            }
        kernel = slug.removeprefix("hcd-").replace("-", " ")
        findings += [_compare(f"{kernel}: {name}", check, record) for name, check in checks.items()]
    return findings


def _compare(name: str, check: _Check, record: Mapping[str, Any]) -> Finding:
    try:
        finding = check(name, record["scores"], record)
    except _NotMeasuredError as error:
        remedy = (
            "Other kernels may fail in the same way. lib/runtime/environment_check.py shows what was tried."
        )
        return warning(name, str(error), remedy)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, ZeroDivisionError) as error:
        text = f"the kernel did not record it ({type(error).__name__})"
        return warning(name, text, f"{_RUN_AGAIN} with this version of the code.")
    return replace(finding, remedy="") if finding.level == OK else finding


def _measured(scores: Mapping[str, Any], name: str) -> Any:
    """A measurement, or the error that says why there is none."""
    value = scores[name]
    if isinstance(value, dict) and "error" in value:
        raise _NotMeasuredError(str(value["error"]))
    return value


def _check_place(name: str, scores: Mapping[str, Any], record: Mapping[str, Any]) -> Finding:
    place, run_type = scores["place"], _measured(scores, "environment")["run_type"]
    text = f"{place}, run type {run_type or 'not set'}"
    remedy = (
        "lib/runtime/session.py (open_session) recognises Kaggle by KAGGLE_KERNEL_RUN_TYPE. "
        "Without it kernels do not require the full data."
    )
    if place == "rehearsal":
        remedy = "It shows that the kernels run, and nothing about Kaggle."
        return warning(name, f"{text}: the emulator, not Kaggle", remedy)
    if place != "kaggle":
        return problem(name, text, remedy)
    return ok(name, text) if run_type == "Batch" else warning(name, text, remedy)


def _check_paths(name: str, scores: Mapping[str, Any], record: Mapping[str, Any]) -> Finding:
    paths = _measured(scores, "paths")
    access = "writable" if paths["script_folder_writable"] else "read-only"
    text = (
        f"working folder {paths['working']}, inputs in {paths['input']}, "
        f"script {paths['script']} in a {access} folder"
    )
    if paths["working"] == _WORKING and paths["input"] == _INPUT:
        return ok(name, text)
    remedy = (
        f"Kernels write to the current folder, which should be {_WORKING}, and read inputs from {_INPUT}."
    )
    return warning(name, text, remedy)


def _check_python(name: str, scores: Mapping[str, Any], record: Mapping[str, Any]) -> Finding:
    version = record["versions"]["python"]
    numbers = _major_minor(version)
    if numbers < (3, 11):
        return problem(name, version, "The library needs Python 3.11: pin a newer image (docker_image).")
    if numbers not in _PYTHONS:
        return warning(
            name, version, "The code was tested with 3.12 and 3.13, the versions of Kaggle's images."
        )
    return ok(name, version)


def _check_packages(name: str, scores: Mapping[str, Any], record: Mapping[str, Any]) -> Finding:
    versions, imports = record["versions"], _measured(scores, "imports")
    broken = [f"{module}: {result}" for module, result in imports.items() if not result.startswith("ok")]
    if broken:
        remedy = (
            "These recipes cannot run there: change the import, or pin an image that has it (docker_image)."
        )
        return problem(name, "not importable: " + "; ".join(broken), remedy)
    old = [
        f"{package} {versions.get(package, 'absent')} (tested with {tested} or newer)"
        for package, tested in TESTED_WITH.items()
        if _major_minor(versions.get(package, "0")) < _major_minor(tested)
    ]
    if old:
        return warning(name, "; ".join(old), "All recipes import, but were not tested with these versions.")
    installed = ", ".join(f"{package} {versions[package]}" for package in TESTED_WITH)
    return ok(name, f"{installed}; all {len(imports)} recipes import")


def _check_disk_and_memory(name: str, scores: Mapping[str, Any], record: Mapping[str, Any]) -> Finding:
    disk = _measured(scores, "paths")["free"]["working"]
    machine = _measured(scores, "machine")
    memory, cores = machine["memory"] or 0, machine["cores"]
    text = f"{disk / 1e9:.1f} GB of disk free, {memory / 1e9:.1f} GB of memory, {cores} cores"
    assumed = f"{_DISK / 1e9:.0f} GB of disk, {_MEMORY / 1e9:.0f} GB of memory and {_CORES} cores"
    if disk < _DISK_NEEDED or memory < _MEMORY_NEEDED:
        remedy = f"The code assumes {assumed}. prepare writes 7.7 GB, a fold holds 6.1 GB."
        return problem(name, text, remedy)
    if disk < 0.95 * _DISK or memory < 0.95 * _MEMORY or cores < _CORES:
        return warning(name, text, f"The code assumes {assumed}. Folds may be slower; nothing fails.")
    return ok(name, text)


def _check_internet_on(name: str, scores: Mapping[str, Any], record: Mapping[str, Any]) -> Finding:
    hosts = _measured(scores, "internet")
    text = ", ".join(f"{host}: {result}" for host, result in hosts.items())
    if hosts["huggingface"] == "reached":
        return ok(name, text)
    if "reached" in hosts.values():
        return problem(name, text, "The weights kernel downloads from huggingface.co.")
    return problem(name, text, _PHONE)


def _check_internet_off(name: str, scores: Mapping[str, Any], record: Mapping[str, Any]) -> Finding:
    reached = [host for host, result in _measured(scores, "internet").items() if result == "reached"]
    if reached:
        text = f"reached although internet was off: {', '.join(reached)}"
        return warning(name, text, "Harmless; docs/platform.md describes Kaggle wrongly here.")
    return ok(name, "no host can be reached")


def _check_gpus(name: str, scores: Mapping[str, Any], record: Mapping[str, Any]) -> Finding:
    gpus = _measured(scores, "gpus")
    if not gpus:
        remedy = f"{_PHONE} Then check the accelerator in the kernel's settings: NvidiaTeslaT4 was requested."
        return problem(name, "torch sees no GPU", remedy)
    text = "; ".join(
        f"{gpu['name']}, capability {gpu['capability']}, {gpu['memory'] / 2**30:.1f} GiB, "
        f"bfloat16 {'yes' if gpu['bfloat16'] else 'no'}, float16 {_float16_speed(gpu['float16'])}"
        for gpu in gpus
    )
    if any(gpu["float16"].get("correct") is not True for gpu in gpus):
        remedy = "A GPU does not compute in float16: train with --set precision=float32, or pin an image."
        return problem(name, text, remedy)
    if any(float(gpu["capability"]) < 7 for gpu in gpus):
        return problem(name, text, "Current images do not support these GPUs: check machine_shape.")
    if len(gpus) == _GPUS and all(gpu["capability"] == _CAPABILITY for gpu in gpus):
        return ok(name, text)
    return warning(name, text, "The code assumes two T4 of capability 7.5; expected hours will be wrong.")


def _float16_speed(float16: Mapping[str, Any]) -> str:
    return f"{float16['tflops']} TFLOP/s" if "tflops" in float16 else str(float16.get("error", "not tried"))


def _check_all_reduce(name: str, scores: Mapping[str, Any], record: Mapping[str, Any]) -> Finding:
    result = scores["all_reduce"]
    if result.get("correct") is True:
        speed = f"{result['gigabytes_per_second']} GB/s"
        return ok(name, f"{result['backend']} sums over {result['processes']} GPUs at {speed}")
    text = result.get("skipped") or result.get("error") or "the sum over both GPUs is wrong"
    return warning(name, text, "One member on both GPUs (ddp) will not work; one member for each GPU will.")


def _check_competition(name: str, scores: Mapping[str, Any], record: Mapping[str, Any]) -> Finding:
    tiles = _measured(scores, "tiles")
    if "absent" in tiles:
        return problem(name, tiles["absent"], f"{RULES}, or see lib/runtime/inputs.py (find_competition).")
    text = f"mounted at {tiles['place']}"
    if tiles["place"] == f"competitions/{COMPETITION}":
        return ok(name, text)
    return warning(name, text, "Kaggle mounted it elsewhere in 2026. The code finds it here, too.")


def _check_reading(name: str, scores: Mapping[str, Any], record: Mapping[str, Any]) -> Finding:
    tiles = _measured(scores, "tiles")
    if "absent" in tiles:
        return warning(name, "no tiles to read", "See the competition above.")
    listing, alone, together = tiles["listing"], tiles["alone"], tiles["together"]
    rate = together["tiles_per_second"]
    hours = _TILES / rate / 3600
    text = (
        f"{rate:,.0f} tiles/s by {together['readers']} threads (n = {together['tiles']:,}), "
        f"one tile {alone['median_milliseconds']} ms; "
        f"{listing['entries']:,} files listed in {listing['seconds']:.1f} s; "
        f"all {_TILES:,} would take {hours:.2f} h"
    )
    remedy = f"prepare is expected to take {PREPARE_HOURS:g} h, and is ended after three times that."
    if hours <= PREPARE_HOURS:
        return ok(name, text)
    return warning(name, text, remedy) if hours <= 2.5 * PREPARE_HOURS else problem(name, text, remedy)


def _check_mounted_output(
    name: str, scores: Mapping[str, Any], record: Mapping[str, Any], *, push_id: str | None
) -> Finding:
    """The output of the first kernel, mounted in the third; `push_id` is that of the first kernel's push."""
    outputs = [
        output for output in _measured(scores, "outputs") if output.get("place", "").rsplit("/", 1)[-1] == CPU
    ]
    if len(outputs) != 1:
        mounts = ", ".join(mount["place"] for mount in _measured(scores, "mounts")) or "nothing"
        text = f"the output of {CPU} is mounted {len(outputs)} times; mounted: {mounts}"
        return problem(
            name, text, "lib/runtime/inputs.py (list_mounts) must find it: see where it is mounted."
        )
    output = outputs[0]
    if "problem" in output:
        remedy = "The mounted output differs from what its kernel wrote: every kernel would refuse it."
        return problem(name, output["problem"], remedy)
    if push_id is not None and output["push_id"] != push_id:
        text = "the output of an earlier run is mounted, not that of the run that had just ended"
        remedy = "Kernels refuse such an output. Wait longer between the end of a kernel and the next push."
        return problem(name, text, remedy)
    age = output.get("seconds_since_it_ended")
    delay = f", readable at most {age:.0f} s after its kernel ended" if isinstance(age, int | float) else ""
    added = output["added"]
    text = f"mounted at {output['place']}, complete{delay}; added by Kaggle: {', '.join(added) or 'nothing'}"
    known = (*ADDED_BY_KAGGLE, EXECUTED_NOTEBOOK)
    unknown = [file for file in added if file not in known and not file.endswith(".log")]
    if output["place"].startswith("notebooks/") and not unknown:
        return ok(name, text)
    return warning(name, text, "Kaggle did not do so in 2026, but the code can read it.")


def _major_minor(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("+")[0].split(".")[:2] if part.isdigit())
