"""Finished folds below a folder: a campaign, a rehearsal, the folder of `local`, or outputs of kernels."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from lib.errors import KernelError, listed
from lib.files import sha256_of
from lib.runtime.run_record import (
    RECORD_NAME,
    RunRecord,
    RunRecordError,
    peek_kind,
    read_run_record,
)

WEIGHTS_SUFFIX = ".safetensors"
# Outputs of kernels below a folder: the folder itself, mounts, `local`, a campaign and what `output` fetched.
_CHOSEN = (".", "*", "*/working", "outputs/*", "campaign/outputs/*")
# Below these may be an output without its weights, and here is the same one with them: what `output` fetched,
# and what stayed on the emulated Kaggle of a rehearsal.
_ALSO = ("fetched/*", "campaign/fetched/*", "kaggle/kernels/*/v*/working", "../kaggle/kernels/*/v*/working")


class FinishedFoldsError(KernelError):
    """The folds of a folder cannot be used; the message lists every problem."""


@dataclass(frozen=True)
class FinishedFold:
    """The output of a fold, whose fetched files match its run.json."""

    folder: Path
    record: RunRecord

    @property
    def name(self) -> str:
        """The name of the fold in messages."""
        return f"fold {self.record.fold} of {self.record.experiment}"

    def missing_weights(self) -> list[str]:
        """The files of weights that its run.json lists and that are not in the folder."""
        names = [name for name in self.record.files if name.endswith(WEIGHTS_SUFFIX)]
        return sorted(name for name in names if not (self.folder / name).is_file())

    def damaged_weights(self) -> list[str]:
        """The files of weights that are not those of its run.json."""
        return sorted(
            name
            for name, entry in self.record.files.items()
            if name.endswith(WEIGHTS_SUFFIX)
            and (self.folder / name).is_file()
            and sha256_of(self.folder / name) != entry.sha256
        )


def outputs_below(folder: Path, kinds: Collection[str]) -> list[Path]:
    """The outputs of kernels of these kinds, those of the first place first."""
    found: dict[Path, None] = {}
    for place in (*_CHOSEN, *_ALSO):
        parents = [folder] if place == "." else sorted(folder.glob(place))
        if place.startswith("../") and folder.name != "campaign":
            continue
        for path in parents:
            if (path / RECORD_NAME).is_file() and peek_kind(path) in kinds:
                found.setdefault(path.resolve())
    return list(found)


def find_folds(folder: Path, *, experiments: Sequence[str] = ()) -> list[FinishedFold]:
    """The finished folds below a folder, with their weights, in the order of experiment and fold.

    Args:
        folder: a campaign, a rehearsal, the folder of `local`, a folder of outputs, or one output.
        experiments: names; when empty, all that are found, without those that only taught another one
            (pseudo-labels).

    Raises:
        FinishedFoldsError: no fold is found, a fold is found twice, or weights are missing or damaged; every
            problem is listed.
    """
    problems: list[str] = []
    by_fold: dict[tuple[str, int], list[FinishedFold]] = {}
    for path in outputs_below(folder, ("train",)):
        try:
            record = read_run_record(path, kind="train", fetched_only=True)
        except RunRecordError as error:
            problems.append(str(error).replace("\n", "\n    "))
            continue
        by_fold.setdefault((record.experiment, record.fold), []).append(FinishedFold(path, record))
    names = {name for name, _ in by_fold}
    teachers = {str(output[0].record.config.get("pseudo_labels", "")) for output in by_fold.values()}
    wanted = set(experiments) or (names - teachers or names)
    problems += [f"{name} has no finished fold here" for name in sorted(wanted - names)]
    chosen: list[FinishedFold] = []
    for (name, _), candidates in sorted(by_fold.items()):
        if name not in wanted:
            continue
        # The same push in two places is one output; the copy with all weights counts.
        first = candidates[0].record.push_id
        pushes = {fold.record.push_id for fold in candidates if not _is_beside(fold.folder)} or {first}
        if len(pushes) > 1:
            places = " and ".join(str(fold.folder) for fold in candidates)
            problems.append(
                f"{candidates[0].name} is found more than once, in {places}: name one of the folders"
            )
            continue
        same = [fold for fold in candidates if fold.record.push_id in pushes]
        chosen.append(next((fold for fold in same if not fold.missing_weights()), same[0]))
    for fold in chosen:
        if missing := fold.missing_weights():
            problems.append(f"{fold.name}: {', '.join(missing)} is missing in {fold.folder}")
        elif damaged := fold.damaged_weights():
            problems.append(
                f"{fold.name}: {', '.join(damaged)} in {fold.folder} is not the one of its run.json"
            )
    if not by_fold and not problems:
        problems.append("no finished fold is here (no run.json of a train kernel)")
    if problems:
        raise FinishedFoldsError(
            listed(
                f"the members in {folder} cannot be used:", problems, remedy=_remedy(folder, chosen, names)
            )
        )
    return chosen


def _is_beside(path: Path) -> bool:
    """Whether it is a copy of an output: fetched by `output`, or on the emulated Kaggle of a rehearsal."""
    return "fetched" in path.parts[-3:] or path.parts[-4:-3] == ("kernels",)


def _remedy(folder: Path, chosen: Sequence[FinishedFold], names: Collection[str]) -> str:
    incomplete = [fold for fold in chosen if fold.missing_weights()]
    if not incomplete:
        found = ", ".join(sorted(names)) or "none"
        return (
            "Name a campaign, or the folder of `local`, `smoke` or of fetched outputs. "
            f"Experiments with finished folds here: {found}."
        )
    numbers = " ".join(dict.fromkeys(f"fold-{fold.record.fold}" for fold in incomplete))
    slugs = " ".join(dict.fromkeys(fold.folder.name for fold in incomplete))
    campaign = folder.name if (folder / "ledger.json").is_file() else "NAME"
    return (
        "The weights stayed on Kaggle: only small files are fetched by themselves. Fetch them with\n"
        f"    build_kernel.py output {numbers} --weights --campaign {campaign}\n"
        "or, with the plain client, each kernel into a folder of its own, and name the folder above:\n"
        f"    kaggle kernels output OWNER/SLUG -p FOLDER/SLUG    (SLUG: {slugs})"
    )
