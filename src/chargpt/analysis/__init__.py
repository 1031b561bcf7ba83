"""Pictures of what a model predicts and attends to."""
