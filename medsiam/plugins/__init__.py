"""Small guests in other systems; none of them imports this package."""
