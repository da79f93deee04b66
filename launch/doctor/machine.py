"""Checks of this machine: Python, the Kaggle client, environment variables, disk, built scripts, clock."""

import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from launch import ROOT
from launch.campaign.spec import uses_emulator
from launch.doctor.environment_check import plan_environment_checks
from launch.doctor.finding import Finding, ok, problem, warning
from launch.experiments import Experiment
from launch.packaging.bundle import SOURCE_LIMIT

# Versions of the client and of its SDK that this project was tested with.
_TESTED_CLIENTS = {"2.2.4": "0.1.37", "2.2.5": "0.1.38"}
_OLDEST_CLIENT = (2, 2)  # older ones have no quota call and list one page of an output only
_TESTED_PYTHONS = ((3, 11), (3, 12), (3, 13))
_CLOCK_TOLERANCE = 300.0  # seconds
_CAMPAIGN_BYTES = 1 << 30  # what a campaign downloads (predictions, histories, figures), and some to spare
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")


def check_python() -> list[Finding]:
    """The version of Python."""
    version = sys.version_info[:2]
    text = ".".join(map(str, sys.version_info[:3]))
    if version < _TESTED_PYTHONS[0]:
        remedy = "Install Python 3.11 or newer and create the environment again (make env)."
        return [problem("Python", text, remedy)]
    if version not in _TESTED_PYTHONS:
        return [warning("Python", text, "Tested with 3.11, 3.12 and 3.13.")]
    return [ok("Python", text)]


def check_client() -> list[Finding]:
    """The version of the Kaggle client, and the packages that it imports."""
    name = "Kaggle client"
    remedy = "Install the pinned packages: make env (or pip install -r requirements.txt)."
    client, sdk = _installed_version("kaggle"), _installed_version("kagglesdk")
    if not client:
        return [problem(name, "not installed", remedy)]
    text = f"kaggle {client} with kagglesdk {sdk or 'absent'}"
    if _major_minor(client) < _OLDEST_CLIENT:
        return [problem(name, f"{text}: too old", f"{remedy} pip installs old ones on a Python before 3.11.")]
    findings = []
    if _TESTED_CLIENTS.get(client) == sdk:
        findings.append(ok(name, text))
    else:
        tested = ", ".join(
            f"{version} with {sdk_version}" for version, sdk_version in _TESTED_CLIENTS.items()
        )
        findings.append(warning(name, text, f"Tested with {tested}. {remedy}"))
    if find_spec("six") is None:
        text = "the client imports the package six without declaring it, and six is not installed"
        findings.append(problem(name, text, f"pip install six. {remedy}"))
    missing, mismatched = _check_requirements("kaggle")
    if missing:
        findings.append(problem(name, f"it needs {', '.join(missing)}, not installed", remedy))
    if mismatched:
        findings.append(warning(name, f"it needs {', '.join(mismatched)}", remedy))
    return findings


def _installed_version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _major_minor(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2] if part.isdigit())


def _check_requirements(name: str) -> tuple[list[str], list[str]]:
    """Requirements of a package that are not installed, and those that are installed in another version."""
    try:
        from packaging.requirements import Requirement
    except ImportError:
        return ["packaging"], []
    missing, mismatched = [], []
    for text in metadata.requires(name) or []:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        installed = _installed_version(requirement.name)
        if not installed:
            missing.append(requirement.name)
        elif not requirement.specifier.contains(installed, prereleases=True):
            mismatched.append(f"{requirement.name}{requirement.specifier} (installed: {installed})")
    return missing, mismatched


def check_environment(environment: Mapping[str, str]) -> list[Finding]:
    """Variables that make the client talk to another server; of their values only known words are shown."""
    name = "environment"
    findings = []
    target = environment.get("KAGGLE_API_ENVIRONMENT")
    if uses_emulator(environment):
        text = "KAGGLE_API_ENVIRONMENT is LOCALHOST: the client talks to this machine, not to Kaggle"
        findings.append(warning(name, text, "Right for the emulated Kaggle. Unset it for the real one."))
    elif target in ("TEST", "QA", "STAGING", "ADMIN"):
        text = f"KAGGLE_API_ENVIRONMENT is {target}: parts of the client follow it, others do not"
        findings.append(problem(name, text, "Unset it."))
    elif target not in (None, "PROD"):
        text = "KAGGLE_API_ENVIRONMENT holds a word the client does not know"
        findings.append(problem(name, text, "Unset it."))
    proxies = sorted(variable for variable in _PROXIES if environment.get(variable))
    if proxies and not uses_emulator(environment):
        text = f"requests go through the proxy of {', '.join(proxies)}"
        findings.append(warning(name, text, "Right if the network needs it; uploads may be slower."))
    if environment.get("KAGGLE_PROXY"):
        text = "KAGGLE_PROXY is set: the client prints it and does not use it"
        findings.append(warning(name, text, "Set HTTPS_PROXY instead."))
    return findings or [ok(name, "no variable directs the client away from Kaggle")]


def check_disk(folder: Path) -> list[Finding]:
    """Free space for what a campaign downloads; tiles and weights stay on Kaggle."""
    existing = next(parent for parent in (folder, *folder.parents) if parent.is_dir())
    free = shutil.disk_usage(existing).free
    text = f"{free / 1e9:.1f} GB free, a campaign needs about {_CAMPAIGN_BYTES / 1e9:.0f} GB"
    if free < _CAMPAIGN_BYTES:
        return [problem("disk", text, "Free some space.")]
    return [ok("disk", text)]


def check_scripts(experiments: Sequence[Experiment], *, root: Path = ROOT) -> list[Finding]:
    """Build all kernels in a temporary folder, and check them against the rules of the client and Kaggle."""
    from launch.packaging.builder import build
    from launch.packaging.check import check

    if not experiments:
        return [warning("scripts", "no experiment given, nothing was built", "Name one.")]
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary) / "dist"
        built = build(experiments, out=out, root=root)
        sizes = dict(built.sizes)
        for kernel in plan_environment_checks():
            sizes[kernel.slug] = built.source.write_kernel(kernel, out / "kernels" / kernel.slug)
        problems = check(out).problems
    if problems:
        text = f"{len(problems)} problems: " + "; ".join(problems[:5])
        return [problem("scripts", text, "Run build_kernel.py build and build_kernel.py check to see all.")]
    largest = max(sizes, key=lambda slug: sizes[slug])
    text = f"{len(sizes)} built; the largest, {largest}, has {sizes[largest]:,} of {SOURCE_LIMIT:,} bytes"
    return [ok("scripts", text)]


def check_clock() -> list[Finding]:
    """The clock of this machine against the Date header of Kaggle's responses: signed links depend on it."""
    from email.utils import parsedate_to_datetime

    import requests
    from kagglesdk.kaggle_env import get_endpoint, get_env

    try:
        before = time.time()
        response = requests.head(get_endpoint(get_env()), timeout=(5, 5), allow_redirects=False)
        local = (before + time.time()) / 2
        remote = parsedate_to_datetime(response.headers["Date"]).timestamp()
    except Exception as error:  # whatever failed (network, header, SDK), the difference is unknown
        return [warning("clock", f"not compared: Kaggle's time is not available ({type(error).__name__})")]
    ahead = local - remote
    if abs(ahead) > _CLOCK_TOLERANCE:
        text = f"{abs(ahead) / 60:.0f} min {'ahead of' if ahead > 0 else 'behind'} Kaggle's"
        remedy = "Set it (timedatectl set-ntp true): signed links depend on it."
        return [problem("clock", text, remedy)]
    return [ok("clock", f"within {max(1, round(abs(ahead)))} s of Kaggle's")]
