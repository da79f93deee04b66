"""Canaries: three kernels of a few minutes that look at the real Kaggle, and what of it is not as the code assumes.

One on a CPU with internet, one on 2 x T4 without, one that mounts the first one's output and the competition. They are a
small campaign: pushed, proved, waited for and fetched by the same code, so an interrupted command goes on when it is repeated.
"""

import functools
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from launch.campaign.clock import stamp
from launch.campaign.ledger import DROPPED, LEDGER_NAME, OPEN, Ledger, campaign_lock, new_ledger, read_ledger
from launch.campaign.loop import Campaign
from launch.campaign.outputs import OUTPUTS
from launch.campaign.schedule import ENVIRONMENT_CHECK_HOURS, ENVIRONMENT_CHECK_LIMIT, PREPARE_HOURS
from launch.campaign.spec import CampaignSpec
from launch.campaign.state import CampaignState, CampaignStoppedError
from launch.campaign.waits import REHEARSAL, Timeouts
from launch.kaggle_api.client import Kaggle
from launch.kaggle_api.errors import ClientError, CredentialsError
from launch.packaging.builder import Checkout, read_checkout
from launch.packaging.secret_scan import clean
from launch.plan import Kernel
from launch.sandbox import ADDED_BY_KAGGLE, EXECUTED
from lib.config import Config
from lib.files import write_atomic
from lib.runtime.hardware import TESTED_WITH
from lib.runtime.inputs import COMPETITION
from lib.runtime.run_record import read_run_record
from lib.validation import UNREADABLE

RESULTS = "environment-check.json"
KIND = "environment_check"
CPU, GPU, MOUNT = "hcd-environment-check-cpu", "hcd-environment-check-gpu", "hcd-environment-check-mount"
_FORMAT = 1

# What the code takes for granted (KAGGLE.md sections g and h). Sizes in bytes.
_WORKING, _INPUT = "/kaggle/working", "/kaggle/input"
_DISK, _DISK_NEEDED = 20e9, 9e9  # prepare writes 7.7 GB of tiles
_MEMORY, _MEMORY_NEEDED = 29e9, 12e9  # a fold holds 6.1 GB of tiles
_CORES = 4
_CARDS, _CAPABILITY = 2, "7.5"
_PYTHONS = ((3, 12), (3, 13))
_TILES = 277_483  # of the competition, train and test
_PHONE = (
    "Verify your phone number at kaggle.com/settings: without it Kaggle gives neither internet nor a GPU."
)


@dataclass(frozen=True)
class Finding:
    """What was found about one thing.

    Attributes:
        name: of what was looked at.
        ok: True, False when something must be done, None when it is unknown or only worth knowing.
        found: what it is.
        remedy: what to do about it.
    """

    name: str
    ok: bool | None
    found: str
    remedy: str = ""


_Check = Callable[[Mapping[str, Any], Mapping[str, Any]], Finding]  # of a record's scores and the record


# A canary is pushed once, and nobody waits for days in front of it.
PACE = Timeouts(
    poll=15.0,
    capacity=60.0,
    capacity_patience=3600.0,
    queue_patience=3600.0,
    foreign_patience=3600.0,
    quota_patience=0.0,
    overrun=600.0,
    outage=900.0,
    pushes=1,
)
EMULATOR_TIMEOUTS = replace(REHEARSAL, quota_patience=0.0, foreign_patience=60.0, pushes=1)


def plan_environment_checks() -> list[Kernel]:
    """The canaries, in an order in which they can run."""
    plain: dict[str, Any] = {"kind": KIND, "experiments": (), "configs": (Config(),)}
    return [
        Kernel(slug=CPU, internet=True, **plain),
        Kernel(slug=GPU, needs_gpu=True, **plain),
        Kernel(slug=MOUNT, competition=True, sources=(CPU,), **plain),
    ]


# --- pushing and waiting ---------------------------------------------------------------------------------------------


def run_environment_checks(
    kaggle: Kaggle,
    folder: Path,
    say: Callable[[str], None],
    *,
    pace: Timeouts | None = None,
    source: Checkout | None = None,
) -> list[Finding]:
    """Push the canaries, wait for them, keep what they saw in `folder`/environment-check.json, and hold it against what the code assumes.

    Args:
        kaggle: the account.
        folder: of results, ledger and what was pushed; an interrupted run is taken up from it.
        say: takes a line.
        pace: waits.
        source: what kernels are rendered from; the checkout when None.

    Raises:
        CredentialsError: the service does not know us.
        LaunchError: it has not answered for too long, or another probe is at work; the same command goes on.
    """
    with campaign_lock(folder):
        ledger = _ledger(folder, kaggle, say)
        problems: dict[str, list[str]] = {}
        kernels = plan_environment_checks()
        if (short := _short_of_quota(kaggle)) and ledger.entry(GPU, KIND).open is None:
            problems[GPU] = [short, "Probe again when the week's quota is back."]
            kernels = [kernel for kernel in kernels if kernel.slug != GPU]
        campaign = Campaign(
            kaggle=kaggle,
            source=source or read_checkout(owner=kaggle.user),
            kernels=kernels,
            ledger=ledger,
            folder=folder,
            dataset=None,
            pace=pace or PACE,
            say=say,
        )
        try:
            campaign.run()
        except CampaignStoppedError:
            if not campaign.desk.failures:  # an outage: what was pushed goes on, and so does the same command
                raise
        for kernel in kernels:
            if kernel.slug in campaign.desk.failures:
                problems[kernel.slug] = _problem(campaign.desk, kernel)
            elif not campaign.progress.is_done(kernel):
                text = "not pushed: the canary whose output it mounts did not finish"
                problems[kernel.slug] = [text, "Mend that one first."]
        records = {
            kernel.slug: asdict(read_run_record(folder / OUTPUTS / kernel.slug, kind=KIND, fetched_only=True))
            for kernel in kernels
            if kernel.slug not in problems
        }
        results = {
            "format": _FORMAT,
            "date": stamp(),
            "user": kaggle.user,
            "bundle_id": campaign.desk.source.bundle,
            "records": records,
            "problems": problems,
        }
        write_atomic(folder / RESULTS, json.dumps(results, indent=1) + "\n")
        (folder / LEDGER_NAME).unlink()  # the next probe is a new one
        say(f"what the canaries saw is kept in {folder.name}/{RESULTS}")
        return _judged(results)


def _ledger(folder: Path, kaggle: Kaggle, say: Callable[[str], None]) -> Ledger:
    """That of an interrupted probe of this account, or a new one."""
    ledger = read_ledger(folder)
    if ledger is not None and ledger.owner == kaggle.user:
        say("an earlier probe was interrupted: going on with it")
        for entry in ledger.kernels.values():
            if entry.last is not None and entry.last.state not in OPEN and entry.output is None:
                entry.series = len(entry.pushes)
        return ledger
    shutil.rmtree(folder / OUTPUTS, ignore_errors=True)
    say(
        f"three canaries of a few minutes each, private kernels of {kaggle.user}: {CPU}, {GPU}, {MOUNT}. The second costs about "
        f"0.05 to {ENVIRONMENT_CHECK_HOURS} h of GPU quota (never over {ENVIRONMENT_CHECK_LIMIT / 3600:.2f} h), the others none"
    )
    return new_ledger(folder, campaign=KIND, spec=CampaignSpec(owner=kaggle.user))


def _short_of_quota(kaggle: Kaggle) -> str:
    """Why the GPU canary is not worth pushing; empty when it is, or when the service does not say."""
    try:
        quota = kaggle.quota()
    except CredentialsError:
        raise
    except ClientError:
        return ""  # not knowing is no reason not to ask: the refusal is what counts
    if quota is None or quota.left >= ENVIRONMENT_CHECK_HOURS:
        return ""
    return f"not pushed: {quota.left:.2f} of {quota.allowed:.0f} h of GPU quota are left"


def _problem(desk: CampaignState, kernel: Kernel) -> list[str]:
    """What was found about a canary that failed, and what to do."""
    last = desk.ledger.entry(kernel.slug, KIND).last
    found = last.note if last is not None and last.state == DROPPED else desk.failures[kernel.slug]
    low = found.lower()
    if "without some of its inputs" in low and kernel.competition:
        remedy = f"Accept the rules: kaggle.com/competitions/{COMPETITION}/rules"
    elif "phone" in low:
        remedy = _PHONE
    elif "session count" in low:
        remedy = "End the other sessions of your account, and probe again."
    elif "quota" in low:
        remedy = "Probe again when the week's quota is back."
    else:
        remedy = f"Look at https://www.kaggle.com/code/{desk.kaggle.user}/{kernel.slug}, mend the cause, and probe again."
    return [clean(found, ()), remedy]


def kept_results(folder: Path) -> tuple[datetime, dict[str, Any], list[Finding]] | None:
    """The last probe's date, its records by slug, and what this code finds in them; None where there was none."""
    try:
        results = json.loads((folder / RESULTS).read_bytes())
        if results["format"] != _FORMAT:
            return None
        return datetime.fromisoformat(results["date"]), dict(results["records"]), _judged(results)
    except (KeyError, TypeError, AttributeError, *UNREADABLE):
        return None


def _judged(results: Mapping[str, Any]) -> list[Finding]:
    problems = [Finding(slug, False, found, remedy) for slug, (found, remedy) in results["problems"].items()]
    return problems + expectations(results["records"])


def expectations(records: Mapping[str, Mapping[str, Any]]) -> list[Finding]:
    """Hold what canaries saw, by slug as run.json has it, against what the code takes for granted."""
    findings = []
    for slug, record in records.items():
        checks: dict[str, _Check] = {
            "place": _place,
            "paths": _paths,
            "python": _python,
            "packages": _packages,
            "room": _room,
        }
        checks |= {"internet on": _internet_on} if slug == CPU else {"internet off": _internet_off}
        if slug == GPU:
            checks |= {"cards": _cards, "two cards together": _all_reduce}
        if slug == MOUNT:
            wanted = records.get(CPU, {}).get("push_id")
            mounted = functools.partial(_mounted, wanted=wanted)
            checks |= {"mounted output": mounted, "competition": _competition, "reading tiles": _reading}
        for name, check in checks.items():
            findings.append(_seen(f"{slug.removeprefix('hcd-').replace('-', ' ')}: {name}", check, record))
    return findings


class _UntoldError(Exception):
    """The canary could not find out; the message says why."""


def _seen(name: str, check: _Check, record: Mapping[str, Any]) -> Finding:
    try:
        found = check(record["scores"], record)
    except _UntoldError as error:
        return Finding(
            name,
            None,
            str(error),
            "The code may trip over the same: see lib/runtime/environment_check.py for what was tried.",
        )
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, ZeroDivisionError) as error:
        return Finding(
            name,
            None,
            f"the canary does not say ({type(error).__name__})",
            "Probe again with this version of the code.",
        )
    return Finding(name, found.ok, found.found, found.remedy if found.ok is not True else "")


def _told(scores: Mapping[str, Any], name: str) -> Any:
    """A fact, or the error that says why it could not be had."""
    fact = scores[name]
    if isinstance(fact, dict) and "error" in fact:
        raise _UntoldError(str(fact["error"]))
    return fact


def _place(scores: Mapping[str, Any], record: Mapping[str, Any]) -> Finding:
    run_type = _told(scores, "environment")["run_type"]
    found = f"{scores['place']}, run type {run_type or 'not said'}"
    remedy = "lib/runtime/session.py (open_session) tells Kaggle by KAGGLE_KERNEL_RUN_TYPE: without it the full data are not demanded."
    if scores["place"] == "rehearsal":
        return Finding(
            "",
            None,
            f"{found}: the emulator, not Kaggle",
            "It shows that the chain works, nothing about Kaggle.",
        )
    if scores["place"] != "kaggle":
        return Finding("", False, found, remedy)
    return Finding("", True if run_type == "Batch" else None, found, remedy)


def _paths(scores: Mapping[str, Any], record: Mapping[str, Any]) -> Finding:
    facts = _told(scores, "paths")
    writable = "can be written to" if facts["script_folder_writable"] else "read-only"
    found = f"works in {facts['working']}, inputs in {facts['input']}, script {facts['script']} ({writable})"
    right = facts["working"] == _WORKING and facts["input"] == _INPUT
    remedy = f"Outputs are written to the current folder, which should be {_WORKING}; inputs are looked for in {_INPUT}."
    return Finding("", True if right else None, found, remedy)


def _python(scores: Mapping[str, Any], record: Mapping[str, Any]) -> Finding:
    text = record["versions"]["python"]
    numbers = _numbers(text)[:2]
    if numbers < (3, 11):
        return Finding("", False, text, "The library needs Python 3.11: pin a newer image (docker_image).")
    ok = True if numbers in _PYTHONS else None
    return Finding("", ok, text, "Kaggle's images had 3.12 and 3.13; this one is new to the code.")


def _packages(scores: Mapping[str, Any], record: Mapping[str, Any]) -> Finding:
    versions, imports = record["versions"], _told(scores, "imports")
    broken = [f"{name}: {said}" for name, said in imports.items() if not said.startswith("ok")]
    if broken:
        remedy = (
            "These recipes cannot run there: change the import, or pin an image that has it (docker_image)."
        )
        return Finding("", False, "not importable: " + "; ".join(broken), remedy)
    old = [
        f"{name} {versions.get(name, 'absent')} (tried with {tried} or newer)"
        for name, tried in TESTED_WITH.items()
        if _numbers(versions.get(name, "0")) < _numbers(tried)
    ]
    if old:
        return Finding("", None, "; ".join(old), "Everything imports, but was not tried with these.")
    shown = ", ".join(f"{name} {versions[name]}" for name in TESTED_WITH)
    return Finding("", True, f"{shown}; all {len(imports)} recipes import")


def _room(scores: Mapping[str, Any], record: Mapping[str, Any]) -> Finding:
    disk = _told(scores, "paths")["free"]["working"]
    facts = _told(scores, "machine")
    memory, cores = facts["memory"] or 0, facts["cores"]
    found = f"{disk / 1e9:.1f} GB of disk free, {memory / 1e9:.1f} GB of memory, {cores} cores"
    remedy = f"Assumed are {_DISK / 1e9:.0f} GB of disk, {_MEMORY / 1e9:.0f} GB of memory and {_CORES} cores"
    if disk < _DISK_NEEDED or memory < _MEMORY_NEEDED:
        return Finding("", False, found, f"{remedy}; prepare writes 7.7 GB, a fold holds 6.1 GB.")
    enough = disk >= 0.95 * _DISK and memory >= 0.95 * _MEMORY and cores >= _CORES
    return Finding("", True if enough else None, found, f"{remedy}: folds may be slower, nothing fails.")


def _internet_on(scores: Mapping[str, Any], record: Mapping[str, Any]) -> Finding:
    facts = _told(scores, "internet")
    found = ", ".join(f"{name}: {said}" for name, said in facts.items())
    if facts["huggingface"] == "reached":
        return Finding("", True, found)
    remedy = (
        _PHONE
        if all(said != "reached" for said in facts.values())
        else "The weights kernel fetches from huggingface.co."
    )
    return Finding("", False, found, remedy)


def _internet_off(scores: Mapping[str, Any], record: Mapping[str, Any]) -> Finding:
    reached = [name for name, said in _told(scores, "internet").items() if said == "reached"]
    if not reached:
        return Finding("", True, "nothing can be reached, as asked")
    return Finding(
        "",
        None,
        f"reached although it was asked off: {', '.join(reached)}",
        "Harmless; the record of Kaggle is wrong here.",
    )


def _cards(scores: Mapping[str, Any], record: Mapping[str, Any]) -> Finding:
    cards = _told(scores, "cards")
    if not cards:
        return Finding(
            "",
            False,
            "torch sees no GPU",
            f"{_PHONE} Then look at the kernel's settings: it asks for NvidiaTeslaT4.",
        )
    found = "; ".join(
        f"{card['name']}, capability {card['capability']}, {card['memory'] / 2**30:.1f} GiB, "
        f"bfloat16 {'yes' if card['bfloat16'] else 'no'}, float16 {_speed(card['float16'])}"
        for card in cards
    )
    if any(card["float16"].get("right") is not True for card in cards):
        return Finding(
            "",
            False,
            found,
            "A card does not compute in float16: train with --set precision=float32, or pin an image.",
        )
    if any(float(card["capability"]) < 7 for card in cards):
        return Finding(
            "", False, found, "Kaggle gave cards that current images do not support: check machine_shape."
        )
    usual = len(cards) == _CARDS and all(card["capability"] == _CAPABILITY for card in cards)
    return Finding(
        "", True if usual else None, found, "Assumed are two T4 of capability 7.5; hours will differ."
    )


def _speed(facts: Mapping[str, Any]) -> str:
    return f"{facts['tflops']} TFLOP/s" if "tflops" in facts else str(facts.get("error", "not tried"))


def _all_reduce(scores: Mapping[str, Any], record: Mapping[str, Any]) -> Finding:
    facts = scores["all_reduce"]
    if facts.get("right") is True:
        found = (
            f"{facts['backend']} sums over {facts['processes']} cards at {facts['gigabytes_per_second']} GB/s"
        )
        return Finding("", True, found)
    found = facts.get("skipped") or facts.get("error") or "the sum over both cards is wrong"
    return Finding(
        "", None, found, "Training one network on both cards (ddp) will not work; one member a card does."
    )


def _competition(scores: Mapping[str, Any], record: Mapping[str, Any]) -> Finding:
    facts = _told(scores, "tiles")
    if "absent" in facts:
        remedy = f"Accept the rules (kaggle.com/competitions/{COMPETITION}/rules), or see lib/runtime/session.py (find_competition)."
        return Finding("", False, facts["absent"], remedy)
    usual = facts["place"] == f"competitions/{COMPETITION}"
    remedy = "Not where Kaggle mounted competitions in 2026; the code finds it there, too."
    return Finding("", True if usual else None, f"found at {facts['place']}", remedy)


def _reading(scores: Mapping[str, Any], record: Mapping[str, Any]) -> Finding:
    facts = _told(scores, "tiles")
    if "absent" in facts:
        return Finding("", None, "no tiles to read", "See the competition above.")
    listing, alone, together = facts["listing"], facts["alone"], facts["together"]
    rate = together["tiles_per_second"]
    hours = _TILES / rate / 3600
    found = (
        f"{rate:,.0f} tiles/s by {together['readers']} threads (n = {together['tiles']:,}), "
        f"one tile {alone['median_milliseconds']} ms; {listing['entries']:,} files listed in {listing['seconds']:.1f} s; "
        f"all {_TILES:,} would take {hours:.2f} h"
    )
    ok = True if hours <= PREPARE_HOURS else None if hours <= 2.5 * PREPARE_HOURS else False
    return Finding(
        "", ok, found, f"prepare is expected to take {PREPARE_HOURS:g} h and ended after three times that."
    )


def _mounted(scores: Mapping[str, Any], record: Mapping[str, Any], *, wanted: str | None) -> Finding:
    outputs = [each for each in _told(scores, "outputs") if each.get("place", "").rsplit("/", 1)[-1] == CPU]
    if len(outputs) != 1:
        places = ", ".join(mount["place"] for mount in _told(scores, "mounts")) or "nothing"
        remedy = "lib/runtime/session.py (list_mounts) must find it: see where it lies."
        return Finding(
            "", False, f"the output of {CPU} was found {len(outputs)} times; mounted: {places}", remedy
        )
    facts = outputs[0]
    if "problem" in facts:
        return Finding(
            "",
            False,
            facts["problem"],
            "A mounted output is not what its kernel left: every kernel would refuse it.",
        )
    if wanted is not None and facts["push_id"] != wanted:
        remedy = "Kernels check this themselves where it matters; wait longer between a kernel's end and the next push."
        return Finding(
            "", False, "an earlier run's output was mounted, not the one that had just ended", remedy
        )
    age = facts.get("seconds_since_it_ended")
    delay = f", readable at most {age:.0f} s after its kernel ended" if isinstance(age, int | float) else ""
    added = facts["added"]
    unknown = [
        name for name in added if name not in (*ADDED_BY_KAGGLE, EXECUTED) and not name.endswith(".log")
    ]
    usual = facts["place"].startswith("notebooks/") and not unknown
    found = f"found at {facts['place']}, whole{delay}; added by Kaggle: {', '.join(added) or 'nothing'}"
    return Finding("", True if usual else None, found, "Not as recorded in 2026, but the code reads it.")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("+")[0].split(".")[:2] if part.isdigit())
