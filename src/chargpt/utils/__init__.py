"""Small utilities that belong to no other package."""
