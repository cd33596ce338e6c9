"""muP: nothing changes at the base, beside it matrices and multipliers follow the paper's table 8, and nothing is lost on the way out."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.task import ModelSettings
from models import encoder, experts, layers, mup, peft, t5, transformer, weights
from models.families import FAMILIES
from models.family import Family, resized
from models.matching import configuration, flat, in_full
from models.tables import same

from .small import DECODERS, OTHERS, VOCAB, close, parameters, quickly, small

ALL = [*DECODERS, *OTHERS]
TOKENS = np.random.default_rng(0).integers(0, VOCAB, (2, 6)).astype(np.int32)


def logits_of(family: Family, config: Any, params: Any) -> Any:
    inputs = (TOKENS, TOKENS[:, ::-1]) if family.kind == "encoder-decoder" else (TOKENS,)
    return family.apply(config, params, *inputs)


@pytest.mark.parametrize("name", sorted({*FAMILIES, "gpt2_by_layer", "falcon_alibi", "t5_gated"}))
def test_at_the_base_it_is_the_standard_model(name):
    """The very same programs, for initial values and for logits: so the same bits."""
    family, plain = small(name)
    config = mup.parametrised(plain, plain.width)
    assert config.mup_base_width == plain.width
    for trace in (
        lambda c: jax.make_jaxpr(lambda key: family.init(c, key))(jax.random.key(0)),
        lambda c: jax.make_jaxpr(lambda params: logits_of(family, c, params))(family.abstract(c)),
    ):
        assert str(trace(config)) == str(trace(plain))
    assert set(flat(mup.learning_rates(family, config)).values()) == {1.0}


@pytest.mark.parametrize("name", ALL)
def test_learning_rates_fall_where_two_axes_grow(name):
    """The paper's definition, read off the shapes: a matrix between features has two sides that grow with the width, all else at most one.
    Only a router, whose multiplier would be in the model, has its rate in place of it."""
    family, narrow = small(name)
    wide = mup.parametrised(resized(narrow, width=48, heads=4), narrow.width)
    rates, shapes = flat(mup.learning_rates(family, wide)), flat(family.abstract(wide))
    assert rates.keys() == shapes.keys()
    for path, before in flat(family.abstract(narrow)).items():
        grown = sum(a > b for a, b in zip(shapes[path].shape, before.shape, strict=True))
        assert rates[path] == (1 / 3 if grown == 2 or path.endswith("router/kernel") else 1.0), path
        assert grown in (0, 1, 2), path


@pytest.mark.parametrize("name", ["mixtral", "gpt2_by_layer", "roberta", "t5_gated"])
def test_initial_values_are_scaled_by_what_is_summed_over(name, monkeypatch):
    """Four times the width: a half for matrices between features, a quarter for a router, one for all else. In place of random values every
    initialiser gives its deviation."""
    for module in (layers, transformer, encoder, t5, experts):
        if hasattr(module, "normal"):
            monkeypatch.setattr(module, "normal", lambda scale: lambda key, shape, dtype, **_: jnp.full(shape, scale, dtype))
    family, narrow = small(name)
    wide = mup.parametrised(resized(narrow, width=64), 16)
    deviation = lambda config: {path: float(x.max()) for path, x in flat(quickly(lambda: family.init(config, jax.random.key(0)))()).items()}
    before, after = deviation(narrow), deviation(wide)
    for path, rate in flat(mup.learning_rates(family, wide)).items():
        wanted = 0.25 if "router" in path else 0.5 if rate < 1 else 1.0
        np.testing.assert_allclose(after[path], before[path] * wanted, rtol=1e-6, err_msg=path)


@pytest.mark.parametrize("name", ["gpt2", "t5_gated", "roberta"])
def test_what_the_head_reads_is_divided_by_the_times_that_it_is_wider(name):
    """Tied or not. Heads are as wide as at the base, so scores stay; biases of the head are not divided."""
    family, plain = small(name)
    config = mup.parametrised(plain, plain.width // 4, plain.head_width)
    params = jax.tree_util.tree_map_with_path(
        lambda path, x: np.zeros_like(x) if [step.key for step in path] in (["out", "bias"], ["head_bias"]) else x, parameters(name)
    )
    logits, wanted = (quickly(lambda p, c=c: logits_of(family, c, p))(params) for c in (config, plain))
    # T5's own factor is width ** -0.5, and that of the base is twice as large
    np.testing.assert_array_equal(logits, wanted / (2 if name == "t5_gated" else 4))


@pytest.mark.parametrize(("name", "at_base"), [("llama", None), ("falcon", None), ("gpt2", 0.75)])
def test_scores_are_scaled_as_one_over_the_width_of_heads(name, at_base):
    """The very program of the same model with a scale of its own: of heads four times as wide as at the base."""
    family, plain = small(name, heads=2, kv_heads=1 if name == "falcon" else 2, rotary=None, attention_scale=at_base)
    config = mup.parametrised(plain, plain.width, plain.head_width // 4)
    scale = (plain.head_width // 4) ** -0.5 / 4 if at_base is None else at_base / 4
    mine, wanted, other = (
        str(jax.make_jaxpr(lambda params, c=c: logits_of(family, c, params))(family.abstract(c)))
        for c in (config, dataclasses.replace(plain, attention_scale=scale), plain)
    )
    assert mine == wanted != other


# ---- out and in --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["gpt2_by_layer", "mixtral_window", "bert", "t5_gated"])
def test_multipliers_are_folded_into_parameters(name):
    family, plain = small(name)
    config = mup.parametrised(plain, plain.width // 4)
    standard, params = mup.folded(family, config, parameters(name))
    assert standard == plain
    apply = lambda c: quickly(lambda p: logits_of(family, c, p))
    wanted = apply(config)(parameters(name))
    close(apply(standard)(params), wanted)
    assert np.abs(apply(standard)(parameters(name)) - wanted).max() > 1e-2
    moved = {path for path, x in flat(params).items() if not np.array_equal(x, flat(parameters(name))[path])}
    assert all("/q/" in path or "norm" in path for path in moved) and len(moved) <= 5


def test_hugging_face_gets_what_is_folded_and_nothing_else(tmp_path):
    family, plain = small("llama")
    config, params = mup.parametrised(plain, 4), parameters("llama")
    with pytest.raises(ValueError, match=r"mup_base_width=4: .* cannot say so; fold"):
        weights.save(tmp_path / "a", family, config, params)
    assert not (tmp_path / "a").exists()
    weights.save(tmp_path / "a", family, *mup.folded(family, config, params))
    loaded, again = weights.load(tmp_path / "a", family)
    got, wanted = (quickly(lambda p, c=c: logits_of(family, c, p))(x) for c, x in ((loaded, again), (config, params)))
    close(got, wanted)
    with pytest.raises(ValueError, match="mup_base_width=4: PEFT"):
        peft.save(tmp_path / "b", family, config, {}, alpha=1.0)


@pytest.mark.parametrize(
    ("name", "words"), [("mpt", r"queries that are clipped \(clip_qkv=0.7\)"), ("falcon_alibi", "ALiBi is scaled with the scores")]
)
def test_what_cannot_be_folded_is_refused(name, words):
    family, plain = small(name)
    with pytest.raises(ValueError, match=words):
        mup.folded(family, mup.parametrised(plain, 4), parameters(name))
    folded, params = mup.folded(
        family, mup.parametrised(plain, 4, plain.head_width), parameters(name)
    )  # heads of one width have no multiplier
    assert folded == plain
    np.testing.assert_array_equal(params["norm"]["scale"], parameters(name)["norm"]["scale"] / 4)


def test_every_field_is_kept_beside_orbax_arrays():
    family, plain = small("llama")
    config = mup.parametrised(plain, 8, 2)
    assert configuration(json.loads(json.dumps(in_full(config, family))), family, "here") == config != plain


# ---- what people get wrong ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("base", "words"),
    [
        ((0,), "mup_base_width=0: give a whole number of at least 1"),
        ((-4,), "mup_base_width=-4"),
        ((True,), "mup_base_width=True: give int or None"),
        ((6,), "mup_base_width=6 does not divide by heads=4"),
        ((8, -1), "mup_base_head_width=-1"),
        ((None, 4), "mup_base_head_width=4 without mup_base_width"),
    ],
)
def test_a_base_that_cannot_be_is_refused(base, words):
    with pytest.raises(ValueError, match=words):
        mup.parametrised(small("llama")[1], *base)


def test_it_is_given_by_name_and_kept_when_the_width_is_changed():
    config = ModelSettings(name="llama", width=64, set=("mup_base_width=32",)).config()
    assert (config.base_width, config.base_head_width, config.head_width) == (32, 4, 8)
    wider = resized(config, width=256)
    assert (wider.base_width, wider.base_head_width, wider.head_width, wider.logits_scale) == (32, 4, 32, 1 / 8)


def test_a_parameter_of_an_unknown_kind_is_refused():
    """A family that somebody adds: no rate is guessed."""

    class Odd(FAMILIES["gpt2"].module):
        def __init__(self, config, *, rngs):
            super().__init__(config, rngs=rngs)
            self.sink = type(self.norm.scale)(jnp.zeros(4))

    odd = dataclasses.replace(FAMILIES["gpt2"], name="odd", module=Odd, table=lambda c: (same("sink", "sink"),))
    with pytest.raises(ValueError, match="sink of odd: no muP is known for it"):
        mup.learning_rates(odd, small("gpt2")[1])
