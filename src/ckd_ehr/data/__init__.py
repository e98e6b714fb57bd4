"""From hospital tables to labelled visit pairs. Knows no text and no model."""
