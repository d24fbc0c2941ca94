"""ACE and its parts."""
