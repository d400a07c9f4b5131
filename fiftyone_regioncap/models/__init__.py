"""Code that all models share: registry, loading, sampling, endpoints."""
