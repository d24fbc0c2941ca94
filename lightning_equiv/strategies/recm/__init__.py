"""RECM: a recurrent state per layer that learns how much to relax."""
