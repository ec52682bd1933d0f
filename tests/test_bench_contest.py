"""One case of a benchmark on processes that answer as told: who is left out, who runs as a graph, for how long."""

import dataclasses
from unittest import mock

import pytest
import stand_in_cupy

from bp.bench import contest, worker
from bp.bench.contest import Contest
from bp.bench.contestants import Player
from bp.bench.libraries import library, open_library
from bp.bench.processes import Crashed, Failed, Hung
from bp.bench.results import Entry, Row, Times
from bp.bench.run import Plan, Run
from bp.bench.worker import IN_GRAPH, Case, Worker
from bp.cuda import gpu

CASE = Case("linear", "Linear", {"m": 1, "n": 1, "k": 1}, "bf16", 0)


class Answers:
    """A process whose contestants take `seconds`; says: what it answers, or raises, in place of that, by command."""

    def __init__(self, asked, key, seconds, says=None):
        self.asked, self.key, self.seconds, self.says = asked, key, seconds, says or {}

    def send(self, command, **arguments):
        self.asked.append((command, self.key))

    def receive(self, limit):
        self.asked.append(("begun", self.key))

    def ask(self, command, limit, **arguments):
        self.asked.append((command, self.key))
        answer = self.says.get(command)
        if isinstance(answer, Exception):
            raise answer
        usual = {
            "reference": 0,
            "prepare": {"error": 0.5, "facts": {}, "seconds": self.seconds},
            "as_graph": {IN_GRAPH: 64.0},
            "turn": self.seconds,
        }
        return answer or usual.get(command)


class Answering:
    """A pool of such. processes: (seconds, says) by library, or by rung for those of bp."""

    device = "cuda"

    def __init__(self, **processes):
        self.asked, self.told = [], processes

    def start(self, keys):
        self.asked.append(("start", tuple(keys)))

    def get(self, key):
        told = self.told[key[1][0][1] if key[1] else key[0]]
        return Answers(self.asked, key, *(told if isinstance(told, tuple) else (told,)))

    def forget(self, key):
        self.asked.append(("forget", key))


def player(name, rung=""):
    library = name.partition(" ")[0].partition("-")[0]
    return Player(name, library, library, environment=(("BP_LINEAR", rung),) if rung else ())


def run(pool, *names, left_out=(), **settings):
    """The contest of contestants of these names after it was prepared."""
    playing = [player(name, name.partition("=")[2]) for name in names]
    found = Contest(pool, CASE, playing, True, "somewhere", left_out=dict(left_out), **settings)
    found.prepare()
    return found


def statuses(found):
    return {entry.contestant: (entry.status, entry.reason) for entry in found.entries}


RIGHT = ("checked", "")


def test_a_rung_that_cannot_compute_a_case_is_left_out_and_one_that_breaks_has_failed():
    cannot = Failed("ConfigurationError: BP_LINEAR=wgmma computes bfloat16 on compute capability 9.0, got float32")
    broken = Failed("ConfigurationError: the compiler failed on linear_mma.cu")
    pool = Answering(bp=1.0, wgmma=(1.0, {"prepare": cannot}), mma=(1.0, {"prepare": broken}), torch=1.0)
    assert statuses(run(pool, "bp", "bp linear=wgmma", "bp linear=mma", "torch")) == {
        "bp": RIGHT,
        "bp linear=wgmma": ("left out", "BP_LINEAR=wgmma computes bfloat16 on compute capability 9.0, got float32"),
        "bp linear=mma": ("failed", str(broken)),
        "torch": RIGHT,
    }


def test_all_draw_their_arrays_before_the_first_is_asked_for_more():
    pool = Answering(bp=1.0, mma=1.0, torch=1.0)
    run(pool, "bp", "bp linear=mma", "torch", left_out={"torch": "slow"})
    ours, rung = ("bp", ()), ("bp", (("BP_LINEAR", "mma"),))
    assert pool.asked[:4] == [("start", (ours, rung)), ("begin", ours), ("begin", rung), ("begun", ours)]
    assert [one for one in pool.asked if one[0] == "begun"] == [("begun", ours), ("begun", rung)]


def test_who_is_left_out_says_why_and_takes_no_turn():
    pool = Answering(bp=1.0, torch=1.0)
    found = run(pool, "bp", "torch", left_out={"torch": "it took too long in a row before"})
    found.take_turns(3, 10.0)
    assert statuses(found) == {"bp": ("timed", ""), "torch": ("left out", "it took too long in a row before")}


@pytest.mark.parametrize(("problem", "lost"), [(Hung("took longer"), "hung"), (Crashed("ended"), "crashed")])
def test_who_hangs_or_crashes_is_remembered(problem, lost):
    found = run(Answering(bp=1.0, mma=(1.0, {"prepare": problem})), "bp", "bp linear=mma")
    assert statuses(found)["bp linear=mma"] == ("failed", str(problem))
    assert {"hung": found.hung, "crashed": found.crashed} == {"hung": [], "crashed": [], lost: ["bp linear=mma"]}


# Graphs ----------------------------------------------------------------------------------------------------

SHORT = contest.SHORT


def in_graphs(found):
    return [entry.contestant for entry in found.entries if IN_GRAPH in entry.facts]


def test_where_the_fastest_is_short_those_that_launches_would_disturb_run_as_graphs():
    pool = Answering(bp=1.5 * SHORT, torch=0.5 * SHORT, naive=contest.BESIDE * SHORT)
    found = run(pool, "bp", "bp linear=naive", "torch")
    assert in_graphs(found) == ["bp", "torch"]
    assert in_graphs(run(Answering(bp=SHORT, torch=1.5 * SHORT), "bp", "torch")) == []
    pool = Answering(bp=0.5 * SHORT)
    pool.device = "cpu"
    assert in_graphs(run(pool, "bp")) == []
    assert in_graphs(run(Answering(bp=(None,)), "bp", timed=False)) == []


def test_what_no_graph_can_be_made_of_is_not_compared_with_graphs():
    says = {"as_graph": Failed("RuntimeError: operation not permitted when stream is capturing")}
    found = run(Answering(bp=0.5 * SHORT, cupy=(0.5 * SHORT, says)), "bp", "cupy")
    reason = "no graph of its launches: RuntimeError: operation not permitted when stream is capturing"
    assert statuses(found) == {"bp": RIGHT, "cupy": ("left out", reason)}


def test_a_contestant_that_is_made_once_more_runs_as_a_graph_again():
    pool = Answering(bp=0.5 * SHORT)
    found = run(pool, "bp")
    before = len(pool.asked)
    found._restart(("bp", ()))
    assert [command for command, _ in pool.asked[before:]] == ["forget", "begin", "begun", "prepare", "as_graph"]


@pytest.fixture
def on_gpu(monkeypatch):
    """A worker of bp on the stand-in for CuPy."""
    stand_in_cupy.install(monkeypatch)
    own = gpu.GPUDevice()
    monkeypatch.setattr(library.DeviceClock, "FLUSH_BYTES", 4096)
    monkeypatch.setattr("bp.bench.libraries.ours.find_device", lambda name: own)
    monkeypatch.setattr("bp.bench.libraries.with_cupy.versions", lambda: {"cupy": "a stand-in"})
    pool = mock.Mock(free_all_blocks=mock.Mock())
    monkeypatch.setattr(own.cupy, "get_default_memory_pool", lambda: pool, raising=False)
    found = Worker(open_library("bp", "cuda"))
    yield found
    found.end()


@pytest.mark.parametrize(("cold", "sets"), [(True, 3), (False, 1)])
def test_a_graph_takes_its_sets_of_arrays_in_turn(on_gpu, monkeypatch, cold, sets):
    monkeypatch.setattr(worker, "ROTATED", 3 * 4 * (4 * 6 + 5 * 6 + 5) - 1)
    monkeypatch.setattr(worker, "LAUNCHES", 8)
    on_gpu.begin(Case("linear", "Linear", {"m": 4, "n": 5, "k": 6}, "fp32", 1))
    on_gpu.contestants["bp"] = on_gpu.prepare("bp", "", "")
    monkeypatch.setattr(stand_in_cupy, "log", [])
    on_gpu.as_graph("bp", cold)
    arguments = [entry[3] for entry in stand_in_cupy.log if entry[0] == "launch"]
    contestant = on_gpu.contestants["bp"]
    count = -(-8 // sets) * sets
    assert contestant.runs == count == contestant.facts[IN_GRAPH]
    captured = arguments[-count:]
    assert [given[:2] for given in captured[sets:]] == [given[:2] for given in captured[:-sets]]
    assert len({int(given[0]) for given in captured}) == len({int(given[1]) for given in captured}) == sets
    assert len({int(given[7]) for given in captured}) == sets  # y: each set has a result of its own
    ran = []
    for place, launch in enumerate(contestant.replay.__self__.launches):
        contestant.replay.__self__.launches[place] = lambda launch=launch: ran.append(1) or launch()
    assert on_gpu.turn("bp", cold) > 0
    assert len(ran) == 3 * count  # two replays to wake the device, one that counts


def test_a_graph_holds_the_memory_that_it_works_on(on_gpu, monkeypatch):
    monkeypatch.setattr(worker, "LAUNCHES", 2)
    on_gpu.begin(Case("linear", "Linear", {"m": 4, "n": 5, "k": 6}, "fp32", 1))
    on_gpu.contestants["bp"] = on_gpu.prepare("bp", "", "")
    on_gpu.as_graph("bp", True)
    assert len(on_gpu.contestants["bp"].kept) == worker.MOST_SETS
    on_gpu.end()
    assert on_gpu.contestants == {}


# Time ------------------------------------------------------------------------------------------------------


def test_a_slow_rung_takes_a_few_turns(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(contest.time, "monotonic", lambda: clock[0])

    class Slow(Answering):
        def get(self, key):
            found = super().get(key)
            ask = found.ask

            def timed(command, limit, **arguments):
                clock[0] += found.seconds if command == "turn" else 0.0
                return ask(command, limit, **arguments)

            found.ask = timed
            return found

    found = run(Slow(bp=0.001, naive=2.0, mma=0.002, torch=3.0), "bp", "bp linear=naive", "bp linear=mma", "torch")
    found.take_turns(6, 1000.0)
    assert {entry.contestant: entry.times.runs for entry in found.entries} == dict.fromkeys(
        ("bp", "bp linear=naive", "bp linear=mma", "torch"), 6
    )
    found = run(Slow(bp=0.001, naive=2.0, mma=0.002, torch=3.0), "bp", "bp linear=naive", "bp linear=mma", "torch")
    found.take_turns(6, 10.0)
    runs = {entry.contestant: entry.times.runs for entry in found.entries}
    assert runs == {"bp": 5, "bp linear=naive": 3, "bp linear=mma": 5, "torch": 5}  # a peer takes all of its own


ROW = Row("linear", "linear", {"m": 1}, "bf16", 1e9, 1e3, [])


def finished(*entries, hung=(), crashed=()):
    return mock.Mock(entries=list(entries), hung=list(hung), crashed=list(crashed))


def timed(name, seconds):
    return Entry(name, name.startswith("bp"), "timed", times=Times(seconds, seconds, seconds, 5))


@pytest.fixture
def going(monkeypatch):
    monkeypatch.setattr("bp.bench.run.find_device", lambda name: mock.Mock(name="cuda"))
    monkeypatch.setattr("bp.bench.run.machine.memory", lambda device: 1e12)
    return Run(Plan(["linear"], "cuda"))


def test_a_rung_that_is_known_to_be_slow_is_left_out_of_what_takes_long(going):
    playing = [player("bp"), player("bp linear=naive", "naive"), player("torch")]
    going._remember(ROW, finished(timed("bp", 0.1), timed("bp linear=naive", 0.1), timed("torch", 0.1)))
    assert going._left_out(ROW, playing) == {}
    reason = {"bp linear=naive": "would take 0.2 s a run, and 0.1 s are allowed"}
    assert going._left_out(dataclasses.replace(ROW, flops=2e9), playing) == reason
    assert going._left_out(dataclasses.replace(ROW, flops=2e9, precision="fp32"), playing) == {}  # not known
    assert going._left_out(dataclasses.replace(ROW, flops=0.0), playing) == {}
    going.device = "cpu"
    assert going._left_out(dataclasses.replace(ROW, flops=2e9), playing) == {}


def test_who_hangs_once_or_crashes_twice_is_left_out_from_then_on(going):
    playing = [player("bp"), player("bp linear=mma", "mma"), player("torch")]
    going._remember(ROW, finished(hung=["bp linear=mma"], crashed=["torch"]))
    assert going._left_out(ROW, playing) == {"bp linear=mma": "it took too long in a row before"}
    going._remember(ROW, finished(crashed=["torch"]))
    assert going._left_out(ROW, playing)["torch"] == "its process ended too often"


def test_a_case_says_what_the_cache_holds_and_in_which_precisions_it_is_worth_it(monkeypatch):
    asked = []

    class Watched(Contest):
        def __init__(self, pool, case, playing, cold, *more):
            asked.append((case.sizes["cache"], cold))
            raise KeyboardInterrupt

    monkeypatch.setattr("bp.bench.run.Contest", Watched)
    for cache in ("cold", "warm"):
        sizes = {"Skinny": [{"m": 16, "n": 8, "k": 8, "cache": cache}]}
        plan = Plan(["linear"], "emulator", ["fp32"], cold=cache == "warm", sizes=sizes)
        assert Run(plan).results("").rows == []
    assert asked == [("cold", True), ("warm", False)]
