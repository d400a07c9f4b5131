"""What can be measured of a region without a model."""
