"""The Kaggle API through the official client, with typed answers and one error class for each cause."""
