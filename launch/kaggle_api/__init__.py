"""Kaggle's API through the official client: typed calls, and one error class per cause."""
