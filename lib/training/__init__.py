"""From prepared tiles to the members of a fold."""
