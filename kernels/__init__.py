"""The recipes, one for each kernel."""
