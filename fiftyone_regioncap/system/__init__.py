"""The machine: weights and clips, pip, the database."""
