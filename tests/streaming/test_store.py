"""States on disk: the same bits as in host memory, orbax reads them, and a step that ends early leaves the one before."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

import wsejax as wse
from tests.streaming.streamed_programs import PROGRAMS
from wsejax.streaming.store import Stored, create_state, leaf_names, only_user, open_state

SPEC = wse.WSE3.scaled(16, 16)


def machine(systems: int = 1, devices=(1, 1), groups: int = 1) -> wse.Cluster:
    return wse.Cluster(wse.Wafer(SPEC, tiles=(2, 2), devices=devices), systems, groups=groups)


def streamed(step, cluster: wse.Cluster):
    return wse.jit(step, cluster, donate_argnums=0, streamed_argnums=0, execution="streamed")


def on_disk(folder: Path, state):
    names = leaf_names(state)
    leaves = dict(zip(names, jax.tree.leaves(state), strict=True))
    return create_state(folder, state, lambda name, i: np.asarray(leaves[name] if i is None else leaves[name][i]))


def assert_same_bits(a, b) -> None:
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y), err_msg=jax.tree_util.keystr(path))


@pytest.mark.parametrize(
    ("name", "systems", "devices", "groups"),
    [
        ("adamw", 1, (1, 1), 1),
        pytest.param("adamw", 2, (1, 2), 2, marks=pytest.mark.slow),
        *(
            pytest.param(name, 1, (1, 1), 1, marks=pytest.mark.slow)
            for name in ("half", "lamb", "micro_batches", "several_steps", "unrolled", "tied", "odd_sizes")
        ),
        *(pytest.param(name, 4, (1, 1), 2, marks=pytest.mark.slow) for name in ("adamw", "micro_batches")),
    ],
)
def test_disk_is_host_memory(tmp_path: Path, name: str, systems: int, devices, groups: int) -> None:
    step, start, batch = PROGRAMS[name]()
    fun = streamed(step, machine(systems, devices, groups))
    state, disk = jax.tree.map(jnp.array, start), on_disk(tmp_path / "state", start)
    for _ in range(2):
        state, metrics = fun(state, batch)
        disk, disk_metrics = fun(disk, batch)
        assert_same_bits(metrics, disk_metrics)
    assert all(isinstance(x, Stored) for x in jax.tree.leaves(disk))
    assert_same_bits(state, disk)
    assert not (tmp_path / "state" / "scratch").exists()
    plain = ocp.StandardCheckpointer().restore(next(iter(jax.tree.leaves(disk))).path.parent)
    assert sorted(np.asarray(x).tobytes() for x in jax.tree.leaves(plain)) == sorted(
        np.asarray(x).tobytes() for x in jax.tree.leaves(state)
    )


def test_a_step_that_ends_early_leaves_the_state_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step, start, batch = PROGRAMS["sgd"]()
    fun = streamed(step, machine())
    disk, _ = fun(on_disk(tmp_path, start), batch)
    before = jax.tree.map(np.asarray, disk)

    def full(self, value, index=None):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken, pytest.raises(OSError, match="No space left"):
        broken.setattr(Stored, "write", full)
        fun(disk, batch)
    again = open_state(tmp_path, start)
    assert_same_bits(before, again)
    after, _ = fun(again, batch)
    expected, _ = fun(jax.tree.map(jnp.array, before), batch)
    assert_same_bits(after, expected)


def test_layers_are_read_and_written_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No stacked array is ever in host memory whole, and no layers queue up before a slow disk."""
    step, start, batch = PROGRAMS["adamw"]()
    disk, asked, waiting, most = on_disk(tmp_path, start), [], set(), 0
    ask, write = Stored.ask, Stored.write

    class Writing:
        def __init__(self, index: int, written) -> None:
            self.written = written
            waiting.add((index, self))

        def result(self):
            waiting.difference_update({pair for pair in waiting if pair[1] is self})
            return self.written.result()

    def slowly(self, value, index=None):
        nonlocal most
        if index is None:
            return write(self, value)
        made = Writing(index, write(self, value, index))
        most = max(most, len({layer for layer, _ in waiting}))
        return made

    def counted(self, index=None):
        asked.append((self.shape, index))
        return ask(self, index)

    monkeypatch.setattr(Stored, "ask", counted)
    monkeypatch.setattr(Stored, "write", slowly)
    streamed(step, machine())(disk, batch)
    assert asked and not [shape for shape, index in asked if len(shape) == 3 and index is None]
    assert most == 3 and not waiting, "one computed, one under way, one more while the next is asked for"


def test_a_state_is_stepped_by_one_at_a_time(tmp_path: Path) -> None:
    step, start, batch = PROGRAMS["sgd"]()
    disk = on_disk(tmp_path, start)
    with only_user(tmp_path), pytest.raises(ValueError, match="another process steps this state"):
        streamed(step, machine())(disk, batch)
    streamed(step, machine())(disk, batch)


def test_bad_input(tmp_path: Path) -> None:
    step, start, batch = PROGRAMS["sgd"]()
    with pytest.raises(FileNotFoundError, match="make one with create_state"):
        open_state(tmp_path / "none", start)
    disk = on_disk(tmp_path / "state", start)
    with pytest.raises(ValueError, match="holds a state already"):
        create_state(tmp_path / "state", start)
    with pytest.raises(ValueError, match=r"float32\[16, 32\], the program's is float32\[3, 3\]"):
        open_state(tmp_path / "state", ({**start[0], "head": jnp.zeros((3, 3))}, *start[1:]))
    with pytest.raises(ValueError, match="state of another program"):
        open_state(tmp_path / "state", {"other": jnp.zeros(3)})
    mixed = (jax.tree.map(jnp.array, start[0]), *disk[1:])
    with pytest.raises(ValueError, match="not on disk, where others are"):
        streamed(step, machine())(mixed, batch)


def test_a_state_that_was_replaced_is_neither_read_nor_stepped(tmp_path: Path) -> None:
    start = {"h": jnp.zeros((2, 4, 4))}
    fun = wse.jit(lambda s, d: (jax.tree.map(lambda a: a + d, s), d), machine(), streamed_argnums=0, execution="streamed")
    first = on_disk(tmp_path, start)
    second, _ = fun(first, jnp.float32(1))
    assert np.asarray(first["h"]).max() == 0, "the state before is still there"
    with pytest.raises(ValueError, match=r"is of state 0 .* and 1 is the newest"):
        fun(first, jnp.float32(7))
    third, _ = fun(second, jnp.float32(1))
    with pytest.raises(ValueError, match="replaces the state"):
        np.asarray(first["h"])
    assert (np.asarray(second["h"]).max(), np.asarray(third["h"]).max()) == (1, 2)


def test_what_a_disk_cannot_tell_apart_or_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"leaf 'a\.b'"):
        create_state(tmp_path / "a", {"a.b": jnp.ones(3), "a": {"b": jnp.zeros(3)}})
    with pytest.raises(ValueError, match="key_data"):
        create_state(tmp_path / "b", {"k": jax.random.key(0)})
    with pytest.raises(ValueError, match=r"h: a value of float32\[2\] for float32\[2, 2\]"):
        create_state(tmp_path / "c", {"h": jnp.ones((2, 2, 2))}, lambda name, i: np.ones(2, np.float32))
    disk = on_disk(tmp_path / "d", {"h": jnp.ones((2, 2, 2))})
    with pytest.raises(ValueError, match="execution='streamed'"):
        wse.jit(lambda s: s, machine(), streamed_argnums=0, execution="resident")(disk)
