"""The folder name of a job: equal for the same run, and safe and short for any overrides."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from chargpt.sweeps.naming import folder_name, job_name

OVERRIDES = st.lists(
    st.tuples(st.sampled_from(["seed", "model.n_layer", "+trainer.x", "data/dataloader@data"]), st.text()), min_size=1
).map(lambda pairs: ",".join(f"{key}={value}" for key, value in pairs))


@given(OVERRIDES)
@example("")
@example("data.path=" + "x/" * 300)
@example("data.path=" + "字" * 90)
def test_a_folder_name_is_safe_and_short(overrides):
    name = folder_name(overrides)
    assert 0 < len(name.encode()) <= 100
    assert not set(name) & set("/\\:*?\"'<>|$ \t\n\0")
    assert name not in (".", "..")
    assert folder_name(overrides) == name


@given(OVERRIDES, OVERRIDES)
@example("", "default")
@example("data.path=a/b", "data.path=a_b")
@example("name=" + "x" * 200, "name=" + "x" * 201)
def test_different_overrides_have_different_folder_names(one, other):
    assert (folder_name(one) == folder_name(other)) == (one == other)


def test_simple_overrides_are_the_folder_name():
    assert folder_name("model.n_layer=2,model.dropout=0.1") == "model.n_layer=2,model.dropout=0.1"


@pytest.mark.parametrize(
    "override",
    [
        "trainer=cpu",
        "trainer.devices=2",
        "trainer.max_steps=9",
        "resume=auto",
        "name=x",
        "callbacks.samples.seed=2",
    ],
)
def test_a_setting_outside_the_identity_is_part_of_the_name_only_if_it_is_swept(override):
    key = override.split("=")[0]
    assert job_name(["model.n_layer=2", override], swept=["model.n_layer"]) == "model.n_layer=2"
    assert override in job_name(["model.n_layer=2", override], swept=["model.n_layer", key])


def test_the_order_of_the_overrides_does_not_matter_and_the_model_comes_first():
    overrides = ["+lecture=head", "seed=2", "model.n_layer=1"]
    name = job_name(overrides, swept=["seed"])
    assert name == job_name(overrides[::-1], swept=["seed"]) == "model.n_layer=1,+lecture=head,seed=2"


def test_an_existing_folder_of_a_typed_plus_sign_is_used(tmp_path):
    overrides, swept = ["lecture=head", "seed=2"], ["lecture", "seed"]
    assert job_name(overrides, swept, str(tmp_path)) == "lecture=head,seed=2"
    (tmp_path / "+lecture=head,seed=2").mkdir()
    assert job_name(overrides, swept, str(tmp_path)) == "+lecture=head,seed=2"


@pytest.mark.parametrize("old", ["model/n_grams=none,seed=2", "model/n_grams=none,on_divergence=stop,seed=2"])
def test_an_existing_folder_with_the_name_of_version_0_2_is_used(tmp_path, old):
    overrides = ["model/ngram_embedding=none", "seed=2", "on_divergence=stop"]
    swept = ["model.ngram_embedding", "seed"]
    new_name = folder_name("model/ngram_embedding=none,seed=2")
    assert job_name(overrides, swept, str(tmp_path)) == new_name
    (tmp_path / folder_name(old)).mkdir()
    assert job_name(overrides, swept, str(tmp_path)) == folder_name(old)
    (tmp_path / new_name).mkdir()
    assert job_name(overrides, swept, str(tmp_path)) == new_name
