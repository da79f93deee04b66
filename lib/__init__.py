"""Everything that runs inside a kernel. Importing it has no effect."""
