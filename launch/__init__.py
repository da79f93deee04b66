"""Everything that runs on the machine of the user. Never imported by `lib`."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent  # the checkout
