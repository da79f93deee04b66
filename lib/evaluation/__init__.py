"""Scores of predictions: metrics, calibration, and the out-of-fold predictions of an experiment."""
