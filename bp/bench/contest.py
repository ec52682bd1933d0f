"""One case: its contestants made and checked, then timed in turn."""

import math
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Literal

from bp.bench.contestants import Player
from bp.bench.processes import Crashed, Failed, Hung, Key, Missing, Pool
from bp.bench.results import Entry, Times
from bp.bench.worker import IN_GRAPH, Case
from bp.diagnostics import size_in_words

PREPARE_SECONDS = 300.0  # after which a contestant counts as one that hangs; torch.compile may take minutes
OURS_SECONDS = 60.0  # the same for bp on a GPU, which compiles a kernel in less than one
TURN_SECONDS = 60.0
FEWEST_TURNS = 5
FEWEST_OF_SLOW = 3  # turns of another rung of bp that takes longer than its share of the time
SHORT = 20e-6  # seconds of the fastest contestant: below, those that take less than `BESIDE` as long run as graphs
BESIDE = 10.0


class Contest:
    """The contestants of one case. cold: whether caches are emptied before each run; reference: a file that takes the
    outputs in float64, "" for none; room: bytes that the arrays of all of them together may take; left_out: why some of
    them take no part, by name; timed: whether there will be turns; graphs: whether short work may run as graphs.

    After `prepare`, hung has those that took too long, crashed those whose process ended.
    """

    def __init__(
        self,
        pool: Pool,
        case: Case,
        playing: Sequence[Player],
        cold: bool,
        reference: str,
        room: float = math.inf,
        left_out: Mapping[str, str] = MappingProxyType({}),
        timed: bool = True,
        graphs: bool = True,
    ) -> None:
        self.pool, self.case, self.playing, self.cold, self.reference = pool, case, playing, cold, reference
        self.room, self.left_out, self.timed = room, left_out, timed
        self.graphs = graphs and timed and pool.device == "cuda"
        self.hung: list[str] = []
        self.crashed: list[str] = []
        self._entries: dict[str, Entry] = {}
        self._seconds: dict[str, float] = {}  # of one run, about
        self._begun: set[Key] = set()
        self._asked: set[Key] = set()  # which have not answered yet that they have begun

    @property
    def entries(self) -> list[Entry]:
        """In the order of the contestants."""
        return [self._entries[player.name] for player in self.playing]

    def prepare(self) -> None:
        """Compute the reference; make, run and check everybody. Raises Failed where the reference itself fails."""
        taking_part = [player for player in self.playing if player.name not in self.left_out]
        ours: Key = ("bp", ())
        keys = list(dict.fromkeys([ours, *(key_of(player) for player in taking_part)]))
        self.pool.start(keys)
        for key in keys:
            self._begin(key)
        if self.reference:
            try:
                taken = len(taking_part) * self._ask(ours, "reference", path=self.reference)
            except Crashed as problem:
                self._restart(ours)
                for player in self.playing:
                    self._enter(player, "failed", f"the float64 reference: {problem}")
                return
            if taken > self.room:
                # All of them or nobody: a comparison with those who came first would be of the order they came in.
                words = size_in_words(taken), size_in_words(int(self.room))
                reason = "no room: the arrays of all contestants take {}, and may take {}".format(*words)
                for player in self.playing:
                    self._enter(player, "left out", reason)
                return
        for player in self.playing:
            if player.name in self.left_out:
                self._enter(player, "left out", self.left_out[player.name])
            else:
                self._prepare(player)
        if self.graphs:
            self._as_graphs()

    def _prepare(self, player: Player) -> None:
        key = key_of(player)
        settings = {"method": player.method, "variant": player.variant, "reference": self.reference}
        try:
            told = self._ask(key, "prepare", name=player.name, cold=self.cold, timed=self.timed, **settings)
        except Missing as problem:
            self._enter(player, "not installed", str(problem))
        except Failed as problem:
            # Of what a rung does not compute, whoever forces it is told so, by the variable that forces it.
            forced = any(f"{name}={value} " in str(problem) for name, value in player.environment)
            self._enter(player, "left out" if forced else "failed", _in_words(problem) if forced else str(problem))
        except Crashed as problem:
            self._lose(player, problem)
        else:
            if told is None:
                self._enter(player, "left out", f"{player.library} has nothing for this case")
                return
            error, facts = told["error"], told["facts"]
            if error is None or error <= 1.0:
                self._entries[player.name] = Entry(player.name, player.ours, "checked", "", error, facts=facts)
                self._seconds[player.name] = told["seconds"]
            else:
                reason = f"its result is wrong: {error:.3g} times the error that rounding allows"
                self._entries[player.name] = Entry(player.name, player.ours, "wrong", reason, error, facts=facts)

    def _as_graphs(self) -> None:
        """Where the fastest takes so little time that launches would be what is timed, all run as graphs of many."""
        running = self._running()
        if min((self._seconds[player.name] for player in running), default=SHORT) >= SHORT:
            return
        for player in running:
            if self._seconds[player.name] < BESIDE * SHORT and self._entries[player.name].status == "checked":
                self._as_graph(player)

    def _as_graph(self, player: Player) -> None:
        try:
            facts = self._ask(key_of(player), "as_graph", name=player.name, cold=self.cold)
        except Failed as problem:
            # Beside graphs, launch by launch would say how long launches take.
            self._enter(player, "left out", f"no graph of its launches: {_in_words(problem)}")
        except Crashed as problem:
            self._lose(player, problem)
        else:
            self._entries[player.name] = replace(self._entries[player.name], facts=facts)

    def _running(self) -> list[Player]:
        return [player for player in self.playing if self._entries[player.name].status == "checked"]

    def _lose(self, player: Player, problem: Crashed) -> None:
        """Its process is gone."""
        (self.hung if isinstance(problem, Hung) else self.crashed).append(player.name)
        self._enter(player, "failed", str(problem))
        self._restart(key_of(player))

    def _restart(self, key: Key) -> None:
        """Those that were ready in a process that is gone are made once more, in a new one."""
        self.pool.forget(key)
        self._begun.discard(key)
        self._asked.discard(key)
        for player in self.playing:
            entry = self._entries.get(player.name)
            if key_of(player) == key and entry is not None and entry.status == "checked":
                self._prepare(player)
                if IN_GRAPH in entry.facts and self._entries[player.name].status == "checked":
                    self._as_graph(player)

    def _begin(self, key: Key) -> None:
        """Let a process draw the arrays of the case, without waiting for it."""
        with suppress(Missing):  # as its contestants will hear
            self.pool.get(key).send("begin", case=self.case)
            self._begun.add(key)
            self._asked.add(key)

    def _ask(self, key: Key, command: str, **arguments: Any) -> Any:
        process = self.pool.get(key)
        if key not in self._begun:
            self._begin(key)
        if key in self._asked:
            self._asked.discard(key)
            process.receive(PREPARE_SECONDS)
        quick = self.pool.device == "cuda" and key[0] == "bp" and command != "reference"
        return process.ask(command, OURS_SECONDS if quick else PREPARE_SECONDS, **arguments)

    def _enter(self, player: Player, status: Literal["failed", "not installed", "left out"], reason: str) -> None:
        self._entries[player.name] = Entry(player.name, player.ours, status, reason)

    def take_turns(self, repeats: int, seconds: float) -> None:
        """Time those that are right, one run of each in turn, so that a clock that changes meets all."""
        taken: dict[str, list[float]] = {player.name: [] for player in self.playing}
        spent = dict.fromkeys(taken, 0.0)
        begun = time.monotonic()
        for turn in range(repeats):
            running = self._running()
            # Each turn begins with another of them, so that nobody always follows the same one.
            first = turn % max(len(running), 1)
            for player in [*running[first:], *running[:first]]:
                # Of a slow rung, which is there to show how slow it is, a few turns say enough.
                slow = player.environment and spent[player.name] > seconds / len(running)
                if self._entries[player.name].status != "checked" or (slow and turn >= FEWEST_OF_SLOW):
                    continue
                before = time.monotonic()
                self._take_turn(player, taken[player.name])
                spent[player.name] += time.monotonic() - before
            if time.monotonic() - begun > seconds and turn + 1 >= FEWEST_TURNS:
                break
        for name, times in taken.items():
            if times and self._entries[name].status == "checked":
                self._entries[name] = replace(self._entries[name], status="timed", times=summary(times))

    def end(self) -> None:
        """Give back the memory of all: who takes no part in the next case would keep it."""
        for key in self._begun:
            try:
                self._ask(key, "end")
            except Failed:
                continue
            except Crashed:
                self.pool.forget(key)
        self._begun.clear()

    def _take_turn(self, player: Player, times: list[float]) -> None:
        key = key_of(player)
        try:
            times.append(self.pool.get(key).ask("turn", TURN_SECONDS, name=player.name, cold=self.cold))
        except Failed as error:
            self._enter(player, "failed", str(error))
        except Crashed as error:
            self._lose(player, error)


def key_of(player: Player) -> Key:
    """Of the process that a contestant runs in."""
    return player.library, player.environment


def _in_words(problem: Failed) -> str:
    return str(problem).removeprefix("ConfigurationError: ")


def summary(seconds: Iterable[float]) -> Times:
    """Of the times of single runs."""
    times = sorted(seconds)
    if len(times) == 1:
        return Times(times[0], times[0], times[0], 1)
    quantiles = statistics.quantiles(times, n=5, method="inclusive")
    return Times(statistics.median(times), quantiles[0], quantiles[-1], len(times))
