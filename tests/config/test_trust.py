"""Which targets may be imported from a file, and what `trust=` adds."""

import sys
from types import ModuleType

import pytest

from chargpt.cli.app import prepare_overrides
from chargpt.config.trust import COMPOSED, FILE, Trust, locate, packages_to_trust, targets_of, trusted_packages
from chargpt.errors import UserError

SOURCE = """
import functools, os
from pathlib import Path
from subprocess import run
from unittest.mock import call

class Model:
    @classmethod
    def build(cls): ...
    @staticmethod
    def helper(): ...

def function(): ...

value = 5
alias = os.getcwd
partial = functools.partial(functools.partial(Model))
cached = functools.lru_cache(Model)
foreign_partial = functools.partial(run)
foreign_cached = functools.lru_cache(run)
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package in the current directory, which is not on the search path."""
    name = f"my_{tmp_path.name}"
    (tmp_path / name / "inner").mkdir(parents=True)
    (tmp_path / name / "__init__.py").write_text(SOURCE)
    (tmp_path / name / "inner" / "__init__.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    yield name
    for module in [module for module in sys.modules if module.partition(".")[0] == name]:
        del sys.modules[module]


def test_a_composed_target_is_found_in_the_current_directory_which_is_searched_last(package, tmp_path):
    before = list(sys.path)
    assert locate(f"{package}.inner.Model", "model", COMPOSED).__name__ == "Model"
    assert sys.path == [*before, str(tmp_path)]


def test_the_current_directory_is_not_searched_for_installed_packages(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "yaml.py").write_text("raise RuntimeError('imported')")
    locate("yaml.safe_load", "model", COMPOSED)
    assert str(tmp_path) not in sys.path


def test_a_composed_target_may_be_defined_in_the_script(monkeypatch):
    main = sys.modules["__main__"]
    monkeypatch.setattr(main, "__spec__", None)  # as in a script, without `-m`
    monkeypatch.setattr(main, "Mine", type("Mine", (), {}), raising=False)
    assert locate("__main__.Mine", "model", COMPOSED) is main.Mine


def test_a_folder_of_the_same_name_does_not_hide_a_package_in_the_current_directory(package, tmp_path):
    (tmp_path / "earlier" / package).mkdir(parents=True)
    sys.path.insert(0, str(tmp_path / "earlier"))
    assert locate(f"{package}.Model", "model", COMPOSED).__name__ == "Model"


@pytest.mark.parametrize("name", ["Model", "Model.build", "function", "inner.Model", "partial", "cached"])
def test_what_a_trusted_package_defines_may_be_used_by_a_file(package, name):
    assert callable(locate(f"{package}.{name}", "model", Trust(packages=(package,))))


FOREIGN = ["os.system", "run", "alias", "Path", "value", "Path.write_text", "os", "foreign_partial", "foreign_cached"]


@pytest.mark.parametrize("name", [*FOREIGN, "call"])  # `call` has every attribute, `__wrapped__` too
def test_what_a_trusted_package_only_imports_may_not(package, name):
    with pytest.raises(UserError, match="is not a class or function that is defined in"):
        locate(f"{package}.{name}", "model", Trust(packages=(package,)))


def test_a_part_of_a_package_can_be_trusted(package):
    trust = Trust(packages=(f"{package}.inner",))
    assert locate(f"{package}.inner.Model", "model", trust)
    with pytest.raises(UserError, match=rf"runs the code of {package}\. If you trust that package, add trust=\["):
        locate(f"{package}.Model", "model", trust)


def test_a_package_of_a_similar_name_is_not_trusted(package):
    with pytest.raises(UserError, match="comes from a file"):
        locate(f"{package}.Model", "model", Trust(packages=(package[:-1],)))


def test_an_untrusted_package_is_not_imported(package, tmp_path):
    before = list(sys.path)
    with pytest.raises(UserError, match=f"add trust=\\[{package}\\]$"):
        locate(f"{package}.Model", "model", FILE)
    assert package not in sys.modules
    assert sys.path == before


@pytest.mark.parametrize("name", ["os.system", "builtins.eval", "torch.hub.load", "chargpt.runs.directory.git_state"])
def test_no_trust_can_be_given_to_the_standard_library_torch_and_chargpt(name):
    with pytest.raises(UserError, match=r"is not a component that a file may contain$"):
        locate(name, "model", FILE)


TRANSFORMERS = """
class AutoModel:
    @classmethod
    def from_pretrained(cls): ...

class PreTrainedModel(AutoModel): ...
class GPT(PreTrainedModel): ...
def pipeline(): ...
"""


def test_of_transformers_only_models_and_their_configs_are_allowed(monkeypatch):
    module = ModuleType("transformers")
    exec(TRANSFORMERS, module.__dict__)
    monkeypatch.setitem(sys.modules, "transformers", module)
    trust = Trust(packages=trusted_packages("transformers"))
    assert locate("transformers.GPT", "model", trust).__name__ == "GPT"
    for name in ("GPT.from_pretrained", "AutoModel", "AutoModel.from_pretrained", "pipeline"):
        with pytest.raises(UserError, match="is not the class of a model or of its config"):
            locate(f"transformers.{name}", "model", trust)


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("data.datamodule.TextDataModule.from_files", "model"),
        ("data.datamodule.TextDataModule.from_files", "model.self"),
        ("data.datamodule.TextDataModule.setup", "data"),
        ("data.datamodule.TextDataModule.read", "data"),
        ("model.transformer.Transformer.forward", "model"),
    ],
)
def test_a_file_may_not_call_methods_or_read_texts_for_a_model(name, path):
    with pytest.raises(UserError, match=r"is not a component that a file may contain$"):
        locate(f"chargpt.{name}", path, FILE)
    assert locate("chargpt.data.datamodule.TextDataModule.from_files", "data", FILE)


def test_targets_that_a_command_composes_may_be_in_a_file_that_it_resumes(package):
    trust = Trust(targets=frozenset({f"{package}.Model.build"}))
    assert locate(f"{package}.Model.build", "model", trust)
    assert locate(f"{package}.Model", "model", trust)  # the class, for a tokenizer that `from_text` has built
    with pytest.raises(UserError, match="comes from a file"):
        locate(f"{package}.function", "model", trust)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere_at_all.Model", "there is no module nowhere_at_all in the installed packages and "),
        ("PACKAGE.Modle", "there is no Modle in PACKAGE; did you mean Model?"),
        ("PACKAGE.value", "is not callable"),
        ("PACKAGE.broken.Model", "PACKAGE.broken cannot be imported (ZeroDivisionError: division by zero)"),
        ("PACKAGE.needs.Model", "requires nowhere_at_all, which is not installed"),
    ],
)
def test_a_composed_target_that_cannot_be_imported_is_reported_in_one_line(package, tmp_path, name, message):
    (tmp_path / package / "broken.py").write_text("1 / 0")
    (tmp_path / package / "needs.py").write_text("import nowhere_at_all")
    with pytest.raises(UserError) as error:
        locate(name.replace("PACKAGE", package), "model", COMPOSED)
    assert message.replace("PACKAGE", package) in str(error.value)
    assert str(error.value).startswith("model._target_=")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("setting", "packages"), [(None, ()), ("a", ("a",)), (["a", "b.c"], ("a", "b.c")), (("a",), ("a",)), ([], ())]
)
def test_trusted_packages(setting, packages):
    assert trusted_packages(setting) == packages


STANDARD = ["os", "os.path", "builtins", "torch", "torch.nn", "chargpt", "lightning", "hydra"]


@pytest.mark.parametrize("name", [*STANDARD, "a-b", "a/b", "*", "", ".."])
def test_only_packages_that_define_models_can_be_trusted(name):
    with pytest.raises(UserError, match=r"it must be the name of a package that defines models, or a list: trust="):
        trusted_packages([name])


def test_a_file_is_trusted_by_the_name_of_its_module():
    with pytest.raises(UserError, match=r"trust=my_pkg\.py: .*: trust=my_pkg$"):
        trusted_packages("my_pkg.py")


@pytest.mark.parametrize("override", ["trust=x", "+trust=x", "+trust=[x]", "trust=['x']", 'trust=["x"]', "++trust=x"])
def test_hydra_does_not_see_the_trust(override):
    assert prepare_overrides(["seed=1", override]) == (["seed=1"], ("x",))


def test_the_targets_of_a_config():
    config = {"_target_": "a.B", "list": [{"x": {"_target_": "c.d"}}, 5], "_recursive_": False, "y": {"_target_": 5}}
    assert [*targets_of(config)] == ["a.B", "c.d"]
    config["torch"] = {"_target_": "torch.nn.GELU", "own": {"_target_": "chargpt.model.bigram.Bigram"}}
    assert packages_to_trust(config) == ["a", "c"]
