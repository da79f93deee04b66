"""An emulated Kaggle on this machine, for rehearsals and tests."""
