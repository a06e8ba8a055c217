"""CPython's test cases for an event loop (`test.test_asyncio`), on a RingLoop.

RUN names the classes whose cases run, every one of them. The others are in LEFT_OUT, each alone or with the rest of its
module, and why; what neither names, since a later Python brought it, is reported as skipped.
"""

from __future__ import annotations

import importlib
import pkgutil

import pytest

from tests.engines.ring import cpython_cases as cpython

if not cpython.installed():
    pytest.skip(cpython.MISSING, allow_module_level=True)

PACKAGE = "test.test_asyncio"

# By module. Not every Python has every class: a later one may have brought it.
RUN = {
    "test_base_events": ["BaseEventLoopWithSelectorTests", "RunningLoopTests"],
    "test_buffered_proto": ["BufferedProtocolSelectorTests"],
    "test_events": ["EPollEventLoopTests", "TestServer", "UnixPipeObjectSupportTests"],
    "test_sendfile": ["EPollEventLoopTests"],
    "test_server": ["SelectorStartServerTests", "TestServer2", "UnixServerCleanupTests"],
    "test_sock_lowlevel": ["EPollEventLoopTests"],
    "test_ssl": ["TestSSL"],
    "test_streams": ["StreamTests"],
    "test_subprocess": ["SubprocessPidfdWatcherTests", "GenericWatcherTests"],
    "test_tasks": ["RunCoroutineThreadsafeTests", "SleepTests"],
    "test_threads": ["ToThreadTests"],
    "test_timeouts": ["TimeoutTests"],
    "test_unix_events": [
        "SelectorEventLoopUnixSocketTests", "SelectorEventLoopUnixSockSendfileTests", "TestFork", "TestFunctional",
    ],
    "test_waitfor": ["AsyncioWaitForTest", "WaitForShieldTests"],
}  # fmt: skip

SAME = "the cases of EPollEventLoopTests with another selector, which a RingLoop has no use for"
NO_LOOP = "runs no loop"
MOCKED = "runs no loop, or one whose selector is a mock"
PROACTOR = "the event loop of Windows"
ABOVE = "needs of its loop what TimeoutTests and AsyncioWaitForTest need: callbacks and timers"
POLICY = "about which loop a thread has, whatever loop it is"
GRAPH = "about which task waits for which, whatever loop they run on"
WATCHER = "another way to hear of the end of a child than pidfd, which is the one that registers a descriptor"

LEFT_OUT = {
    "test_base_events": MOCKED,
    "test_buffered_proto.BufferedProtocolProactorTests": PROACTOR,
    "test_context": ABOVE,
    "test_eager_task_factory": ABOVE,
    "test_events.AbstractEventLoopTests": NO_LOOP,
    "test_events.HandleTests": NO_LOOP,
    "test_events.PolicyTests": POLICY,
    "test_events.PollEventLoopTests": SAME,
    "test_events.SelectEventLoopTests": SAME,
    "test_events.TestAbstractServer": NO_LOOP,
    "test_events.TestCGetEventLoop": POLICY,
    "test_events.TestPyGetEventLoop": POLICY,
    "test_events.TimerTests": NO_LOOP,
    "test_free_threading": ABOVE,
    "test_futures": MOCKED,
    "test_futures2": ABOVE,
    "test_graph": GRAPH,
    "test_locks": ABOVE,
    "test_pep492": MOCKED,
    "test_proactor_events": PROACTOR,
    "test_protocols": NO_LOOP,
    "test_queues": ABOVE,
    "test_runners": MOCKED,
    "test_selector_events": MOCKED,
    "test_sendfile.PollEventLoopTests": SAME,
    "test_sendfile.SelectEventLoopTests": SAME,
    "test_server.ProactorStartServerTests": PROACTOR,
    "test_sock_lowlevel.PollEventLoopTests": SAME,
    "test_sock_lowlevel.SelectEventLoopTests": SAME,
    "test_sslproto": "TLS on a loop, five seconds of it; TestSSL has its share",
    "test_staggered": ABOVE,
    "test_subprocess.MultiLoopChildWatcherTests": WATCHER,
    "test_subprocess.SubprocessFastWatcherTests": WATCHER,
    "test_subprocess.SubprocessMultiLoopWatcherTests": WATCHER,
    "test_subprocess.SubprocessSafeWatcherTests": WATCHER,
    "test_subprocess.SubprocessThreadedWatcherTests": WATCHER,
    "test_subprocess.SubprocessTransportTests": MOCKED,
    "test_taskgroups": ABOVE,
    "test_tasks": ABOVE,
    "test_tools": NO_LOOP,
    "test_transports": NO_LOOP,
    "test_unix_events": MOCKED,
    "test_windows_events": PROACTOR,
    "test_windows_utils": PROACTOR,
}


def chosen() -> tuple[dict[str, tuple[str, ...]], list[str]]:
    """The cases to run, by module; and the classes and modules that are in neither table."""
    names, unknown = {}, []
    for module in (found.name for found in pkgutil.iter_modules(importlib.import_module(PACKAGE).__path__)):
        if module in RUN:
            classes = cpython.classes(f"{PACKAGE}.{module}")
            names[module] = tuple(
                f"{name}.{case}" for name in RUN[module] if name in classes for case in cpython.cases(classes[name])
            )
            others = [f"{module}.{name}" for name in classes if name not in RUN[module]]
        else:
            others = [module] if module.startswith("test_") else []
        unknown += [name for name in others if name not in LEFT_OUT and module not in LEFT_OUT]
    return names, unknown


NAMES, UNKNOWN = chosen()


@pytest.mark.parametrize(
    ("module", "name"),
    [pytest.param(module, name, id=f"{module}.{name}") for module, names in NAMES.items() for name in names],
)
def test_case_of_cpython_passes(module: str, name: str) -> None:
    cpython.check(f"{PACKAGE}.{module}", NAMES[module], name)


@pytest.mark.parametrize("module", RUN)
def test_the_cases_run_on_a_ring(module: str) -> None:
    """Not each of them, but some of each class."""
    for cls in {name.split(".")[0] for name in NAMES[module]}:
        assert cpython.turns(f"{PACKAGE}.{module}", NAMES[module], cls), cls


def test_every_class_of_cpython_runs_or_is_left_out_for_a_reason() -> None:
    if UNKNOWN:
        pytest.skip(f"new in this Python, not in RUN and not in LEFT_OUT: {', '.join(UNKNOWN)}")
