"""What holds for every test."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# A machine that does much else is no fault of a test. For CI, Hypothesis has such a profile of its own.
settings.register_profile("any machine", settings.default, deadline=None, suppress_health_check=[HealthCheck.too_slow])
if settings.get_current_profile_name() == "default":
    settings.load_profile("any machine")
