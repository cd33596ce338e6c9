"""Rules of loops and branches: the bodies are planned like the program; what is carried keeps one layout."""

from __future__ import annotations

from functools import partial

from jax import lax

from wsejax.compiler import walk
from wsejax.compiler.ir import Op, scan_split
from wsejax.compiler.program import Loop, Unknown
from wsejax.compiler.walk import Context, Step, rule, whole


@rule("scan")
def scan(op: Op, ctx: Context) -> Step:
    (body,), (consts, carry) = op.bodies, scan_split(op)
    inner = [ctx.layouts[v] for v in body.ins]
    outs = [*inner[consts : consts + carry], *(ctx.layouts[v] for v in body.outs[carry:])]
    plan = ctx.plan(body, outs)
    calls = [c.looped(Loop(op.source, op.params["length"], ctx.number(op.outs[0]) if op.outs else -1)) for c in plan.calls]
    lead = lambda lay: (None, *lay)
    ins = [*inner[: consts + carry], *map(lead, inner[consts + carry :])]

    def run(*xs):
        fixed, init, scanned = list(xs[:consts]), list(xs[consts : consts + carry]), list(xs[consts + carry :])

        def step(c, x):
            results = walk.run(plan, *fixed, *c, *x)
            return results[:carry], results[carry:]

        keys = {k: op.params[k] for k in ("length", "reverse", "unroll")}
        last, stacked = lax.scan(step, init, scanned, **keys)
        return [*last, *stacked]

    return Step(ins, [*outs[:carry], *map(lead, outs[carry:])], run, calls)


@rule("while")
def while_(op: Op, ctx: Context) -> Step:
    cond, body = op.bodies
    nc, nb = op.params["cond_nconsts"], op.params["body_nconsts"]
    carry = [ctx.layouts[v] for v in body.ins[nb:]]
    body_plan = ctx.plan(body, carry)
    cond_ins = [ctx.layouts[v] for v in cond.ins[:nc]]
    cond_plan = ctx.plan(cond, [()])
    assert cond_plan.ins[nc:] == carry, (cond_plan.ins[nc:], carry)

    def run(*xs):
        c_consts, b_consts, init = list(xs[:nc]), list(xs[nc : nc + nb]), list(xs[nc + nb :])

        # a class lies alike inside and outside: the condition finds the carry as the body leaves it
        keep_going = lambda c: walk.run(cond_plan, *c_consts, *c)[0]
        return lax.while_loop(keep_going, lambda c: walk.run(body_plan, *b_consts, *c), init)

    unknown = Unknown(op.source, ctx.number(op.outs[0]) if op.outs else -1)
    ins = [*cond_ins, *body_plan.ins[:nb], *carry]
    return Step(ins, carry, run, [c.inside(unknown) for c in (*cond_plan.calls, *body_plan.calls)])


@rule("cond")
def cond(op: Op, ctx: Context) -> Step:
    outs = [ctx.layouts[v] for v in op.outs]
    ins = [ctx.layouts[v] for v in op.bodies[0].ins]
    plans = [ctx.plan(branch, outs) for branch in op.bodies]

    assert all(plan.ins == ins for plan in plans), "a class lies alike in every branch"
    branch = lambda n: Unknown(op.source, ctx.number(op.outs[0]) if op.outs else -1, n, len(plans))
    calls = [c.inside(branch(n)) for n, plan in enumerate(plans) for c in plan.calls]
    return Step([whole(op.ins[0]), *ins], outs, lambda i, *xs: lax.switch(i, [partial(walk.run, p) for p in plans], *xs), calls)
