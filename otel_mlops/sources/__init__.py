"""The outside world: each module opens one source, and the sampler reads them all."""
