"""Access to the machine: weights and clips, pip, the database."""
