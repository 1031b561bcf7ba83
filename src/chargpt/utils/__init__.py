"""Small things without a domain."""
