"""Residual pathway priors."""
