"""The driver while it is open: its GPUs, those of them that are shown, and what it reports; not when it is opened."""

from __future__ import annotations

import logging
import time

from otel_mlops.sources.nvidia.device import Device, World, find
from otel_mlops.sources.nvidia.driver import FAULTS, Driver, Failed, Gpu, Lost, Unsupported
from otel_mlops.sources.nvidia.events import XidEvents
from otel_mlops.sources.nvidia.visible import VISIBLE_DEVICES, Identity, UnknownOrder, parent_in, visible_devices
from otel_mlops.sources.watched import Sample

logger = logging.getLogger(__name__)

_EVENTS_END_S = 2.0
"""The thread that waits for events comes back from the driver once a second."""


class Session:
    """The driver from when it is initialised until it is shut down.

    Errors:  Unsupported, Failed, Lost or Gone if it cannot be; then there is nothing to close.
    """

    def __init__(self, driver: Driver, world: World) -> None:
        self._driver = driver
        self._world = world
        self._events: list[XidEvents] = []
        self._watched: set[Gpu] = set()
        self.devices: list[Device] = []
        driver.open()
        try:
            self.devices = self._find()
        except FAULTS:
            driver.close()
            raise

    @property
    def is_silent(self) -> bool:
        """Whether there are GPUs and none answers, when tried again either."""
        return bool(self.devices) and all(device.is_given_up for device in self.devices)

    def read(self) -> list[Sample]:
        """Read all GPUs, and take what the driver reported since the last reading.

        Errors:  Gone.
        """
        samples = [sample for device in self.devices for sample in device.read()]
        self._watch()
        for events in self._events:
            samples += self._world.increases.keep(events.read())
        return samples

    def close(self) -> None:
        """Let go of everything."""
        deadline = time.monotonic() + _EVENTS_END_S
        ended = [events.close(max(0.0, deadline - time.monotonic())) for events in self._events]
        # What came in since the last reading is still to be counted.
        for events in self._events:
            self._keep_last(events)
        for device in self.devices:
            device.close()
        if all(ended):
            self._driver.close()
        else:
            logger.debug("The NVIDIA driver is not shut down: a call has not come back")

    def _keep_last(self, events: XidEvents) -> None:
        try:
            self._world.increases.keep(events.read())
        except FAULTS as fault:
            logger.debug("Nothing more was reported: %s", fault)

    def _find(self) -> list[Device]:
        """The GPUs that are to be shown, those that do not answer too."""
        driver, world = self._driver, self._world
        found: dict[int, Gpu | None] = {}
        losses: dict[int, Exception] = {}
        for index in range(driver.ask("nvmlDeviceGetCount")):
            try:
                found[index] = find(driver, world, index)
            except Unsupported as refusal:
                logger.debug("GPU %d is not this process's: %s", index, refusal)
            except (Failed, Lost) as loss:
                losses[index], found[index] = loss, None
        identities = [world.known.get(index, Identity(index, "", "unknown")) for index in found]
        shown = self._shown(identities)
        for identity in identities:
            if identity.index in losses.keys() & shown.keys():
                world.tell_lost(identity, losses[identity.index])
        return [
            Device(
                driver,
                world,
                identity,
                found[identity.index],
                share=place / len(shown),
                instances=shown[identity.index],
            )
            for place, identity in enumerate((each for each in identities if each.index in shown), 1)
        ]

    def _shown(self, identities: list[Identity]) -> dict[int, frozenset[str] | None]:
        """The numbers of the GPUs to show, each with the MIG instances to show, None for all of them."""
        world = self._world
        every: dict[int, frozenset[str] | None] = {identity.index: None for identity in identities}
        if world.gpus == "all":
            return every
        try:
            visible = visible_devices(world.environ, identities, parent_in(self._driver))
        except UnknownOrder as unknown:
            self._tell_once(f"All GPUs are shown: {unknown}")
            return every
        if identities and not visible:
            text = world.environ.get(VISIBLE_DEVICES)
            self._tell_once(f"No GPU is shown: {VISIBLE_DEVICES}={text} leaves none of the {len(identities)} there are")
        shown: dict[int, frozenset[str] | None] = {}
        for device in visible:
            if device.instance is None:
                shown[device.index] = None
            else:
                shown[device.index] = (shown.get(device.index) or frozenset()) | {device.instance}
        return shown

    def _tell_once(self, what: str) -> None:
        if what not in self._world.told:
            self._world.told.add(what)
            logger.info(what)

    def _watch(self) -> None:
        """Wait for the events of those GPUs that have answered since the last reading."""
        fresh = [device.gpu for device in self.devices if device.gpu is not None and device.gpu not in self._watched]
        if fresh:
            self._watched.update(fresh)
            events = self._world.watch(self._driver, fresh, self._world.wall_clock)
            self._events.append(events)
            events.start()
