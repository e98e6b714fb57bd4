"""From visit pairs to narratives: what the codes mean, and how a history reads. Knows no model."""
