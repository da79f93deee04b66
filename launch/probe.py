"""Canaries: three kernels of a few minutes that look at the real Kaggle, and what of it is not as the code assumes.

One on a CPU with internet, one on 2 x T4 without, one that mounts the first one's output and the competition. They are
pushed as every kernel is, under a push id that proves whose output came back. An intention stands in the state file
before the request is sent, so that an interrupted command, run again, waits for what runs and pushes nothing twice.
"""

import fcntl
import functools
import json
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from launch.build import Source, read_source
from launch.client import (
    ABSENT,
    ACTIVE,
    COMPLETE,
    CapacityError,
    ClientError,
    CredentialsError,
    GhostError,
    Kaggle,
    Listing,
    NoAnswerError,
    QuotaError,
    RefusedError,
    RunStatus,
    SourcesDroppedError,
    StrangeAnswerError,
    clean,
    now,
)
from launch.errors import LaunchError
from launch.ledger import seconds_since, stamp
from launch.outputs import NoRecordError, fetch_output, peek_record
from launch.plan import Kernel
from lib.config import Config
from lib.files import write_whole
from lib.session import COMPETITION, TRIED_WITH

RESULTS, STATE = "probe.json", "probe-state.json"
KIND = "probe"
CPU, GPU, MOUNT = "hcd-probe-cpu", "hcd-probe-gpu", "hcd-probe-mount"
GPU_HOURS = 0.1  # of quota, what the GPU canary is expected to cost at most
LIMIT = 900.0  # seconds after which Kaggle ends a canary
_FORMAT = 1
_LOG_LINES = 12  # of a failed canary, shown
_WAITING, _INTENDED, _PUSHED, _DONE, _FAILED = "waiting", "intended", "pushed", "done", "failed"

# What the code takes for granted (KAGGLE.md sections g and h). Sizes in bytes.
_WORKING, _INPUT = "/kaggle/working", "/kaggle/input"
_DISK, _DISK_NEEDED = 20e9, 9e9  # prepare writes 7.7 GB of tiles
_MEMORY, _MEMORY_NEEDED = 29e9, 12e9  # a fold holds 6.1 GB of tiles
_CORES = 4
_CARDS, _CAPABILITY = 2, "7.5"
_PYTHONS = ((3, 12), (3, 13))
_TILES = 277_483  # of the competition, train and test
_PREPARE_HOURS = 1.0  # what launch.schedule expects; the time limit of its push is three times that
_ADDED = ("__script__.py", "__notebook__.ipynb", "__results__.html", "__output__.json", "custom.css")
_PHONE = "Verify your phone number at kaggle.com/settings: without it Kaggle gives neither internet nor a GPU."


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


@dataclass(frozen=True, kw_only=True)
class ProbePace:
    """How long to wait for what, in seconds.

    Attributes:
        poll: between looks.
        settle: after a push, how long answers may still be about what was before it.
        capacity: before asking again when all sessions are taken.
        capacity_patience: how long to be refused for that reason.
        queue_patience: how long a push may stay queued or without a run, and another run of its slug at work.
        overrun: beyond its time limit, how long a run may still be shown as running.
        stale_patience: how long a finished run may show the output of an earlier push.
        outage: how long the service may not answer at all.
    """

    poll: float = 15.0
    settle: float = 120.0
    capacity: float = 60.0
    capacity_patience: float = 3600.0
    queue_patience: float = 3600.0
    overrun: float = 600.0
    stale_patience: float = 900.0
    outage: float = 900.0


LOOPBACK = ProbePace(
    poll=0.5,
    settle=5.0,
    capacity=1.0,
    capacity_patience=120.0,
    queue_patience=120.0,
    overrun=30.0,
    stale_patience=60.0,
    outage=60.0,
)


def plan_probes() -> list[Kernel]:
    """The canaries, in an order in which they can run."""
    plain: dict[str, Any] = {"kind": KIND, "experiments": (), "configs": (Config(),)}
    return [
        Kernel(slug=CPU, internet=True, **plain),
        Kernel(slug=GPU, needs_gpu=True, **plain),
        Kernel(slug=MOUNT, competition=True, sources=(CPU,), **plain),
    ]


# --- pushing and waiting ---------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class _Canary:
    """One canary as the state file has it; a problem is what was found and what to do."""

    push_id: str
    state: str = _WAITING
    pushed_at: str = ""
    version: int | None = None
    active: bool = False
    record: dict[str, Any] | None = None
    problem: list[str] = field(default_factory=list)


def run_probes(
    kaggle: Kaggle, folder: Path, say: Callable[[str], None], *, pace: ProbePace | None = None, source: Source | None = None
) -> list[Finding]:
    """Push the canaries, wait for them, keep what they saw in `folder`/probe.json, and hold it against what the code assumes.

    Args:
        kaggle: the account.
        folder: of results, state and what was pushed; an interrupted run is taken up from it.
        say: takes a line.
        pace: waits.
        source: what kernels are rendered from; the checkout when None.

    Raises:
        CredentialsError: the service does not know us.
        LaunchError: it has not answered for too long, or another probe is at work; the same command goes on.
    """
    with _lock(folder):
        probes = _Probes(
            kaggle=kaggle,
            source=source or read_source(owner=kaggle.user),
            folder=folder,
            pace=pace or ProbePace(),
            say=say,
            canaries=_read_state(folder, kaggle.user),
        )
        return probes.run()


@dataclass
class _Probes:
    kaggle: Kaggle
    source: Source
    folder: Path
    pace: ProbePace
    say: Callable[[str], None]
    canaries: dict[str, _Canary]

    def __post_init__(self) -> None:
        self.kernels = plan_probes()
        self._clocks: dict[tuple[str, str], float] = {}
        self._said: set[tuple[str, str]] = set()
        self._cured: set[str] = set()
        series = f"probe-{now():%Y%m%d%H%M%S}-{secrets.token_hex(3)}"
        for kernel in self.kernels:
            self.canaries.setdefault(kernel.slug, _Canary(push_id=f"{series}.{kernel.slug}"))

    def run(self) -> list[Finding]:
        states = {canary.state for canary in self.canaries.values()}
        if states != {_WAITING}:
            self.say("an earlier probe was interrupted: going on with it")
        elif self.canaries[GPU].state == _WAITING:
            self.say(
                f"three canaries of a few minutes each, private kernels of {self.kaggle.user}: {CPU}, {GPU}, {MOUNT}. "
                f"The second costs about 0.05 to {GPU_HOURS} h of GPU quota (never over {LIMIT / 3600:.2f} h), the others none"
            )
        while not all(canary.state in (_DONE, _FAILED) for canary in self.canaries.values()):
            try:
                for kernel in self.kernels:
                    self._step(kernel, self.canaries[kernel.slug])
            except CredentialsError:
                raise
            except (NoAnswerError, RefusedError) as error:
                self._once("", f"{error}; trying again")
                if self._waited("", "outage") > self.pace.outage:
                    raise LaunchError(
                        f"Kaggle has not answered for {self.pace.outage:.0f} s: {error}\nWhat was pushed goes on there; "
                        "the same command waits for it."
                    ) from error
            else:
                self._forget("", "outage")
            if not all(canary.state in (_DONE, _FAILED) for canary in self.canaries.values()):
                time.sleep(self.pace.poll)
        return self._finish()

    def _finish(self) -> list[Finding]:
        results = {
            "format": _FORMAT,
            "date": stamp(),
            "user": self.kaggle.user,
            "bundle_id": self.source.bundle,
            "records": {slug: canary.record for slug, canary in self.canaries.items() if canary.record is not None},
            "problems": {slug: canary.problem for slug, canary in self.canaries.items() if canary.problem},
        }
        write_whole(self.folder / RESULTS, json.dumps(results, indent=1) + "\n")
        (self.folder / STATE).unlink(missing_ok=True)
        self.say(f"what the canaries saw is kept in {self.folder.name}/{RESULTS}")
        return _judged(results)

    def _step(self, kernel: Kernel, canary: _Canary) -> None:
        if canary.state == _WAITING:
            self._start(kernel, canary)
        elif canary.state == _INTENDED:
            self._prove(kernel, canary)
        elif canary.state == _PUSHED:
            self._follow(kernel, canary)

    def _start(self, kernel: Kernel, canary: _Canary) -> None:
        inputs = [self.canaries[slug] for slug in kernel.sources]
        if any(each.state == _FAILED for each in inputs):
            self._fail(kernel, canary, "not pushed: the canary whose output it mounts did not finish", "Mend that one first.")
            return
        if any(each.state != _DONE for each in inputs):
            return
        held = self._clocks.get((kernel.slug, "hold"))
        if held is not None and time.monotonic() - held < self.pace.capacity:
            return
        if kernel.needs_gpu and not self._quota_allows(kernel, canary):
            return
        if self._is_at_work(kernel, canary, self.kaggle.status(kernel.slug)):
            return
        self._send(kernel, canary)

    def _quota_allows(self, kernel: Kernel, canary: _Canary) -> bool:
        try:
            quota = self.kaggle.quota()
        except CredentialsError:
            raise
        except ClientError:
            return True  # not knowing is no reason not to ask: the refusal is what counts
        if quota is None or quota.left >= GPU_HOURS:
            return True
        text = f"not pushed: {quota.left:.2f} of {quota.allowed:.0f} h of GPU quota are left"
        self._fail(kernel, canary, text, "Probe again when the week's quota is back.")
        return False

    def _is_at_work(self, kernel: Kernel, canary: _Canary, status: RunStatus) -> bool:
        """A run of this slug that is not ours is never pushed over, but waited for."""
        if status.name not in ACTIVE:
            self._forget(kernel.slug, "foreign")
            return False
        self._once(kernel.slug, f"{kernel.slug}: another run of it is {status.name}: waiting for it to end")
        if self._waited(kernel.slug, "foreign") > self.pace.queue_patience:
            text = f"another run of it has been {status.name} for {self.pace.queue_patience / 60:.0f} min"
            self._fail(kernel, canary, text, f"End it in the browser: {self._address(kernel)}")
        return True

    def _send(self, kernel: Kernel, canary: _Canary) -> None:
        canary.state = _INTENDED
        self._save()
        folder = self.folder / "pushes" / kernel.slug
        self.source.write_kernel(kernel, folder, push_id=canary.push_id, limit=LIMIT)
        try:
            pushed = self.kaggle.push(folder, limit=LIMIT)
        except CapacityError as error:
            self._not_pushed(kernel, canary)
            self._once(kernel.slug, f"{kernel.slug}: {error} Waiting for a free session")
            if self._waited(kernel.slug, "capacity") > self.pace.capacity_patience:
                self._fail(kernel, canary, str(error), "End the other sessions of your account, and probe again.")
        except QuotaError as error:
            self._fail(kernel, canary, str(error), "Probe again when the week's quota is back.")
        except GhostError as error:
            self._cure(kernel, canary, error)
        except SourcesDroppedError as error:
            remedy = f"Accept the rules: kaggle.com/competitions/{COMPETITION}/rules" if kernel.competition else "Probe again."
            self._fail(kernel, canary, str(error), remedy)
        except NoAnswerError as error:
            self.say(f"{kernel.slug}: {error}; looking whether the push happened before asking again")
        except CredentialsError:
            self._not_pushed(kernel, canary)
            raise
        except (RefusedError, StrangeAnswerError) as error:
            self._fail(kernel, canary, str(error), _PHONE if "phone" in str(error).lower() else "Mend the cause and probe again.")
        else:
            self._was_pushed(kernel, canary, version=pushed.version)

    def _not_pushed(self, kernel: Kernel, canary: _Canary) -> None:
        canary.state = _WAITING
        self._clocks[(kernel.slug, "hold")] = time.monotonic()
        self._save()

    def _was_pushed(self, kernel: Kernel, canary: _Canary, *, version: int | None) -> None:
        canary.state, canary.version, canary.pushed_at = _PUSHED, version, stamp()
        self._save()
        self._forget(kernel.slug, "proof")
        self.say(f"{kernel.slug}: pushed, version {version or 'unknown'}, at most {LIMIT / 60:.0f} min: {self._address(kernel)}")

    def _cure(self, kernel: Kernel, canary: _Canary, error: GhostError) -> None:
        """A refused first push leaves a kernel without a version, on which every later push fails: deleted once it is proved."""
        proved = self.kaggle.status(kernel.slug).name == ABSENT and kernel.slug not in self._cured
        with suppress(NoAnswerError):  # the pull of a ghost ends in an internal error
            proved = proved and self.kaggle.pull(kernel.slug) is None
        if not proved:
            self._fail(kernel, canary, str(error), f"Look at it in the browser and delete it: {self._address(kernel)}")
            return
        self._cured.add(kernel.slug)
        self.say(f"{kernel.slug}: an earlier refusal left it without a version; deleting it and pushing again")
        self.kaggle.delete(kernel.slug)
        canary.state = _WAITING
        self._save()

    def _prove(self, kernel: Kernel, canary: _Canary) -> None:
        """Whether a push happened whose answer never came: the source that Kaggle holds carries its push id, or does not."""
        try:
            pulled = self.kaggle.pull(kernel.slug)
        except NoAnswerError:
            if self.kaggle.status(kernel.slug).name != ABSENT:
                raise
            pulled = None  # the pull of a ghost ends in an internal error
        if pulled is not None and canary.push_id in pulled.source:
            self._was_pushed(kernel, canary, version=pulled.version)
            return
        if self._waited(kernel.slug, "proof") < self.pace.settle:
            return  # what Kaggle shows lags behind
        if self._is_at_work(kernel, canary, self.kaggle.status(kernel.slug)):
            return
        self._forget(kernel.slug, "proof")
        self.say(f"{kernel.slug}: the push did not happen, sending it")
        self._send(kernel, canary)

    def _follow(self, kernel: Kernel, canary: _Canary) -> None:
        try:
            status = self.kaggle.status(kernel.slug)
        except StrangeAnswerError as error:
            self._once(kernel.slug, f"{kernel.slug}: {error}; looking again")
            if self._waited(kernel.slug, "strange") > self.pace.stale_patience:
                self._fail(kernel, canary, str(error), f"Look at {self._address(kernel)}")
            return
        fresh = not canary.active and seconds_since(canary.pushed_at) < self.pace.settle
        if status.name in ACTIVE or status.name == ABSENT:
            self._forget(kernel.slug, "stale")
            if status.name in ACTIVE and not canary.active:
                canary.active = True
                self._save()
            running = status.name == "RUNNING"
            patience = LIMIT + self.pace.overrun if running else self.pace.queue_patience
            if self._waited(kernel.slug, status.name) > patience:
                text = f"has been {status.name} for {patience / 60:.0f} min"
                self._fail(kernel, canary, text, f"Look at {self._address(kernel)}, end it there, and probe again.")
        elif status.name == COMPLETE:
            self._collect(kernel, canary, fresh=fresh)
        else:
            self._has_ended(kernel, canary, status, fresh=fresh)

    def _collect(self, kernel: Kernel, canary: _Canary, *, fresh: bool) -> None:
        outputs = self.folder / "outputs"
        try:
            listing = self.kaggle.output(kernel.slug)
            content = peek_record(self.kaggle, kernel.slug, listing, folder=outputs)
            if content.get("push_id") != canary.push_id:
                raise NoAnswerError("Kaggle shows the output of an earlier push")
            record = fetch_output(self.kaggle, kernel.slug, listing, content, kind=KIND, folder=outputs)
        except NoRecordError as error:
            if not fresh:
                self._fail(kernel, canary, f"{error}, though Kaggle calls it complete{_tail(listing)}", "Probe again.")
            return
        except NoAnswerError as error:  # listings lag, links expire
            self._once(kernel.slug, f"{kernel.slug}: {error}; looking again")
            if self._waited(kernel.slug, "stale") > self.pace.stale_patience:
                self._fail(kernel, canary, f"{error}, for {self.pace.stale_patience / 60:.0f} min", "Probe again.")
            return
        except StrangeAnswerError as error:
            self._fail(
                kernel, canary, str(error), "Probe again; if it stays so, Kaggle lists outputs in a way this code does not know."
            )
            return
        canary.record, canary.state = asdict(record), _DONE
        self._save()
        self.say(f"{kernel.slug}: done in {record.seconds.get('total', 0.0):.0f} s")

    def _has_ended(self, kernel: Kernel, canary: _Canary, status: RunStatus, *, fresh: bool) -> None:
        try:
            listing = self.kaggle.output(kernel.slug)
        except RefusedError:
            listing = Listing({}, "")
        if fresh and canary.push_id not in listing.log:
            return  # this may still be the run before
        said = f": {status.message}" if status.message else ""
        self._fail(kernel, canary, f"ended as {status.name}{said}{_tail(listing)}", f"Look at {self._address(kernel)}")

    def _fail(self, kernel: Kernel, canary: _Canary, found: str, remedy: str) -> None:
        canary.state, canary.problem = _FAILED, [clean(found, ()), remedy]
        self._save()
        self.say(f"{kernel.slug}: {canary.problem[0].splitlines()[0]}")

    def _save(self) -> None:
        canaries = {slug: asdict(canary) for slug, canary in self.canaries.items()}
        content = {"format": _FORMAT, "user": self.kaggle.user, "canaries": canaries}
        write_whole(self.folder / STATE, json.dumps(content, indent=1) + "\n")

    def _address(self, kernel: Kernel) -> str:
        return f"https://www.kaggle.com/code/{self.kaggle.user}/{kernel.slug}"

    def _waited(self, slug: str, what: str) -> float:
        """Seconds since this was first waited for."""
        moment = time.monotonic()
        return moment - self._clocks.setdefault((slug, what), moment)

    def _forget(self, slug: str, what: str) -> None:
        self._clocks.pop((slug, what), None)

    def _once(self, slug: str, text: str) -> None:
        if (slug, text) not in self._said:
            self._said.add((slug, text))
            self.say(text)


def _tail(listing: Listing) -> str:
    lines = [line for line in listing.log.splitlines() if line.strip()][-_LOG_LINES:]
    return "\n" + "\n".join(lines) if lines else ""


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a+") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise LaunchError("another probe is at work: wait for it, or stop it with Ctrl-C (what it pushed goes on)") from None
        yield


def _read_state(folder: Path, user: str) -> dict[str, _Canary]:
    """What an interrupted probe of this account noted; nothing where there is none that can be read."""
    try:
        content = json.loads((folder / STATE).read_bytes())
        if content["format"] != _FORMAT or content["user"] != user:
            return {}
        slugs = [kernel.slug for kernel in plan_probes()]
        return {slug: _Canary(**canary) for slug, canary in content["canaries"].items() if slug in slugs}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


# --- what was seen, against what the code assumes --------------------------------------------------------------------


def kept_results(folder: Path) -> tuple[datetime, dict[str, Any], list[Finding]] | None:
    """The last probe's date, its records by slug, and what this code finds in them; None where there was none."""
    try:
        results = json.loads((folder / RESULTS).read_bytes())
        if results["format"] != _FORMAT:
            return None
        return datetime.fromisoformat(results["date"]), dict(results["records"]), _judged(results)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _judged(results: Mapping[str, Any]) -> list[Finding]:
    problems = [Finding(slug, False, found, remedy) for slug, (found, remedy) in results["problems"].items()]
    return problems + expectations(results["records"])


def expectations(records: Mapping[str, Mapping[str, Any]]) -> list[Finding]:
    """Hold what canaries saw, by slug as run.json has it, against what the code takes for granted."""
    findings = []
    for slug, record in records.items():
        checks: dict[str, _Check] = {"place": _place, "paths": _paths, "python": _python, "packages": _packages, "room": _room}
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
        return Finding(name, None, str(error), "The code may trip over the same: see lib/probe.py for what was tried.")
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, ZeroDivisionError) as error:
        return Finding(
            name, None, f"the canary does not say ({type(error).__name__})", "Probe again with this version of the code."
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
    remedy = "lib/session.py (open_session) tells Kaggle by KAGGLE_KERNEL_RUN_TYPE: without it the full data are not demanded."
    if scores["place"] == "rehearsal":
        return Finding("", None, f"{found}: the loopback, not Kaggle", "It shows that the chain works, nothing about Kaggle.")
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
        remedy = "These recipes cannot run there: change the import, or pin an image that has it (docker_image)."
        return Finding("", False, "not importable: " + "; ".join(broken), remedy)
    old = [
        f"{name} {versions.get(name, 'absent')} (tried with {tried} or newer)"
        for name, tried in TRIED_WITH.items()
        if _numbers(versions.get(name, "0")) < _numbers(tried)
    ]
    if old:
        return Finding("", None, "; ".join(old), "Everything imports, but was not tried with these.")
    shown = ", ".join(f"{name} {versions[name]}" for name in TRIED_WITH)
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
    remedy = _PHONE if all(said != "reached" for said in facts.values()) else "The weights kernel fetches from huggingface.co."
    return Finding("", False, found, remedy)


def _internet_off(scores: Mapping[str, Any], record: Mapping[str, Any]) -> Finding:
    reached = [name for name, said in _told(scores, "internet").items() if said == "reached"]
    if not reached:
        return Finding("", True, "nothing can be reached, as asked")
    return Finding(
        "", None, f"reached although it was asked off: {', '.join(reached)}", "Harmless; the record of Kaggle is wrong here."
    )


def _cards(scores: Mapping[str, Any], record: Mapping[str, Any]) -> Finding:
    cards = _told(scores, "cards")
    if not cards:
        return Finding("", False, "torch sees no GPU", f"{_PHONE} Then look at the kernel's settings: it asks for NvidiaTeslaT4.")
    found = "; ".join(
        f"{card['name']}, capability {card['capability']}, {card['memory'] / 2**30:.1f} GiB, "
        f"bfloat16 {'yes' if card['bfloat16'] else 'no'}, float16 {_speed(card['float16'])}"
        for card in cards
    )
    if any(card["float16"].get("right") is not True for card in cards):
        return Finding(
            "", False, found, "A card does not compute in float16: train with --set precision=float32, or pin an image."
        )
    if any(float(card["capability"]) < 7 for card in cards):
        return Finding("", False, found, "Kaggle gave cards that current images do not support: check machine_shape.")
    usual = len(cards) == _CARDS and all(card["capability"] == _CAPABILITY for card in cards)
    return Finding("", True if usual else None, found, "Assumed are two T4 of capability 7.5; hours will differ.")


def _speed(facts: Mapping[str, Any]) -> str:
    return f"{facts['tflops']} TFLOP/s" if "tflops" in facts else str(facts.get("error", "not tried"))


def _all_reduce(scores: Mapping[str, Any], record: Mapping[str, Any]) -> Finding:
    facts = scores["all_reduce"]
    if facts.get("right") is True:
        found = f"{facts['backend']} sums over {facts['processes']} cards at {facts['gigabytes_per_second']} GB/s"
        return Finding("", True, found)
    found = facts.get("skipped") or facts.get("error") or "the sum over both cards is wrong"
    return Finding("", None, found, "Training one network on both cards (ddp) will not work; one member a card does.")


def _competition(scores: Mapping[str, Any], record: Mapping[str, Any]) -> Finding:
    facts = _told(scores, "tiles")
    if "absent" in facts:
        remedy = f"Accept the rules (kaggle.com/competitions/{COMPETITION}/rules), or see lib/session.py (find_competition)."
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
    ok = True if hours <= _PREPARE_HOURS else None if hours <= 2.5 * _PREPARE_HOURS else False
    return Finding("", ok, found, f"prepare is expected to take {_PREPARE_HOURS:g} h and ended after three times that.")


def _mounted(scores: Mapping[str, Any], record: Mapping[str, Any], *, wanted: str | None) -> Finding:
    outputs = [each for each in _told(scores, "outputs") if each.get("place", "").rsplit("/", 1)[-1] == CPU]
    if len(outputs) != 1:
        places = ", ".join(mount["place"] for mount in _told(scores, "mounts")) or "nothing"
        remedy = "lib/session.py (list_mounts) must find it: see where it lies."
        return Finding("", False, f"the output of {CPU} was found {len(outputs)} times; mounted: {places}", remedy)
    facts = outputs[0]
    if "problem" in facts:
        return Finding("", False, facts["problem"], "A mounted output is not what its kernel left: every kernel would refuse it.")
    if wanted is not None and facts["push_id"] != wanted:
        remedy = "Kernels check this themselves where it matters; wait longer between a kernel's end and the next push."
        return Finding("", False, "an earlier run's output was mounted, not the one that had just ended", remedy)
    age = facts.get("seconds_since_it_ended")
    delay = f", readable at most {age:.0f} s after its kernel ended" if isinstance(age, int | float) else ""
    added = facts["added"]
    unknown = [name for name in added if name not in _ADDED and not name.endswith(".log")]
    usual = facts["place"].startswith("notebooks/") and not unknown
    found = f"found at {facts['place']}, whole{delay}; added by Kaggle: {', '.join(added) or 'nothing'}"
    return Finding("", True if usual else None, found, "Not as recorded in 2026, but the code reads it.")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("+")[0].split(".")[:2] if part.isdigit())
