"""A job's folder: the same for the same run, safe and short whatever the overrides hold."""

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
def test_other_overrides_have_another_folder_name(one, other):
    assert (folder_name(one) == folder_name(other)) == (one == other)


def test_the_folder_name_of_plain_overrides_can_be_read():
    assert folder_name("model.n_layer=2,model.dropout=0.1") == "model.n_layer=2,model.dropout=0.1"


@pytest.mark.parametrize(
    "free",
    [
        "trainer=cpu",
        "trainer.devices=2",
        "trainer.max_steps=9",
        "resume=auto",
        "name=x",
        "callbacks.samples.seed=2",
    ],
)
def test_what_does_not_make_it_another_run_is_not_in_its_name_unless_the_sweep_is_over_it(free):
    key = free.split("=")[0]
    assert job_name(["model.n_layer=2", free], swept=["model.n_layer"]) == "model.n_layer=2"
    assert free in job_name(["model.n_layer=2", free], swept=["model.n_layer", key])


def test_the_order_of_the_words_does_not_matter_and_the_model_comes_first():
    words = ["+lecture=head", "seed=2", "model.n_layer=1"]
    name = job_name(words, swept=["seed"])
    assert name == job_name(words[::-1], swept=["seed"]) == "model.n_layer=1,+lecture=head,seed=2"


@pytest.mark.parametrize("earlier", ["model/n_grams=none,seed=2", "model/n_grams=none,on_divergence=stop,seed=2"])
def test_a_folder_that_0_2_named_is_found_again(tmp_path, earlier):
    words, swept = ["model/ngram_embedding=none", "seed=2", "on_divergence=stop"], ["model.ngram_embedding", "seed"]
    assert job_name(words, swept, str(tmp_path)) == folder_name("model/ngram_embedding=none,seed=2")
    (tmp_path / folder_name(earlier)).mkdir()
    assert job_name(words, swept, str(tmp_path)) == folder_name(earlier)
    (tmp_path / folder_name("model/ngram_embedding=none,seed=2")).mkdir()
    assert job_name(words, swept, str(tmp_path)) == folder_name("model/ngram_embedding=none,seed=2")
