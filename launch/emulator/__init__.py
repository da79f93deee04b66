"""An emulated emulated Kaggle, for rehearsals and tests."""
