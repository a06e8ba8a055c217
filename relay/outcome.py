"""The outcomes of connections: each connection has exactly one, with HAProxy's two-letter termination state beside it.

The state is that of section 8.5 of HAProxy's configuration manual ("Stream state at disconnection"). The first letter
says who ended the connection: C client, S server, P the proxy's own policy, R a resource of the proxy ran out,
I internal, K killed by an operator, c and s a timeout on the client's or the server's side. The second letter is the
phase: R before any upstream was chosen, Q in the dial queue, C while connecting, D while data flowed, - normal
completion.

This module only defines outcomes; `worker.connection.transitions` decides which one applies, and
`worker.connection.accounting` counts them.
"""

from __future__ import annotations

import enum
import errno


class Outcome(enum.Enum):
    """One way in which a connection ends. `label` is its name in metrics and logs, `state` HAProxy's two letters."""

    label: str
    state: str
    early: bool  # the connection ended before an upstream was chosen
    index: int  # position in a worker's counters; stable within one process tree, not across versions

    # Both sides ended, and everything was delivered.
    OK = ("ok", "--")
    # Refused before an upstream was dialled.
    # access.allow does not have the client's address, or access.deny does; or it is no customer's, where there are
    # customers, or a customer's who may not use the listener.
    REFUSED_ACCESS = ("refused_access", "PR")
    REFUSED_INSTANCE = ("refused_instance", "PR")  # limits.max_connections reached
    REFUSED_LISTENER = ("refused_listener", "PR")  # listeners.max_connections reached
    REFUSED_SOURCE = ("refused_source", "PR")  # limits.max_connections_per_source reached
    REFUSED_SOURCE_RATE = ("refused_source_rate", "PR")  # limits.connect_rate_per_source used up
    REFUSED_CUSTOMER = ("refused_customer", "PR")  # customers.max_connections reached
    REFUSED_CUSTOMER_RATE = ("refused_customer_rate", "PR")  # customers.connect_rate used up
    REFUSED_ACCEPT_RATE = ("refused_accept_rate", "PR")  # limits.accept_rate used up
    REFUSED_CAPACITY = ("refused_capacity", "RR")  # this worker has no descriptors left for one more
    # Refused for the preread bytes, on listeners with `sni` or `proxy_protocol`.
    REFUSED_PROXY = (
        "refused_proxy",
        "PR",
    )  # no PROXY header where one is required, a malformed one, or one of a sender not trusted
    REFUSED_TLS = ("refused_tls", "PR")  # no TLS, or no proper hello
    REFUSED_SNI = ("refused_sni", "PR")  # a hello without a server name, or with one that is not let through
    CLIENT_HELLO_TIMEOUT = ("client_hello_timeout", "cR")  # no complete PROXY header and hello in timeouts.client_hello
    CLIENT_HELLO_ABORT = ("client_hello_abort", "CR")  # the client went away before they were complete
    # Never connected.
    DIAL_QUEUE_FULL = ("dial_queue_full", "PQ")  # dial.queue connections wait for dial.rate already
    DIAL_QUEUE_TIMEOUT = ("dial_queue_timeout", "sQ")  # the turn would come later than dial.queue_timeout allows
    RESOLVE_FAILED = ("resolve_failed", "SC")  # no address for the upstream's name, or all are barred
    DIAL_REFUSED = ("dial_refused", "SC")  # the last address tried answered with a reset
    # The last address tried did not answer in dial.connect_timeout, or dial.timeout ended with addresses left.
    DIAL_TIMEOUT = ("dial_timeout", "sC")
    DIAL_FAILED = ("dial_failed", "SC")  # any other error of connect(2): unreachable, denied, ...
    NO_RESOURCES = ("no_resources", "RC")  # no descriptor or memory for the upstream side
    NO_SOURCE_PORT = ("no_source_port", "RC")  # every local port towards the upstream is in use, or nearly
    CLIENT_ABORT = ("client_abort", "CC")  # the client reset the connection while the upstream was being dialled
    # Ended while data flowed.
    CLIENT_RESET = ("client_reset", "CD")
    UPSTREAM_RESET = ("upstream_reset", "SD")
    CLIENT_LOST = ("client_lost", "cD")  # no answer to keepalive probes, or to data for tcp.user_timeout
    UPSTREAM_LOST = ("upstream_lost", "sD")
    IDLE_TIMEOUT = ("idle_timeout", "cD")
    CLIENT_HALF_CLOSE_TIMEOUT = ("client_half_close_timeout", "cD")  # the upstream sent FIN, the client did not
    UPSTREAM_HALF_CLOSE_TIMEOUT = ("upstream_half_close_timeout", "sD")
    # Ended by the relay itself.
    SHUTDOWN = ("shutdown", "KD")  # the relay was told to stop
    SHUTDOWN_DIAL = ("shutdown_dial", "KC")
    DRAINED = ("drained", "KD")  # closed by a drain
    MAX_AGE = ("max_age", "KD")  # lived longer than timeouts.max_age
    WORKER_DIED = ("worker_died", "ID")  # accounted by the supervisor for a worker that died
    INTERNAL_ERROR = ("internal_error", "ID")  # a defect in the relay; the log has the traceback

    def __init__(self, label: str, state: str) -> None:
        self.label = label
        self.state = state
        self.index = len(self.__class__.__members__)
        self.early = state[1] == "R"


# Failures of a dial that are the upstream's fault; they are counted by address.
DIAL_FAILURES = (Outcome.DIAL_REFUSED, Outcome.DIAL_TIMEOUT, Outcome.DIAL_FAILED)

OUTCOMES: tuple[Outcome, ...] = tuple(Outcome)

# Outcomes that refuse a connection; customers' refusals are counted by them.
REFUSALS = tuple(outcome for outcome in OUTCOMES if outcome.label.startswith("refused_"))

# Outcomes of a failed dial, by the errno of socket(2) or connect(2). Any other errno is Outcome.DIAL_FAILED.
DIAL_OUTCOMES: dict[int, Outcome] = {
    errno.ECONNREFUSED: Outcome.DIAL_REFUSED,
    errno.ECONNRESET: Outcome.DIAL_REFUSED,
    errno.ETIMEDOUT: Outcome.DIAL_TIMEOUT,
    # The relay's own machine has run out of a resource.
    errno.EMFILE: Outcome.NO_RESOURCES,
    errno.ENFILE: Outcome.NO_RESOURCES,
    errno.ENOBUFS: Outcome.NO_RESOURCES,
    errno.ENOMEM: Outcome.NO_RESOURCES,
    errno.EAGAIN: Outcome.NO_RESOURCES,
    # connect(2): "all port numbers in the ephemeral port range are currently in use".
    errno.EADDRNOTAVAIL: Outcome.NO_SOURCE_PORT,
}

# Failures of a dial that are this machine's fault, not the upstream's.
OWN_FAULTS = frozenset({Outcome.NO_RESOURCES, Outcome.NO_SOURCE_PORT})
