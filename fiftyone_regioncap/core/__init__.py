"""What every room speaks of: regions, errors, progress and options."""
