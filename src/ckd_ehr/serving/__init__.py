"""A bundle at work. Never loads torch or transformers."""
