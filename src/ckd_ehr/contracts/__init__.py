"""What the stages agree on: settings, table schemas, run directories. Knows no model."""
