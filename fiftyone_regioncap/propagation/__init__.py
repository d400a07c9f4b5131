"""Propagators, which carry prompts through videos."""
