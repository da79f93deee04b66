"""Reproducibility (ids, hashes, versions, machines) and the references."""

from collections.abc import Iterator

from lib.report.context import ReportContext
from lib.report.formatting import ABSENT, decimals
from lib.report.inputs import KernelOutput
from lib.report.page import Block, Items, Note, References, Table, Text

_SOURCES = (
    (
        "Competition: W. Cukierski, Histopathologic Cancer Detection, Kaggle 2018.",
        "https://www.kaggle.com/c/histopathologic-cancer-detection",
    ),
    (
        "Tiles: B. Veeling and others, Rotation equivariant CNNs for digital pathology, MICCAI 2018 "
        "(PatchCamelyon).",
        "https://arxiv.org/abs/1806.03962",
    ),
    (
        "Slides: B. Ehteshami Bejnordi and others, Diagnostic assessment of deep learning algorithms for "
        "detection of "
        "lymph node metastases, JAMA 318:2199, 2017 (Camelyon16).",
        "https://doi.org/10.1001/jama.2017.14585",
    ),
    ("Networks: R. Wightman, PyTorch Image Models (timm), 2019.", "https://doi.org/10.5281/zenodo.4414861"),
    (
        "Optimiser: I. Loshchilov and F. Hutter, Decoupled weight decay regularization (AdamW), ICLR 2019.",
        "https://arxiv.org/abs/1711.05101",
    ),
    (
        "Schedule: I. Loshchilov and F. Hutter, SGDR: stochastic gradient descent with warm restarts, ICLR "
        "2017.",
        "https://arxiv.org/abs/1608.03983",
    ),
    (
        "Attribution: R. Selvaraju and others, Grad-CAM, ICCV 2017; S. Abnar and W. Zuidema, Quantifying "
        "attention "
        "flow in transformers, ACL 2020.",
        "https://arxiv.org/abs/1610.02391",
    ),
    (
        "Stain vectors: M. Macenko and others, A method for normalizing histology slides, ISBI 2009.",
        "https://doi.org/10.1109/ISBI.2009.5193250",
    ),
    (
        "Calibration: J. Platt, Probabilistic outputs for support vector machines, 1999; C. Guo and others, "
        "On "
        "calibration of modern neural networks, ICML 2017.",
        "https://arxiv.org/abs/1706.04599",
    ),
    (
        "Intervals: C. Field and A. Welsh, Bootstrapping clustered data, Journal of the Royal Statistical "
        "Society B "
        "69:369, 2007.",
        "https://doi.org/10.1111/j.1467-9868.2007.00593.x",
    ),
)


def reproducibility(context: ReportContext) -> list[Block]:
    """How to get the same result: ids of data and folds, the code and the machine of every run."""
    outputs = list(_outputs(context))
    if not outputs:
        return [Note("No usable output of a kernel: there is nothing to reproduce.")]
    steps = [
        "Check out the commit below; the library's hash (bundle) identifies the code of a kernel exactly.",
        "The data id is the hash of all ids and labels, the fold table's id that of all assignments to "
        "folds: equal "
        "ids mean equal data and equal folds.",
        "Every random number is drawn from the seed of the experiment. With deterministic = true and "
        "fixed_schedule "
        "= true the same machine and versions give the same bits; without them small differences are "
        "expected.",
        "results.json beside this page holds every number of it.",
    ]
    head = ("run", "fold", "seconds", "machine", "bundle", "commit", "data", "folds")
    versions = {f"{name} {version}" for output in outputs for name, version in output.record.versions.items()}
    blocks: list[Block] = [
        Items(steps),
        Table(
            f"The n = {len(outputs)} runs of this report. Ids are shortened",
            head,
            [_row(run) for run in outputs],
        ),
    ]
    if versions:
        blocks.append(Text(f"Versions: {', '.join(sorted(versions))}."))
    return blocks


def _outputs(context: ReportContext) -> Iterator[KernelOutput]:
    inputs = context.inputs
    yield from (output for output in (inputs.prepare,) if output is not None)
    yield from inputs.pretrains
    yield from inputs.searches
    for folds in inputs.folds.values():
        yield from folds
    yield from (output for output in (inputs.inference,) if output is not None)


def _row(output: KernelOutput) -> list[str]:
    record = output.record
    name = record.kind + (f" {record.experiment}" if record.experiment else "")
    return [
        name,
        str(record.fold) if record.fold >= 0 else ABSENT,
        decimals(record.seconds.get("total"), 0),
        "; ".join(record.devices) or ABSENT,
        record.bundle_id[:8] or ABSENT,
        record.git_commit[:8] or ABSENT,
        record.data_id[:8] or ABSENT,
        record.fold_table_id[:8] or ABSENT,
    ]


def references(context: ReportContext) -> list[Block]:
    """The sources of data, methods and figures."""
    return [References(_SOURCES)]
