"""`medsiam serve`: a small queue on disk, the worker that empties it, and its HTTP face."""
