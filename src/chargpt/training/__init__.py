"""Training: the LightningModule, the Trainer, callbacks, loggers and the training loop."""
