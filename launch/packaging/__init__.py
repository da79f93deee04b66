"""Kernel scripts, notebooks, metadata and the library dataset, built and checked."""
