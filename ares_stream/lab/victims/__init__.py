"""Small models trained on the invented language, with the weaknesses planted."""
