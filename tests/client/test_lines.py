"""A line asks one question at a time, and takes only the answer to that one."""

from __future__ import annotations

import threading
import time

import pytest

from tests.client.harness import SLACK_S, elapsed_s, wait_until
from token_actor.client import drawing, lines
from token_actor.client.deadline import Deadline
from token_actor.client.drawing import Call
from token_actor.client.lines import Line, LinePool, Request
from token_actor.core.escrow import measures_of
from token_actor.core.limits import Estimate
from token_actor.errors import ActorUnavailable, ClosedError, InvalidQuestion, ServerRefused, ServerUnavailable
from token_actor.transport.memory import MemoryServer
from token_actor.transport.ports import FIRST, AddToField, Append
from token_actor.wire.keys import Keys
from token_actor.wire.messages import ANSWER_FIELD, Answer

HERE, THERE = Keys("n", 0), Keys("n", 1)


def an_answer(request_id, epoch=1, *, entry_id=b"1-1", result=None, problem=None):
    answer = Answer(request_id=request_id, epoch=epoch, result=result or {"epoch": epoch}, problem=problem)
    return (entry_id, [ANSWER_FIELD, answer.encode()])


class Script:
    """A connection that does as it is told, call by call; a step is the entries that come, or an error."""

    def __init__(self, *steps):
        self.steps = list(steps)
        self.asked = []
        self.closed = False
        self.breaks = 0

    def exchange(self, append, *, inbox, after, block_ms):
        self.asked.append((append, inbox, after, block_ms))
        return b"5-0", self._next()

    def read(self, after, *, count, block_ms):
        ((inbox, entry_id),) = after.items()
        self.asked.append((None, inbox, entry_id, block_ms))
        return {inbox: self._next()}

    def _next(self):
        step = self.steps.pop(0)
        if isinstance(step, Exception):
            raise step
        return step

    def write(self, operations):
        self.written = list(operations)
        return self._next()

    def write_together(self, operations):
        self.taken = list(operations)
        return self._next()

    def close(self):
        self.closed = True


def question(keys, line, request_id, escrow=None):
    fields = [b"q", request_id.encode()] if escrow is None else [b"c", f"{request_id} of {escrow}".encode()]
    return Append(key=keys.ask, fields=fields)


def ask(line, timeout_s=5.0, keys=HERE):
    return line.ask(Request(question), keys, Deadline.after(timeout_s))


def borrow(pool, timeout_s):
    with pool.line(Deadline.after(timeout_s)):
        pass


def take_back(keys, line, asked, request_id):
    return Append(key=b"log", fields=[b"c", f"{asked} by {request_id}".encode()])


class TestTakingBack:
    def test_what_has_no_answer_in_time_is_taken_back(self, monkeypatch):
        monkeypatch.setattr(lines, "ASK_AGAIN_MS", 1)
        script = Script(*[[] for _ in range(10_000)])
        line = Line(script, "c")
        assert line.ask(Request(question, take_back), HERE, Deadline.after(0.01)) is None
        assert script.written == [take_back(HERE, "c", "1", "2")]

    def test_what_was_never_sent_is_not(self):
        script = Script()
        assert Line(script, "c").ask(Request(question, take_back), HERE, Deadline.after(0)) is None
        assert script.asked == []

    def test_when_the_server_has_gone_meanwhile_that_is_what_is_said(self, monkeypatch):
        monkeypatch.setattr(lines, "ASK_AGAIN_MS", 1)
        monkeypatch.setattr(Script, "write", lambda *_: Script._next(Script(ServerUnavailable("away"))))
        script = Script(*[[] for _ in range(10_000)])
        with pytest.raises(ServerUnavailable):
            Line(script, "c").ask(Request(question, take_back), HERE, Deadline.after(0.01))


A_CALL = Call(Estimate("a", 10), measures_of(Estimate("a", 10)), 60_000)


def escrow_of(number="e", most=10, source="given", ahead_ms=5):
    return {"number": number, "most": [most, 0, 0, 0, 0, 0], "source": source, "ahead_ms": ahead_ms}


def decided(request_id, number="e", most=10, entry_id=b"1-1"):
    """An answer to a call that the actor decided, which says where the next ones are taken."""
    result = {"granted": True, "cost": 10, "escrow": escrow_of(number, most)}
    return an_answer(request_id, entry_id=entry_id, result=result)


class TestTaking:
    """A line that knows where calls are taken does so first."""

    @staticmethod
    def ask(line, call=A_CALL, timeout_s=5.0, keys=HERE):
        return line.ask(Request(question, None, call), keys, Deadline.after(timeout_s))

    def test_what_an_answer_says_of_it_is_not_shown(self):
        assert self.ask(Line(Script([decided("1")]), "c")) == {"granted": True, "cost": 10}

    def test_a_call_is_taken_in_one_exchange(self):
        script = Script([decided("1")], [4, b"77-0"])
        line = Line(script, "c")
        self.ask(line)
        assert self.ask(line) == {
            "granted": True, "cost": 10, "reservation": "c:2", "expires_ms": 60_082, "drawn": "e",
        }  # fmt: skip
        assert script.taken == [AddToField(key=HERE.escrow, field=b"e", amount=-1), question(HERE, "c", "2", "e")]
        assert line.hints.last_drawn(0) == b"77-0"
        assert line.hints.last_drawn(1) is None

    def test_when_there_is_none_left_the_answer_is_waited_for_and_it_is_forgotten(self):
        late = an_answer("2", entry_id=b"1-2", result={"granted": True})
        script = Script([decided("1")], [-1, b"77-0"], [late], [an_answer("3", entry_id=b"1-3")])
        line = Line(script, "c")
        self.ask(line)
        assert self.ask(line) == {"granted": True}
        assert [append is not None for append, *_ in script.asked] == [True, False]
        self.ask(line)
        assert script.steps == []

    def test_when_it_breaks_it_is_asked_for_under_the_same_id_and_all_is_forgotten(self):
        script = Script([decided("1")], ServerUnavailable("gone"), [an_answer("2", entry_id=b"1-2", result={"n": 2})])
        line = Line(script, "c")
        self.ask(line)
        assert self.ask(line) == {"n": 2}
        assert script.asked[-1][0] == question(HERE, "c", "2")
        assert line.hints.find(line.connection, HERE, A_CALL) is None

    @pytest.mark.parametrize(
        "outcomes", [[ServerRefused("NOPERM hincrby"), ServerRefused("EXECABORT")], [3, ServerRefused("OOM")]]
    )
    def test_after_a_refusal_the_actor_is_asked_and_nothing_is_taken_for_a_while(self, outcomes):
        answers = [[decided(name, entry_id=b"1-%d" % place)] for place, name in enumerate(("2", "3"), 2)]
        line = Line(Script([decided("1")], outcomes, *answers), "c")
        self.ask(line)
        assert self.ask(line) == {"granted": True, "cost": 10}
        assert self.ask(line) == {"granted": True, "cost": 10}

    def test_what_was_learned_of_another_connection_is_forgotten(self):
        script = Script([decided("1")], [an_answer("2", entry_id=b"1-2")])
        line = Line(script, "c")
        self.ask(line)
        script.breaks += 1
        assert self.ask(line) == {"epoch": 1}

    def test_one_that_may_have_been_taken_is_taken_back_at_the_deadline(self, monkeypatch):
        monkeypatch.setattr(lines, "ASK_AGAIN_MS", 1)
        for unsure in ([-1, b"77-0"], ServerUnavailable("gone")):
            script = Script([decided("1")], unsure, *[[] for _ in range(10_000)])
            line = Line(script, "c")
            self.ask(line)
            assert line.ask(Request(question, take_back, A_CALL), HERE, Deadline.after(0.01)) is None
            assert script.written == [take_back(HERE, "c", "2", "3")]

    def test_one_that_says_nothing_is_shown_as_what_it_holds(self):
        silent = Call(Estimate("a"), None, 60_000)
        decided = {"granted": True, "estimate": {"source": "learned", "tokens": 40}}
        answer = an_answer("1", result={**decided, "escrow": escrow_of(most=42, source="learned")})
        line = Line(Script([answer], [4, b"77-0"]), "c")
        assert self.ask(line, silent) == decided
        assert self.ask(line, silent)["estimate"] == {"source": "learned", "tokens": 42, "requests": 1}
        assert line.hints.find(line.connection, HERE, A_CALL) is None

    def test_a_cost_that_is_completed_is_shown(self):
        result = {"granted": True, "escrow": {**escrow_of(), "most": [10, 0, 0, 0, 0, 7]}}
        line = Line(Script([an_answer("1", result=result)], [4, b"77-0"]), "c")
        self.ask(line)
        other = A_CALL._replace(estimate=Estimate("a", 9), measures=measures_of(Estimate("a", 9)))
        assert self.ask(line, other)["estimate"] == {
            "source": "given", "tokens": 9, "cost_nanousd": 7, "requests": 1,
        }  # fmt: skip

    def test_a_counter_that_is_none_is_no_grant(self):
        script = Script([decided("1")], [ServerRefused("WRONGTYPE"), b"77-0"], [an_answer("2", entry_id=b"1-2")])
        line = Line(script, "c")
        self.ask(line)
        assert self.ask(line) == {"epoch": 1}

    def test_without_time_nothing_is_taken(self):
        line = Line(Script([decided("1")]), "c")
        self.ask(line)
        assert self.ask(line, timeout_s=0) is None

    def test_another_partition_has_others(self):
        line = Line(Script([decided("1")], [an_answer("2")]), "c")
        self.ask(line)
        assert self.ask(line, keys=THERE) == {"epoch": 1}

    def test_of_a_refusal_nothing_is_learned(self):
        refused = an_answer("1", result={"granted": False, "escrow": escrow_of()})
        line = Line(Script([refused]), "c")
        assert self.ask(line) == {"granted": False}
        assert line.hints.find(line.connection, HERE, A_CALL) is None

    def test_the_oldest_are_forgotten(self, monkeypatch):
        monkeypatch.setattr(drawing, "HINTS_MAX", 1)
        line = Line(Script([decided("1")], [decided("2", entry_id=b"1-2")]), "c")
        other = A_CALL._replace(estimate=Estimate("b", 10))
        self.ask(line)
        self.ask(line, other)
        assert line.hints.find(line.connection, HERE, A_CALL) is None
        assert line.hints.find(line.connection, HERE, other) is not None

    def test_a_call_taken_long_ago_needs_not_be_waited_for(self, monkeypatch):
        monkeypatch.setattr(drawing, "DRAWN_S", 0.0)
        line = Line(Script([decided("1")], [4, b"77-0"]), "c")
        self.ask(line)
        self.ask(line)
        assert line.hints.last_drawn(0) is None


class TestAnswers:
    def test_the_answer_to_the_question_is_returned(self):
        line = Line(Script([an_answer("1", result={"n": 7})]), "c")
        assert ask(line) == {"n": 7}

    def test_each_question_has_a_new_id(self):
        script = Script([an_answer("1")], [an_answer("2", entry_id=b"1-2")])
        line = Line(script, "c")
        ask(line)
        ask(line)
        assert [append.fields[1] for append, *_ in script.asked] == [b"1", b"2"]

    def test_the_inbox_is_read_from_where_the_last_answer_ended(self):
        script = Script([an_answer("1", entry_id=b"7-3")], [an_answer("2", entry_id=b"7-4")])
        line = Line(script, "c")
        ask(line)
        ask(line)
        assert [after for _, _, after, _ in script.asked] == [FIRST, b"7-3"]

    def test_an_answer_to_an_earlier_question_is_skipped(self):
        script = Script([an_answer("0"), an_answer("1", entry_id=b"1-2", result={"right": 1})])
        assert ask(Line(script, "c")) == {"right": 1}

    def test_after_a_late_answer_the_line_goes_on_waiting_for_its_own(self):
        script = Script([an_answer("0")], [an_answer("1", entry_id=b"1-2", result={"right": 1})])
        assert ask(Line(script, "c")) == {"right": 1}
        assert [append is not None for append, *_ in script.asked] == [True, False]
        assert script.asked[1][2] == b"1-1"

    def test_an_answer_of_an_older_epoch_is_ignored(self):
        script = Script(
            [an_answer("1", epoch=5)],
            [an_answer("2", epoch=4, entry_id=b"2-1"), an_answer("2", epoch=5, entry_id=b"2-2", result={"of": 5})],
        )
        line = Line(script, "c")
        ask(line)
        assert ask(line) == {"of": 5}

    def test_the_newest_of_two_answers_is_taken(self):
        script = Script([an_answer("1", epoch=4), an_answer("1", epoch=5, entry_id=b"1-2", result={"of": 5})])
        assert ask(Line(script, "c")) == {"of": 5}

    def test_what_is_wrong_with_a_question_is_raised(self):
        problem = InvalidQuestion("group_by", "is odd", reason="type")
        line = Line(Script([an_answer("1", problem=problem)]), "c")
        with pytest.raises(InvalidQuestion) as wrong:
            ask(line)
        assert (wrong.value.field, wrong.value.problem, wrong.value.reason) == ("group_by", "is odd", "type")

    def test_ids_and_epochs_of_one_partition_mean_nothing_in_another(self):
        script = Script([an_answer("1", epoch=9, entry_id=b"9-9")], [an_answer("2", epoch=1, entry_id=b"3-1")])
        line = Line(script, "c")
        ask(line)
        assert ask(line, keys=THERE) == {"epoch": 1}
        assert script.asked[1][2] == FIRST


class TestTime:
    def test_without_an_answer_it_returns_nothing_at_the_deadline(self):
        server = MemoryServer()
        line = Line(server.connect(), "c")
        waited_s = elapsed_s(lambda: ask(line, 0.1))
        assert 0.1 <= waited_s < 0.1 + SLACK_S

    def test_a_deadline_that_has_passed_asks_nobody(self):
        script = Script()
        assert ask(Line(script, "c"), 0) is None
        assert script.asked == []

    def test_a_wait_is_never_longer_than_what_is_left(self):
        script = Script([an_answer("1")])
        ask(Line(script, "c"), 0.5)
        assert 0 < script.asked[0][3] <= 500

    def test_a_question_that_nobody_answers_is_asked_again_with_the_same_id(self, monkeypatch):
        monkeypatch.setattr("token_actor.client.lines.ASK_AGAIN_MS", 5)
        script = Script([an_answer("0")], [], [an_answer("1", entry_id=b"1-2")])
        script.read = lambda after, *, count, block_ms: time.sleep(block_ms / 1000) or {}
        script.steps.pop(1)
        assert ask(Line(script, "c")) == {"epoch": 1}
        assert [append.fields[1] for append, *_ in script.asked] == [b"1", b"1"]


class TestALostConnection:
    def test_the_question_is_asked_again(self):
        script = Script(ServerUnavailable("gone"), [an_answer("1", result={"n": 1})])
        assert ask(Line(script, "c")) == {"n": 1}
        assert [append.fields[1] for append, *_ in script.asked] == [b"1", b"1"]

    def test_at_the_deadline_the_loss_is_raised(self):
        script = Script(*[ServerUnavailable("gone")] * 10)
        with pytest.raises(ServerUnavailable):
            ask(Line(script, "c"), 0.12)
        assert len(script.asked) in {2, 3}

    def test_a_refusal_is_raised_at_once(self):
        with pytest.raises(ServerRefused):
            ask(Line(Script(ServerRefused("NOPERM no")), "c"))

    def test_a_server_that_lost_its_memory_is_believed(self):
        script = Script(
            [an_answer("1", epoch=7, entry_id=b"9-1")],
            ServerUnavailable("gone"),
            [an_answer("2", epoch=1, entry_id=b"3-1", result={"of": 1})],
        )
        line = Line(script, "c")
        ask(line)
        assert ask(line) == {"of": 1}
        assert [after for _, _, after, _ in script.asked] == [FIRST, b"9-1", FIRST]


class TestThePool:
    @pytest.fixture
    def pool(self):
        return LinePool(MemoryServer(), client="c", lines_max=2)

    def test_a_line_is_used_again(self, pool):
        names = []
        for _ in range(3):
            with pool.line(Deadline.after(1)) as line:
                names.append(line.name)
        assert names == ["c-1", "c-1", "c-1"]

    def test_lines_in_use_have_names_of_their_own(self, pool):
        with pool.line(Deadline.after(1)) as one, pool.line(Deadline.after(1)) as other:
            assert {one.name, other.name} == {"c-1", "c-2"}

    def test_when_all_lines_are_busy_it_says_so_at_the_deadline(self, pool):
        with pool.line(Deadline.after(1)), pool.line(Deadline.after(1)):
            start_s = time.monotonic()
            with pytest.raises(ActorUnavailable, match="^all 2 lines .* raise lines_max or ask less often$") as busy:
                borrow(pool, 0.1)
            assert 0.1 <= time.monotonic() - start_s < 0.1 + SLACK_S
            assert busy.value.timeout_s == 0.1

    def test_who_gave_up_waiting_is_not_handed_a_line(self, pool):
        with pool.line(Deadline.after(1)), pool.line(Deadline.after(1)), pytest.raises(ActorUnavailable):
            borrow(pool, 0)
        with pool.line(Deadline.after(0)) as one, pool.line(Deadline.after(0)) as other:
            assert {one.name, other.name} == {"c-1", "c-2"}

    def test_a_line_goes_to_who_has_waited_longest(self):
        pool = LinePool(MemoryServer(), client="c", lines_max=1)
        order = []

        def use(name):
            with pool.line(Deadline.after(10)):
                order.append(name)

        with pool.line(Deadline.after(1)):
            threads = []
            for name in ("first", "second", "third"):
                threads.append(threading.Thread(target=use, args=(name,)))
                threads[-1].start()
                wait_until(lambda n=len(threads): len(pool._queue) == n)  # noqa: B008 - the number as it is now
        use("last")  # at once, but behind those who wait
        for thread in threads:
            thread.join()
        assert order == ["first", "second", "third", "last"]

    def test_a_line_comes_back_after_a_failure(self, pool):
        with pytest.raises(RuntimeError), pool.line(Deadline.after(1)):
            raise RuntimeError
        with pool.line(Deadline.after(1)) as line:
            assert line.name == "c-1"

    def test_a_server_that_cannot_be_connected_to_costs_no_line(self):
        class Unreachable:
            address = "nowhere"

            def connect(self):
                raise ServerUnavailable("nowhere")

        pool = LinePool(Unreachable(), client="c", lines_max=1)
        for _ in range(3):
            with pytest.raises(ServerUnavailable):
                borrow(pool, 1)

    def test_close_closes_what_is_free_now_and_what_is_busy_later(self):
        scripts = []

        class Connector:
            address = "here"

            def connect(self):
                scripts.append(Script())
                return scripts[-1]

        pool = LinePool(Connector(), client="c", lines_max=2)
        with pool.line(Deadline.after(1)):
            with pool.line(Deadline.after(1)):
                pass
            pool.close()
            assert [script.closed for script in scripts] == [False, True]
        assert [script.closed for script in scripts] == [True, True]

    def test_after_a_close_no_line_is_lent(self, pool):
        pool.close()
        with pytest.raises(ClosedError):
            borrow(pool, 1)

    def test_who_waits_for_a_line_learns_of_the_close(self, pool):
        problems = []

        def wait():
            try:
                borrow(pool, 30)
            except ClosedError as problem:
                problems.append(problem)

        with pool.line(Deadline.after(1)), pool.line(Deadline.after(1)):
            waiting = threading.Thread(target=wait)
            waiting.start()
            wait_until(lambda: pool._queue)
            pool.close()
            waiting.join()
        assert len(problems) == 1
