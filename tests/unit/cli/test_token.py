"""`nl token`: what is written, what is printed, what is refused."""

import datetime
import json
import os

import pytest

from nl.auth.tokens import hash_token, read_tokens
from nl.cli.main import run
from nl.cli.token import _end, _text

NOW = datetime.datetime(2027, 1, 1, tzinfo=datetime.UTC)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "tokens"


def token(*arguments, path, capsys):
    """(exit code, standard output, standard error) of `nl token ...`."""
    code = run(["token", *arguments, "--file", str(path)], prog_name="nl")
    return code, *capsys.readouterr()


def test_a_token_is_printed_once_and_its_hash_is_kept(path, capsys):
    allowed = ("--allow", "read, write", "--allow", "write,worker")
    code, out, err = token("create", "ci", *allowed, path=path, capsys=capsys)
    assert (code, err) == (0, "")
    [entry] = read_tokens(str(path))
    assert (entry.name, entry.sha256) == ("ci", hash_token(out.strip().encode()).hex())
    [grant] = entry.grants
    assert (grant.allow, grant.instances) == (("read", "write", "worker"), ("*",))
    made = datetime.datetime.fromisoformat(entry.created)
    assert abs((datetime.datetime.now(datetime.UTC) - made).total_seconds()) < 600
    assert entry.created.endswith("Z")
    assert entry.expires is None
    assert out.strip() not in path.read_text()


def test_a_token_has_an_end_and_instances_if_they_are_named(path, capsys):
    arguments = ("create", "ci", "--allow", "read", "--instance", "main", "--instance", "pr-*", "--expires", "90d")
    assert token(*arguments, path=path, capsys=capsys)[0] == 0
    [entry] = read_tokens(str(path))
    assert entry.grants[0].instances == ("main", "pr-*")
    span = datetime.datetime.fromisoformat(entry.expires) - datetime.datetime.fromisoformat(entry.created)
    assert span == datetime.timedelta(days=90)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--allow", "reed"), "'reed' is none of "),
        (("--allow", "read", "--expires", "soon"), 'expected a duration such as "90d" or "12h"'),
        (("--allow", "read", "--expires", "999ms"), "is shorter than a second"),
        (("--allow", "read", "--expires", "9999y"), "'9999y' is too long"),
        ((), "Missing option '--allow'"),
    ],
)
def test_what_cannot_be_meant_is_refused_and_nothing_is_written(path, capsys, arguments, problem):
    code, out, err = token("create", "ci", *arguments, path=path, capsys=capsys)
    assert (code, out) == (2, "")
    assert problem in err
    assert err.count("\n") == 1
    assert not path.exists()


def test_a_name_that_is_taken_is_refused(path, capsys):
    assert token("create", "ci", "--allow", "read", path=path, capsys=capsys)[0] == 0
    before = path.read_text()
    code, out, err = token("create", "ci", "--allow", "all", path=path, capsys=capsys)
    assert (code, out) == (2, "")
    assert "name: is that of line 2" in err
    assert path.read_text() == before


def test_the_list_has_names_rights_and_ends(path, capsys):
    entries = [
        {"name": "a", "sha256": "a" * 64, "grants": [{"allow": ["read", "worker"], "instances": ["main", ""]},
                                                     {"allow": ["admin"]}]},
        {"name": "b", "sha256": "b" * 64, "grants": [{"allow": ["all"]}], "expires": "2001-01-01T00:00:00Z"},
        {"name": "c", "sha256": "c" * 64, "grants": [{"allow": ["all"]}], "expires": "2999-01-01T00:00:00Z"},
    ]  # fmt: skip
    path.write_text("".join(json.dumps(each) + "\n" for each in entries))
    assert token("list", path=path, capsys=capsys) == (
        0, "a  read, worker for 'main', ''; admin for '*'\n"
        "b  all for '*'  until 2001-01-01T00:00:00Z (expired)\n"
        "c  all for '*'  until 2999-01-01T00:00:00Z\n", "",
    )  # fmt: skip


def test_a_revoked_token_is_out_of_the_file_and_others_are_not(path, capsys):
    for name in ("a", "b"):
        assert token("create", name, "--allow", "read", path=path, capsys=capsys)[0] == 0
    assert token("revoke", "a", path=path, capsys=capsys) == (0, "", "")
    assert [entry.name for entry in read_tokens(str(path))] == ["b"]
    code, _, err = token("revoke", "a", path=path, capsys=capsys)
    assert code == 2
    assert "has no token 'a'; it has: b" in err


def test_a_folder_that_is_not_there_is_one_line(tmp_path, capsys):
    code, _, err = token("create", "a", "--allow", "read", path=tmp_path / "no" / "tokens", capsys=capsys)
    assert code == 1
    assert err == f"nl: {tmp_path / 'no'} cannot be opened: No such file or directory\n"
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(("text", "seconds"), [("1s", 1), ("1999ms", 1), ("12h", 43_200), ("1d 1s", 86_401)])
def test_an_end_is_in_whole_seconds_from_now(text, seconds):
    assert _end(NOW, text) == NOW + datetime.timedelta(seconds=seconds)
    assert _text(NOW) == "2027-01-01T00:00:00Z"
