"""A campaign: plan kernels, push them, monitor their runs, fetch outputs, submit, report."""
