"""What is measured, how long, and the measurements."""

from dataclasses import dataclass
from pathlib import Path

from ptexport.toolkit.bench.serve.load import LoadSample

TOKENS, FEWEST_TOKENS, MOST_TOKENS = 28, 5, 60
"""Words of texts of one length, and of the shortest and longest of texts of mixed lengths."""
DEADLINE_MS = 1000
SATURATING = 64
"""Clients that saturate a server."""
BEST_TEXTS = 512
"""Texts per call of Engine.predict, which sorts them into batches."""
MAX_CONNECTIONS, MAX_OVERLOAD_CONNECTIONS = 256, 700
TIMEOUT_S, OVERLOAD_TIMEOUT_S = 30.0, 5.0
FEWEST = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeConfig:
    """The settings of a serve bench.

    Attributes:
        bundle: folder of the bundle.
        threads: number of CPUs that the server may use; None: all that this process may use.
        quick: whether to measure fewer clients, rounds and seconds.
        command: command line, for the report.
    """

    bundle: Path
    threads: int | None
    quick: bool
    command: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ServePlan:
    """How much is measured.

    Attributes:
        clients: numbers of clients in the closed loop.
        loads: loads of the open loop, in percent of the closed loop's highest throughput.
        overloads: loads above, as multiples of it.
        turns: calls of `Engine.predict` in a row that alternate with requests in a row, per round; at least 2.
        rounds: rounds of everything but overload.
        warm_up_s: warm-up of each run.
        closed_s: duration of a closed-loop run; longer if fewer than `FEWEST` responses are expected.
        open_s: duration of an open-loop run; longer likewise.
        calm_s: duration of half the capacity, before an overload.
        overload_s: duration of an overload.
        after_s: duration of half the capacity, after an overload.
    """

    clients: tuple[int, ...] = (1, 2, 4, 8, 16, 32, SATURATING)
    loads: tuple[int, ...] = (25, 50, 75, 90, 110)
    overloads: tuple[int, ...] = (2, 5, 10)
    turns: int
    rounds: int
    warm_up_s: float
    closed_s: float
    open_s: float
    calm_s: float
    overload_s: float
    after_s: float


FULL = ServePlan(turns=40, rounds=3, warm_up_s=1, closed_s=5, open_s=15, calm_s=10, overload_s=60, after_s=10)
QUICK = ServePlan(
    clients=(1, SATURATING),
    loads=(50, 90),
    turns=15,
    rounds=2,
    warm_up_s=0.5,
    closed_s=1,
    open_s=2,
    calm_s=2,
    overload_s=5,
    after_s=3,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """Seconds of calls of `Engine.predict` with one text, in a row after a pause, and of requests likewise."""

    calls_s: list[float]
    requests_s: list[float]

    @property
    def first(self) -> tuple[float, float]:
        """The first call and the first request, with cold caches and threads that sleep."""
        return self.calls_s[0], self.requests_s[0]

    @property
    def in_a_row(self) -> list[tuple[float, float]]:
        """The last calls and requests, a pair each."""
        kept = len(self.calls_s) // 2
        return list(zip(self.calls_s[kept:], self.requests_s[kept:], strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class Saturation:
    """Throughput of the same texts, one entry per round.

    Attributes:
        lengths: fewest and most tokens of a text.
        best: texts per second of `Engine.predict`, which is given `BEST_TEXTS` at once.
        batched: samples of a server with `SATURATING` clients.
        single: samples of a server that computes one text at a time.
        server_cpus: CPUs that the server used meanwhile; None: unknown on this system.
    """

    lengths: tuple[int, int]
    best: list[float]
    batched: list[LoadSample]
    single: list[LoadSample]
    server_cpus: list[float | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Overload:
    """A server before, during and after an overload.

    Attributes:
        calm: sample at half the capacity, before.
        over: sample of the overload.
        after: sample at half the capacity, right after.
        resident_mb: resident memory of the server before, at most and after; None: unknown on this system.
    """

    calm: LoadSample
    over: LoadSample
    after: LoadSample
    resident_mb: tuple[float, float, float] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeResults:
    """The measurements, one entry per round.

    Attributes:
        tokens: tokens of each text without the prompt.
        turns: calls of `Engine.predict` and requests that alternate with them.
        calls_s: seconds of consecutive calls of `Engine.predict` with one text, while the server is idle.
        closed: samples of the closed loop, by number of clients.
        open: samples of the open loop, by load in percent.
        peak: highest throughput of the closed loop in texts per second, the median of its rounds.
        saturations: throughput in batches, for texts of one length and of mixed lengths.
        overloads: what became of the server, by multiple of `peak`.
    """

    tokens: int
    turns: list[list[Turn]]
    calls_s: list[list[float]]
    closed: dict[int, list[LoadSample]]
    open: dict[int, list[LoadSample]]
    peak: float
    saturations: list[Saturation]
    overloads: dict[int, Overload]
