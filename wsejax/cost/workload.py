"""One training step as numbers: what a price on any machine needs to know of a program, from a transformer's dimensions or as they are."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax.tree_util

from wsejax.compiler import Lowered, Program
from wsejax.hardware.records import check_fields, replaced

from .estimate import activation_bytes, largest_layer_parameters
from .llm import LLM

PLAUSIBLE: dict[str, tuple[float, float]] = {
    "flops": (1, 1e30), "tokens": (1, 1e12), "parameters": (1, 1e16), "parameter_bytes": (1, 1e17), "gradient_bytes": (0, 1e17),
    "state_bytes": (0, 1e18), "activation_bytes": (0, 1e19), "boundary_bytes": (0, 1e18), "memory_traffic_bytes": (0, 1e21),
    "layers": (1, 1e5), "itemsize_bytes": (0.5, 8), "sequences": (0, 1e12), "layer_bytes": (0, 1e17), "recomputed_bytes": (0, 1e19),
}  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workload:
    """A training step over the whole batch. All fields but `name` are numbers, and leaves of a pytree.

    Raises:
      ValueError: a number that is not finite, is negative, or is zero where nothing can be.
    """

    name: str
    flops: Any  # forward, backward, without recomputation
    tokens: Any  # or samples: what a rate counts
    parameters: Any
    parameter_bytes: Any  # as they are multiplied
    gradient_bytes: Any  # as they are reduced
    state_bytes: Any  # what is held of weights, gradients, optimizer and master copy
    activation_bytes: Any = 0.0  # held for the backward pass
    boundary_bytes: Any = 0.0  # of the activations between two layers
    memory_traffic_bytes: Any = 0.0  # between chip and memory, of activations; weights and state come on top
    layers: Any = 1.0  # one after the other
    itemsize_bytes: Any = 2.0
    sequences: Any = 0.0  # a machine works through at least one of them at a time; 0: not known
    layer_bytes: Any = 0.0  # weights of the largest layer, as they are multiplied; 0: not known
    recomputed_bytes: Any = 0.0  # of activations held for the backward pass where the inside of layers is computed again; 0: not known

    def __post_init__(self) -> None:
        check_fields(self, PLAUSIBLE)

    def replace(self, **changes: Any) -> Workload:
        """The same with some fields changed. Raises ValueError where a name is no field."""
        return replaced(self, changes)

    @classmethod
    def of_program(cls, program: Lowered | Program, tokens: float, name: str = "program") -> Workload:
        """A step of any program that was lowered: the flops of its operations without padding, its weights, and its state.

        Weights are the floating-point arguments that products or tables read, of those that are donated if any is; what is donated is
        state, and gradients are as large as the weights where there is any. Loops of unknown length count once. Activations that a machine
        with memory outside its chips would keep are not known from the wafer's program and count as none.

        Raises:
          ValueError: no tokens, or a program without weights or flops.
        """
        plan = program.program if isinstance(program, Lowered) else program
        sizes = [math.prod(a.shape) for a in plan.weights]
        return cls(
            name=name,
            flops=float(sum(call.flops * call.trips for call in plan.calls)),
            tokens=tokens,
            parameters=float(sum(sizes)),
            parameter_bytes=float(plan.weight_bytes),
            gradient_bytes=float(plan.weight_bytes if plan.state_bytes else 0),
            state_bytes=float(max(plan.state_bytes, plan.weight_bytes)),
            itemsize_bytes=plan.weight_bytes / max(1, sum(sizes)) or 4.0,
        )

    @classmethod
    def of_llm(cls, llm: LLM, batch: int, seq_len: int, itemsize_bytes: int = 2, state_bytes_per_parameter: float = 16.0) -> Workload:
        """A step of training a transformer on `batch` sequences.

        16 bytes of state a parameter: 16-bit weight and gradient, 32-bit master copy and two moments (Rajbhandari et al., "ZeRO", 2020).
        Activations: Korthikanti et al. (2022), 34 bytes x width a token and layer at 16 bits with an MLP of 4 widths, without the scores of
        attention, which fused kernels do not keep; split here by what scales with the width (14 itemsize-halves and 3 masks) and with the
        MLP's own width (two tensors, three where it is gated).

        Raises:
          ValueError: a batch or length that is not positive, or a length that the model's context does not hold.
        """
        for name, value in (("batch", batch), ("seq_len", seq_len), ("itemsize_bytes", itemsize_bytes)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}={value!r}: must be a positive integer")
        if seq_len > llm.context:
            raise ValueError(f"seq_len={seq_len}: {llm.name} has a context of {llm.context}; shorten it or change the model's dimensions")
        tokens = float(batch * seq_len)
        held = itemsize_bytes * (8 * llm.width + (3 if llm.gated else 2) * llm.ffn_width) + 2 * llm.width
        return cls(
            name=f"{llm.name}, batch {batch} x {seq_len}",
            flops=tokens * llm.train_flops_per_token(seq_len),
            tokens=tokens,
            parameters=float(llm.parameters),
            parameter_bytes=float(llm.parameters * itemsize_bytes),
            gradient_bytes=float(llm.parameters * itemsize_bytes),
            state_bytes=llm.parameters * state_bytes_per_parameter,
            activation_bytes=tokens * llm.layers * held,
            boundary_bytes=tokens * llm.width * itemsize_bytes,
            memory_traffic_bytes=4.0 * tokens * llm.layers * held,  # written and read forward, read and written again backward
            layers=float(llm.layers),
            itemsize_bytes=float(itemsize_bytes),
            sequences=float(batch),
            layer_bytes=float(largest_layer_parameters(llm) * itemsize_bytes),
            recomputed_bytes=activation_bytes(llm, tokens, itemsize_bytes),
        )


_FLOATS = [f.name for f in dataclasses.fields(Workload) if f.name != "name"]
jax.tree_util.register_dataclass(Workload, data_fields=_FLOATS, meta_fields=["name"])
