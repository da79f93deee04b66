"""The ledger of a campaign: its pushes, uploads and submissions, in one JSON file.

An intention is saved before its request is sent, and the result right after the response. When a campaign was
killed, the next run finds every request either confirmed or marked as intended.
"""

import json
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from launch.campaign.spec import CampaignSpec, campaign_folder, campaigns, spec_from_dict
from launch.campaign.waits import is_stamp, stamp
from launch.errors import LaunchError
from lib.errors import listed
from lib.files import write_atomic
from lib.validation import UNREADABLE, type_errors

LEDGER_NAME = "ledger.json"
LEDGER_FORMAT = 2
_STAMPS = ("intended_at", "pushed_at", "ended_at", "at", "fetched_at", "created")

# States of a push. Open ones may still run on Kaggle.
INTENDED, PUSHED, DROPPED = "intended", "pushed", "dropped"
DONE, REFUSED, UNFINISHED, FAILED = "done", "refused", "unfinished", "failed"
REPLACED = "replaced"
OPEN = (INTENDED, PUSHED, DROPPED)
LIMIT_NOTE = "it reached its time limit"  # of a push that did not finish: the next one is given more time


@dataclass(kw_only=True)
class Push:
    """One push of a kernel.

    Attributes:
        push_id: campaign, kernel and attempt; written into the pushed script and copied to its run.json.
        bundle_id: of the pushed code.
        identity: a hash of config and inputs: what it computes.
        limit: seconds after which Kaggle ends it.
        state: intended (the request may or may not have had its effect), pushed, dropped (pushed without some
            inputs: it runs, but cannot succeed), done, refused (had no effect), unfinished (ended without
            output), replaced (somebody pushed another version over it), failed.
        intended_at, pushed_at, ended_at: RFC 3339, empty while unknown.
        version: Kaggle's number of it.
        url: of its page.
        active: it was seen queued or running, so a later status belongs to it and not to an earlier push.
        note: why it is in its state; of an intended push, why its last request got no usable response.
        sends: how many requests were sent for it, without those that Kaggle refused.
        mounted: of a push that lacked inputs: the push id that was mounted in place of each, by slug; empty
            for nothing.
    """

    push_id: str
    bundle_id: str
    identity: str
    limit: float
    state: str = INTENDED
    intended_at: str = ""
    pushed_at: str = ""
    ended_at: str = ""
    version: int | None = None
    url: str = ""
    active: bool = False
    note: str = ""
    sends: int = 0
    mounted: dict[str, str] = field(default_factory=dict)


@dataclass(kw_only=True)
class Output:
    """A finished output, fetched and verified.

    Attributes:
        push_id: of the push it came from; of another campaign's push when it was reused.
        bundle_id: of the code that made it.
        identity: of the push.
        key: of this output as an input: the data id of prepare, the push id of a fold.
        seconds: that the kernel took.
        auc: of a fold.
    """

    push_id: str
    bundle_id: str
    identity: str
    key: str
    seconds: float = 0.0
    auc: float | None = None
    version: int | None = None
    fetched_at: str = ""


@dataclass(kw_only=True)
class KernelEntry:
    """One kernel: its pushes, its output, and `series`, the first push that counts after a rerun."""

    kind: str
    pushes: list[Push] = field(default_factory=list)
    output: Output | None = None
    series: int = 0

    @property
    def last(self) -> Push | None:
        """The latest push."""
        return self.pushes[-1] if self.pushes else None

    @property
    def open(self) -> Push | None:
        """The push that may still run."""
        return self.last if self.last is not None and self.last.state in OPEN else None

    @property
    def attempts(self) -> int:
        """Number of pushes in this series that were not refused, since the last one that was done."""
        count = 0
        for push in self.pushes[self.series :]:
            count = 0 if push.state == DONE else count + (push.state != REFUSED)
        return count

    @property
    def replaced(self) -> int:
        """Number of pushes in this series over which somebody pushed another version."""
        return sum(push.state == REPLACED for push in self.pushes[self.series :])

    @property
    def ever_had_a_version(self) -> bool:
        """Whether Kaggle ever accepted a push of this kernel, as far as the ledger knows."""
        return self.output is not None or any(push.state not in (REFUSED, INTENDED) for push in self.pushes)


@dataclass(kw_only=True)
class DatasetEntry:
    """The library dataset: states intended, uploaded, ready, failed; `before` is the version there was (0:
    none).
    """

    bundle_id: str
    before: int
    state: str = INTENDED
    attempts: int = 1
    at: str = ""
    note: str = ""


@dataclass(kw_only=True)
class SubmissionEntry:
    """A submission: states intended, sent, scored, failed; the message carries campaign id and file hash."""

    sha256: str
    message: str
    state: str = INTENDED
    at: str = ""
    ref: int = 0
    public: float | None = None
    private: float | None = None
    note: str = ""


@dataclass(kw_only=True)
class Ledger:
    """A campaign's ledger.

    Attributes:
        campaign: its name.
        id: random, so that no two campaigns share a push id.
        spec: what the campaign computes, as of its latest run.
        created: when.
        kernels: by slug.
        dataset: the library's.
        submissions: in their order.
    """

    campaign: str
    id: str
    spec: CampaignSpec
    created: str = ""
    kernels: dict[str, KernelEntry] = field(default_factory=dict)
    dataset: DatasetEntry | None = None
    submissions: list[SubmissionEntry] = field(default_factory=list)
    format: int = LEDGER_FORMAT
    folder: Path = field(default=Path(), repr=False)

    def save(self) -> None:
        """Write the file, whole or not at all."""
        content = {item.name: getattr(self, item.name) for item in fields(self) if item.name != "folder"}
        plain = {name: _plain(value) for name, value in content.items()}
        write_atomic(self.folder / LEDGER_NAME, json.dumps(plain, indent=1, allow_nan=False) + "\n")

    @property
    def owner(self) -> str:
        """The account."""
        return self.spec.owner

    def entry(self, slug: str, kind: str) -> KernelEntry:
        """The entry of a kernel. A missing one is made, but not saved yet."""
        return self.kernels.setdefault(slug, KernelEntry(kind=kind))


def _plain(value: Any) -> Any:
    if isinstance(value, CampaignSpec):
        return value.to_dict()
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return asdict(value) if hasattr(value, "__dataclass_fields__") else value


def new_ledger(folder: Path, *, campaign: str, spec: CampaignSpec) -> Ledger:
    """Start a ledger in `folder`, and save it."""
    folder.mkdir(parents=True, exist_ok=True)
    ledger = Ledger(campaign=campaign, id=secrets.token_hex(4), spec=spec, created=stamp(), folder=folder)
    ledger.save()
    return ledger


def read_ledger(folder: Path) -> Ledger | None:
    """The ledger in `folder`, or None where there is none.

    Raises:
        LaunchError: it cannot be read, has another format, or holds something that this code does not know.
    """
    path = folder / LEDGER_NAME
    remedy = f"Move {folder} away to start the campaign again; kernels that run on Kaggle are not affected."
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except UNREADABLE as error:
        raise LaunchError(f"{path} cannot be read ({error}). {remedy}") from error
    if not isinstance(content, dict) or content.get("format") != LEDGER_FORMAT:
        version = content.get("format") if isinstance(content, dict) else type(content).__name__
        raise LaunchError(f"{path} has format {version}, this code reads format {LEDGER_FORMAT}. {remedy}")
    try:
        kernels = {
            slug: KernelEntry(
                kind=entry["kind"],
                pushes=[Push(**push) for push in entry["pushes"]],
                output=Output(**entry["output"]) if entry["output"] else None,
                series=entry["series"],
            )
            for slug, entry in content.pop("kernels").items()
        }
        spec = spec_from_dict(content.pop("spec"))
        dataset = content.pop("dataset")
        submissions = [SubmissionEntry(**entry) for entry in content.pop("submissions")]
        ledger = Ledger(
            **content,
            spec=spec,
            kernels=kernels,
            dataset=DatasetEntry(**dataset) if dataset else None,
            submissions=submissions,
            folder=folder,
        )
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise LaunchError(f"{path} is not a ledger that this code can read ({error}). {remedy}") from error
    if wrong := _wrong_values(ledger):
        raise LaunchError(listed(f"{path} is not a ledger that this code can read:", wrong, remedy=remedy))
    return ledger


def campaign_names(folder: Path) -> dict[str, str]:
    """The names of the campaigns in a folder, by their ids. Ledgers that cannot be read are left out."""
    names = {}
    for path in folder.glob(f"*/{LEDGER_NAME}"):
        with suppress(*UNREADABLE, KeyError, TypeError):
            content = json.loads(path.read_bytes())
            names[str(content["id"])] = path.parent.name
    return names


def find_campaign(name: str | None) -> Path:
    """The folder of the named campaign, or of the one that ran last.

    Raises:
        LaunchError: there is none.
    """
    if name is not None:
        folder = campaign_folder(name)
        if not (folder / LEDGER_NAME).is_file():
            known = sorted(path.parent.name for path in campaigns().glob(f"*/{LEDGER_NAME}"))
            raise LaunchError(f"there is no campaign {name}; there are: {', '.join(known) or 'none'}")
        return folder
    ledgers = sorted(campaigns().glob(f"*/{LEDGER_NAME}"), key=lambda path: path.stat().st_mtime)
    if not ledgers:
        raise LaunchError(
            f"there is no campaign yet in {campaigns()}: start one with build_kernel.py run. "
            "(`smoke` and `local` have made their reports already, in the folders that they printed; "
            "build_kernel.py status --local shows a run of `local`.)"
        )
    return ledgers[-1].parent


def spec_of(folder: Path) -> CampaignSpec:
    """The specification of the campaign in `folder`.

    Raises:
        LaunchError: the folder holds no campaign, or its ledger cannot be read.
    """
    ledger = read_ledger(folder)
    if ledger is None:
        raise LaunchError(f"{folder} holds no campaign: start one with build_kernel.py run")
    return ledger.spec


def _wrong_values(ledger: Ledger) -> list[str]:
    """The values in a ledger that this code would not write."""
    parts: list[tuple[str, Any]] = [("the ledger", ledger), ("dataset", ledger.dataset)]
    parts += [(f"submission {number}", entry) for number, entry in enumerate(ledger.submissions, start=1)]
    for slug, kernel in ledger.kernels.items():
        parts += [(slug, kernel), (f"output of {slug}", kernel.output)]
        parts += [(f"push {number} of {slug}", push) for number, push in enumerate(kernel.pushes, start=1)]
    problems = []
    for name, part in parts:
        if part is None:
            continue
        values = {item.name: getattr(part, item.name) for item in fields(part)}
        problems += [f"{name}: {problem}" for problem in type_errors(type(part), values, but=("spec",))]
        wrong = [key for key in _STAMPS if key in values and not is_stamp(values[key])]
        problems += [f"{name}: {key} = {values[key]!r} is not a time stamp" for key in wrong]
    return problems


@contextmanager
def campaign_lock(folder: Path, *, name: str = "lock") -> Iterator[None]:
    """Run one campaign of a checkout at a time: campaigns share slugs and sessions.

    Args:
        folder: that holds the lock, made where it is missing.
        name: of the lock's file.

    Raises:
        LaunchError: another one is running.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / name, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise LaunchError(
            f"another campaign is running in {folder}: wait for its end, or stop it with Ctrl-C "
            "(kernels that it pushed continue)"
        ) from None
    try:
        yield
    finally:
        lock.release()
