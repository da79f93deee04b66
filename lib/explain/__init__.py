"""Explanations of single predictions: attribution maps and the hardest tiles."""
