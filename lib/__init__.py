"""Library of the kernels: the code that runs inside a Kaggle session. Importing it has no effect."""
