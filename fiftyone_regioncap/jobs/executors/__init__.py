"""Executors: where the stages of a job run."""
