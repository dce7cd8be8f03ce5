"""OpenTelemetry's side: a MeterProvider whose numbers live in shared memory, and the page made of them."""
