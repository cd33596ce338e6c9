"""The loop: which hooks run when, what a row holds, and what each callback does, on steps that are plain arithmetic."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsejax.training.callbacks import Checkpointer, DivergedError, EarlyStop, NaNGuard, Periodic, Stopper, TensorBoard, Throughput
from wsejax.training.lossscale import GradientsNotFiniteError
from wsejax.training.trainer import Callback, Trainer


class Numbers:
    """Batches 1, 2, 3, ...; their place can be kept."""

    def __init__(self):
        self.at = 0

    def __next__(self):
        self.at += 1
        return self.at

    def get_state(self):
        return {"at": self.at}


class Heard(Callback):
    def __init__(self):
        self.hooks, self.rows = [], []

    def begin(self, trainer):
        self.hooks.append(("begin", trainer.step))

    def before_step(self, trainer):
        self.hooks.append(("before", trainer.step))

    def after_step(self, trainer):
        self.hooks.append(("after", trainer.step))

    def row(self, trainer, row):
        self.hooks.append(("row", row["step"]))
        self.rows.append({name: value for name, value in row.items() if not name.startswith("host_")})

    def end(self, trainer):
        self.hooks.append(("end", trainer.step))


def add(state, batch):
    """The state is the sum of the batches so far."""
    return state + batch, {"loss": np.float32(1 / (state + batch))}


def trained(*callbacks, steps=4, step=0, advance=add, state=0):
    heard = Heard()
    trainer = Trainer(advance, state, Numbers(), steps=steps, step=step, callbacks=(*callbacks, heard))
    trainer.fit()
    return trainer, heard


def test_hooks_come_in_order_and_rows_one_step_late():
    trainer, heard = trained(steps=3)
    assert heard.hooks == [
        ("begin", 0), ("before", 0), ("after", 1), ("before", 1), ("row", 1), ("after", 2), ("before", 2), ("row", 2), ("after", 3),
        ("row", 3), ("end", 3),
    ]  # fmt: skip
    assert trainer.state == 6 and trainer.complete
    assert [row["loss"] for row in heard.rows] == pytest.approx([1, 1 / 3, 1 / 6])


def test_nothing_is_done_of_a_run_that_has_all_its_steps():
    trainer, heard = trained(steps=3, step=3, state=5)
    assert heard.hooks == [("begin", 3), ("end", 3)] and trainer.state == 5


@given(steps=st.integers(1, 9), first=st.integers(1, 4), second=st.integers(1, 4), keep=st.integers(1, 4))
def test_measurements_are_of_the_state_after_their_step(steps, first, second, keep):
    """Whoever flushes: each row that is due has the measurement of its own state, and every step has one row."""

    class Saved:
        def __init__(self):
            self.steps = {}

        def save(self, step, state, *, data_state):
            self.steps[step] = (state, data_state["at"])

        def wait(self):
            self.waited = True

    class Rows:
        def sync(self):
            self.synced = len(heard.rows)

    saved, log, heard = Saved(), Rows(), Heard()
    callbacks = [Periodic(first, lambda s: {"a": s}), Periodic(second, lambda s: {"b": 2 * s}), heard]
    trainer = Trainer(add, 0, Numbers(), steps=steps, callbacks=[*callbacks, Checkpointer(saved, log, every=keep)])
    trainer.fit()
    assert [row["step"] for row in heard.rows] == list(range(1, steps + 1))
    for row in heard.rows:
        step = row["step"]
        total = step * (step + 1) / 2
        assert row.get("a") == (total if step == steps or step % first == 0 else None)
        assert row.get("b") == (2 * total if step == steps or step % second == 0 else None)
    due = {step for step in range(1, steps + 1) if step == steps or step % keep == 0}
    assert saved.steps == {step: (step * (step + 1) / 2, step) for step in due}
    assert log.synced == steps and saved.waited


def test_a_stop_between_steps_saves_once():
    saved = []

    class Saved:
        save = staticmethod(lambda step, state, data_state: saved.append((step, state)))
        wait = staticmethod(lambda: None)

    class Log:
        sync = staticmethod(lambda: None)

    asked = iter([False, False, True])
    trainer, heard = trained(Stopper(lambda: next(asked)), Checkpointer(Saved, Log, every=2), steps=9)
    assert trainer.step == 2 and not trainer.complete and saved == [(2, 3)]
    assert [row["step"] for row in heard.rows] == [1, 2]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_no_number_ends_the_run(bad):
    spoiled = lambda state, batch: (state, {"loss": bad if batch == 3 else 1.0})
    with pytest.raises(DivergedError, match=rf"the loss of step 3 is {bad} \(layer 7\); do this"):
        trained(NaNGuard("do this", lambda step: "layer 7"), advance=spoiled, steps=9)


def test_gradients_that_are_no_numbers_end_it_too_unless_the_loss_is_scaled():
    advance = lambda state, batch: (state, {"loss": 1.0, "grad_norm": math.nan})
    with pytest.raises(DivergedError, match=r"the gradients of step 1 are not finite \(norm nan\); lower"):
        trained(NaNGuard(), advance=advance)
    scaled = lambda scale: lambda state, batch: (state, {"loss": 1.0, "grad_norm": math.inf, "loss_scale": scale})
    trained(NaNGuard(), advance=scaled(2.0))
    with pytest.raises(GradientsNotFiniteError):
        trained(NaNGuard(floor=2.0), advance=scaled(2.0))


def losses(*values):
    given = iter(values)
    return lambda state, batch: (state, {"loss": next(given)})


def test_it_stops_when_the_loss_has_not_fallen_for_so_long():
    said = []
    early = EarlyStop("loss", patience=2, least=0.1, say=said.append)
    trainer, heard = trained(early, advance=losses(3, 2, 1.95, 1.85, 1.8, 1.9, 1, 1, 1), steps=9)
    # 1.85 is 0.15 below 2, and the best; 1.8 and 1.9 are not enough below it. Rows come one step late.
    assert [row["step"] for row in heard.rows] == [1, 2, 3, 4, 5, 6, 7] and trainer.step == 7
    assert early.best == (4, 1.85) and early.stopped and len(said) == 1 and "after step 4" in said[0]


def test_it_goes_on_where_the_uninterrupted_run_would():
    early = EarlyStop("loss", patience=3)
    for n, x in enumerate((2, 1, 1.5, 1.2), 1):
        early.seen({"step": n, "loss": x})
        assert not early.over
    early.seen({"step": 5, "other": 0})
    assert not early.over
    early.seen({"step": 6, "loss": 1.1})
    assert early.over


def test_a_loss_of_a_measurement_that_never_falls_stops_at_that_step():
    early = EarlyStop(patience=1)
    trainer, _ = trained(Periodic(2, lambda s: {"validation_loss": 1.0}), early, steps=9)
    assert trainer.step == 4


def test_throughput_leaves_the_compiled_step_out():
    rows = []

    class Keep(Callback):
        def row(self, trainer, row):
            rows.append(row)

    trained(Throughput(100), Keep(), steps=3, step=1)
    assert ["host_tokens_per_second" in row for row in rows] == [False, True]
    assert rows[1]["host_tokens_per_second"] == pytest.approx(100 / max(rows[1]["host_seconds"], 1e-4), rel=1e-3)


@pytest.mark.parametrize(
    "make, said",
    [
        (lambda: EarlyStop(patience=0), "patience=0"), (lambda: EarlyStop(patience=1, least=-1.0), "least=-1.0"),
        (lambda: Periodic(0, lambda s: {}), "every=0"),
    ],
)  # fmt: skip
def test_numbers_that_nothing_can_have_are_refused(make, said):
    with pytest.raises(ValueError, match=said):
        make()


def test_tensorboard_files_hold_the_rows(tmp_path):
    from tensorboardX.proto.event_pb2 import Event

    with TensorBoard(tmp_path) as board:
        trained(board, steps=3)
    read = {}
    for path in tmp_path.glob("events.*"):
        data = path.read_bytes()
        while data:
            length = int.from_bytes(data[:8], "little")
            event = Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]
            for value in event.summary.value:
                read[value.tag, event.step] = value.simple_value
    assert {step: read["loss", step] for step in (1, 2, 3)} == pytest.approx({1: 1, 2: 1 / 3, 3: 1 / 6})
