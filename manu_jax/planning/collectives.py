"""What a compiled program moves between devices, from the text of its HLO.

A collective in the body of a loop counts as often as the loop goes round. How often that is stands
in the HLO: as `known_trip_count`, or as the bound and the step of the counter that the condition
compares. Loops whose end is not there take the trips that the caller gives. A collective that the
compiler spreads over several fusions ("async collective fusion") has one channel, and counts once.
"""

import dataclasses
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
BYTES = {"pred": 1, "bf16": 2, "s4": 0.5, "u4": 0.5}
HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
SHAPE = re.compile(r"\b(pred|bf16|f8e\w+|[suf]\d+|c\d+)\[([\d,]*)\]")
LINE = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = (.*)")
COLLECTIVE = re.compile(rf"^(.*?) ({'|'.join(KINDS)})(-start)?\((.*)")
LOOP = re.compile(r"condition=%?([\w.\-]+), body=%?([\w.\-]+)")
CALL = re.compile(r"(?:calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)")
BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
KNOWN = re.compile(r'known_trip_count"?:\{"?n"?:"?(\d+)')
NOTE = re.compile(r"/\*index=\d+\*/")

Computations = Mapping[str, Sequence[str]]


@dataclasses.dataclass(frozen=True)
class Collective:
    """One instruction. bytes: of its result on one device. group: how many devices take part.

    runs: how often it runs. is_looped: whether in a loop whose end is not in the program.
    """

    kind: str
    bytes: float
    group: int
    runs: float
    is_looped: bool

    @property
    def moved(self) -> float:
        """Bytes of the results of all runs, on one device."""
        return self.bytes * self.runs

    @property
    def received(self) -> float:
        """Bytes that one device receives in all runs, by a ring."""
        others = (self.group - 1) / self.group
        factor = {
            "all-gather": others,
            "all-reduce": 2 * others,
            "reduce-scatter": self.group - 1,
            "all-to-all": others,
            "collective-permute": 1.0,
        }[self.kind]
        return factor * self.moved


def collectives(hlo: str, *, trips: float = 1.0, devices: int = 1) -> list[Collective]:
    """Return the collectives of a compiled program.

    trips: of loops whose end is not in the HLO. devices: of a group that the HLO does not name.
    """
    computations, entry = _computations(hlo)
    runs, looped = _runs(computations, entry, trips=trips)
    found: dict[str, Collective] = {}
    for name, lines in computations.items():
        if not runs.get(name):
            continue
        for line in lines:
            match = LINE.match(line)
            if match is None:
                continue
            part = COLLECTIVE.match(match.group(3))
            if part is None:
                continue
            shapes = _sizes(part.group(1))
            size = max(shapes, default=0.0) if part.group(3) else sum(shapes)
            one = Collective(part.group(2), size, _group(line, devices), runs[name], looped[name])
            key = f"{name}/{match.group(2)}"
            if "async_collective_fusion_config" in line:
                key = "".join(re.findall(r"channel_id=\d+", line)) or key
            # Of one that is spread, its start runs the least often.
            if key not in found or one.runs < found[key].runs:
                found[key] = one
    return list(found.values())


def moved_by_kind(found: Iterable[Collective]) -> dict[str, dict[str, float]]:
    """Return {kind: how often it runs, the bytes of its results on one device, and those of them
    that loops without an end in the program make}."""
    totals: dict[str, dict[str, float]] = {}
    for one in found:
        total = totals.setdefault(one.kind, {"runs": 0.0, "bytes": 0.0, "bytes_in_loops": 0.0})
        total["runs"] += one.runs
        total["bytes"] += one.moved
        total["bytes_in_loops"] += one.moved if one.is_looped else 0.0
    return dict(sorted(totals.items(), key=lambda item: -item[1]["bytes"]))


def _computations(hlo: str) -> tuple[dict[str, list[str]], str]:
    """Return {computation: its lines}, and the name of the one that the program begins with."""
    found: dict[str, list[str]] = {}
    name = entry = ""
    for line in hlo.splitlines():
        head = HEAD.match(line)
        if head is not None:
            name = head.group(2)
            found[name] = []
            entry = name if head.group(1) else entry
        elif name and line.startswith("  "):
            found[name].append(NOTE.sub("", line))
    return found, entry


def _runs(
    computations: Computations, entry: str, *, trips: float
) -> tuple[dict[str, float], dict[str, bool]]:
    """Return how often each computation runs, and whether in a loop whose end is not known."""
    callers: dict[str, list[tuple[str, float | None]]] = defaultdict(list)
    for name, lines in computations.items():
        for line in lines:
            loop = LOOP.search(line)
            if loop is not None:
                known = KNOWN.search(line)
                count = int(known.group(1)) if known else _trips(computations, *loop.groups())
                condition, body = loop.groups()
                callers[body].append((name, count))
                # It is asked once more than the loop goes round.
                callers[condition].append((name, None if count is None else count + 1))
            callees = CALL.findall(line)
            branches = BRANCHES.search(line)
            if branches is not None:
                callees += [one.strip().lstrip("%") for one in branches.group(1).split(",")]
            for callee in callees:
                callers[callee].append((name, 1))
    runs, looped = {entry: 1.0}, {entry: False}

    def count_of(name: str) -> float:
        if name not in runs:
            runs[name], looped[name] = 0.0, False  # a computation does not call itself
            total = 0.0
            for caller, times in callers[name]:
                total += count_of(caller) * (trips if times is None else times)
                looped[name] |= times is None or looped[caller]
            runs[name] = total
        return runs[name]

    for name in computations:
        count_of(name)
    return runs, looped


def _trips(computations: Computations, condition: str, body: str) -> int | None:
    """Return the trips of a loop that counts up to a constant; None where it ends otherwise."""
    lines = _with_callees(computations, condition)
    definitions = _definitions(lines)
    if any(re.search(r"\b(and|or|not)\(", text) for text in definitions.values()):
        return None  # it ends when something is found, as decoding does
    compared = re.compile(r"compare\(%?([\w.\-]+), %?([\w.\-]+)\), direction=LT")
    for text in definitions.values():
        match = compared.search(text)
        if match is None:
            continue
        counter, bound = (definitions.get(name, "") for name in match.groups())
        limit, index = re.search(r"constant\((\d+)\)", bound), re.search(r"index=(\d+)", counter)
        if limit is not None and index is not None:
            step = _step(computations.get(body, ()), int(index.group(1)))
            return -(-int(limit.group(1)) // step)
    # A condition that is a fusion compares its parameters; the constant among them is the bound.
    limits = re.findall(r"[su]32\[\]\S* constant\((\d+)\)", "\n".join(lines))
    return int(limits[0]) if len(limits) == 1 else None


def _with_callees(computations: Computations, name: str) -> list[str]:
    """Return the lines of a computation and of those that it calls."""
    lines = list(computations.get(name, ()))
    for line in tuple(lines):
        for callee in CALL.findall(line):
            lines += _with_callees(computations, callee)
    return lines


def _step(body: Sequence[str], index: int) -> int:
    """Return what a loop's body adds to the element `index` of its state; 1 where it is not told.

    A compiler that unrolls a loop twice counts by two.
    """
    definitions = _definitions(body)
    root = next((LINE.match(line) for line in body if "ROOT " in line), None)
    inside = re.search(r"tuple\((.*?)\)", root.group(3)) if root else None
    if inside is None:
        return 1
    operands = [one.strip().split(" ")[-1].lstrip("%") for one in inside.group(1).split(",")]
    text = definitions.get(operands[index], "") if index < len(operands) else ""
    added = re.search(r"add\(%?([\w.\-]+), %?([\w.\-]+)\)", text)
    for name in added.groups() if added else ():
        constant = re.search(r"constant\((\d+)\)", definitions.get(name, ""))
        if constant is not None:
            return max(int(constant.group(1)), 1)
    return 1


def _definitions(lines: Iterable[str]) -> dict[str, str]:
    matches = [match for match in map(LINE.match, lines) if match is not None]
    return {match.group(2): match.group(3) for match in matches}


def _sizes(text: str) -> list[float]:
    """Return the bytes of each array shape in a text."""
    return [
        _width(kind) * math.prod(int(size) for size in sizes.split(",") if size)
        for kind, sizes in SHAPE.findall(text)
    ]


def _width(kind: str) -> float:
    if kind in BYTES:
        return BYTES[kind]
    return 1 if kind.startswith("f8") else int(re.sub(r"\D", "", kind)) / 8


def _group(line: str, devices: int) -> int:
    """Return how many devices take part in a collective together."""
    on_mesh = re.search(r"replica_groups=mesh\[([^\]]*)\] ?\{([^}]*)\}", line)
    if on_mesh is not None:
        sizes = {axis: int(n) for axis, n in re.findall(r"'(\w+)'=(\d+)", on_mesh.group(1))}
        return math.prod(sizes[axis] for axis in re.findall(r"'(\w+)'", on_mesh.group(2)))
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", line)
    if listed is not None:
        return len(listed.group(1).split(","))
    counted = re.search(r"replica_groups=\[([\d,]+)\]", line)
    return int(counted.group(1).split(",")[-1]) if counted else devices
