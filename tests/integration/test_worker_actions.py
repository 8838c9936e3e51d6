"""Actions on a worker: real processes, real files, a store with local files and one without."""

from __future__ import annotations

import os
import stat
import subprocess
from functools import partial

import pytest
import trio

from nl.blob.hashing import digest_of
from nl.config.workers import EnvironmentSource, UploadActionResult
from nl.errors import ConfigError
from nl.model.digest import EMPTY, DigestFunction
from nl.pb import reapi, wkt
from nl.pb.codec import decode
from tests.integration.worker_site import Site, digest, message, site_with, violations


@pytest.fixture(params=["memory", "filesystem", "fast_slow"])
async def site(request, tmp_path):
    async with site_with(tmp_path, request.param) as made:
        yield made


async def test_a_command_runs_in_its_input_root_and_gives_output_exit_code_and_text(site: Site):
    result = await site.result(
        ["sh", "-c", "cat in/a.txt > out/b.txt; echo said; echo complained >&2; exit 3"],
        inputs={"in": {"a.txt": b"hello\n"}},
        output_paths=["out/b.txt", "never"],
    )
    assert result.exit_code == 3
    assert await site.text(result.stdout_digest) == b"said\n"
    assert await site.text(result.stderr_digest) == b"complained\n"
    (file,) = result.output_files
    assert file.path == "out/b.txt" and not file.is_executable
    assert await site.text(file.digest) == b"hello\n"


async def test_the_metadata_have_every_time_in_order(site: Site):
    result = await site.result(["/bin/true"])
    meta = result.execution_metadata
    assert meta.worker == "worker-1"
    times = [
        meta.worker_start_timestamp,
        meta.input_fetch_start_timestamp,
        meta.input_fetch_completed_timestamp,
        meta.execution_start_timestamp,
        meta.execution_completed_timestamp,
        meta.output_upload_start_timestamp,
        meta.output_upload_completed_timestamp,
        meta.worker_completed_timestamp,
    ]
    nanos = [wkt.timestamp_to_ns(stamp) for stamp in times]
    assert nanos == sorted(nanos)
    span = wkt.timestamp_to_ns(meta.execution_completed_timestamp) - wkt.timestamp_to_ns(meta.execution_start_timestamp)
    assert wkt.duration_to_ns(meta.virtual_execution_duration) == span > 0


async def test_a_silent_command_has_the_empty_digest_for_what_it_printed(site: Site):
    result = await site.result(["/bin/true"])
    assert digest(result.stdout_digest) == digest(result.stderr_digest) == EMPTY[DigestFunction.SHA256]


async def test_inputs_have_their_modes_and_kinds(site: Site):
    result = await site.result(
        ["sh", "-c", "stat -c '%a %s %F' plain tool empty sub; readlink rel abs; ./tool; touch sub/new"],
        inputs={
            "plain": b"x",
            "tool": (b"#!/bin/sh\necho ran\n",),
            "empty": b"",
            "sub": {},
            "rel": "plain",
            "abs": "/etc",
        },
    )
    lines = (await site.text(result.stdout_digest)).decode().splitlines()
    assert lines[0] == "444 1 regular file"
    assert lines[1].startswith("555 ")
    assert lines[2].endswith(" 0 regular empty file")
    assert lines[3].startswith("755 ")
    assert lines[4:] == ["plain", "/etc", "ran"]
    assert result.exit_code == 0


async def test_node_properties_give_a_file_a_mode_and_time_of_its_own(site: Site):
    content = await site.put(b"dated")
    properties = reapi.NodeProperties(mtime=wkt.Timestamp(seconds=1_000_000_000, nanos=5), unix_mode=0o640)
    root = await site.put_message(
        reapi.Directory(
            files=[
                reapi.FileNode(name="f", digest=message(content), node_properties=properties),
                reapi.FileNode(name="g", digest=message(content)),
            ]
        )
    )
    result = await site.result(["stat", "-c", "%a %Y", "f", "g"], inputs=root)
    first, second = (await site.text(result.stdout_digest)).decode().splitlines()
    assert first == "640 1000000000"
    assert second.startswith("444 ")


async def test_output_directories_become_trees_sorted_and_deduplicated(site: Site):
    script = """
    mkdir -p out/b/same out/a/same out/empty
    echo 1 > out/a/same/f; echo 1 > out/b/same/f; ln -s ../nowhere out/link; printf '#!' > out/x; chmod +x out/x
    """
    result = await site.result(["sh", "-c", script], output_paths=["out"])
    (directory,) = result.output_directories
    assert directory.path == "out" and directory.is_topologically_sorted and directory.root_directory_digest is None
    data = await site.text(directory.tree_digest)
    assert data[0] == 0x0A
    tree = decode(reapi.Tree, data)
    assert [node.name for node in tree.root.directories] == ["a", "b", "empty"]
    assert [(node.name, node.is_executable) for node in tree.root.files] == [("x", True)]
    assert [(node.name, node.target) for node in tree.root.symlinks] == [("link", "../nowhere")]
    assert len(tree.children) == 3, "a and b are equal, same is shared, empty is empty"
    again = await site.result(["sh", "-c", script + "#"], output_paths=["out"])
    assert again.output_directories == result.output_directories


async def test_an_output_directory_comes_as_directories_when_asked(site: Site):
    form = reapi.CommandOutputDirectoryFormat.TREE_AND_DIRECTORY
    result = await site.result(
        ["sh", "-c", "mkdir -p out/sub; echo 1 > out/sub/f"], output_paths=["out"], output_directory_format=form
    )
    (directory,) = result.output_directories
    tree = decode(reapi.Tree, await site.text(directory.tree_digest))
    root = decode(reapi.Directory, await site.text(directory.root_directory_digest))
    assert root == tree.root
    assert decode(reapi.Directory, await site.text(root.directories[0].digest)) == tree.children[0]


async def test_the_older_output_lists_work_and_are_ignored_beside_output_paths(site: Site):
    script = "echo f > d/f; echo g > e/g; echo h > h"
    old = await site.result(
        ["sh", "-c", "mkdir -p e; " + script], output_files=["d/f"], output_directories=["e"], inputs={}
    )
    assert [file.path for file in old.output_files] == ["d/f"]
    assert [directory.path for directory in old.output_directories] == ["e"]
    new = await site.result(
        ["sh", "-c", "mkdir -p d e; " + script], output_files=["d/f"], output_directories=["e"], output_paths=["h"]
    )
    assert [file.path for file in new.output_files] == ["h"] and not new.output_directories


async def test_output_symlinks_are_kept_and_told_to_old_clients_too(site: Site):
    result = await site.result(
        ["sh", "-c", 'mkdir d; ln -s d dir; ln -s none dangling; ln -s "$PWD/d" inside; ln -s /etc/passwd outside'],
        output_paths=["dir", "dangling", "inside", "outside"],
    )
    assert {link.path: link.target for link in result.output_symlinks} == {
        "dir": "d",
        "dangling": "none",
        "inside": "d",
        "outside": "/etc/passwd",
    }
    assert [link.path for link in result.output_directory_symlinks] == ["dir", "inside"]
    assert [link.path for link in result.output_file_symlinks] == ["dangling", "outside"]
    assert not result.output_files


async def test_outputs_are_relative_to_the_working_directory(site: Site):
    result = await site.result(
        ["sh", "-c", "echo 1 > here; echo 2 > ../above; pwd"],
        inputs={"sub": {}},
        working_directory="sub",
        output_paths=["here", "../above", "deep/er/file"],
    )
    assert [file.path for file in result.output_files] == ["here", "../above"]
    assert (await site.text(result.stdout_digest)).endswith(b"/work/sub\n")


async def test_the_empty_output_path_is_the_whole_working_directory(site: Site):
    result = await site.result(["sh", "-c", "echo 1 > f"], output_paths=[""])
    tree = decode(reapi.Tree, await site.text(result.output_directories[0].tree_digest))
    assert [node.name for node in tree.root.files] == ["f"]


async def test_only_the_commands_variables_and_a_default_path_are_in_the_environment(site: Site):
    os.environ["NL_TEST_SECRET"] = "1"
    try:
        result = await site.result(["env"], env={"A": "b c"})
    finally:
        del os.environ["NL_TEST_SECRET"]
    lines = (await site.text(result.stdout_digest)).decode().splitlines()
    assert sorted(lines) == ["A=b c", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]


async def test_the_commands_own_path_finds_the_program(site: Site):
    result = await site.result(
        ["tool"], env={"PATH": "bin:/bin:/usr/bin"}, inputs={"bin": {"tool": (b"#!/bin/sh\necho mine\n",)}}
    )
    assert await site.text(result.stdout_digest) == b"mine\n"


async def test_a_program_with_a_slash_is_relative_to_the_working_directory(site: Site):
    result = await site.result(
        ["./tool"], inputs={"sub": {"tool": (b"#!/bin/sh\necho $0\n",)}}, working_directory="sub"
    )
    assert await site.text(result.stdout_digest) == b"./tool\n"


@pytest.mark.parametrize(("argv", "code"), [(["no-such-program"], 127), (["./plain"], 126), (["plain/x"], 127)])
async def test_a_command_that_cannot_be_executed_ends_like_in_a_shell(site: Site, argv, code):
    report = await site.run(await site.action(argv, inputs={"plain": b"#!/bin/sh\n"}))
    assert report.response.status is None
    assert report.response.result.exit_code == code
    assert argv[0].encode() in await site.text(report.response.result.stderr_digest)


async def test_death_by_a_signal_is_128_and_its_number(site: Site):
    assert (await site.result(["sh", "-c", "kill -SEGV $$"])).exit_code == 128 + 11


async def test_a_script_without_an_interpreter_line_is_given_to_the_shell(site: Site):
    result = await site.result(["./tool", "x"], inputs={"tool": (b"echo got $1\n",)})
    assert await site.text(result.stdout_digest) == b"got x\n"


async def test_missing_inputs_are_told_one_by_one(site: Site):
    def absent(n: int) -> reapi.Digest:
        return reapi.Digest(hash=f"{n:064x}", size_bytes=n)

    present = await site.put(b"present")
    sub = await site.put_message(reapi.Directory(files=[reapi.FileNode(name="c", digest=absent(3))]))
    root = await site.put_message(
        reapi.Directory(
            files=[
                reapi.FileNode(name="a", digest=absent(1)),
                reapi.FileNode(name="again", digest=absent(1)),
                reapi.FileNode(name="b", digest=message(present)),
            ],
            directories=[
                reapi.DirectoryNode(name="d", digest=message(sub)),
                reapi.DirectoryNode(name="e", digest=absent(5)),
            ],
        )
    )
    report = await site.run(await site.action(["/bin/true"], inputs=root))
    assert report.response.status.code == 9
    assert sorted(violations(report.response.status)) == [("MISSING", f"blobs/{n:064x}/{n}") for n in (1, 3, 5)]


async def test_missing_files_alone_are_told_as_well(site: Site):
    nodes = [reapi.FileNode(name=f"f{n}", digest=reapi.Digest(hash=f"{n:064x}", size_bytes=n)) for n in (1, 2)]
    root = await site.put_message(reapi.Directory(files=nodes))
    report = await site.run(await site.action(["/bin/true"], inputs=root))
    assert violations(report.response.status) == [("MISSING", f"blobs/{n:064x}/{n}") for n in (1, 2)]


async def test_a_missing_action_or_command_is_a_missing_blob(site: Site):
    from nl.model.digest import Digest

    report = await site.run(Digest("a" * 64, 7))
    assert violations(report.response.status) == [("MISSING", f"blobs/{'a' * 64}/7")]
    action = await site.put_message(
        reapi.Action(
            command_digest=reapi.Digest(hash="b" * 64, size_bytes=8), input_root_digest=message(await site.tree({}))
        )
    )
    report = await site.run(action)
    assert violations(report.response.status) == [("MISSING", f"blobs/{'b' * 64}/8")]


async def test_blake3_actions_name_the_function_and_hash_with_it(tmp_path):
    async with site_with(tmp_path, "memory", DigestFunction.BLAKE3) as site:
        result = await site.result(["sh", "-c", "printf x > f"], output_paths=["f"])
        from blake3 import blake3

        assert result.output_files[0].digest.hash == blake3(b"x").hexdigest()
        assert result.stdout_digest.hash == blake3(b"").hexdigest()
        node = reapi.FileNode(name="f", digest=reapi.Digest(hash="1" * 64, size_bytes=1))
        root = await site.put_message(reapi.Directory(files=[node]))
        report = await site.run(await site.action(["/bin/true"], inputs=root))
        assert violations(report.response.status) == [("MISSING", f"blobs/blake3/{'1' * 64}/1")]


@pytest.mark.parametrize("name", ["../../../evil", "..", ".", "", "a/b", "nul\0"])
@pytest.mark.parametrize("kind", ["file", "directory", "symlink"])
async def test_a_name_that_is_no_single_segment_is_refused(site: Site, name, kind):
    content = message(await site.put(b"evil"))
    directory = reapi.Directory()
    if kind == "file":
        directory.files.append(reapi.FileNode(name=name, digest=content))
    elif kind == "directory":
        directory.directories.append(reapi.DirectoryNode(name=name, digest=message(await site.tree({}))))
    else:
        directory.symlinks.append(reapi.SymlinkNode(name=name, target="x"))
    child = reapi.DirectoryNode(name="sub", digest=message(await site.put_message(directory)))
    root = await site.put_message(reapi.Directory(directories=[child]))
    report = await site.run(await site.action(["/bin/true"], inputs=root))
    assert report.response.status.code == 3
    assert repr(name) in report.response.status.message
    assert not list(site.path.rglob("evil"))


async def test_a_link_and_a_directory_of_one_name_are_refused_before_anything_is_written_through(site: Site):
    outside = site.path / "outside"
    outside.mkdir()
    directory = reapi.Directory(
        directories=[reapi.DirectoryNode(name="a", digest=message(await site.tree({"f": b"x"})))],
        symlinks=[reapi.SymlinkNode(name="a", target=str(outside))],
    )
    report = await site.run(await site.action(["/bin/true"], inputs=await site.put_message(directory)))
    assert report.response.status.code == 3
    assert not list(outside.iterdir())


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a/../../x", "..", "nul\0"])
async def test_an_output_path_outside_of_the_input_root_is_refused(site: Site, path):
    report = await site.run(await site.action(["/bin/true"], output_paths=[path]))
    assert report.response.status.code == 3
    assert repr(path) in report.response.status.message


async def test_outputs_are_not_read_through_links_that_lead_out(site: Site):
    secret = site.path / "secret"
    secret.mkdir()
    (secret / "key").write_text("secret")
    report = await site.run(
        await site.action(["sh", "-c", f"rmdir out; ln -s {secret} out"], output_paths=["out/key"])
    )
    assert report.response.status.code == 3
    assert "out/key" in report.response.status.message


async def test_directories_of_outputs_are_not_made_through_links_that_lead_out(site: Site):
    outside = site.path / "outside"
    outside.mkdir()
    report = await site.run(
        await site.action(["/bin/true"], inputs={"a": str(outside)}, output_paths=["a/made/here"])
    )
    assert report.response.status.code == 3
    assert not list(outside.iterdir())


async def test_outputs_behind_a_link_that_stays_inside_are_found(site: Site):
    result = await site.result(
        ["sh", "-c", "echo 1 > link/sub/f"], inputs={"real": {}, "link": "real"}, output_paths=["link/sub/f"]
    )
    assert [file.path for file in result.output_files] == ["link/sub/f"]


async def test_an_output_that_is_a_fifo_is_refused_and_does_not_block(site: Site):
    report = await site.run(await site.action(["mkfifo", "f"], output_paths=["f"]))
    assert report.response.status.code == 3
    report = await site.run(await site.action(["sh", "-c", "mkdir d; mkfifo d/f"], output_paths=["d"]))
    assert report.response.status.code == 3 and "d/f" in report.response.status.message


@pytest.mark.parametrize("spoil", ["mkfifo d/f", "touch d/$(printf '\\351')", "rm -r d; mkfifo d"])
async def test_an_output_that_cannot_be_had_hides_nothing_else(site: Site, spoil):
    script = f"mkdir d; {spoil}; echo good > out; echo seen; echo 'the reason' >&2; exit 3"
    action = await site.action(["sh", "-c", script], output_paths=["d", "out"])
    response = (await site.run(action)).response
    assert response.status.code == 3 and response.status.message.startswith("the output 'd'")
    assert response.result.exit_code == 3
    assert await site.text(response.result.stdout_digest) == b"seen\n"
    assert await site.text(response.result.stderr_digest) == b"the reason\n"
    assert [file.path for file in response.result.output_files] == ["out"]
    assert await site.text(response.result.output_files[0].digest) == b"good\n"


@pytest.mark.parametrize("spoil", ["rm ../stdout", "rm ../stdout; mkfifo ../stdout", "ln -sf /etc/passwd ../stdout"])
async def test_what_an_action_did_to_its_stdout_is_its_own_failure_and_tells_the_rest(site: Site, spoil):
    action = await site.action(["sh", "-c", f"{spoil}; echo why >&2; echo > out"], output_paths=["out"])
    report = await site.run(action)
    assert report.error is None
    assert report.response.status.code == 3 and "stdout" in report.response.status.message
    assert report.response.result.exit_code == 0
    assert await site.text(report.response.result.stderr_digest) == b"why\n"
    assert [file.path for file in report.response.result.output_files] == ["out"]
    assert await site.cached(action) is None


async def test_an_input_root_that_is_a_link_now_is_not_followed(site: Site):
    script = "cd ..; rm -r work; ln -s /etc work"
    result = await site.result(["sh", "-c", script], output_paths=["passwd"])
    assert not result.output_files


async def test_an_output_that_is_a_hard_link_to_another_file_is_copied(site: Site):
    result = await site.result(
        ["sh", "-c", "echo mine > a; ln a b; ln in out"],
        inputs={"in": b"input"},
        output_paths=["a", "b", "out"],
    )
    assert [await site.text(file.digest) for file in result.output_files] == [b"mine\n", b"mine\n", b"input"]


async def test_a_file_where_a_directory_has_to_be_is_told(site: Site):
    report = await site.run(await site.action(["/bin/true"], inputs={"a": b"file"}, output_paths=["a/b"]))
    assert report.response.status.code == 3 and "'a'" in report.response.status.message


async def test_an_empty_command_is_refused(site: Site):
    report = await site.run(await site.action([]))
    assert report.response.status.code == 3
    assert report.response.status.message == "No arguments provided in Command proto"


async def test_a_timeout_above_the_maximum_is_refused_not_clamped(site: Site):
    runner = site.runner(max_action_timeout_s=10.0)
    report = await site.run(await site.action(["/bin/true"], timeout_s=11), runner=runner)
    assert report.response.status.code == 3
    assert report.response.status.message == (
        "Action timeout of 11 seconds is greater than the maximum allowed timeout of 10 seconds"
    )


async def test_success_is_cached_and_failure_is_not(site: Site):
    good = await site.action(["/bin/true"])
    bad = await site.action(["/bin/false"])
    await site.run(good)
    await site.run(bad)
    assert (await site.cached(good)).execution_metadata.worker == "worker-1"
    assert await site.cached(bad) is None


async def test_do_not_cache_is_honoured(site: Site):
    action = await site.action(["/bin/true"], do_not_cache=True)
    report = await site.run(action)
    assert report.response.result.exit_code == 0
    assert await site.cached(action) is None


async def test_a_second_run_overwrites_the_cached_result(site: Site):
    action = await site.action(["sh", "-c", "cat /proc/sys/kernel/random/uuid"])
    first = (await site.run(action)).response.result
    second = (await site.run(action, skip_cache_lookup=True)).response.result
    assert first.stdout_digest != second.stdout_digest
    assert (await site.cached(action)).stdout_digest == second.stdout_digest


async def test_printed_text_is_inlined_when_asked_but_not_in_the_cache(site: Site):
    action = await site.action(["sh", "-c", "echo out; echo err >&2; echo f > f"], output_paths=["f"])
    report = await site.run(action, inline_stdout=True, inline_stderr=True, inline_output_files=["f"])
    result = report.response.result
    assert (result.stdout_raw, result.stderr_raw, result.output_files[0].contents) == (b"out\n", b"err\n", b"f\n")
    assert await site.text(result.stdout_digest) == b"out\n"
    kept = await site.cached(action)
    assert (kept.stdout_raw, kept.stderr_raw, kept.output_files[0].contents) == (b"", b"", b"")


async def test_hostile_directories_are_removed(site: Site):
    script = """
    mkdir -p ro/x; touch ro/x/f; chmod 555 ro ro/x; mkdir none; chmod 000 none
    i=0; while [ $i -lt 300 ]; do mkdir ddddddddddddddddddddd; cd ddddddddddddddddddddd; i=$((i+1)); done; touch end
    """
    assert (await site.result(["sh", "-c", script])).exit_code == 0
    assert site.left() == []


async def test_links_are_removed_and_not_followed(site: Site):
    keep = site.path / "keep"
    keep.mkdir()
    (keep / "f").write_text("kept")
    await site.result(["ln", "-s", str(keep), "link"])
    assert (keep / "f").read_text() == "kept"


async def test_unreadable_outputs_are_read_all_the_same(site: Site):
    result = await site.result(
        ["sh", "-c", "echo 1 > f; chmod 000 f; mkdir d; echo 2 > d/g; chmod 000 d"], output_paths=["f", "d"]
    )
    assert await site.text(result.output_files[0].digest) == b"1\n"


async def test_node_properties_of_outputs_are_given_when_asked(site: Site):
    result = await site.result(
        ["sh", "-c", "echo 1 > f; chmod 640 f; touch -d @1000000000 f"],
        output_paths=["f"],
        output_node_properties=["mtime", "unix_mode"],
    )
    properties = result.output_files[0].node_properties
    assert properties.mtime.seconds == 1_000_000_000
    assert stat.S_IMODE(properties.unix_mode) == 0o640
    report = await site.run(await site.action(["/bin/true"], output_node_properties=["owner"]))
    assert report.response.status.code == 3 and "owner" in report.response.status.message


async def test_an_entrypoint_goes_in_front_of_the_command(site: Site):
    wrap = site.path / "wrap me"
    wrap.write_text('#!/bin/sh\necho "wrapped: $*"\nexec "$@"\n')
    wrap.chmod(0o755)
    runner = site.runner(entrypoint=str(wrap))
    report = await site.run(await site.action(["echo", "inner"]), runner=runner)
    assert await site.text(report.response.result.stdout_digest) == b"wrapped: echo inner\ninner\n"


async def test_an_entrypoint_that_handles_the_time_limit_says_so_in_the_side_channel(site: Site):
    wrap = site.path / "wrap"
    wrap.write_text('#!/bin/sh\necho "limit $MILLIS"; echo \'{"failure": "timeout"}\' > "$SIDE"; exit 1\n')
    wrap.chmod(0o755)
    runner = site.runner(
        entrypoint=str(wrap),
        timeout_handled_externally=True,
        additional_environment={"MILLIS": "timeout_millis", "SIDE": "side_channel_file"},
    )
    report = await site.run(await site.action(["true"], timeout_s=2), runner=runner)
    assert report.response.status.code == 4
    assert report.response.status.message == f"Command '{wrap} true' timed out after 2 seconds"
    assert await site.text(report.response.result.stdout_digest) == b"limit 2000\n"


async def test_a_fifo_in_the_place_of_the_side_channel_is_the_actions_failure(site: Site):
    runner = site.runner(additional_environment={"SIDE": "side_channel_file"})
    report = await site.run(await site.action(["sh", "-c", 'mkfifo "$SIDE"; echo out; exit 3']), runner=runner)
    assert report.response.status.code == 3 and "side channel" in report.response.status.message
    assert report.response.result.exit_code == 3
    assert await site.text(report.response.result.stdout_digest) == b"out\n"
    runner = site.runner(additional_environment={"OTHER": EnvironmentSource(value="x")})
    report = await site.run(await site.action(["sh", "-c", "mkfifo ../shared/side_channel"]), runner=runner)
    assert report.response.status is None  # nobody looks at it


async def test_a_precondition_that_fails_sends_the_action_back(site: Site):
    flag = site.path / "flag"
    runner = site.runner(experimental_precondition_script=f"ls {flag}")
    report = await site.run(await site.action(["/bin/true"]), runner=runner)
    assert report.response is None
    assert report.error.code == 8 and "Preconditions script returned status" in report.error.message
    flag.touch()
    report = await site.run(await site.action(["/bin/true"]), runner=runner)
    assert report.response.result.exit_code == 0


@pytest.mark.parametrize(
    ("strategy", "kept"),
    [("success_only", "good"), ("failures_only", "bad"), ("everything", "good bad"), ("never", "")],
)
async def test_the_strategy_says_which_results_are_cached(site: Site, strategy, kept):
    upload = UploadActionResult(ac_store="AC", upload_ac_results_strategy=strategy)
    runner = site.runner(upload_action_result=upload)
    found = []
    for name, program in (("good", "/bin/true"), ("bad", "/bin/false")):
        action = await site.action([program])
        await site.run(action, runner=runner)
        if await site.cached(action):
            found.append(name)
    assert " ".join(found) == kept


async def test_a_status_that_is_not_ok_is_never_cached(site: Site):
    upload = UploadActionResult(ac_store="AC", upload_ac_results_strategy="everything")
    action = await site.action(["sleep", "1000"], timeout_s=0.1)
    report = await site.run(action, runner=site.runner(upload_action_result=upload))
    assert report.response.status.code == 4
    assert await site.cached(action) is None


async def test_messages_name_the_action_and_the_kept_history(site: Site):
    template = "{digest_function} {action_digest_hash}/{action_digest_size} {historical_results_hash}"
    upload = UploadActionResult(ac_store="AC", failure_message_template=template)
    action = await site.action(["/bin/false"])
    report = await site.run(action, runner=site.runner(upload_action_result=upload))
    function, name, historical = report.response.message.split()
    assert (function, name) == ("sha256", f"{action.hash}/{action.size}")
    assert len(historical) == 64


SPOIL = "touch -r in mark; chmod u+w in; printf EVIL > in; touch -r mark in; chmod 444 in; cat in"


async def test_an_action_that_writes_to_its_inputs_spoils_nobody_elses(site: Site):
    layout = {"in": b"good"}
    spoiling = await site.action(["sh", "-c", SPOIL], inputs=layout)
    report = await site.run(spoiling)
    assert await site.text(report.response.result.stdout_digest) == b"EVIL"  # its own, as it would be alone
    assert await site.text(message(digest_of(b"good"))) == b"good"
    assert await site.text((await site.result(["cat", "in"], inputs=layout)).stdout_digest) == b"good"


async def test_an_action_beside_one_that_spoils_its_inputs_runs_again_and_only_the_right_result_is_kept(site: Site):
    layout = {"in": b"good"}
    runner = site.runner()
    pipes = [site.path / name for name in ("read", "spoilt")]
    for pipe in pipes:
        os.mkfifo(pipe)
    read, spoilt = map(str, pipes)
    # The first time each waits for the other; the second time there is nothing to wait at.
    waits = f"test -p {read} && echo > {read} && cat {spoilt}; rm -f {read}; cat in > out"
    reader = await site.action(["sh", "-c", waits], inputs=layout, output_paths=["out"], timeout_s=100)
    spoils = f"test -p {read} || exit 0; cat {read}; {SPOIL}; echo > {spoilt}; rm -f {read}"
    spoiler = await site.action(["sh", "-c", spoils], inputs=layout, timeout_s=100)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(site.run, spoiler, runner=runner))
        report = await site.run(reader, runner=runner)
    assert await site.text(report.response.result.output_files[0].digest) == b"good"
    assert (await site.cached(reader)).output_files == report.response.result.output_files


async def test_what_the_first_run_of_an_action_left_behind_is_not_there_in_its_second(site: Site):
    script = "test -e mark && echo seen; echo $0; touch mark; chmod 600 in; echo more >> in; wc -l < in"
    result = await site.result(["sh", "-c", script, "here"], inputs={"in": b"one\n"})
    assert await site.text(result.stdout_digest) == b"here\n2\n"


async def test_a_malformed_action_or_command_is_the_callers_fault(site: Site):
    report = await site.run(await site.put(b"\xff\xff\xff"))
    assert report.response.status.code == 3 and "not a valid Action" in report.response.status.message
    report = await site.run(await site.put_message(reapi.Action()))
    assert report.response.status.code == 3 and "command_digest" in report.response.status.message


async def test_a_full_disk_is_resource_exhausted_and_leaves_nothing(tmp_path):
    """The work directory on a tiny file system, the inputs larger than it."""
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", tmp_path]).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    try:
        async with site_with(tmp_path, "memory") as site:
            action = await site.action(["/bin/true"], inputs={"big": b"x" * (2 << 20)})
            report = await site.run(action)
            assert report.response.status.code == 8 and "No space left" in report.response.status.message
            assert (await site.result(["/bin/true"])).exit_code == 0
    finally:
        subprocess.run(["umount", tmp_path], check=True)


async def test_inputs_come_from_the_slow_store_and_outputs_go_to_it(tmp_path):
    """Another worker has another fast side: only what is in the slow one is shared."""
    async with site_with(tmp_path, "fast_slow") as site:
        fast, slow = site.context.children
        tool = (b"#!/bin/sh\ncat d/*\n",)
        root = await site.tree({"d": {"small": b"small", "large": b"x" * (1 << 20)}, "tool": tool})
        action = await site.action(["./tool"], inputs=root)
        big = await site.action(["sh", "-c", "mkdir o; cp d/large o; echo 1 > o/f"], inputs=root, output_paths=["o"])
        content = tmp_path / "content"
        for file in content.rglob("*"):
            if file.is_file():
                file.unlink()
        report = await site.run(action)
        assert report.response.status is None, report.response.status
        printed = digest(report.response.result.stdout_digest)
        assert printed.size == (1 << 20) + 5
        assert await slow.has([printed]) == [printed.size]
        tree = digest((await site.run(big)).response.result.output_directories[0].tree_digest)
        files = decode(reapi.Tree, bytes(await slow.get(tree))).root.files
        assert None not in await slow.has([digest(node.digest) for node in files])


async def test_the_end_of_the_command_is_told_before_its_result_if_there_is_something_to_upload(site: Site):
    told = []
    await site.run(await site.action(["echo", "text"]), executed=lambda: told.append("text"))
    await site.run(await site.action(["/bin/true"]), executed=lambda: told.append("nothing"))
    assert told == ["text"]


async def test_absolute_links_into_the_input_root_become_relative_behind_a_link_to_the_work_directory(site: Site):
    site.work.rmdir()
    (site.path / "real").mkdir()
    site.work.symlink_to(site.path / "real")
    script = 'echo 1 > f; ln -s "$(pwd -P)/f" a; mkdir d; ln -s "$(pwd -P)/f" d/b'
    result = await site.result(["sh", "-c", script], output_paths=["f", "a", "d"])
    assert [link.target for link in result.output_symlinks] == ["f"]
    tree = decode(reapi.Tree, await site.text(result.output_directories[0].tree_digest))
    assert [link.target for link in tree.root.symlinks] == ["../f"]


async def test_inputs_that_are_larger_than_their_store_are_refused_by_the_name_of_the_option(tmp_path):
    async with site_with(tmp_path, "filesystem", max_bytes=200_000) as site:
        layout = {str(number): bytes([number]) * 50_000 for number in range(8)}
        report = await site.run(await site.action(["/bin/true"], inputs=layout))
        assert report.response.status.code == 8, report.response.status
        assert "max_bytes" in report.response.status.message


async def test_outputs_for_which_there_is_no_room_hide_nothing_else(tmp_path):
    async with site_with(tmp_path, "filesystem", max_bytes=100_000) as site:
        script = "head -c 300000 /dev/zero > large; echo small > small; echo text; exit 3"
        action = await site.action(["sh", "-c", script], output_paths=["large", "small"])
        response = (await site.run(action)).response
        assert response.status.code == 8 and "max_bytes" in response.status.message
        assert response.result.exit_code == 3
        assert await site.text(response.result.stdout_digest) == b"text\n"
        assert [file.path for file in response.result.output_files] == ["small"]


async def test_a_work_directory_has_one_owner_at_a_time(site: Site):
    stale = site.work / "stale"
    async with site.runner().prepared():
        stale.mkdir()
        with pytest.raises(ConfigError, match="in use by another worker"):
            async with site.runner().prepared():
                pytest.fail("two workers have it")
        assert stale.exists()
    async with site.runner().prepared():
        assert not stale.exists()
