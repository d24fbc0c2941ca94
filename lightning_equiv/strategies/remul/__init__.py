"""REMUL: an equivariance loss as a second task."""
