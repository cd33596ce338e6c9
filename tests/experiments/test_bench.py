"""The bench: its arithmetic on contenders whose times are known, who may count, and that all real contenders train alike."""

from __future__ import annotations

import dataclasses
import io
import json
import math
from collections.abc import Callable, Iterable

import jax
import numpy as np
import pytest
from rich.console import Console

from experiments import bench, contenders, op_profile
from experiments.bench import Measured, Ratio, Settings, comparisons, main, measure, table
from experiments.contenders import NARROW, OWN_PROCESS, PROGRAMS, WAFERS, WHAT, MissingError, Workload, build

TINY_FLAGS = "--layers 2 --width 32 --heads 2 --vocab 32 --batch 4 --sequence 8 --rounds 1 --torch-threads 1"
TINY_WORK = Workload(layers=2, width=32, heads=2, vocab=32, batch=4, sequence=8)


@pytest.fixture(autouse=True)
def promotion_as_users_have_it():
    """The model is plain JAX and broadcasts as users' code does; the tests' stricter setting is for this package."""
    with jax.numpy_rank_promotion("allow"):
        yield


class Scripted:
    """A contender that says what it is told to, and writes down when it was asked."""

    def __init__(self, name: str, losses: Iterable[float], seconds: Callable[[int], float], log: list[str]):
        self.name, self.losses, self.seconds, self.log, self.steps, self.closed = name, iter(losses), seconds, log, 0, False

    def step(self) -> tuple[float, float]:
        self.log.append(self.name)
        self.steps += 1
        return next(self.losses), self.seconds(self.steps)

    def close(self) -> None:
        self.closed = True


def falling(scale: float = 1.0) -> Iterable[float]:
    return (scale * 6.0 * 0.9**n for n in range(1000))


def run_scripted(rounds: int = 5, **others: Scripted) -> tuple[dict[str, Measured], list[str], dict[str, Scripted]]:
    log: list[str] = []
    made = {"plain-scan": Scripted("plain-scan", falling(), lambda n: 0.1 * n, log), **others}
    for contender in made.values():
        contender.log = log
    results = measure(list(made), made.__getitem__, rounds, reference="plain-scan")
    return {result.name: result for result in results}, log, made


def test_steps_are_taken_in_turn_after_the_warm_up():
    rounds = 6
    results, log, made = run_scripted(rounds, torch=Scripted("torch", falling(), lambda n: 0.3 * n, []))
    warm = 2 * bench.WARMUP_STEPS
    in_rounds = [log[n : n + 2] for n in range(warm, len(log), 2)]
    assert len(in_rounds) == rounds and all(set(pair) == {"plain-scan", "torch"} for pair in in_rounds)
    assert len({tuple(pair) for pair in in_rounds}) == 2, "who goes first changes"
    for name, factor in (("plain-scan", 0.1), ("torch", 0.3)):
        expected = [factor * n for n in range(bench.WARMUP_STEPS + 1, bench.WARMUP_STEPS + 1 + rounds)]
        assert results[name].step_seconds == expected
        assert len(results[name].losses) == bench.WARMUP_STEPS + rounds
        assert made[name].closed


def test_ratios_are_of_medians_and_quartiles_of_rounds():
    """A drift that slows all contenders alike within a round leaves the quartiles at the ratio itself."""
    one = Measured("a", step_seconds=[2.0, 4.0, 8.0, 16.0, 32.0])
    other = Measured("b", step_seconds=[1.0, 2.0, 4.0, 8.0, 16.0])
    assert Ratio.of(one, other) == Ratio(2.0, 2.0, 2.0, 2.0)
    noisy = Ratio.of(Measured("a", step_seconds=[1.0, 2.0, 3.0, 4.0, 5.0]), Measured("b", step_seconds=[1.0] * 5))
    assert noisy == Ratio(3.0, 2.0, 4.0, 1.0)
    with pytest.raises(ValueError, match="b does not count: wrong"):
        Ratio.of(one, dataclasses.replace(other, fault="wrong"))


@pytest.mark.parametrize(
    ("losses", "counts"),
    [
        (falling(), True),
        (falling(1 + 5e-5), True),
        (falling(1 + 2e-4), False),
        (falling(1 - 2e-4), False),
        ((math.nan for _ in range(99)), False),
        ((loss if n < 6 else 1.001 * loss for n, loss in enumerate(falling())), False),
    ],
)
def test_who_trains_otherwise_does_not_count(losses, counts):
    results, _, _ = run_scripted(**{"plain-unrolled": Scripted("plain-unrolled", losses, lambda n: 0.1, [])})
    assert (results["plain-unrolled"].fault is None) == counts
    assert results["plain-scan"].fault is None
    pairs = [pair for _, pair, _ in comparisons(list(results.values()), "plain-scan")]
    assert pairs == (["plain-scan / plain-unrolled"] if counts else [])


def test_a_contender_that_cannot_run_says_so_and_the_others_go_on():
    def make(name: str) -> Scripted:
        if name == "torch":
            raise MissingError("torch is not installed")
        if name == "xla-2x2":
            raise RuntimeError("too few devices")
        return Scripted(name, falling(), lambda n: 0.1, [])

    results = {r.name: r for r in measure(["plain-scan", "torch", "xla-2x2", "wafer-1x1"], make, 2, reference="plain-scan")}
    assert results["torch"].missing and not results["xla-2x2"].missing
    assert (results["torch"].fault, results["xla-2x2"].fault) == ("torch is not installed", "too few devices")
    assert len(results["wafer-1x1"].step_seconds) == 2
    with pytest.raises(RuntimeError, match="too few devices"):
        measure(["xla-2x2"], make, 2, reference="xla-2x2")


def test_table_shows_times_ratios_and_faults():
    results, _, _ = run_scripted(
        torch=Scripted("torch", falling(), lambda n: 0.25 * n, []),
        **{name: Scripted(name, falling(), lambda n: 12.0, []) for name in WAFERS},
        **{"xla-2x2": Scripted("xla-2x2", falling(2.0), lambda n: 0.1, [])},
    )
    stream = io.StringIO()
    Console(file=stream, width=80).print(table(list(results.values()), "plain-scan"))
    assert "…" not in stream.getvalue()
    lines = {line.split()[0]: line.split() for line in stream.getvalue().splitlines() if line.strip()}
    assert lines["plain-scan"][2:] == ["500.0", "300.0", "1.00", "(1.00", "to", "1.00)", "1.00"]
    assert lines["torch"][2:] == ["1250.0", "750.0", "2.50", "(2.50", "to", "2.50)", "2.50"]
    assert lines["xla-2x2"][1:] == ["-"] * 4
    said = bench.notes(list(results.values()), "plain-scan")
    assert any("plain-scan" in line and "(reference)" in line for line in said)
    assert any("xla-2x2" in line and "not the same training: loss 12.000000 at step 1" in line for line in said)


@pytest.mark.parametrize(("seconds", "busy"), [([1.0, 1.0, 1.0, 9.0, 1.0], False), ([1.0, 2.0, 1.0, 2.0, 2.0], True)])
def test_a_busy_machine_is_said(seconds, busy):
    """One hiccup is none of the quartiles' business; a reference that cannot repeat itself is."""
    said = bench.notes([Measured("plain-scan", step_seconds=seconds)], "plain-scan")
    assert any("the machine was busy" in line for line in said) == busy


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--rounds 0", "--rounds 0 is too small"),
        ("--only torhc", "--only torhc: no such contender; there are plain-scan"),
        ("--width 30 --heads 4", "width=30 is not a multiple of heads=4"),
        ("--out nowhere/at/all.json", "the folder nowhere/at does not exist"),
    ],
)
def test_bad_flags_are_refused_before_anything_runs(flags, words, capsys):
    assert main(flags.split()) == 2
    assert words in capsys.readouterr().err


def test_every_contender_is_described_and_the_reference_always_runs():
    assert set(WHAT) == {f"plain-{program}" for program in PROGRAMS} | set(WAFERS) | set(OWN_PROCESS) | set(NARROW) | {"xla-2x2"}
    for program in PROGRAMS:
        assert Settings(program=program, only=("torch",)).names() == [f"plain-{program}", "torch"]
    assert Settings().names() == list(WHAT)
    with pytest.raises(ValueError, match="no contender 'nobody'"):
        build("nobody", TINY_WORK)


@pytest.mark.slow
def test_contenders_train_alike_and_the_numbers_are_kept(tmp_path, capsys):
    out = tmp_path / "bench.json"
    names = ["plain-scan", "plain-remat", "plain-bfloat16", "xla-2x2"]
    assert main([*TINY_FLAGS.split(), "--out", str(out), "--only", *names]) == 0
    assert "what remat costs" in capsys.readouterr().out
    saved = json.loads(out.read_text())
    assert list(saved["contenders"]) == names
    for name, result in saved["contenders"].items():
        assert result["fault"] is None and len(result["step_seconds"]) == 1, name
        tolerance = bench.NARROW_TOLERANCE if name in NARROW else bench.LOSS_TOLERANCE
        np.testing.assert_allclose(result["losses"], saved["contenders"]["plain-scan"]["losses"], rtol=tolerance)
        assert result["losses"][0] > result["losses"][-1], "the loss falls, so that a wrong update would show"
    assert saved["comparisons"]["plain-remat / plain-scan"]["value"] > 0
    assert saved["about"]["jax"] == jax.__version__


@pytest.mark.slow
def test_every_contender_trains_like_the_reference(capsys):
    """All of them, with the profile, as `make bench` runs them; sizes that 8x8 tiles divide."""
    flags = "--layers 2 --width 64 --heads 8 --vocab 64 --batch 8 --sequence 16 --rounds 1 --torch-threads 1 --profile"
    assert main(flags.split()) == 0
    shown = capsys.readouterr().out
    assert "the fabric over XLA's choice" in shown and "matrix products" in shown


def test_xla_splits_every_weight_and_keeps_the_layout():
    """Weights left whole would make a slow rival, and results laid out otherwise would compile the second step again."""
    contender = contenders.xla_partitioned(TINY_WORK)
    before = jax.tree.map(lambda x: x.sharding, contender.state)
    for path, weight in jax.tree_util.tree_leaves_with_path(contender.state.params):
        parts = 4 if path[-1].key in ("kernel", "embedding") else 2
        assert weight.addressable_shards[0].data.size * parts == weight.size, jax.tree_util.keystr(path)
    contender.step()
    contender.step()
    after = jax.tree.map(lambda x: x.sharding, contender.state)
    assert jax.tree.all(jax.tree.map(lambda x, a, b: a.is_equivalent_to(b, x.ndim), contender.state, before, after))
    assert contender.function._cache_size() == 1


@pytest.mark.slow
def test_own_process_sees_the_settings_of_a_plain_program(monkeypatch):
    """Served, a contender gives the same losses as here, and one that dies is an error that says where to look."""
    here, served = contenders.plain(TINY_WORK), build("plain-alone", TINY_WORK)
    try:
        for _ in range(2):
            (loss, _), (again, seconds) = here.step(), served.step()
            np.testing.assert_allclose(again, loss, rtol=1e-5)
            assert seconds > 0
    finally:
        served.close()
    with pytest.raises(RuntimeError, match="contender plain-alone ended with status 1"):
        build("plain-alone", dataclasses.replace(TINY_WORK, width=31))


@pytest.mark.slow
def test_torch_twin_is_the_same_model_and_step():
    pytest.importorskip("torch")
    reference = contenders.plain(TINY_WORK)
    twin = contenders.TorchContender(TINY_WORK)
    losses = np.array([(reference.step()[0], twin.step()[0]) for _ in range(10)])
    np.testing.assert_allclose(losses[:, 1], losses[:, 0], rtol=bench.LOSS_TOLERANCE)
    assert losses[-1, 0] < 0.99 * losses[0, 0]
    np.testing.assert_allclose(losses[0], math.log(TINY_WORK.vocab), rtol=0.05)


def test_without_torch_the_bench_says_so(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingError, match="torch is not installed"):
        build("torch", TINY_WORK)


def test_profile_sums_compiled_operations_alone():
    def event(name, microseconds, hlo=True, ph="X"):
        return {"ph": ph, "name": name, "dur": microseconds, "args": {"hlo_op": name} if hlo else {}}

    events = [
        event("dot.1", 200), event("dot.2", 100), event("add_fusion.7.clone", 50), event("while.3", 10_000), event("ppermute.9", 20),
        event("$step", 9_999, hlo=False), event("dot.1", 7, ph="M"), {"ph": "M", "args": None}, event("copy.4", 30),
    ]  # fmt: skip
    times = op_profile.by_operation(events, steps=2)
    assert [(op.name, op.calls_per_step) for op in times] == [("dot", 1.0), ("add_fusion", 0.5), ("copy", 0.5), ("ppermute", 0.5)]
    np.testing.assert_allclose([op.thread_seconds_per_step for op in times], [150e-6, 25e-6, 15e-6, 10e-6])
    assert len({op.kind for op in times}) == 4
    lines = "\n".join(op_profile.as_lines(times))
    assert "75.0%  matrix products" in lines and "dot x 1" in lines


def test_profile_of_a_real_step_names_its_operations():
    work = jax.jit(lambda x: x @ x)
    x = jax.numpy.ones((64, 64))
    times = op_profile.profile(lambda: jax.block_until_ready(work(x)), steps=2)
    assert times and all(op.calls_per_step >= 1 for op in times)
