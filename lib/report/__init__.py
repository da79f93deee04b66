"""Figures and what explains them."""
