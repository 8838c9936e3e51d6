"""What is said about a worker's options that cannot be meant."""

import pytest

from nl.config.workers import WorkerApiEndpoint
from nl.errors import ConfigError


@pytest.mark.parametrize("token", ["", " \n", "nl_SECRET nl_SECRET", "nl_SECRET\x01", "nl_SECRET\nx", "nl_SECR\u00c9T"])
def test_a_token_that_is_none_is_one_line_and_not_the_end_of_the_process(token):
    with pytest.raises(ConfigError, match="has characters that no token has") as caught:
        WorkerApiEndpoint(token=token).check()
    assert "SECR" not in str(caught.value)


def test_the_end_of_the_line_that_a_secret_came_with_is_no_part_of_it():
    WorkerApiEndpoint(token="nl_x\n").check()
    with pytest.raises(ConfigError, match="has characters that no token has"):
        WorkerApiEndpoint(token="nl_x\ny").check()
