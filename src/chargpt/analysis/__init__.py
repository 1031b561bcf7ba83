"""Analysis and plots of a model's predictions and attention."""
