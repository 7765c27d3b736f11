"""A scan to its embedding and its pyramid of features, by one network for both twins."""
