"""Whether the log on the server is still the one that was read."""

from __future__ import annotations

import pytest

from tests.actor.conftest import Recorder
from token_actor.actor import continuity
from token_actor.actor.continuity import Break, Trail, entries_from, find_break
from token_actor.actor.manifests import Position
from token_actor.transport.ports import FIRST, Delete, DeleteEntries, TrimBelow

REPLACED = Break(replaced=True)


@pytest.fixture
def look(stage):
    """Return a function that compares the log with what was read."""
    return lambda offset, entries: find_break(
        stage.connection, stage.keys.log, Position(offset=offset, entries=entries)
    )


@pytest.fixture
def ten(stage):
    """Ten entries in the log."""
    return [stage.add(b"%d-0" % n, b"j", b"{}") for n in range(1, 11)]


def delete(stage, *ids):
    stage.connection.write([DeleteEntries(key=stage.keys.log, entry_ids=list(ids))])


def trim(stage, below):
    stage.connection.write([TrimBelow(key=stage.keys.log, entry_id=below)])


class TestALogThatGoesOn:
    def test_no_log_and_nothing_read(self, look):
        assert look(FIRST, 0) is None

    def test_nothing_read_of_a_log(self, look, ten):
        assert look(FIRST, 0) is None

    @pytest.mark.parametrize("read", [1, 5, 10])
    def test_some_of_it_read(self, look, ten, read):
        assert look(ten[read - 1], read) is None

    @pytest.mark.parametrize("below", [3, 6, 7])
    def test_trimmed_up_to_what_was_read(self, stage, look, ten, below):
        trim(stage, b"%d-0" % below)
        assert look(ten[5], 6) is None

    def test_trimmed_to_nothing_after_it_was_read(self, stage, look, ten):
        trim(stage, b"11-0")
        assert look(ten[-1], 10) is None

    def test_entries_deleted_after_they_were_read(self, stage, look, ten):
        delete(stage, ten[2], ten[4])
        assert look(ten[5], 6) is None
        assert look(ten[9], 10) is None

    def test_its_last_entry_deleted_after_it_was_read(self, stage, look, ten):
        delete(stage, ten[9])
        assert look(ten[9], 10) is None

    def test_an_entry_in_its_middle_deleted_before_it_was_read_is_not_noticed_until_the_end(self, stage, look, ten):
        delete(stage, ten[7])
        assert look(ten[5], 6) is None
        assert look(ten[9], 9) == Break(replaced=False, lost=1, offset=ten[9])


class TestALogThatLostEntries:
    def test_trimmed_before_anything_was_read(self, stage, look, ten):
        trim(stage, b"4-0")
        assert look(FIRST, 0) == Break(replaced=False, lost=3)

    def test_trimmed_further_than_was_read(self, stage, look, ten):
        trim(stage, b"9-0")
        assert look(ten[4], 5) == Break(replaced=False, lost=3)

    def test_trimmed_to_nothing_before_it_was_read_says_where_it_ended(self, stage, look, ten):
        trim(stage, b"11-0")
        assert look(ten[4], 5) == Break(replaced=False, lost=5, offset=ten[9])

    def test_its_end_deleted_before_it_was_read_says_where_it_ended(self, stage, look, ten):
        delete(stage, *ten[7:])
        assert look(ten[6], 7) == Break(replaced=False, lost=3, offset=ten[9])


class TestALogThatWasReplaced:
    def test_it_is_gone(self, stage, look, ten):
        stage.connection.write([Delete(keys=[stage.keys.log])])
        assert look(ten[4], 5) == REPLACED

    def test_it_ends_before_what_was_read(self, stage, look, ten):
        stage.replace_log(stage.log_entries()[:4])
        assert look(ten[4], 5) == REPLACED

    def test_it_ends_before_what_was_read_and_has_nothing_in_common(self, stage, look, ten):
        stage.replace_log([(b"2-5", [b"j", b"{}"])])
        assert look(ten[4], 5) == REPLACED

    def test_it_has_fewer_entries(self, stage, look, ten):
        stage.replace_log([(b"20-%d" % n, [b"j", b"{}"]) for n in range(4)])
        assert look(ten[4], 5) == REPLACED

    def test_it_has_as_many_entries_of_later_times(self, stage, look, ten):
        stage.replace_log([(b"20-%d" % n, [b"j", b"{}"]) for n in range(5)])
        assert look(ten[4], 5) == REPLACED

    def test_it_lacks_the_entry_that_was_read_last(self, stage, look, ten):
        stage.replace_log([entry for entry in stage.log_entries() if entry[0] != ten[4]])
        assert look(ten[4], 5) == REPLACED

    def test_it_has_the_entry_that_was_read_last_and_fewer_before_it(self, stage, look, ten):
        stage.replace_log(stage.log_entries()[3:6])
        assert look(ten[4], 5) == REPLACED

    @pytest.mark.parametrize("more", [[], [(b"11-0", [b"j", b"{}"])]])
    @pytest.mark.parametrize("place", [6, 8, 9])
    def test_it_has_another_entry_under_an_id_that_was_read_last(self, stage, ten, more, place):
        before = stage.log_entries()
        position = Position(offset=ten[-1], entries=10)
        stage.replace_log([*before[:place], (ten[place], [b"j", b"[]"]), *before[place + 1 :], *more])
        assert find_break(stage.connection, stage.keys.log, position, before[-4:]) == REPLACED
        assert find_break(stage.connection, stage.keys.log, position) is None

    def test_it_has_another_entry_where_the_last_ones_were_when_it_was_looked_at_before(self, stage, ten):
        log = stage.log_entries()
        position = Position(offset=ten[-1], entries=10)
        stage.replace_log([*log[:3], (ten[3], [b"j", b"[]"]), *log[4:]])
        assert find_break(stage.connection, stage.keys.log, position, log[-2:], log[2:5]) == REPLACED
        assert find_break(stage.connection, stage.keys.log, position, log[-2:], log[4:6]) is None

    def test_one_of_those_that_were_read_last_deleted_since_is_none(self, stage, ten):
        before = stage.log_entries()
        delete(stage, ten[7])
        assert find_break(stage.connection, stage.keys.log, Position(offset=ten[-1], entries=10), before[-4:]) is None


class TestTheTrail:
    def trail(self, stage, *reads):
        """Return a trail of reads that were confirmed, each so many entries long, and an unconfirmed one."""
        trail = Trail()
        entries = stage.log_entries()
        after = FIRST
        for count in reads:
            read, entries = entries[:count], entries[count:]
            trail.add(after, read)
            after = read[-1][0]
        trail.confirm()
        return trail

    def test_of_nothing_read_nothing_is_in_common(self, stage):
        assert Trail().common(stage.connection, stage.keys.log) == (None, set())

    def test_with_a_log_that_is_gone_nothing_is_in_common(self, stage, ten):
        trail = self.trail(stage, 4, 4, 2)
        stage.connection.write([Delete(keys=[stage.keys.log])])
        assert trail.common(stage.connection, stage.keys.log) == (None, set())

    def test_of_a_log_that_is_whole_the_last_read_is_known(self, stage, ten):
        trail = self.trail(stage, 4, 4, 2)
        assert trail.common(stage.connection, stage.keys.log) == (ten[7], set(ten[8:]))

    @pytest.mark.parametrize(("left", "begins", "known"), [(9, 7, 8), (8, 7, 8), (7, 3, 4), (4, 3, 4)])
    def test_of_a_log_that_lost_its_end_it_finds_the_last_read_that_began_in_it(self, stage, ten, left, begins, known):
        trail = self.trail(stage, 4, 4, 2)
        stage.replace_log(stage.log_entries()[:left])
        assert trail.common(stage.connection, stage.keys.log) == (ten[begins], set(ten[known:]))

    def test_the_very_first_read_began_with_its_first_entry(self, stage, ten):
        trail = self.trail(stage, 4, 4, 2)
        stage.replace_log(stage.log_entries()[:2])
        assert trail.common(stage.connection, stage.keys.log) == (FIRST, set(ten))

    def test_reads_that_began_in_what_was_trimmed_prove_nothing(self, stage, ten):
        trail = self.trail(stage, 4, 4, 2)
        entries = stage.log_entries()
        stage.replace_log(entries[5:7])
        assert trail.common(stage.connection, stage.keys.log) == (None, set())
        stage.replace_log(entries[5:])
        assert trail.common(stage.connection, stage.keys.log) == (ten[7], set(ten[8:]))

    def test_a_read_that_may_be_of_the_new_log_is_known_but_proves_nothing(self, stage, ten):
        trail = self.trail(stage, 4, 4, 2)
        old = stage.log_entries()
        stage.replace_log([*old[:3], (b"5-5", [b"j", b"{}"]), (b"20-0", [b"j", b"{}"]), (b"21-0", [b"j", b"{}"])])
        trail.add(ten[-1], stage.log_entries()[4:5])
        trail.add(b"20-0", stage.log_entries()[5:6])
        assert trail.common(stage.connection, stage.keys.log) == (FIRST, {*ten, b"20-0", b"21-0"})

    def test_with_nothing_else_in_common_what_was_just_read_is_known(self, stage, ten):
        trail = self.trail(stage, 10)
        stage.replace_log([(b"20-0", [b"j", b"{}"])])
        trail.add(ten[-1], stage.log_entries())
        assert trail.common(stage.connection, stage.keys.log) == (None, {b"20-0"})

    def test_it_looks_for_it_in_few_steps(self, stage):
        for n in range(1, 201):
            stage.add(b"%d-0" % n, b"j", b"{}")
        trail = self.trail(stage, *[1] * 200)
        stage.replace_log(stage.log_entries()[:57])
        recorder = Recorder(stage.connection)
        assert trail.common(recorder, stage.keys.log)[0] == b"57-0"
        assert recorder.calls.count("range") <= 8

    def test_it_is_bounded(self, stage, monkeypatch, ten):
        monkeypatch.setattr(continuity, "TRAIL_ENTRIES_MAX", 5)
        trail = self.trail(stage, 2, 2, 2, 2, 2)
        entries = stage.log_entries()
        stage.replace_log(entries[:7])
        assert trail.common(stage.connection, stage.keys.log) == (ten[5], set(ten[6:]))
        stage.replace_log(entries[:3])
        assert trail.common(stage.connection, stage.keys.log) == (None, set())

    def test_reads_that_were_forgotten_before_they_were_confirmed_are_gone(self, stage, monkeypatch, ten):
        monkeypatch.setattr(continuity, "TRAIL_ENTRIES_MAX", 1)
        trail = Trail()
        for before, entry in zip([FIRST, *ten], stage.log_entries(), strict=False):
            trail.add(before, [entry])
        assert trail.common(stage.connection, stage.keys.log) == (None, {ten[-2], ten[-1]})


class TestReadingOnwards:
    def test_it_yields_what_lies_between_read_by_read(self, stage, monkeypatch, ten):
        monkeypatch.setattr(continuity, "ENTRIES_PER_READ", 3)
        reads = list(entries_from(stage.connection, stage.keys.log, ten[1], ten[8]))
        assert [[entry_id for entry_id, _ in read] for read in reads] == [ten[2:5], ten[5:8], [ten[8]]]

    def test_of_no_log_it_yields_nothing(self, stage):
        assert list(entries_from(stage.connection, stage.keys.log, FIRST, FIRST)) == []
