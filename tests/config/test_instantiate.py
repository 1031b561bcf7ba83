"""instantiate(): the allow-list, nested components, and error messages with the path and the nearest name."""

import copy
import datetime

import pytest
import torch
from torch import nn

from chargpt.config.instantiate import instantiate
from chargpt.config.trust import COMPOSED
from chargpt.data.tokenizer import CharTokenizer
from chargpt.errors import UserError
from chargpt.model.feed_forward import FeedForward
from chargpt.model.transformer import Transformer

LINEAR = {"_target_": "torch.nn.Linear", "in_features": 2, "out_features": 2}
TRANSFORMER = {
    "_target_": "chargpt.model.transformer.Transformer",
    "block_size": 8,
    "n_layer": 1,
    "n_head": 2,
    "n_embd": 4,
    "dropout": 0.0,
    "attention": {"_target_": "chargpt.model.attention.CausalSelfAttention", "_partial_": True},
    "position": {"_target_": "chargpt.model.position.Rotary", "_partial_": True, "base": 100.0},
    "norm": {"_target_": "torch.nn.LayerNorm", "_partial_": True, "bias": False},
    "feed_forward": {
        "_target_": "chargpt.model.feed_forward.FeedForward",
        "_partial_": True,
        "activation": {"_target_": "torch.nn.GELU", "_partial_": True, "approximate": "tanh"},
    },
    "initialization": {"_target_": "chargpt.model.initialization.normal", "_partial_": True},
}


def test_plain_data_is_unchanged():
    data = {"a": [1, 2.5, None, True, "text"], "b": {"c": []}}
    assert instantiate(data) == data


def test_nested_components_are_instantiated_first():
    model = instantiate(TRANSFORMER, vocab_size=5)
    assert isinstance(model, Transformer)
    feed_forward = model.blocks[0].feed_forward
    assert isinstance(feed_forward, FeedForward)
    assert isinstance(feed_forward.activation, nn.GELU)
    assert feed_forward.activation.approximate == "tanh"
    assert isinstance(model.blocks[0].attention_norm, nn.LayerNorm)
    assert model.blocks[0].attention_norm.bias is None


def test_components_in_lists_are_instantiated():
    modules = instantiate([{"_target_": "torch.nn.ReLU"}, {"key": {"_target_": "torch.nn.Identity"}}])
    assert isinstance(modules[0], nn.ReLU)
    assert isinstance(modules[1]["key"], nn.Identity)


def test_a_partial_component_creates_a_new_object_per_call():
    linear = instantiate({"_target_": "torch.nn.Linear", "_partial_": True, "bias": False})
    first, second = linear(2, 3), linear(4, out_features=5)
    assert (first.in_features, first.out_features, first.bias) == (2, 3, None)
    assert (second.in_features, second.out_features) == (4, 5)


def test_a_copy_of_a_partial_component_creates_the_same():
    config = {"_target_": "torch.nn.Linear", "_partial_": True, "_args_": [2], "bias": False}
    linear = copy.deepcopy(instantiate(config))
    assert (linear(3).in_features, linear(3).out_features, linear(3).bias) == (2, 3, None)
    with pytest.raises(UserError, match="does not accept these settings"):
        linear(3, width=4)


def test_keyword_arguments_override_the_config():
    linear = instantiate(LINEAR, out_features=7)
    assert linear.out_features == 7


def test_a_classmethod_may_be_a_target():
    tokenizer = instantiate({"_target_": "chargpt.data.tokenizer.CharTokenizer.from_text", "text": "hello"})
    assert tokenizer.characters == "ehlo"


def test_a_tokenizer_is_restored_from_its_config():
    tokenizer = CharTokenizer.from_text("What's in a name?\n")
    restored = instantiate(tokenizer.as_config())
    assert restored.encode("What name").tolist() == tokenizer.encode("What name").tolist()


def test_the_config_is_not_changed():
    original = copy.deepcopy(TRANSFORMER)
    instantiate(TRANSFORMER, vocab_size=5)
    assert original == TRANSFORMER


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "builtins.eval",
        "subprocess.run",
        "pathlib.Path.write_text",
        "torch.load",
        "torch.hub.load",
        "torch.serialization.load",
        "hydra.utils.instantiate",
        "chargpt.config.instantiate.instantiate",
        "chargpt.checkpoint.torch_file.read",
        "torch.nnn.Linear",
        "chargpt",
        "",
        None,
        7,
        # names that a module of chargpt or torch imports
        "chargpt.data.corpus.subprocess.run",
        "chargpt.data.corpus.os.system",
        "chargpt.data.tokenizer.np.load",
        "chargpt.data.datamodule.torch.load",
        "chargpt.data.datamodule.TextDataModule.load_from_checkpoint",
        "chargpt.model.transformer.torch.load",
        "chargpt.training.loop.hydra.utils.instantiate",
        "chargpt.optim.adamw.torch.hub.load",
        "torch.nn.modules.module.torch.load",
        "torch.nn.modules.module.__builtins__.eval",
        "torch.nn.modules.module.__builtins__",
        "torch.nn.Module.__init_subclass__",
        "torch.nn.modules.module.warnings.warn",
        # functions of chargpt that write files
        "chargpt.training.callbacks.checkpoint.ChecksumCheckpointIO.save_checkpoint",
        "chargpt.utils.atomic_write.atomic_write_text",
        "chargpt.runs.directory.RunDirectory.claim",
        "chargpt.training.loop.train",
    ],
)
@pytest.mark.parametrize("partial", [False, True])
def test_targets_outside_the_allow_list_are_rejected(target, partial):
    with pytest.raises(
        UserError, match=r"is not a component that a file may contain|comes from a file|there is no|import path"
    ):
        instantiate({"_target_": target, "_partial_": partial})


def test_a_nested_target_that_is_rejected_is_not_called(tmp_path):
    path = tmp_path / "created"
    nested = {"_target_": "chargpt.data.corpus.os.mkdir", "path": str(path)}
    with pytest.raises(UserError):
        instantiate(LINEAR | {"out_features": nested})
    assert not path.exists()


@pytest.mark.parametrize(
    ("config", "hint"),
    [
        pytest.param({"_target_": "torch.nn.Linaer"}, "did you mean Linear?", id="name"),
        pytest.param({"_target_": "chargpt.model.bigram.Bigran"}, "did you mean Bigram?", id="name in chargpt"),
        pytest.param(LINEAR | {"biass": False}, "did you mean bias?", id="setting"),
        pytest.param({"_target_": "torch.nn.Linear", "in_features": 2}, "'out_features'", id="missing setting"),
        pytest.param({"_target_": "torch.nn.Dropout", "p": 3.0}, "between 0 and 1", id="value"),
        pytest.param(
            {"_target_": "chargpt.data.tokenizer.CharTokenizer", "characters": 5},
            "CharTokenizer failed",
            id="type of value",
        ),
        pytest.param(LINEAR | {"in_features": 10**17}, "Linear failed", id="more than memory"),
    ],
)
@pytest.mark.parametrize("partial", [False, True])
def test_an_error_message_contains_the_path_and_the_nearest_name(config, hint, partial):
    with pytest.raises(UserError) as error:
        component = instantiate({"outer": [config | {"_partial_": partial}]}, "model")["outer"][0]
        component()  # a partial component reports errors when it is called
    message = str(error.value)
    assert message.startswith("model.outer[0]")
    assert "\n" not in message
    assert hint in message


def test_a_user_error_of_a_component_is_not_changed():
    with pytest.raises(UserError, match=r"^model\.n_layer=0: it must be 1 or more$"):
        instantiate(TRANSFORMER | {"n_layer": 0}, "model", vocab_size=5)


def test_an_error_in_a_nested_component_contains_its_path():
    config = TRANSFORMER | {"norm": TRANSFORMER["norm"] | {"epss": 1e-5}}
    with pytest.raises(UserError, match=r"model\.norm.*epss.*did you mean eps\?"):
        instantiate(config, "model", vocab_size=5)


def test_an_optimizer_is_a_partial_function_of_the_model():
    make_optimizer = instantiate(
        {"_target_": "chargpt.optim.adamw.adamw", "_partial_": True, "lr": 0.5, "fused": False}
    )
    optimizer = make_optimizer(nn.Linear(2, 2))
    assert isinstance(optimizer, torch.optim.AdamW)
    assert {group["lr"] for group in optimizer.param_groups} == {0.5}


def test_a_trusted_config_may_contain_any_target_and_args():
    duration = instantiate({"_target_": "datetime.timedelta", "_args_": [1], "minutes": 5}, trust=COMPOSED)
    assert duration == datetime.timedelta(days=1, minutes=5)
    power = instantiate({"_target_": "builtins.pow", "_partial_": True, "_args_": [2]}, trust=COMPOSED)
    assert power(10) == 1024
    inner = {"_target_": "datetime.timedelta", "days": 1}
    assert instantiate({"_target_": "builtins.dict", "_recursive_": False, "inner": inner}, trust=COMPOSED) == {
        "inner": inner
    }


@pytest.mark.parametrize("target", ["datetime.timedelta", "builtins.pow"])
def test_an_untrusted_config_may_not_contain_these_targets(target):
    with pytest.raises(UserError, match="is not a component that a file may contain"):
        instantiate({"_target_": target, "_args_": [2, 3]})
