"""The code around a recipe in a kernel script: real files, rendered by `launch.packaging.bundle`."""
