"""A plan as sentences and as one page in the report's style."""

from collections.abc import Mapping
from typing import Any

from manu_jax.amounts import amount, duration

ASSUMPTIONS = (
    "Memory is that of the longest batch of a kind, with all that lies on a chip beside the step.",
    "FLOPs are those of matrix products, from the jaxpr; loops count as often as they go round.",
    "Moved bytes are the results of collectives on one chip, from the compiled program's HLO.",
    "Seconds are those of a roofline: the chip's full rates in bfloat16, the weights read from "
    "memory as often as the step uses them, the network as one ring in both directions. The first "
    "number lets compute, memory and network overlap, the second none. Nothing is measured.",
    "An answer takes all of its new tokens; relearning takes its mean number of steps.",
    "Not compiled: what takes a planned step again on as many tokens or fewer (docs/devices.md has "
    "the list), and a judge, which runs elsewhere.",
)
NOT_COMPILED = (
    "Nothing was compiled. Memory is that of weights, optimizer and other arguments; temporaries "
    "come on top and are not counted, so no step is known to fit."
)


def line(row: Any) -> str:
    """Return what the console says of a step. row: a `plan.Row`."""
    taken = f"{amount(row.total)} of {amount(row.limit)}"
    if row.fits is None:
        room = f"weights, optimizer and other arguments take {taken}; temporaries are not counted"
    else:
        room = f"fits, {taken}" if row.fits else no_room(row)
    parts = [f"{row.name}: {room}"]
    parts.append(f"{row.flops / 1e12:.3g} TFLOP")
    if row.moved:
        kinds = ", ".join(f"{kind} {amount(v['bytes'])}" for kind, v in row.moved.items())
        parts.append(f"moves {kinds}")
    if row.bound:
        low, high = row.at_least * row.calls, row.at_most * row.calls
        parts.append(f"{row.calls:,.0f} calls in {duration(low)} to {duration(high)} ({row.bound})")
    if row.compile_seconds is not None:
        parts.append(f"compiled in {row.compile_seconds:.0f} s")
    return "; ".join(parts)


def no_room(row: Any) -> str:
    """Return why a step does not fit, and what would."""
    needs = f"needs {amount(row.total)} of {amount(row.limit)}"
    return f"does not fit, {needs}" + (f"; {row.nearest}" if row.nearest else "")


def title(plan: Mapping[str, Any]) -> str:
    """Return the one sentence of a plan."""
    steps = plan["steps"]
    lacking = [step for step in steps if step["fits"] is False]
    how = "" if plan["is_compiled"] else ", by arithmetic alone and without temporaries"
    if plan["faults"]:
        number = len(plan["faults"])
        return f"{number} fault{'s' * (number > 1)} would stop the run on {plan['target']}."
    if lacking:
        return f"{len(lacking)} of {len(steps)} steps do not fit on {plan['target']}{how}."
    low, high = (total(plan, key) for key in ("at_least", "at_most"))
    took = f", {duration(low)} to {duration(high)} by the roofline" if high else ""
    if not plan["is_compiled"]:
        most = max((step["total"] for step in steps), default=0)
        return (
            f"Not known whether the {len(steps)} steps fit on {plan['target']}: weights, optimizer "
            f"and other arguments take at most {amount(most)} of {plan['limit_gib']:.3g} GiB"
            f"{took}{how}."
        )
    return f"All {len(steps)} steps fit on {plan['target']}{took}."


def total(plan: Mapping[str, Any], key: str) -> float:
    """Return the seconds of all steps together. key: "at_least" or "at_most"."""
    return sum(step[key] * step["calls"] for step in plan["steps"])


def page(plan: Mapping[str, Any]) -> str:
    """Return the page of a plan, as it stands in plan.json."""
    from manu_jax.report.render import environment

    templates = environment()
    templates.filters |= {"amount": amount, "duration": duration}
    stages = list(dict.fromkeys(step["stage"] for step in plan["steps"]))
    return templates.get_template("plan.html.jinja").render(
        plan=plan, title=title(plan), stages=stages, low=total(plan, "at_least")
    )
