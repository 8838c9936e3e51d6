from dataclasses import fields

from nl.config.schedulers import SimpleSchedulerOptions as Section
from nl.scheduler.options import SimpleSchedulerOptions

NOT_OURS = {"experimental_backend", "fallback_match_interval_s"}


def test_every_key_of_the_config_arrives_with_its_value():
    section = Section(
        supported_platform_properties={"cpu": "minimum"},
        retain_completed_for_s=1,
        client_action_timeout_s=2,
        worker_timeout_s=3,
        max_action_executing_timeout_s=4,
        unacknowledged_kill_timeout_s=5,
        max_job_retries=6,
        allocation_strategy="most_recently_used",
        worker_match_logging_interval_s=7,
    )
    options = SimpleSchedulerOptions.from_config(section)
    for each in fields(section):
        if each.name not in NOT_OURS:
            assert getattr(options, each.name) == getattr(section, each.name), each.name


def test_defaults_agree_with_those_of_the_config():
    assert SimpleSchedulerOptions.from_config(Section()) == SimpleSchedulerOptions()
