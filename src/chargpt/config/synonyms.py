"""Names of settings in nanoGPT, lightning-hydra-template and Hugging Face, with the names that they have here."""

from collections.abc import Collection, Container

# In a command that has several of the settings, the first is suggested.
SYNONYMS: dict[str, tuple[str, ...]] = {
    "batch": ("data.batch_size",),
    "checkpoint": ("resume", "run"),
    "ckpt": ("resume", "run"),
    "ckpt_path": ("resume", "run"),
    "context_length": ("model.block_size",),
    "cpu": ("trainer=cpu", "device=cpu"),
    "cuda": ("trainer=gpu", "device=cuda"),
    "d_model": ("model.n_embd",),
    "dataset": ("data", "data.path"),
    "depth": ("model.n_layer",),
    "device": ("device", "trainer.accelerator"),
    "dropout": ("model.dropout",),
    "dtype": ("trainer.precision",),
    "epochs": ("trainer.max_epochs",),
    "eval_interval": ("trainer.val_check_interval",),
    "eval_iters": ("data.max_validation_tokens",),
    "eval_steps": ("trainer.val_check_interval",),
    "gpus": ("trainer.devices",),
    "grad_clip": ("trainer.gradient_clip_val",),
    "gradient_accumulation_steps": ("trainer.accumulate_grad_batches",),
    "hidden_size": ("model.n_embd",),
    "init_from": ("resume", "run"),
    "input": ("data.path", "data", "prompt", "text"),
    "iters": ("trainer.max_steps",),
    "learning_rate": ("optimizer.lr",),
    "length": ("max_new_tokens",),
    "log_interval": ("trainer.log_every_n_steps",),
    "logging_steps": ("trainer.log_every_n_steps",),
    "max_iters": ("trainer.max_steps",),
    "max_length": ("max_new_tokens",),
    "max_tokens": ("max_new_tokens",),
    "model_path": ("run",),
    "n_gpus": ("trainer.devices",),
    "num_epochs": ("trainer.max_epochs",),
    "num_gpus": ("trainer.devices",),
    "num_heads": ("model.n_head",),
    "num_layers": ("model.n_layer",),
    "num_return_sequences": ("num_samples",),
    "num_train_epochs": ("trainer.max_epochs",),
    "out_dir": ("run", "folder", "hydra.run.dir"),
    "output": ("file", "folder", "hydra.run.dir"),
    "output_dir": ("file", "folder", "run", "hydra.run.dir"),
    "per_device_train_batch_size": ("data.batch_size",),
    "prefix": ("prompt",),
    "save_steps": ("checkpoint.every_n_steps",),
    "seq_len": ("model.block_size",),
    "start": ("prompt",),
    "steps": ("trainer.max_steps",),
    "tags": ("name",),
    "task_name": ("name",),
    "temp": ("temperature",),
    "text_file": ("data.path",),
    "wandb": ("logger=wandb",),
    "wandb_log": ("logger=wandb",),
    "wandb_project": ("logger.wandb.project",),
    "width": ("model.n_embd",),
}


def synonym(name: str, known: Container[str]) -> str | None:
    """The name here of a setting that has another name in other programs.

    Args:
        name: with or without the group of the setting.
        known: the settings and groups of the command.
    """
    for setting in SYNONYMS.get(name.rsplit(".", 1)[-1], ()):
        if setting.partition("=")[0] in known or (setting.startswith(("hydra.", "logger.")) and "resume" in known):
            return setting
    return None


def without_dashes(flag: str, known: Collection[str]) -> str | None:
    """The setting that a flag of another program means: `--start=Hello` -> `prompt=Hello`; None if it is unknown."""
    key, equals, value = flag.lstrip("-").partition("=")
    name = key.replace("-", "_")
    same = next((setting for setting in sorted(known) if setting.rpartition(".")[2] == name), None)
    setting = name if name in known else same or synonym(name, known)
    return setting if setting is None or "=" in setting else f"{setting}={value if equals else '...'}"
