"""Many runs -> one table, one picture."""
