"""A Kaggle of our own: the campaign on this machine, before a minute of quota is spent."""
