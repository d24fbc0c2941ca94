"""A network made (more) symmetric at inference."""
