"""Carrying prompts through videos."""
