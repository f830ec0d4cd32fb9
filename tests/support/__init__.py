"""What several test files make their inputs with."""
