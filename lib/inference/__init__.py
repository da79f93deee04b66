"""From the members of all folds to a submission."""
