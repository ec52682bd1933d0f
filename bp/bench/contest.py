"""One case: its contestants made and checked, then timed in turn."""

import math
import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Literal

from bp.bench.contestants import Player
from bp.bench.processes import Crashed, Failed, Key, Missing, Pool
from bp.bench.results import Entry, Times
from bp.bench.worker import Case
from bp.diagnostics import size_in_words

PREPARE_SECONDS = 300.0  # after which a contestant counts as one that hangs; torch.compile may take minutes
TURN_SECONDS = 60.0
FEWEST_TURNS = 5


class Contest:
    """The contestants of one case. cold: whether caches are emptied before each run; reference: a file that takes the
    outputs in float64, "" for none; room: bytes that the arrays of all of them together may take."""

    def __init__(
        self,
        pool: Pool,
        case: Case,
        playing: Sequence[Player],
        cold: bool,
        reference: str,
        room: float = math.inf,
    ) -> None:
        self.pool, self.case, self.playing, self.cold, self.reference = pool, case, playing, cold, reference
        self.room = room
        self._entries: dict[str, Entry] = {}
        self._begun: set[Key] = set()

    @property
    def entries(self) -> list[Entry]:
        """In the order of the contestants."""
        return [self._entries[player.name] for player in self.playing]

    def prepare(self) -> None:
        """Compute the reference; make, run and check everybody. Raises Failed where the reference itself fails."""
        if self.reference:
            key: Key = ("bp", ())
            try:
                taken = len(self.playing) * self._ask(key, "reference", path=self.reference)
            except Crashed as problem:
                self._restart(key)
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
            self._prepare(player)

    def _prepare(self, player: Player) -> None:
        key = (player.library, player.environment)
        settings = {"method": player.method, "variant": player.variant, "reference": self.reference}
        try:
            told = self._ask(key, "prepare", name=player.name, cold=self.cold, **settings)
        except Missing as problem:
            self._enter(player, "not installed", str(problem))
        except Failed as problem:
            self._enter(player, "failed", str(problem))
        except Crashed as problem:
            self._enter(player, "failed", str(problem))
            self._restart(key)
        else:
            if told is None:
                self._enter(player, "left out", f"{player.library} has nothing for this case")
                return
            error, facts = told["error"], told["facts"]
            if error is None or error <= 1.0:
                self._entries[player.name] = Entry(player.name, player.ours, "checked", "", error, facts=facts)
            else:
                reason = f"its result is wrong: {error:.3g} times the error that rounding allows"
                self._entries[player.name] = Entry(player.name, player.ours, "wrong", reason, error, facts=facts)

    def _restart(self, key: Key) -> None:
        """Those that were ready in a process that is gone are made once more, in a new one."""
        self.pool.forget(key)
        self._begun.discard(key)
        for player in self.playing:
            entry = self._entries.get(player.name)
            if (player.library, player.environment) == key and entry is not None and entry.status == "checked":
                self._prepare(player)

    def _ask(self, key: Key, command: str, **arguments: Any) -> Any:
        process = self.pool.get(key)
        if key not in self._begun:
            process.ask("begin", PREPARE_SECONDS, case=self.case)
            self._begun.add(key)
        return process.ask(command, PREPARE_SECONDS, **arguments)

    def _enter(self, player: Player, status: Literal["failed", "not installed", "left out"], reason: str) -> None:
        self._entries[player.name] = Entry(player.name, player.ours, status, reason)

    def take_turns(self, repeats: int, seconds: float) -> None:
        """Time those that are right, one run of each in turn, so that a clock that changes meets all."""
        taken: dict[str, list[float]] = {player.name: [] for player in self.playing}
        begun = time.monotonic()
        for turn in range(repeats):
            running = [player for player in self.playing if self._entries[player.name].status == "checked"]
            # Each turn begins with another of them, so that nobody always follows the same one.
            first = turn % max(len(running), 1)
            for player in [*running[first:], *running[:first]]:
                if self._entries[player.name].status == "checked":
                    self._take_turn(player, taken[player.name])
            if time.monotonic() - begun > seconds and turn + 1 >= FEWEST_TURNS:
                break
        for name, times in taken.items():
            if times and self._entries[name].status == "checked":
                self._entries[name] = replace(self._entries[name], status="timed", times=summary(times))

    def end(self) -> None:
        """Give back the memory of all: who takes no part in the next case would keep it."""
        for key in self._begun:
            try:
                self.pool.get(key).ask("end", PREPARE_SECONDS)
            except Failed:
                continue
            except Crashed:
                self.pool.forget(key)
        self._begun.clear()

    def _take_turn(self, player: Player, times: list[float]) -> None:
        key = (player.library, player.environment)
        try:
            times.append(self.pool.get(key).ask("turn", TURN_SECONDS, name=player.name, cold=self.cold))
        except Failed as error:
            self._enter(player, "failed", str(error))
        except Crashed as error:
            self._enter(player, "failed", str(error))
            self._restart(key)


def summary(seconds: Iterable[float]) -> Times:
    """Of the times of single runs."""
    times = sorted(seconds)
    if len(times) == 1:
        return Times(times[0], times[0], times[0], 1)
    quantiles = statistics.quantiles(times, n=5, method="inclusive")
    return Times(statistics.median(times), quantiles[0], quantiles[-1], len(times))
