"""What every test shares."""

import os

# Spinning threads take the cores from each other; OpenMP reads this when torch loads.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
