"""Prefill on some replicas, decode on others, and the KV cache sent from one to the other.

A prompt is prefilled, and its first token generated, by a replica of the prefill pool; then its KV cache is sent to a
replica of the decode pool, which generates the rest (DistServe, Zhong et al., OSDI 2024; Splitwise, Patel et al., ISCA
2024). The transfer delays the second token and nothing else: it is after the first, and links are never crowded. A
preempted sequence is prefilled again where it decodes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from qplan.core.errors import InputError
from qplan.models.simulator.dispatch import Dispatch
from qplan.models.simulator.replica import Replica
from qplan.models.simulator.simulation import FleetUse, Simulation
from qplan.models.simulator.state import COMPLETION, Records
from qplan.models.simulator.traffic import Traffic

_FLIGHT = np.dtype(
    [
        ("row", np.int64),  # in the trace
        ("bucket", np.int64),
        ("place", np.int64),  # among the requests that the pool it is in was given
        ("arrival_s", np.float64),
        ("ttft_s", np.float64),
        ("ready_s", np.float64),
        ("input_tokens", np.int64),
        ("output_tokens", np.int64),
        ("preemptions", np.int64),
    ]
)


@dataclass(frozen=True, slots=True)
class Transfer:
    """How long a KV cache takes from one replica to another: `latency_s` + bytes / `bandwidth_bytes_per_s`."""

    bandwidth_bytes_per_s: float
    latency_s: float = 0.0

    def __post_init__(self) -> None:
        if not self.bandwidth_bytes_per_s > 0:
            raise InputError(f"KV transfer: bandwidth {self.bandwidth_bytes_per_s:g} bytes/s; expected more than 0")
        if not (np.isfinite(self.latency_s) and self.latency_s >= 0):
            raise InputError(f"KV transfer: latency {self.latency_s:g} s; expected 0 or more")


class Disaggregated:
    """A prefill pool and a decode pool; takes requests like a :class:`Simulation`.

    Replicas are numbered through, those of the prefill pool first; a request's is the one that decoded it.

    Parameters
    ----------
    prefill, decode
        Replicas of one model and KV-cache format.
    transfer
        Between any two of them.
    dispatch, seed
        Of each pool.
    """

    def __init__(
        self,
        prefill: Sequence[Replica],
        decode: Sequence[Replica],
        transfer: Transfer,
        dispatch: Dispatch = Dispatch.ROUND_ROBIN,
        seed: int = 0,
    ) -> None:
        self._prefill = Simulation(prefill, dispatch, seed)
        self._decode = Simulation(decode, dispatch, seed + 1, prefilled=True)
        self._transfer = transfer
        sizes = [replica.kv_bytes_per_token for replica in prefill]
        if any(size is None for size in sizes):
            raise InputError("disaggregation needs the KV-cache bytes of a token of every prefill replica")
        self._token_bytes = np.array(sizes, dtype=float)
        self._offered = self._sent = 0
        self._prefilling, self._sending, self._decoding = (np.zeros(0, _FLIGHT) for _ in range(3))

    def offer(self, traffic: Traffic) -> Records:
        """Take the next requests; return those, of all so far, that are done when the last of them arrives."""
        if not len(traffic):
            return np.zeros(0, COMPLETION)
        coming = np.zeros(len(traffic), _FLIGHT)
        coming["row"] = coming["place"] = self._offered + np.arange(len(traffic))
        coming["arrival_s"], coming["bucket"] = traffic.arrivals_s, traffic.buckets
        coming["input_tokens"], coming["output_tokens"] = traffic.input_tokens, traffic.output_tokens
        self._offered += len(traffic)
        self._prefilling = np.concatenate([self._prefilling, coming])
        first_only = replace(traffic, output_tokens=np.ones(len(traffic), np.int64))
        done = self._prefilled(self._prefill.offer(first_only))
        # What is still being prefilled ends later than the last arrival, and is ready later still.
        return np.concatenate([done, self._decoded(self._decode.offer(self._ready(float(traffic.arrivals_s[-1]))))])

    def finish(self) -> Records:
        """Serve what is left; return it."""
        done = self._prefilled(self._prefill.finish())
        decoded = [self._decode.offer(self._ready(np.inf)), self._decode.finish()]
        return np.concatenate([done, *map(self._decoded, decoded)])

    def use(self) -> FleetUse:
        """Return what the replicas did, up to the end of the last iteration of either pool."""
        end_s = max(self._prefill.use().end_s, self._decode.use().end_s)
        return FleetUse(end_s, self._prefill.use(end_s).replicas + self._decode.use(end_s).replicas)

    def _prefilled(self, done: Records) -> Records:
        """Let what is prefilled be sent; return what ends there: answers of one token, and what was refused."""
        self._prefilling, flights = _taken(self._prefilling, done)
        flights["ttft_s"], flights["preemptions"] = done["ttft_s"], done["preemptions"]
        size = self._token_bytes[done["replica"]] * flights["input_tokens"]
        sending_s = self._transfer.latency_s + size / self._transfer.bandwidth_bytes_per_s
        flights["ready_s"] = flights["arrival_s"] + flights["ttft_s"] + sending_s
        ends = np.isnan(done["e2e_s"]) | (flights["output_tokens"] == 1)
        self._sending = np.concatenate([self._sending, flights[~ends]])
        ended: Records = done[ends]
        ended["row"] = flights["row"][ends]
        return ended

    def _ready(self, until_s: float) -> Traffic:
        """Give the decode pool what is ready by `until_s`."""
        order = np.argsort(self._sending["ready_s"], kind="stable")
        count = int(np.searchsorted(self._sending["ready_s"][order], until_s, side="right"))
        ready, self._sending = self._sending[order[:count]], self._sending[order[count:]]
        ready["place"] = self._sent + np.arange(count)
        self._sent += count
        self._decoding = np.concatenate([self._decoding, ready])
        return Traffic(ready["ready_s"], ready["input_tokens"], ready["output_tokens"], ready["bucket"])

    def _decoded(self, done: Records) -> Records:
        """Tell what is decoded in terms of the whole way."""
        self._decoding, flights = _taken(self._decoding, done)
        whole = done.copy()
        refused = np.isnan(done["e2e_s"])
        for name in ("row", "arrival_s"):
            whole[name] = flights[name]
        whole["replica"] += len(self._token_bytes)
        whole["preemptions"] += flights["preemptions"]
        whole["ttft_s"] = np.where(refused, np.nan, flights["ttft_s"])
        whole["e2e_s"] = flights["ready_s"] - flights["arrival_s"] + done["e2e_s"]
        whole["tpot_s"] = (whole["e2e_s"] - whole["ttft_s"]) / (flights["output_tokens"] - 1)
        return whole


def _taken(flights: Records, done: Records) -> tuple[Records, Records]:
    """Split `flights`, in order of place, into what is not in `done` and what is, the latter in the order of `done`."""
    at = np.searchsorted(flights["place"], done["row"])
    return np.delete(flights, at), flights[at]
