"""What a model family is: a module with its configurations, its weight table, and pure functions over plain dicts of arrays."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
from flax import nnx
from jaxtyping import Array, PyTree

from .tables import Entry


@dataclasses.dataclass(frozen=True)
class Family:
    """One family. `params` are nested dicts of arrays, keyed as the module's attributes are.

    kind: "decoder" (next token), "encoder" (masked tokens) or "encoder-decoder". presets: by name; "tiny" reads bytes. table: which tensor
    of a Hugging Face checkpoint fills which parameters. ties: names that a checkpoint may hold besides, and which tensor they must equal.
    prefix: of the names, which some published checkpoints leave out. renames: (regular expression, replacement) from older names to those
    of the table. ignored: regular expressions of tensors that are no parameters of a language model here (buffers, other heads).
    """

    name: str
    model_type: str
    kind: Literal["decoder", "encoder", "encoder-decoder"]
    module: Callable[..., Any]
    presets: Mapping[str, Any]
    table: Callable[[Any], tuple[Entry, ...]]
    from_hf: Callable[[Mapping[str, Any]], Any]
    to_hf: Callable[[Any], dict[str, Any]]
    ties: Callable[[Any], Mapping[str, str]] = lambda config: {}
    prefix: str = ""
    renames: tuple[tuple[str, str], ...] = ()
    ignored: tuple[str, ...] = ()

    def build(self, config: Any, rngs: nnx.Rngs) -> nnx.Module:
        """The module with random parameters."""
        return self.module(config, rngs=rngs)

    def abstract(self, config: Any) -> PyTree:
        """Shapes and dtypes of the parameters; nothing is allocated."""
        return jax.tree.map(lambda x: x, nnx.to_pure_dict(_parts(self.module, config)[1]))

    def init(self, config: Any, key: Array) -> PyTree:
        """Random parameters from a typed PRNG key."""
        return nnx.to_pure_dict(nnx.split(self.build(config, nnx.Rngs(params=key)), nnx.Param, ...)[1])

    def bound(self, config: Any, params: PyTree) -> Any:
        """The module with these parameters; to be used inside a function that is traced, or once."""
        graph, variables, rest = _parts(self.module, config)
        filled = jax.tree.map(lambda v: v, variables)  # replace_by_pure_dict writes into the State it is given
        nnx.replace_by_pure_dict(filled, params)
        return nnx.merge(graph, filled, rest)

    def apply(self, config: Any, params: PyTree, *args: Any, **kwargs: Any) -> Array:
        """What the module returns: float32 logits."""
        return self.bound(config, params)(*args, **kwargs)

    def training_logits(
        self, config: Any, params: PyTree, *inputs: Array, key: Array | None = None, present: Array | None = None, **places: Array
    ) -> tuple[Array, Array | None]:
        """Logits, and what a mixture of experts adds to the loss: its load-balancing loss times its weight; None where there is none.

        present: 1 for tokens, 0 for padding; None: all are there. A decoder needs it for that loss alone. places: `segment_ids` and
        `positions`, where rows hold several documents (and `answer_segment_ids`, `answer_positions` where there is an answer).
        """
        module = self.bound(config, params)
        if self.kind != "decoder":
            return module(*inputs, key, present=present, **places), None
        if not config.experts or config.balance_weight == 0.0:
            return module(*inputs, key, **places), None
        logits, balance = module.with_balance(*inputs, key, present=present, **places)
        return logits, config.balance_weight * balance

    def new_cache(self, config: Any, batch: int, slots: int) -> Any:
        """An empty cache of a decoder."""
        return self.bound(config, self.abstract(config)).new_cache(batch, slots)

    def prefill(self, config: Any, params: PyTree, tokens: Array, lengths: Array, slots: int) -> tuple[Array, Any]:
        """Logits after each prompt, and the cache. See `Decoder.prefill`."""
        return self.bound(config, params).prefill(tokens, lengths, slots)

    def decode_step(self, config: Any, params: PyTree, tokens: Array, cache: Any, **store: Any) -> tuple[Array, Any]:
        """Logits after one more token of each sequence, and the cache with it. See `Decoder.decode_step`."""
        return self.bound(config, params).decode_step(tokens, cache, **store)

    def parameters(self, config: Any) -> int:
        """Trained scalars, tied ones once."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.abstract(config)))


def resized(config: Any, **sizes: Any) -> Any:
    """The configuration with other fields, and what follows from its sizes in the same proportions as before where it is not given.

    Raises:
      ValueError: sizes that do not fit together, or a field that there is not.
    """
    known = {field.name for field in dataclasses.fields(config)}
    if unknown := sorted(set(sizes) - known):
        raise ValueError(f"{', '.join(unknown)}: {type(config).__name__} has no such field; it has {', '.join(sorted(known))}")
    was: dict[str, Any] = {
        name: getattr(config, name, None) for name in ("width", "heads", "head_width", "kv_heads", "ffn_width", "rotary", "layers")
    }
    for name in ("width", "heads", "head_width"):
        if isinstance(value := sizes.get(name, 1), bool) or not isinstance(value, int) or value < 0:
            raise ValueError(f"{name}={value!r}: give a whole number")
    width, heads = sizes.get("width", was["width"]), sizes.get("heads", was["heads"])
    more: dict[str, Any] = {}
    if was["head_width"] is not None:
        usual = was["head_width"] * was["heads"] == was["width"]
        more["head_width"] = 0 if usual else max(1, was["head_width"] * width * was["heads"] // (was["width"] * max(1, heads)))
    if was["kv_heads"] is not None:
        kv_heads = max(1, was["kv_heads"] * heads // was["heads"])
        more["kv_heads"] = next((n for n in range(kv_heads, 0, -1) if heads % n == 0), 1)
    if was["ffn_width"] is not None:
        more["ffn_width"] = max(1, was["ffn_width"] * width // was["width"])
    if was["rotary"] is not None:
        new = sizes.get("head_width") or more["head_width"] or width // max(1, heads)
        turned = max(2, was["rotary"].width * new // was["head_width"] // 2 * 2)
        more["rotary"] = dataclasses.replace(was["rotary"], width=turned)
    if getattr(config, "decoder_layers", None) == was["layers"]:
        more["decoder_layers"] = 0
    return dataclasses.replace(config, **{**more, **sizes})


@functools.lru_cache(maxsize=64)
def _parts(module: Callable[..., Any], config: Any) -> Any:
    return nnx.split(nnx.eval_shape(lambda: module(config, rngs=nnx.Rngs(0))), nnx.Param, ...)
