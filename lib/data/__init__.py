"""The competition, its tiles, and what the kernels hand to each other."""
