"""Teacher, signals and student: everything that has weights. Knows no hospital table."""
