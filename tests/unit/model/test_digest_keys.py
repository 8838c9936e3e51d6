from nl.model.digest import ActionKey, Digest


def test_a_digest_and_the_action_key_of_equal_text_are_different_keys():
    digest, action = Digest("ab" * 32, 5), ActionKey("ab" * 32, 5)
    assert digest != action
    assert len({digest: 1, action: 2, str(digest): 3}) == 3
    assert str(digest) == str(action)
