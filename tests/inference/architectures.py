"""Builds small models from any components in conf/model/, with weights large enough for each to have an effect."""

import torch
from hydra import compose, initialize_config_dir
from hypothesis import strategies as st
from omegaconf import OmegaConf

from chargpt.config.instantiate import instantiate
from chargpt.model.language_model import LanguageModel
from tests.conftest import REPO

OPTIONS = {
    group.name: sorted(file.stem for file in group.glob("*.yaml"))
    for group in sorted((REPO / "conf" / "model").iterdir())
    if group.is_dir()
}
FLAGS = ["embedding_norm", "final_norm", "residual"]


def build_model(overrides: list[str], n_embd: int = 24, block_size: int = 16) -> LanguageModel:
    sizes = ["model.n_layer=3", f"model.n_embd={n_embd}", f"model.block_size={block_size}", "model.dropout=0.1"]
    heads = [] if "lecture=head" in overrides else ["model.n_head=3"]
    with initialize_config_dir(str(REPO / "conf"), version_base="1.3"):
        config = compose("train", [*overrides, *sizes, *heads])
    torch.manual_seed(0)
    model = instantiate(OmegaConf.to_container(config.model, resolve=True), "model", vocab_size=11).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.15)
    return model.requires_grad_(False)


@st.composite
def architectures(draw: st.DrawFn) -> list[str]:
    """Overrides that select one option of each group and set the flags of a Transformer."""
    model = draw(st.sampled_from(["gpt_nano", "gpt_ensemble"]))
    overrides = [f"model={model}", *(["model.members=2"] if model == "gpt_ensemble" else [])]
    overrides += [f"model/{group}={draw(st.sampled_from(names))}" for group, names in OPTIONS.items()]
    overrides += [f"++model.{flag}={draw(st.booleans())}" for flag in FLAGS]
    tied = draw(st.booleans())
    bias = not tied and draw(st.booleans())
    return [*overrides, f"model.tie_weights={tied}", f"model.bias={bias}"]
