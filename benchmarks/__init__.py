"""Runners in, verdicts and reports out."""
