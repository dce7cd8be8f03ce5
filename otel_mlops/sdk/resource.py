"""What the numbers describe: the resource of a service, and the versions of what it runs on."""

from __future__ import annotations

import logging
import platform
from typing import TYPE_CHECKING

from opentelemetry.sdk.resources import Resource

if TYPE_CHECKING:
    from otel_mlops.settings import Settings

_logger = logging.getLogger(__name__)


def resource_of(settings: Settings) -> Resource:
    """The resource that the settings say, with what OpenTelemetry's detectors find."""
    try:
        return Resource.create(dict(settings.resource))
    except RuntimeError:
        # It looks around in threads, and there may be no more to be had.
        _logger.warning("the resource is what the settings say alone: no thread can be started")
        return Resource(dict(settings.resource))


def versions() -> dict[str, str]:
    """The attributes of BUILD_INFO."""
    return {
        "version": _version("otel-mlops"),
        "python_version": platform.python_version(),
        "opentelemetry_version": _version("opentelemetry-sdk"),
    }


def _version(distribution: str) -> str:
    from importlib.metadata import PackageNotFoundError, version  # late: half as costly as all of the SDK's metrics

    try:
        return version(distribution)
    except PackageNotFoundError:
        return "unknown"  # run from a checkout that is not installed
