"""One PE: vector instructions, pipeline, functions of a transformer, and kernels of the SDK's examples.

Rates are those of the machine (`System`), which for WSE-3 were read from these very points (ALCF): for single instructions the error says
how far a few numbers go, not what a new machine would show. The simulator of the SDK has rates of its own (`read.CS3_SIMULATED`).
"""

from __future__ import annotations

from collections.abc import Mapping

from wsejax.hardware import CS2, System
from wsejax.kernels.price import copies_per_cycle, fma_per_cycle, vector_cycles

from ..points import Constant, Group, Point, Unpredictable
from .read import in_cycles, itemsize_bytes, number, positive, simulated, sizes, system_of


# ---- vector instructions ---------------------------------------------------------------------------------------------
def _vector(point: Point, c: Mapping[str, float]) -> float:
    system, name = system_of(point), f"{point.algorithm} {point.config.get('op', '')}".lower()
    if point.metric == "setup_intercept":
        return float(system.launch_cycles)
    if "slowdown" in point.metric:  # two reads of one bank take turns; at worst the write waits as well
        return 3.0 if "max" in point.id or "max" in point.metric else 2.0
    item = itemsize_bytes(point, "fp16")
    if point.unit.lower() in ("flop/cycle", "flops/cycle"):
        return 2.0 * float(fma_per_cycle(system, item))
    if point.unit.lower() in ("b/cycle", "bytes/cycle"):
        fabric = "fabric" in f"{name} {point.metric}".lower()
        return float(system.link_bits) / 8.0 if fabric else float(copies_per_cycle(system, item)) * item
    if point.metric == "throughput":
        rate = _rate(system, name, item, positive(point, "stride", default=1.0))
        return 1.0 / rate if point.unit.startswith("cycles") else rate
    if point.metric == "cycles" and system is CS2:
        # a note beside the points: two reads and a write of 64 bits a cycle where banks differ, of 32 where they do not
        return positive(point, "elements") * _regime(point) + system.launch_cycles
    if point.metric == "value":
        return _pipeline(name)
    raise Unpredictable(f"metric={point.metric!r}: the model covers throughputs, set-up, conflicts and the pipeline")


def _regime(point: Point) -> float:
    raise Unpredictable("the source does not say which instruction and which banks this was: 0.5, 1 and 2 cycles an element are possible")


def _rate(system: System, name: str, item: int, stride: float) -> float:
    """Elements a cycle."""
    fma, copy = float(fma_per_cycle(system, item)), float(copies_per_cycle(system, item))
    two_operands = min(copy, system.sram_bytes_per_cycle / 3.0 / item)  # two read, one written
    if "stencil" in name:
        return two_operands / 4.0  # four neighbours added up; the scale goes with the copy
    if "dot" in name or "reduc" in name:
        return 1.0 / (1.0 + copy / copy)  # each sum waits for the one before: two cycles (ALCF: dependent floating-point instructions)
    if "fma" in name or "axpy" in name or "fmac" in name:
        return fma
    if "element" in name or "add" in name or "mul" in name or "sub" in name:
        return two_operands
    if "copy" in name or "write" in name or "mov" in name or "read" in name or "stride" in name or "fill" in name:
        return copy / stride
    raise Unpredictable(f"algorithm={name!r}: no such instruction is known")


def _pipeline(name: str) -> float:
    """Cycles of control flow, as ALCF reports them: carried over for other models to use, so their error says nothing."""
    known = {
        "back-edge": 9.5,  # of a loop: 9 to 10
        "not-taken": 3.0,
        "taken": 6.0,  # the pipeline's six stages (HC34) start anew
        "dependent": 2.0,
        "task": 3.0,  # `System.task_cycles`
        "issue": 1.0,
        "send": 7.0,
        "load-use": 4.0,
        "fp-execute": 4.0,
        "execute-fp": 4.0,
        "execute": 3.0,
    }
    for key, cycles in known.items():
        if key in name.replace("_", "-"):
            return cycles
    raise Unpredictable(f"algorithm={name!r}: no such event of the pipeline is modelled")


def _loop(point: Point, c: Mapping[str, float]) -> float:
    if "L0" not in point.algorithm:
        raise Unpredictable(f"algorithm={point.algorithm!r}: the source does not say what this form of the loop is")
    system = system_of(point)
    return float(vector_cycles(system, positive(point, "elements"), fma_per_cycle(system, itemsize_bytes(point))))


# ---- functions of a transformer's PE ---------------------------------------------------------------------------------
_WIDTHS: dict[str, dict[str, int]] = {  # Hugging Face model cards
    "qwen3-1.7b": {"width": 2048, "queries": 2048, "keys": 1024, "ffn": 6144, "head": 128},
}


def _function(point: Point, c: Mapping[str, float]) -> float:
    """One call of a function on a PE of a P x P block: `chunk` tokens along one side, features along the other."""
    name, system = point.algorithm.lower(), system_of(point)
    dims = next((d for model, d in _WIDTHS.items() if model in str(point.config.get("model", "")).lower()), None)
    if dims is None:
        raise Unpredictable(f"model={point.config.get('model')!r}: its dimensions are not known here")
    p = positive(point, "P")
    tokens = number(point, "chunk", default=p) / p
    of = {key: size / p for key, size in dims.items()}
    if "matmul" in name or "gemm" in name:
        # the seven products of a layer in turn: a vector instruction for each token and term, over the outputs
        pairs = [("width", "queries"), ("width", "keys"), ("width", "keys"), ("queries", "width"), ("width", "ffn"), ("width", "ffn"),
                 ("ffn", "width")]  # fmt: skip
        rate = fma_per_cycle(system, 2)
        return sum(tokens * of[k] * (c["call_cycles"] + of[n] / rate) for k, n in pairs) / len(pairs)
    scalars = {"silu": tokens * of["ffn"], "softmax": tokens * number(point, "seq", default=p) / p, "exp": tokens * of["ffn"]}
    for key, elements in scalars.items():
        if key in name:
            return c["call_cycles"] + elements * system.special_cycles
    vectors = {"rms": ("width", 3.0), "norm": ("width", 3.0), "rope": ("queries", 4.0), "residual": ("width", 1.0), "add": ("width", 1.0)}
    for key, (side, passes) in vectors.items():
        if key in name:
            return passes * tokens * (c["call_cycles"] + of[side] / float(copies_per_cycle(system, 2)))
    raise Unpredictable(f"algorithm={point.algorithm!r}: what this function does is not described")


# ---- the SDK's examples ----------------------------------------------------------------------------------------------
def _example(point: Point, c: Mapping[str, float]) -> float:
    """Scalar loops by the number of times that their body runs; vector code by its instructions."""
    name = point.algorithm.lower()
    body = c["body_cycles"]
    if "gemm-1pe" in name or "gemv-1pe" in name:
        return body * positive(point, "M") * positive(point, "K") * positive(point, "N", default=1.0)
    if name.startswith(("laplacian2d", "jacobi")):
        # columns staged, cells (a product, four neighbours picked by their place), and copied back
        height, width = sizes(point, "tile")[:2]
        if all(key in point.config for key in ("M", "N", "mesh")):
            rows, cols = sizes(point, "mesh")[:2]
            if (rows * height, cols * width) != (number(point, "M"), number(point, "N")):
                stated = ", ".join(f"{key}={point.config[key]!r}" for key in ("M", "N", "mesh", "tile"))
                raise Unpredictable(f"config has {stated}: they contradict each other")
        once = body * (height + 2.0 * height * width)
        reduced = 2.0 * c["step_cycles"] if "reduce" in name else 0.0  # along rows, then down a column
        return positive(point, "iters", default=1.0) * (once + c["step_cycles"] + reduced)
    if "attention" in name:
        # for each query: scores by a vector instruction for each feature, an exponential for each key, and a weighted sum
        keys, width, share = positive(point, "S"), positive(point, "d"), positive(point, "P", default=1.0)
        system = system_of(point)
        rate, launch = fma_per_cycle(system, 4), system.launch_cycles
        query = width * (launch + keys / rate) + keys * (launch + width / rate) + keys * c["exp_cycles"]
        return keys / share * float(query)
    raise Unpredictable(f"algorithm={point.algorithm!r}: no closed form for this program, or the point does not hold its sizes")


# ---- groups ----------------------------------------------------------------------------------------------------------
def _micro(point: Point) -> bool:
    return point.experiment in ("pe_microbenchmark", "pe_roofline_suite", "pe_roofline") and point.metric != "value"


_EXP = Constant(20.0, 1.0, 400.0, "cycles", "of an exponential and what goes with it")
GROUPS = (
    Group("PE instructions", _micro, _vector, {}, 0.15),
    Group("PE pipeline, carried over", lambda p: p.experiment == "pe_microbenchmark", _vector, {}, 0.15),
    Group("PE loop forms", lambda p: p.experiment == "pe_loop_forms", in_cycles(_loop), {}, 0.15),
    Group("PE functions", lambda p: p.experiment == "pe_function", in_cycles(_function), {
        "call_cycles": Constant(40.0, 1.0, 400.0, "cycles", "of a vector instruction with the scalar code round it"),
    }, 0.15),
    Group("SDK example kernels", lambda p: p.experiment == "csl_examples_kernel" and simulated(p), in_cycles(_example), {
        "body_cycles": Constant(29.0, 5.0, 200.0, "cycles", "of the body of a scalar loop: loads, indices, a product, the branch back"),
        "step_cycles": Constant(200.0, 1.0, 5000.0, "cycles", "of an exchange with neighbours, with its tasks"),
        "exp_cycles": _EXP,
    }),
)  # fmt: skip
