"""Deaths as data, and the live state that outlives them."""

from __future__ import annotations

import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import wsejax as wse
from wsejax.training.faults import Death, DeathWatch, Event, LostWaferError, death_of, history, read_deaths, survive, together

WAFER = wse.Wafer(wse.WSE3.scaled(8, 8), tiles=(2, 2), devices=(1, 2))
places = st.tuples(st.integers(0, 7), st.integers(0, 6))
links = places.map(lambda at: (at, (at[0], at[1] + 1)))
deaths = st.builds(Death, st.none() | st.integers(0, 50), st.lists(places, min_size=1).map(tuple), st.lists(links).map(tuple))


@given(deaths)
def test_a_death_is_the_same_through_json(death):
    assert death_of(json.loads(json.dumps({"step": death.step, **death.as_json()}))) == death
    death.check(WAFER)
    left = death.still_alive(WAFER.replace(defects=WAFER.defects.with_dead(death.pes, death.links)))
    assert not left.pes and not left.links


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "it is not JSON"),
        ("[" * 100_000, "it is not JSON"),
        ("{}", "give a list of deaths"),
        ("[3]", "death 0: 3 is no death"),
        ('[{"pe": [[1, 1]]}]', "give an object with step, pes, links"),
        ('[{"step": 1}]', "name what dies"),
        ('[{"pes": [[1, 1]]}, {"step": true, "pes": [[1, 1]]}]', "death 1: step true"),
        ('[{"step": -1, "pes": [[1, 1]]}]', "step -1"),
        ('[{"pes": [1, 1]}]', "give a list of [row, col]"),
        ('[{"pes": [[1, 1.0]]}]', "give a list of [row, col]"),
        ('[{"links": [[1, 1]]}]', "give a list of [[row, col], [row, col]]"),
    ],
)
def test_a_malformed_file_is_refused_whole(tmp_path, text, words):
    path = tmp_path / "faults.json"
    path.write_text(text)
    with pytest.raises(ValueError) as refused:
        read_deaths(path)
    assert words in str(refused.value)


def test_the_state_moves_to_where_the_new_program_wants_it():
    """The shardings that `build` names are those that the state has afterwards, values bit for bit."""
    values = np.random.default_rng(0).normal(size=(8, 8)).astype(np.float32)
    first = jax.sharding.NamedSharding(WAFER.mesh, jax.P("y", "x"))
    state = {"w": jax.device_put(values, first), "n": jnp.int32(3)}
    other = jax.sharding.NamedSharding(WAFER.mesh, jax.P("x", "y"))
    whole = jax.sharding.NamedSharding(WAFER.mesh, jax.P())
    build = lambda wafer: (wafer.logical_grid, {"w": other, "n": whole})
    wafer, made, state, event = survive(WAFER, state, Death(pes=((3, 3),)), step=7, build=build)
    assert wafer.defects.dead_pes[3, 3] and made == wafer.logical_grid == event.logical_grid[1]
    assert state["w"].sharding == other and np.asarray(state["w"]).tobytes() == values.tobytes() and int(state["n"]) == 3
    assert event.step == 7 and event.logical_grid[0] == (8, 8) and event.max_dilation[0] == 1


def test_nothing_happens_where_the_wafer_is_lost_or_the_death_malformed():
    state, build = {"w": jnp.ones(4)}, pytest.fail
    for died, error, words in (
        (Death(pes=tuple((r, c) for r in range(7) for c in range(8))), LostWaferError, "cannot go on"),
        (Death(pes=tuple((r, c) for r in range(8) for c in range(8))), LostWaferError, "cannot go on"),
        (Death(pes=((8, 0),)), ValueError, "PE (8, 0) is off the wafer"),
        (Death(links=(((0, 0), (1, 1)),)), ValueError, "leads nowhere"),
    ):
        with pytest.raises(error) as refused:
            survive(WAFER, state, died, step=1, build=build)
        assert words in str(refused.value)
    assert state["w"].sum() == 4


def test_a_part_dies_once_whoever_tells_of_it(tmp_path):
    said: list[str] = []
    event = lambda died: Event(2, died, ((8, 8), (7, 8)), (1.0, 1.1), (1, 2), 0.0, 0.0, 0.0)
    watch = DeathWatch(tmp_path, WAFER, [Death(2, ((1, 1),)), Death(5, ((4, 4),), (((2, 3), (2, 2)),))], said.append)
    assert watch.due(1, WAFER) is None
    first = watch.due(3, WAFER)
    assert first == Death(None, ((1, 1),))
    watch.record(event(first))
    wafer = WAFER.kill(first.pes)
    (tmp_path / "faults.json").write_text('[{"pes": [[1, 1], [6, 6]], "links": [[[2, 2], [2, 3]]]}]')
    second = watch.due(5, wafer)
    assert second == Death(None, ((4, 4), (6, 6)), (((2, 2), (2, 3)),))
    watch.record(event(second))
    assert history(tmp_path) == together([first, second])
    wafer = wafer.kill(second.pes, second.links)
    again = DeathWatch(tmp_path, wafer, [Death(2, ((1, 1),))], said.append)
    assert watch.due(9, wafer) is None and again.due(9, wafer) is None and said == []
    assert DeathWatch(tmp_path / "new", wafer, [Death(0, ((1, 1),))], said.append).due(0, wafer) is None
    assert said == ["PE (1, 1): dead from the start; nothing changes"]


def test_an_events_file_that_somebody_spoiled_is_named(tmp_path):
    (tmp_path / "events.jsonl").write_text('{"pes": [[1, 1]], "links": []}\n{"pes": 3, "links": []}\n')
    with pytest.raises(ValueError, match=r"events.jsonl, line 2 is no event"):
        history(tmp_path)


def test_a_pipe_is_not_waited_for_and_a_run_without_a_wafer_says_so(tmp_path):
    said: list[str] = []
    os.mkfifo(tmp_path / "faults.json")
    watch = DeathWatch(tmp_path, None, (), said.append)
    assert watch.due(1, None) is None and "no ordinary file" in said[0]
    (tmp_path / "faults.json").unlink()
    (tmp_path / "faults.json").write_text('[{"pes": [[1, 1]]}]')
    assert watch.due(2, None) is None and watch.due(3, None) is None and "has no wafer" in said[1] and len(said) == 2
