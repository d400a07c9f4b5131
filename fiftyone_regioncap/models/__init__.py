"""What all models share: registry, loading, sampling, endpoints."""
