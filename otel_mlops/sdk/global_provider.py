"""OpenTelemetry's global MeterProvider: ours, unless somebody else's is there already."""

from __future__ import annotations

import logging

from opentelemetry.metrics import _internal as _api

from otel_mlops.sdk.provider import MeterProvider

_logger = logging.getLogger(__name__)


def become_global(provider: MeterProvider) -> None:
    """Make a provider OpenTelemetry's global one, unless somebody else's is there already."""
    found = _api._METER_PROVIDER
    if isinstance(found, MeterProvider) and found._shutdown:
        # Ours of before, shut down: the API lets nobody replace a provider, and it would serve nobody.
        _api._METER_PROVIDER = provider
        _api._PROXY_METER_PROVIDER.on_set_meter_provider(provider)
    elif found is None:
        _api.set_meter_provider(provider)
    elif found is not provider:
        _logger.warning(
            "OpenTelemetry's global MeterProvider is set already, to a %s.%s, and stays: metrics that are made "
            "through the global API go there and are not on our page. Call configure_telemetry() before whoever "
            "sets it, or set_global=False.",
            type(found).__module__,
            type(found).__qualname__,
        )
