"""Imports the slow packages and builds a campaign: forked processes inherit both.

The client is not among the packages, because it reads the environment when it is imported.
"""

import sys
import tempfile
from importlib import import_module
from pathlib import Path

import child  # noqa: F401

from launch.experiments import load_experiment
from launch.packaging.builder import build

for name in (
    "sklearn.linear_model",
    "sklearn.metrics",
    "matplotlib.backends.backend_agg",
    "matplotlib.figure",
    "requests",
    "rich.live",
    "jupytext",
    "kagglesdk",
    "google.protobuf.field_mask_pb2",
    "bleach",
    "tqdm.cli",
    "dotenv",
    "pytest",
):
    import_module(name)

with tempfile.TemporaryDirectory() as folder:
    # What the builder keeps for the next build: the imports of each file, the packed library, timm's names.
    build([load_experiment("smoke", ["weights=none"])], out=Path(folder) / "dist", owner="alice")

assert "kaggle" not in sys.modules
