"""What generation asks of a language model, and of a cache that keeps keys and values in an order of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import PartitionSpec
from jaxtyping import Array, PyTree

from wsejax.compiler.kvstore import BalancedStore
from wsejax.hardware import Wafer

Cache = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Model:
    """Pure functions of a language model, and the numbers that bound them.

    Attributes:
      prefill: (params, tokens int32 [batch, seq], lengths int32 [batch], slots) -> (logits [batch, vocab] of the token after each prompt,
        a cache with room for `slots` tokens). Prompts are padded at the end, with any token.
      decode_step: (params, tokens int32 [batch], cache) -> (logits after these, the cache with them). With `store=` that function puts
        new entries into the leaves of the cache, (leaf [batch, slots, ...], new [batch, ...], lengths [batch]) -> leaf.
      context: most tokens of a sequence.
      eos_tokens: those that end a sequence.
      pad_token: stands after its end.
      start_token: of a model that reads the prompt apart (an encoder's) and begins its answer with this one; None: the answer follows the
        prompt, in the same cache.
    """

    prefill: Callable[[PyTree, Array, Array, int], tuple[Array, Cache]]
    decode_step: Callable[..., tuple[Array, Cache]]
    vocab_size: int
    context: int
    eos_tokens: tuple[int, ...] = ()
    pad_token: int = 0
    start_token: int | None = None

    @property
    def apart(self) -> bool:
        """Whether the answer is a sequence of its own."""
        return self.start_token is not None

    @classmethod
    def of(cls, family: Any, config: Any) -> Model:
        """Of a family with `prefill` and `decode_step` as those of `models/` have them, and one of its configurations.

        Raises:
          ValueError: an encoder.
        """
        if family.kind == "encoder":
            raise ValueError(f"{family.name} is an encoder, which makes no text: give a decoder, or an encoder with one")
        # checkpoints name pad and end tokens that their own table does not have; fed back, these would be no numbers
        ours = [token for token in (config.pad_token, *config.eos_tokens) if token is not None and 0 <= token < config.vocab_size]
        pad = ours[0] if ours else 0
        return cls(
            lambda params, tokens, lengths, slots: family.prefill(config, params, tokens, lengths, slots),
            lambda params, tokens, cache, **store: family.decode_step(config, params, tokens, cache, **store),
            config.vocab_size, config.context, tuple(config.eos_tokens), pad, getattr(config, "start_token", None),
        )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Balanced:
    """Keys and values balanced over the rows of tiles (`kernels.pe.kvcache`).

    Of a cache these are k and v [layers, batch, slots, kv_heads, head_width] and position [batch, slots]; other leaves stay as they are."""

    wafer: Wafer

    @property
    def kept(self) -> BalancedStore:
        return BalancedStore(self.wafer)

    def store(self, leaf: Array, new: Array, lengths: Array) -> Array:
        """`store` of `Model.decode_step`."""
        return self.kept.positions(leaf, lengths) if leaf.ndim == 2 else self.kept(leaf, new, lengths)

    def spread(self, cache: Cache) -> Cache:
        """The cache that as many single steps would have made, of one that prefill has made."""
        lengths = cache["length"]
        keys, values = (jax.vmap(self.kept.spread, (0, None))(cache[name], lengths) for name in "kv")
        return {**cache, "k": keys, "v": values, "position": self.kept.spread_positions(cache["position"], lengths)}

    def pins(self, cache: Cache) -> dict[str, PartitionSpec | None]:
        """How the leaves of a cache lie on the wafer; None where that is free."""
        spec = PartitionSpec(None, *self.kept.spec(cache["k"].shape[3]))
        return {**dict.fromkeys(cache), "k": spec, "v": spec, "position": PartitionSpec(None, "y")}

    @property
    def rows(self) -> int:
        """What the slots of a cache must be a multiple of."""
        return self.wafer.tiles[0]
