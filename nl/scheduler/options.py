"""What a `simple` scheduler is built from: the options of the config, as they are. Here only a shorter way to them."""

from nl.config.schedulers import AllocationStrategy, SimpleSchedulerOptions

__all__ = ["AllocationStrategy", "SimpleSchedulerOptions"]
