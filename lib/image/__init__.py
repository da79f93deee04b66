"""What is done to pixels, a whole batch at once."""
