"""A training step on a cluster: timelines, volumes and limits that the closed forms must meet."""

from __future__ import annotations

import dataclasses

import jax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsejax.cost.accelerators import A100, H100, cluster
from wsejax.cost.alphabeta import ALL_REDUCES, Link, ring_all_gather
from wsejax.cost.baselines import Plan, best_plan, bubble_share, check_plan, chip_bytes, plans, train_step
from wsejax.cost.compare import communication_tax
from wsejax.cost.llm import LLM
from wsejax.cost.workload import Workload

TWENTY = LLM(
    name="20B", layers=44, width=6144, heads=64, kv_heads=64, head_width=96, ffn_width=24576, vocab_size=50432, context=2048, gated=False
)
SMALL = dataclasses.replace(TWENTY, name="small", layers=24, width=2048, heads=16, kv_heads=16, head_width=128, ffn_width=8192)
WORK = Workload.of_llm(SMALL, 512, 2048)
PLANS = [
    Plan(data=64),
    Plan(data=64, overlap=0.0),
    Plan(data=64, fsdp=True, micro_batches=4),
    Plan(data=8, tensor=8),
    Plan(data=32, tensor=2, all_reduce="ring", overlap=0.5),
    Plan(data=16, tensor=2, pipeline=2, micro_batches=8),
    Plan(data=4, tensor=4, pipeline=4, micro_batches=16, recompute=True),
    Plan(pipeline=8, tensor=8, micro_batches=32, schedule="gpipe"),
]


def timeline(pipeline: int, micro_batches: int, schedule: str, forward: float = 1.0, backward: float = 2.0) -> tuple[float, int]:
    """(makespan, most micro-batches that a stage holds), stage by stage and pass by pass."""
    orders = []
    for stage in range(pipeline):
        ahead = micro_batches if schedule == "gpipe" else min(micro_batches, pipeline - stage)
        order = [("f", i) for i in range(ahead)]
        for i in range(micro_batches):
            order += [("b", i)] + ([("f", ahead + i)] if ahead + i < micro_batches else [])
        orders.append(order)
    ended: dict[tuple[str, int, int], float] = {}
    free, at = [0.0] * pipeline, [0] * pipeline
    while any(at[s] < len(orders[s]) for s in range(pipeline)):
        for s in range(pipeline):
            while at[s] < len(orders[s]):
                kind, i = orders[s][at[s]]
                before = ("f", i, s - 1) if kind == "f" else ("b", i, s + 1) if s + 1 < pipeline else ("f", i, s)
                if before[2] >= 0 and before not in ended:
                    break
                start = max(free[s], ended.get(before, 0.0))
                free[s] = ended[kind, i, s] = start + (forward if kind == "f" else backward)
                at[s] += 1
    held = [max(sum(1 if k == "f" else -1 for k, _ in order[:n]) for n in range(len(order) + 1)) for order in orders]
    return max(free), max(held)


@settings(max_examples=40, deadline=None)
@given(p=st.integers(1, 8), m=st.integers(1, 24), schedule=st.sampled_from(["gpipe", "1f1b"]))
def test_the_bubble_is_that_of_a_timeline(p, m, schedule):
    makespan, held = timeline(p, m, schedule)
    assert 1 - 3.0 * m / makespan == pytest.approx(bubble_share(p, m))
    plan = Plan(pipeline=p, micro_batches=m, schedule=schedule)
    free = cluster(A100.replace(launch_seconds=0.0), p)
    step = train_step(WORK, free, plan)
    assert step.bubble_seconds / (step.bubble_seconds + step.compute_seconds) == pytest.approx(bubble_share(p, m))
    assert chip_bytes(WORK, plan)["activations"] == pytest.approx(WORK.activation_bytes / p / m * held)


def test_popular_utilisations_of_pipelines_need_few_micro_batches():
    """60 to 75% with 8 stages: 10.5 to 21 micro-batches."""
    assert 1 - bubble_share(8, 10.5) == pytest.approx(0.6)
    assert 1 - bubble_share(8, 21) == pytest.approx(0.75)


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_parts_sum_to_the_step_and_none_is_negative(plan):
    step = train_step(WORK, cluster("h100", 64), plan)
    assert sum(step.parts().values()) == pytest.approx(step.seconds)
    assert all(value >= 0 for value in (*step.parts().values(), step.hidden_seconds, step.chip_bytes))
    assert sum(value / step.seconds for value in step.parts().values()) == pytest.approx(1)
    assert step.compute_seconds >= WORK.flops / cluster("h100", 64).dense_peak_flops_per_second()


def test_a_chip_alone_communicates_nothing():
    step = train_step(WORK, cluster("a100", 1), Plan())
    assert step.communication_share == 0 == step.bubble_seconds


def test_the_communication_tax_and_its_conditions():
    """The popular "35% of the time is all-reduce" holds for few tokens and one slow NIC, and vanishes with more of either: 20 B parameters
    on 64 A100 pay about half with 0.26 M tokens a step and one NIC of 25 GB/s a node, 0.7% with 4 M tokens and eight NICs."""
    one_nic = cluster(A100.replace(scale_out_bytes_per_second=25e9 / 8), 64, network_efficiency=1.0)
    eight = cluster("a100", 64, network_efficiency=1.0)
    much = communication_tax(Workload.of_llm(TWENTY, 128, 2048), one_nic)
    little = communication_tax(Workload.of_llm(TWENTY, 2048, 2048), eight)
    assert much.tokens == 262_144 and 0.40 < much.share < 0.52
    assert little.share == pytest.approx(0.007, abs=0.002)
    assert little.overlapped_share == 0 < much.overlapped_share < much.share
    half = communication_tax(Workload.of_llm(TWENTY, round(much.tokens_for_half / 2048), 2048), one_nic)
    assert half.share == pytest.approx(0.5, abs=0.01)
    assert "0.26" not in str(much) and "262,144 tokens" in str(much) and "modelled" in str(much)


def test_a_tensor_parallel_layer_all_reduces_four_times():
    chip = A100.replace(launch_seconds=0.0, scale_up_latency_seconds=0.0)
    step = train_step(WORK, cluster(chip, 8, network_efficiency=1.0), Plan(tensor=8))
    sent = 4 * SMALL.layers * 2 * 7 / 8 * WORK.tokens * SMALL.width * 2
    assert step.tensor_seconds == pytest.approx(sent / 300e9)
    again = train_step(WORK, cluster(chip, 8, network_efficiency=1.0), Plan(tensor=8, recompute=True))
    assert again.tensor_seconds == pytest.approx(1.5 * step.tensor_seconds)
    assert again.compute_seconds == pytest.approx(4 / 3 * step.compute_seconds)


def test_fsdp_sends_half_as_much_again():
    chip = A100.replace(launch_seconds=0.0, scale_up_latency_seconds=0.0)
    whole, sharded = (
        train_step(WORK, cluster(chip, 8, network_efficiency=1.0), Plan(data=8, overlap=0.0, fsdp=fsdp)) for fsdp in (False, True)
    )
    assert sharded.data_seconds == pytest.approx(1.5 * whole.data_seconds)
    assert sharded.data_seconds == pytest.approx(3 * ring_all_gather(8, WORK.gradient_bytes, Link(0.0, 300e9)))
    assert sharded.chip_bytes < whole.chip_bytes


@given(overlap=st.floats(0, 1), chips=st.sampled_from([2, 8, 16, 64]))
def test_overlap_hides_and_does_not_remove(overlap, chips):
    bare, hidden = (train_step(WORK, cluster("a100", chips), Plan(data=chips, overlap=o)) for o in (0.0, overlap))
    assert hidden.seconds <= bare.seconds * (1 + 1e-12)
    assert hidden.data_seconds + hidden.hidden_seconds == pytest.approx(bare.data_seconds)
    assert hidden.seconds >= max(hidden.compute_seconds, bare.data_seconds * (1 - overlap))


def test_little_work_for_much_memory_is_bound_by_memory():
    slow = cluster(A100.replace(memory_bytes_per_second=2e10), 8)
    step = train_step(WORK, slow, Plan(data=8))
    assert step.compute_seconds == pytest.approx((3 * WORK.parameter_bytes + WORK.memory_traffic_bytes / 8) / 2e10)


def test_algorithms_differ_as_they_should():
    """A flat ring goes at the pace of the network and a tree sends everything at each level; the hierarchy uses all NICs."""
    took = {name: train_step(WORK, cluster("h100", 64), Plan(data=64, overlap=0.0, all_reduce=name)).data_seconds for name in ALL_REDUCES}
    assert took["pipelined"] < took["hierarchical"] < took["ring"] < took["tree"]
    assert took["halving"] == pytest.approx(took["ring"], rel=0.05)
    small = WORK.replace(gradient_bytes=64.0)
    took = {name: train_step(small, cluster("h100", 64), Plan(data=64, overlap=0.0, all_reduce=name)).data_seconds for name in took}
    assert took["tree"] < took["ring"] and took["halving"] < took["ring"]


def test_memory_by_component():
    """20 B parameters of 16 bytes: 329 GB of state, which one chip cannot hold and 64 can together."""
    work = Workload.of_llm(TWENTY, 64, 2048)
    assert chip_bytes(work, Plan(data=64))["state"] == pytest.approx(16 * TWENTY.parameters)
    assert chip_bytes(work, Plan(data=64, fsdp=True))["state"] == pytest.approx(TWENTY.parameters / 4)
    with pytest.raises(ValueError, match=r"20B.* does not fit 64 x H100 .*short of 268 GB; most of it goes to state, 329 GB"):
        check_plan(work, cluster("h100", 64), Plan(data=64))
    check_plan(work, cluster("h100", 64), Plan(data=64, fsdp=True))


def test_korthikanti_s_34_bytes():
    """A token's activations in a layer with an MLP of four widths, 16 bits, scores of attention aside."""
    assert WORK.activation_bytes == pytest.approx(WORK.tokens * SMALL.layers * 34 * SMALL.width)


def test_the_best_plan_is_no_slower_than_any_that_fits():
    machine = cluster("h100", 16)
    best = best_plan(WORK, machine)
    check_plan(WORK, machine, best)
    fitting = [p for p in plans(WORK, machine) if sum(chip_bytes(WORK, p).values()) <= machine.chip.memory_bytes]
    assert len(fitting) > 10
    assert train_step(WORK, machine, best).seconds <= min(train_step(WORK, machine, p).seconds for p in fitting)
    assert all(p.chips == 16 for p in fitting)


def test_no_plan_says_what_is_missing():
    with pytest.raises(ValueError, match=r"20B.* does not fit 8 x Groq LPU .*short of .* GB; most of it goes to state"):
        best_plan(Workload.of_llm(TWENTY, 64, 2048), cluster("groq-lpu", 8))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"data": 0}, "data=0: must be a positive integer"),
        ({"tensor": 2.0}, "tensor=2.0"),
        ({"micro_batches": True}, "micro_batches=True"),
        ({"schedule": "zigzag"}, "schedule='zigzag': unknown; known are 1f1b and gpipe"),
        ({"all_reduce": "star"}, "all_reduce='star': unknown; known are ring, tree"),
        ({"overlap": 1.5}, "overlap=1.5: a share"),
    ],
)
def test_bad_plans_are_named(changes, says):
    with pytest.raises(ValueError, match=says):
        Plan(**changes)


@pytest.mark.parametrize(
    ("plan", "says"),
    [
        (Plan(data=8), "are 8 chips, 64 x H100 has 64; make them equal"),
        (Plan(pipeline=64), "pipeline=64: small.* has 24 layers"),
        (Plan(data=64, micro_batches=2**20), "has 1.04858e.06 tokens; divide by less"),
    ],
)
def test_plans_that_cannot_run_are_refused(plan, says):
    with pytest.raises(ValueError, match=says):
        check_plan(WORK, cluster("h100", 64), plan)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (dict(batch=0, seq_len=2048), "batch=0: must be a positive integer"),
        (dict(batch=8, seq_len=4096), "seq_len=4096: small has a context of 2048"),
        (dict(batch=8, seq_len=2.5), "seq_len=2.5"),
    ],
)
def test_bad_batches_are_named(arguments, says):
    with pytest.raises(ValueError, match=says):
        Workload.of_llm(SMALL, **arguments)


def test_bad_numbers_of_a_workload_are_named():
    with pytest.raises(ValueError, match=r"flops=-1: must be finite and positive"):
        WORK.replace(flops=-1)
    with pytest.raises(ValueError, match="no such field"):
        WORK.replace(flop=1)


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_a_step_can_be_differentiated_by_the_machine(plan):
    machine = cluster(H100, 64)
    seconds = lambda m: train_step(WORK, m, plan).seconds
    slope = jax.jit(jax.grad(seconds))(jax.tree.map(float, machine))
    assert float(slope.kernel_efficiency) < 0
    assert float(slope.chip.scale_up_latency_seconds) >= 0
    faster = machine.replace(chip=H100.replace(bf16_flops_per_second=H100.bf16_flops_per_second * 1.01))
    assert seconds(faster) <= seconds(machine)
    assert float(jax.jit(seconds)(machine)) == pytest.approx(seconds(machine), rel=1e-4)
