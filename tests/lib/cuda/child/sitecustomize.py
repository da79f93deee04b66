"""Imported by Python at its start in every process on the null GPU."""

import sys

# That of multiprocessing computes nothing, and an import of torch costs seconds.
if not any("multiprocessing.resource_tracker" in argument for argument in sys.orig_argv):
    import replacements  # noqa: F401
