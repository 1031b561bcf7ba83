"""What the training curves are written to."""
