"""Groups and their elements."""
