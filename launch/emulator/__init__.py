"""An emulated Kaggle on loopback, for rehearsals and tests."""
