"""Processes that are to train together meet first: who does not come, and who runs other versions, is named."""

from __future__ import annotations

import contextlib
import json
import platform
import socket
import time
from collections.abc import Iterator
from importlib import metadata
from typing import Any

from keras_tfm.ops.backend import NAME

GRACE = 5.0  # seconds longer that a process which has reached the first waits for its word: both count from their start
VERSIONS = ("keras", *(("jax", "jaxlib") if NAME == "jax" else (NAME,)), "keras_tfm")


def meet(coordinator: str, count: int, index: int, timeout: float) -> None:
    """Wait until all processes are there. The first listens at the coordinator's port, which is free again afterwards.

    Args:
        coordinator: "host:port" of the first process.
        count: How many there are.
        index: Which one this is.
        timeout: Seconds to wait.

    Raises:
        TimeoutError: when the time is up, naming who is missing. A process that has not reached the first names it.
            One that has waits up to 5 s longer, for the first may have started its time later.
        ValueError: if versions differ, or two processes have the same index.
        OSError: if the port is taken.
    """
    host, _, port = coordinator.rpartition(":")
    end = time.monotonic() + timeout
    me = {"index": index, "count": count, "host": socket.gethostname(), "versions": versions()}
    if index == 0:
        verdict = _receive(int(port), me, end, timeout)
    else:
        verdict = _visit(host, int(port), me, end, timeout)
    if verdict:
        raise ValueError(verdict)


def versions() -> dict[str, str]:
    """Of what all processes must have the same."""
    found = {"Python": ".".join(platform.python_version_tuple()[:2])}
    for name in VERSIONS:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def _receive(port: int, me: dict[str, Any], end: float, timeout: float) -> str | None:
    """As the first: hear from all others, then tell them what is wrong, or nothing."""
    here: dict[int, dict[str, Any]] = {0: me}
    guests: list[socket.socket] = []
    verdict, is_late = None, False
    with socket.create_server(("", port), backlog=me["count"]) as server, contextlib.ExitStack() as stack:
        while len(here) < me["count"] and verdict is None:
            left = end - time.monotonic()
            missing = [place for place in range(me["count"]) if place not in here]
            if left <= 0:
                there = ", ".join(f"{place} ({it['host']})" for place, it in sorted(here.items()))
                verdict = f"Processes {missing} of {me['count']} have not come within {timeout:g} s; here are {there}."
                is_late = True
                break
            server.settimeout(left)
            try:
                guest, _ = server.accept()
            except TimeoutError:
                continue
            stack.enter_context(guest)
            guest.settimeout(5)
            try:
                it = json.loads(_line(guest))
                place = it["index"]
            except (OSError, ValueError, KeyError, TypeError):
                continue  # somebody else's connection
            guests.append(guest)
            verdict = _compared(me, it, here)
            here.setdefault(place, it)
        for guest in guests:
            with contextlib.suppress(OSError):
                guest.sendall(json.dumps({"verdict": verdict, "is_late": is_late}).encode() + b"\n")
                guest.shutdown(socket.SHUT_WR)
                _line(guest)  # the guest closes first, so that the port is free at once
    if verdict and is_late:
        raise TimeoutError(verdict)
    return verdict


def _compared(me: dict[str, Any], it: dict[str, Any], here: dict[int, dict[str, Any]]) -> str | None:
    place, host = it["index"], it["host"]
    if place in here:
        return f"Two processes have the index {place}: on {here[place]['host']} and on {host}."
    if it["count"] != me["count"]:
        return f"Process 0 is of {me['count']}, process {place} on {host} of {it['count']}."
    for name, version in me["versions"].items():
        theirs = it["versions"].get(name)
        if theirs != version:
            return f"Process 0 on {me['host']} runs {name} {version}, process {place} on {host} {theirs}."
    return None


def _visit(host: str, port: int, me: dict[str, Any], end: float, timeout: float) -> str | None:
    """As another: tell the first who this is, and wait for its word."""
    error: Exception | None = None
    for _ in _until(end):
        try:
            with socket.create_connection((host, port), timeout=max(end - time.monotonic(), 0.1)) as connection:
                connection.sendall(json.dumps(me).encode() + b"\n")
                connection.settimeout(max(end - time.monotonic(), 0) + GRACE)
                answer = json.loads(_line(connection))
        except (OSError, ValueError) as failure:
            error = failure
            continue
        if answer["is_late"]:
            raise TimeoutError(answer["verdict"])
        return answer["verdict"]
    raise TimeoutError(
        f"Process 0 at {host}:{port} has not answered process {me['index']} on {me['host']} within {timeout:g} s ({error})."
    )


def _until(end: float) -> Iterator[None]:
    """Turns, a little apart, until the time is up."""
    while True:
        yield
        if time.monotonic() >= end:
            return
        time.sleep(min(0.2, max(end - time.monotonic(), 0)))


def _line(connection: socket.socket) -> str:
    data = b""
    while not data.endswith(b"\n"):
        part = connection.recv(65536)
        if not part:
            break
        data += part
        if len(data) > 1_000_000:
            raise ValueError("too long")
    return data.decode()
