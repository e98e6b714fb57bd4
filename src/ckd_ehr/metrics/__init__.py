"""How good the models are, and the report that says so."""
