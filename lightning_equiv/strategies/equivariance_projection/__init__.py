"""EquivarianceProjection and its parts."""
