"""The part that runs on the user's machine: command line, campaign, packaging, emulator."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent  # the checkout
