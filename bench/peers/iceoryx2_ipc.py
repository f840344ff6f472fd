"""iceoryx2: publish and subscribe over shared memory, a service of byte slices each way.

Small messages and arrays have services of their own. A message is loaned, filled and sent; what is received is a view.
Options: ``{"wait": "polling" | "event"}``: with events the sender notifies and the receiver sleeps in its listener.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import iceoryx2 as iox2
import numpy as np

from bench.peers.rendezvous import OTHER, exchange, segment_prefix, sweep

SLOT_BYTES = 2048
LARGEST = 256 << 20
QUEUED, QUEUED_ARRAYS = 256, 8
WAIT_S = 60
Bytes = iox2.Slice[ctypes.c_uint8]
Array = np.ndarray[Any, Any]


class Lane:
    """One direction: a service, a publisher or a subscriber of it, and the event that goes with it."""

    def __init__(self, node: Any, name: str, queued: int, is_waking: bool) -> None:
        services = node.service_builder(iox2.ServiceName.new(name))
        self.service = (
            services.publish_subscribe(Bytes)
            .max_publishers(1)
            .max_subscribers(1)
            .enable_safe_overflow(False)
            .subscriber_max_buffer_size(queued)
            .subscriber_max_borrowed_samples(2)
            .open_or_create()
        )
        event = node.service_builder(iox2.ServiceName.new(f"{name}/event"))
        self.event = event.event().open_or_create() if is_waking else None

    def publisher(self, largest: int) -> tuple[Any, Any]:
        """Return what sends, and what wakes."""
        publisher = (
            self.service.publisher_builder()
            .initial_max_slice_len(largest)
            .backpressure_strategy(iox2.BackpressureStrategy.RetryUntilDelivered)
            .create()
        )
        return publisher, self.event and self.event.notifier_builder().create()

    def subscriber(self) -> tuple[Any, Any]:
        """Return what receives, and what waits."""
        return (
            self.service.subscriber_builder().create(),
            self.event and self.event.listener_builder().create(),
        )


class Iceoryx2End:
    """One half: a node with four lanes."""

    def __init__(self, role: str, folder: Path, options: dict[str, Any]) -> None:
        iox2.set_log_level(iox2.LogLevel.Error)
        self._folder = folder
        self._node = iox2.NodeBuilder.new().config(own_place(folder)).create(iox2.ServiceType.Ipc)
        is_waking = options["wait"] == "event"

        def lane(kind: str, by: str, queued: int) -> Lane:
            return Lane(self._node, f"{kind}/{by}", queued, is_waking)

        self._subscriber, self._listener = lane("message", OTHER[role], QUEUED).subscriber()
        self._arrays, self._array_listener = lane("array", OTHER[role], QUEUED_ARRAYS).subscriber()
        self._publisher, self._notifier = lane("message", role, QUEUED).publisher(SLOT_BYTES)
        largest = LARGEST if role == "near" else SLOT_BYTES
        self._array_publisher, self._array_notifier = lane("array", role, QUEUED_ARRAYS).publisher(
            largest
        )
        exchange(folder, role, b"", "subscribed")
        self._publisher.update_connections()
        self._array_publisher.update_connections()
        self._sample: Any = None
        self._array_sample: Any = None
        self._loaned: Any = None
        exchange(folder, role, b"", "connected")

    def send(self, data: Any) -> None:
        """Copy into a loaned slice and send it."""
        size = len(data)
        loaned = self._publisher.loan_slice_uninit(size)
        ctypes.memmove(loaned.payload_ptr, bytes(data), size)
        loaned.assume_init().send()
        if self._notifier:
            self._notifier.notify()

    def receive(self) -> memoryview:
        """Return a view that holds until the next one."""
        if self._sample is not None:
            self._sample.delete()
        self._sample = take(self._subscriber, self._listener)
        return self._sample.payload().as_memory_view()

    def send_array(self, array: Array) -> None:
        """Copy into a loaned slice, the only copy there is."""
        self.loan(len(array))[:] = array
        self.send_loan()

    def loan(self, size: int) -> Array:
        """Return memory of the service to write in place."""
        self._loaned = self._array_publisher.loan_slice_uninit(size)
        return view(self._loaned.payload_ptr, size)

    def send_loan(self) -> None:
        """Send what was loaned."""
        loaned, self._loaned = self._loaned, None
        loaned.assume_init().send()
        if self._array_notifier:
            self._array_notifier.notify()

    def receive_array(self) -> Array:
        """Return a view of what the sender wrote."""
        self._array_sample = take(self._arrays, self._array_listener)
        data = self._array_sample.payload()
        return view(data.as_ptr(), data.len())

    def release_array(self) -> None:
        """Give the sample back to its publisher."""
        self._array_sample.delete()
        self._array_sample = None

    def close(self) -> None:
        """Drop samples, then ports, then the node; then what a node leaves behind, or a half that was killed."""
        folder = self._folder
        for sample in (self._sample, self._array_sample, self._loaned):
            if sample is not None:
                sample.delete()
        self.__dict__.clear()
        sweep(folder)


def own_place(folder: Path) -> Any:
    """Return a configuration that keeps files in the folder, and segments under a prefix of this pair alone."""
    found = iox2.config.default()
    found.global_cfg.root_path = iox2.Path.new(str(folder / "iceoryx2"))
    found.global_cfg.prefix = iox2.FileName.new(segment_prefix(folder))
    return found


def take(subscriber: Any, listener: Any) -> Any:
    """Return the next sample, polled for or slept for."""
    receive: Callable[[], Any] = subscriber.receive
    sample = receive()
    while sample is None:
        if listener:
            listener.timed_wait(iox2.Duration.from_secs(WAIT_S))
        sample = receive()
    return sample


def view(address: int, size: int) -> Array:
    """Return an array over memory that somebody else keeps."""
    return np.frombuffer((ctypes.c_uint8 * size).from_address(address), np.uint8)


def connect(role: str, folder: Path, options: dict[str, Any]) -> Iceoryx2End:
    """Open or create the services that are named after the folder."""
    return Iceoryx2End(role, folder, options)
