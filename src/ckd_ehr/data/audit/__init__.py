"""Leak audit: checks over the stages' files that end a run, each with a remedy."""
