"""Networks learn here; the shipped package only runs them."""
