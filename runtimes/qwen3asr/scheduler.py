"""Who runs next: plain ints in, plain ints out; no arrays, no model, no clock.

Each turn the engine asks :meth:`Scheduler.plan` for one piece of work for the device (encode windows, prefill a part of
a prompt, or one step of all running rows), does it, and tells what came of it.

The policy:

- Live requests go before others, then first come, first served. A request is admitted when it has a slot; while any
  stream has a lease, files leave one slot to streams (where there are several).
- Of the admitted ones, units of work go in turn to the one with least left and to the oldest: a short clip need not
  wait for a long one, which gets its share all the same.
- Between two steps of the running rows, ``units_per_step`` units of admission work are done (a batch of windows, or a
  chunk of a prompt): new requests start soon, and those that run wait for no more. Unless a live request is running,
  a step also waits for those that can join it within ``joining_units``, whatever is left of a long one: it costs the
  same with more rows.
- Running rows stand in slots ``0 .. n-1``, so that a step is one call without idle rows. Rows come to stand there by
  swapping slots just before a step, and only when one has left or joined.
- A slot's keys and values outlive its requests: one whose prompt begins as the last one's did (the same instructions
  and context, up to the audio) is fed only what differs. Among free slots, it gets the one where most is saved and
  least is lost.
"""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass, field
from typing import TypeAlias

from qwen3asr.errors import RequestInvalid


@dataclass(frozen=True, slots=True)
class Policy:
    """How admission and decoding share the device.

    Attributes:
        chunk: tokens of one prefill call while nothing is running; bounds the attention's memory.
        busy_chunk: the same while rows are running: bounds how long they wait. A quarter more is taken where that
            ends the prompt: a few tokens by themselves would read all weights once more.
        units_per_step: encoder batches or prefill calls between two steps of running rows, in any case. More lets new
            requests start sooner; running ones then write in bursts.
        joining_units: as many as that while no live request is running, for requests that can take part in the step
            within them: larger batches, for which those that run wait a little.

    Raises:
        RequestInvalid: one of them is less than 1.
    """

    chunk: int = 512
    busy_chunk: int = 128
    units_per_step: int = 1
    joining_units: int = 16

    def __post_init__(self) -> None:
        for name in ("chunk", "busy_chunk", "units_per_step", "joining_units"):
            if not getattr(self, name) >= 1:
                raise RequestInvalid(f"{name}={getattr(self, name)} lets no request start; give at least 1")


@dataclass(slots=True, eq=False)
class Row:
    """One request.

    Attributes:
        number: its name here; lower ones came first.
        windows: encoder windows that are still to be encoded.
        prompt: tokens to prefill, a draft included.
        live: goes before those that are not.
        lease: the lease whose slot it works in, if any.
        head: ids of the prompt up to its audio: what other requests may have in common with it.
        fed: tokens in its slot.
        slot: its row of the KV cache, once admitted.
        running: prefill is done; it takes part in steps.
    """

    number: int
    windows: int
    prompt: int
    live: bool = False
    lease: int | None = None
    head: tuple[int, ...] = ()
    fed: int = 0
    slot: int | None = None
    running: bool = False

    @property
    def order(self) -> tuple[bool, int]:
        """What comes first is served first."""
        return (not self.live, self.number)


@dataclass(slots=True, eq=False)
class Lease:
    """A slot that a stream keeps between its requests, for as long as nobody needs it more.

    Attributes:
        slot: while no request works in it; ``None`` also if it was taken away.
        fed: tokens in its slot that stay.
        used: turn of its last request: the one unused longest is taken away first.
    """

    slot: int | None = None
    fed: int = 0
    used: int = 0


@dataclass(slots=True, eq=False)
class Slot:
    """A row of the KV cache.

    Attributes:
        owner: who works in it, or keeps it.
        head: ids of text whose keys and values it holds from its first token on, whoever put them there.
        used: turn of its last request.
    """

    owner: Row | Lease | None = None
    head: tuple[int, ...] = ()
    used: int = 0

    @property
    def tokens(self) -> int:
        """What it holds that somebody may still need."""
        return max(len(self.head), 0 if self.owner is None else self.owner.fed)

    def shared(self, row: Row) -> int:
        """Tokens that a request's prompt begins with and that are here already."""
        pairs = enumerate(zip(self.head, row.head, strict=False))
        return next((at for at, (one, other) in pairs if one != other), min(len(self.head), len(row.head)))


@dataclass(frozen=True, slots=True)
class Encode:
    """Encode windows: ``(request, how many of its next ones)``."""

    windows: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Prefill:
    """Feed tokens ``start .. stop`` of a request's prompt to its slot."""

    number: int
    slot: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Step:
    """Swap the slots named first (``(slot, slot, tokens)``), then feed one token to each request, slots 0, 1, ..."""

    numbers: tuple[int, ...]
    swaps: tuple[tuple[int, int, int], ...] = ()


Plan: TypeAlias = Encode | Prefill | Step


@dataclass(slots=True, eq=False)
class Scheduler:
    """Requests, slots and leases.

    Args:
        slots: rows of the KV cache.
        batch_windows: windows of one encoder call, at most.
        policy: see :class:`Policy`.
    """

    slots: int
    batch_windows: int = 1
    policy: Policy = field(default_factory=Policy)
    _slots: list[Slot] = field(init=False)
    _rows: dict[int, Row] = field(init=False, default_factory=dict)
    _leases: dict[int, Lease] = field(init=False, default_factory=dict)
    _waiting: list[Row] = field(init=False, default_factory=list)
    _admitted: list[Row] = field(init=False, default_factory=list)
    _units: int = field(init=False, default=0)
    _turn: int = field(init=False, default=0)
    _shortest: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        self._slots = [Slot() for _ in range(self.slots)]

    # --- requests --------------------------------------------------------------------------------------------

    @property
    def waiting(self) -> int:
        """Requests without a slot."""
        return len(self._waiting)

    @property
    def overdue(self) -> int:
        """Requests that must wait for others to end, for which there is no slot at the next turn."""
        return max(0, len(self._waiting) - sum(not isinstance(slot.owner, Row) for slot in self._slots))

    @property
    def running(self) -> list[Row]:
        """Rows that take part in steps, in the order of their slots."""
        return [slot.owner for slot in self._slots if isinstance(slot.owner, Row) and slot.owner.running]

    @property
    def tokens(self) -> int:
        """Tokens that the KV cache holds for requests and leases."""
        return sum(slot.owner.fed for slot in self._slots if slot.owner is not None)

    def row(self, number: int) -> Row:
        """A request that was added and has not ended."""
        return self._rows[number]

    def add(self, row: Row) -> None:
        """Let a request wait for its turn."""
        self._rows[row.number] = row
        insort(self._waiting, row, key=lambda other: other.order)

    def end(self, number: int, keep: int = 0, *, failed: bool = False) -> None:
        """A request is over, at whatever stage; of a leased slot, at most ``keep`` tokens stay.

        Of one that has ``failed``, no other request uses anything.
        """
        row = self._rows.pop(number)
        for queue in (self._waiting, self._admitted):
            if row in queue:
                queue.remove(row)
        if row.slot is None:
            return
        lease = None if row.lease is None else self._leases.get(row.lease)
        slot = self._slots[row.slot]
        slot.owner, slot.head = lease, () if failed else slot.head
        if lease is not None:
            lease.slot, lease.fed, lease.used = row.slot, min(row.fed, keep), self._turn

    # --- leases ----------------------------------------------------------------------------------------------

    def open_lease(self, number: int) -> None:
        """From now on the slot of this lease's requests stays theirs between them."""
        self._leases[number] = Lease()

    def trim_lease(self, number: int, tokens: int) -> None:
        """Only that many tokens of it are still valid."""
        lease = self._leases[number]
        lease.fed = min(lease.fed, tokens)

    def close_lease(self, number: int) -> None:
        """Give its slot back, now or when its request ends."""
        lease = self._leases.pop(number)
        if lease.slot is not None:
            self._slots[lease.slot].owner = None

    # --- turns -----------------------------------------------------------------------------------------------

    def plan(self) -> Plan | None:
        """What the device does next; ``None``: nothing is to be done."""
        self._turn += 1
        self._admit()
        running = self.running
        first = self._next(running)
        if first is None:
            self._units = 0
            swaps = self._gather(running)
            return Step(tuple(row.number for row in self.running), swaps) if running else None
        self._units += 1
        if first.windows:
            return self._encode(first)
        most = self.policy.chunk
        chunk = min(self.policy.busy_chunk, most) if running else most
        ends = first.prompt - first.fed <= min(chunk + chunk // 4, most)
        return Prefill(first.number, _slot(first), first.fed, first.prompt if ends else first.fed + chunk)

    def encoded(self, number: int, count: int) -> None:
        """So many more of its windows are done."""
        self._rows[number].windows -= count

    def prefilled(self, number: int, fed: int) -> None:
        """The slot now holds that many tokens of the prompt."""
        row = self._rows[number]
        row.fed, self._slots[_slot(row)].head = fed, row.head[:fed]

    def start(self, number: int, fed: int) -> None:
        """The prompt is done, and ``fed`` tokens of it and its draft are valid: the row joins the steps."""
        row = self._rows[number]
        row.fed, row.running = fed, True
        self._admitted.remove(row)

    def stepped(self, number: int) -> None:
        """One more token is in the row's slot."""
        self._rows[number].fed += 1

    # --- slots -----------------------------------------------------------------------------------------------

    def _admit(self) -> None:
        while self._waiting:
            row = self._waiting[0]
            slot = self._slot_for(row)
            if slot is None:
                return
            row.fed = max(row.fed, self._slots[slot].shared(row))
            row.slot, self._slots[slot] = slot, Slot(row, row.head[: row.fed], self._turn)
            self._waiting.pop(0)
            insort(self._admitted, row, key=lambda other: other.order)

    def _slot_for(self, row: Row) -> int | None:
        lease = None if row.lease is None else self._leases.get(row.lease)
        if lease is not None and lease.slot is not None:  # its own, with what it holds
            slot, row.fed, lease.slot = lease.slot, lease.fed, None
            return slot
        owners = [slot.owner for slot in self._slots]
        files = sum(isinstance(owner, Row) and owner.lease is None for owner in owners)
        if row.lease is None and self._leases and files >= max(1, self.slots - 1):
            return None
        free = [slot for slot, owner in enumerate(owners) if owner is None]
        if free:
            return max(free, key=lambda at: self._worth(at, row))
        idle = [owner for owner in owners if isinstance(owner, Lease)]
        if not idle:
            return None
        oldest = min(idle, key=lambda owner: owner.used)
        slot = _slot(oldest)
        oldest.slot = None
        return slot

    def _worth(self, at: int, row: Row) -> tuple[int, bool, int, int]:
        """Of a free slot, to a request: tokens that it saves, less those that are lost.

        Then, that the row need not move before its first step; then, how long ago it was used.
        """
        slot = self._slots[at]
        return 2 * slot.shared(row) - len(slot.head), at >= len(self.running), -slot.used, -at

    def _next(self, running: list[Row]) -> Row | None:
        """Whose unit comes before the next step: the shortest one's and the oldest one's, in turn; ``None``: nobody's.

        After ``units_per_step``, it is that of the one who will join the step soonest, if that is soon.
        """
        rows = [row for row in self._admitted if row.live == self._admitted[0].live]
        if not rows:
            return None
        if not running or self._units < self.policy.units_per_step:
            self._shortest = not self._shortest
            return min(rows, key=lambda row: row.prompt - row.fed) if self._shortest else rows[0]
        soonest = min(rows, key=self._units_left)
        late = self._units + self._units_left(soonest) > self.policy.joining_units
        return None if late or any(row.live for row in running) else soonest

    def _units_left(self, row: Row) -> int:
        """Units of work until it can take part in the steps of those that are running, or one too many."""
        chunk = min(self.policy.busy_chunk, self.policy.chunk)
        return -(-row.windows // self.batch_windows) - (row.fed - row.prompt) // chunk

    def _encode(self, first: Row) -> Encode:
        room, windows = self.batch_windows, []
        for row in [first, *(row for row in self._admitted if row is not first)]:
            count = min(room, row.windows)
            if count:
                windows.append((row.number, count))
                room -= count
        return Encode(tuple(windows))

    def _gather(self, running: list[Row]) -> tuple[tuple[int, int, int], ...]:
        """Swap rows down into the holes among the first slots."""
        count = len(running)
        holes = [at for at, slot in enumerate(self._slots[:count]) if slot.owner not in running]
        strays = [row for row in running if _slot(row) >= count]
        return tuple(self._swap(hole, _slot(row)) for hole, row in zip(holes, strays, strict=True))

    def _swap(self, first: int, second: int) -> tuple[int, int, int]:
        slots = self._slots
        slots[first], slots[second] = slots[second], slots[first]
        for at in (first, second):
            owner = slots[at].owner
            if owner is not None:
                owner.slot = at
        return first, second, max(slots[first].tokens, slots[second].tokens)


def _slot(owner: Row | Lease) -> int:
    if owner.slot is None:
        raise ValueError("it has no slot")
    return owner.slot
