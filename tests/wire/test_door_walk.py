"""Every method of every mounted service, asked by every kind of identity: who gets in where.

The list of methods is that of the service table, so a new method without a rule here fails the suite.
"""

import hashlib
import json
import urllib.error
import urllib.request

import grpc
import pytest

from nl.auth.tokens import hash_token
from nl.config.loader import load_text
from nl.model.access import Right
from nl.pb import bytestream, health, longrunning, reapi, reflection_v1, worker_api
from nl.pb.codec import encode
from nl.scheduler.simple import SimpleScheduler
from nl.server.completeness import CompletenessChecks
from nl.server.composition import build_schedulers
from nl.server.services import _BUILDERS, mount
from nl.server.status import StatusPage, routes
from nl.services.health import HealthRegistry
from nl.storage.builder import build_stores
from tests.support.processes import free_port, serving

BLOB = b"a blob"
DIGEST = reapi.Digest(hash=hashlib.sha256(BLOB).hexdigest(), size_bytes=len(BLOB))
NAME = f"blobs/{DIGEST.hash}/{DIGEST.size_bytes}"
REAPI = "build.bazel.remote.execution.v2"
WORKER = "com.github.trace_machina.nativelink.remote_execution.WorkerApi"
PUBLIC = frozenset({None})
ANYBODY = frozenset(Right)
"""Whoever has any right for the instance; SOMEWHERE: for any instance."""
SOMEWHERE = "somewhere"
RULES = {
    f"{REAPI}.ContentAddressableStorage/FindMissingBlobs": {Right.READ_CAS},
    f"{REAPI}.ContentAddressableStorage/BatchReadBlobs": {Right.READ_CAS},
    f"{REAPI}.ContentAddressableStorage/GetTree": {Right.READ_CAS},
    f"{REAPI}.ContentAddressableStorage/BatchUpdateBlobs": {Right.WRITE_CAS},
    f"{REAPI}.ContentAddressableStorage/SplitBlob": {Right.READ_CAS},
    f"{REAPI}.ContentAddressableStorage/SpliceBlob": {Right.WRITE_CAS},
    f"{REAPI}.ActionCache/GetActionResult": {Right.READ_AC},
    f"{REAPI}.ActionCache/UpdateActionResult": {Right.WRITE_AC},
    f"{REAPI}.Capabilities/GetCapabilities": ANYBODY,
    f"{REAPI}.Execution/Execute": {Right.EXECUTE},
    f"{REAPI}.Execution/WaitExecution": {Right.EXECUTE, Right.ADMINISTER},
    "google.bytestream.ByteStream/Read": {Right.READ_CAS},
    "google.bytestream.ByteStream/Write": {Right.WRITE_CAS},
    "google.bytestream.ByteStream/QueryWriteStatus": {Right.WRITE_CAS},
    "google.longrunning.Operations/GetOperation": {Right.EXECUTE, Right.ADMINISTER},
    "google.longrunning.Operations/WaitOperation": {Right.EXECUTE, Right.ADMINISTER},
    "google.longrunning.Operations/CancelOperation": {Right.EXECUTE, Right.ADMINISTER},
    "google.longrunning.Operations/DeleteOperation": {Right.EXECUTE, Right.ADMINISTER},
    "google.longrunning.Operations/ListOperations": ANYBODY,
    f"{WORKER}/ConnectWorker": {Right.REGISTER_WORKERS},
    "grpc.health.v1.Health/Check": PUBLIC,
    "grpc.health.v1.Health/Watch": PUBLIC,
    "grpc.reflection.v1.ServerReflection/ServerReflectionInfo": SOMEWHERE,
    "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": SOMEWHERE,
}
TOKENS = {right.name.lower(): {"allow": ["execute" if right is Right.EXECUTE else right.name.lower()],
                               "instances": ["main"]} for right in Right}  # fmt: skip
TOKENS["elsewhere"] = {"allow": ["all"], "instances": ["other"]}
TOKENS["all"] = {"allow": ["all"]}
RIGHTS = {right.name.lower(): {right} for right in Right}
RIGHTS["execute"] = {Right.EXECUTE, Right.READ_CAS, Right.READ_AC, Right.WRITE_CAS}  # it has what executing needs
REFUSED = {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED}


def requests(instance):
    at = f"{instance}/" if instance else ""
    name = f"{at}00000000-0000-0000-0000-000000000000"
    return {
        "FindMissingBlobs": reapi.FindMissingBlobsRequest(instance_name=instance, blob_digests=[DIGEST]),
        "BatchReadBlobs": reapi.BatchReadBlobsRequest(instance_name=instance, digests=[DIGEST]),
        "GetTree": reapi.GetTreeRequest(instance_name=instance, root_digest=DIGEST),
        "BatchUpdateBlobs": reapi.BatchUpdateBlobsRequest(
            instance_name=instance, requests=[reapi.BatchUpdateBlobsRequestRequest(digest=DIGEST, data=BLOB)]
        ),
        "SplitBlob": reapi.SplitBlobRequest(instance_name=instance, blob_digest=DIGEST),
        "SpliceBlob": reapi.SpliceBlobRequest(instance_name=instance, blob_digest=DIGEST),
        "GetActionResult": reapi.GetActionResultRequest(instance_name=instance, action_digest=DIGEST),
        "UpdateActionResult": reapi.UpdateActionResultRequest(
            instance_name=instance, action_digest=DIGEST, action_result=reapi.ActionResult()
        ),
        "GetCapabilities": reapi.GetCapabilitiesRequest(instance_name=instance),
        "Execute": reapi.ExecuteRequest(instance_name=instance, action_digest=DIGEST),
        "WaitExecution": reapi.WaitExecutionRequest(name=name),
        "Read": bytestream.ReadRequest(resource_name=at + NAME),
        "Write": bytestream.WriteRequest(resource_name=f"{at}uploads/u/{NAME}", data=BLOB, finish_write=True),
        "QueryWriteStatus": bytestream.QueryWriteStatusRequest(resource_name=f"{at}uploads/u/{NAME}"),
        "GetOperation": longrunning.GetOperationRequest(name=name),
        "WaitOperation": longrunning.WaitOperationRequest(name=name),
        "CancelOperation": longrunning.CancelOperationRequest(name=name),
        "DeleteOperation": longrunning.DeleteOperationRequest(name=name),
        "ListOperations": longrunning.ListOperationsRequest(name=f"{at}operations"),
        "ConnectWorker": worker_api.UpdateForScheduler(connect_worker_request=worker_api.ConnectWorkerRequest()),
        "Check": health.HealthCheckRequest(),
        "Watch": health.HealthCheckRequest(),
        "ServerReflectionInfo": reflection_v1.ServerReflectionRequest(list_services=""),
    }


def config(port, tokens, **auth):
    names = ("main", "other")
    services = {
        "cas": [{"instance_name": name, "cas_store": "CAS"} for name in names],
        "ac": [{"instance_name": name, "ac_store": "AC"} for name in names],
        "bytestream": [{"instance_name": name, "cas_store": "CAS"} for name in names],
        "execution": [
            {"instance_name": name, "cas_store": "CAS", "scheduler": "S" if name == "main" else "T"} for name in names
        ],
        "capabilities": [{"instance_name": name} for name in names],
        "worker_api": {"scheduler": "S"},
        "health": {},
    }
    return json.dumps(
        {
            "stores": [{"name": "CAS", "memory": {}}, {"name": "AC", "memory": {}}],
            "schedulers": [{"name": "S", "simple": {}}, {"name": "T", "simple": {}}],
            "servers": [{"listener": {"http": {"socket_address": f"127.0.0.1:{port}"}}, "services": services}],
            "auth": {"tokens_file": str(tokens), **auth},
        }
    )


@pytest.fixture(scope="module")
def table():
    """Every mounted method with its handler."""
    text = config(1, "tokens")
    parsed = load_text(text, source="x")
    services = parsed.servers[0].services
    assert all(getattr(services, kind) is not None for kind in _BUILDERS), "a kind of service is not walked here"
    graph = build_stores(parsed.stores)
    checks = CompletenessChecks(parsed, graph)
    schedulers = build_schedulers(parsed, graph, checks)
    assert all(isinstance(each, SimpleScheduler) for each in schedulers.values())
    mounted = mount(
        parsed.servers[0], config=parsed, graph=graph, schedulers=schedulers, health=HealthRegistry(), checks=checks
    )
    return {path[1:]: handler for service in mounted.services for path, handler in service.__mapping__().items()}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    directory = tmp_path_factory.mktemp("door")
    lines = [
        {"name": name, "sha256": hash_token(f"nl_{name}".encode()).hex(), "grants": [grant]}
        for name, grant in TOKENS.items()
    ]
    (directory / "tokens").write_text("".join(json.dumps(each) + "\n" for each in lines))
    port = free_port()
    (directory / "config.json5").write_text(config(port, directory / "tokens"))
    env = {"NL_LOG_LEVEL": "debug"}
    arguments = ["serve", str(directory / "config.json5")]
    with (
        serving(arguments, port=port, log=directory / "log", env=env) as process,
        grpc.insecure_channel(process.target) as channel,
    ):
        yield process, channel


def ask(channel, method, handler, request, token=None):
    """(code, details): of the first reply where there may be many, of the whole call where there is one."""
    metadata = [("authorization", f"Bearer {token}")] if token is not None else []
    kind = handler.cardinality
    data = encode(request)
    call = getattr(
        channel,
        ("stream" if kind.client_streaming else "unary") + "_" + ("stream" if kind.server_streaming else "unary"),
    )(f"/{method}")
    try:
        reply = call(iter([data]) if kind.client_streaming else data, timeout=20, metadata=metadata)
        if kind.server_streaming:
            next(reply, None)
            reply.cancel()
    except grpc.RpcError as exc:
        return exc.code(), exc.details()
    return grpc.StatusCode.OK, ""


def test_every_method_has_a_rule_and_every_rule_a_method(table):
    assert set(table) == set(RULES)
    assert {method.rpartition("/")[2] for method in table} == set(requests(""))


@pytest.mark.parametrize("method", RULES)
def test_who_has_the_right_gets_in_and_nobody_else(table, server, method):
    _, channel = server
    handler, rule = table[method], RULES[method]
    request = requests("main")[method.rpartition("/")[2]]
    for name, rights in RIGHTS.items():
        code, details = ask(channel, method, handler, request, f"nl_{name}")
        if rule in (PUBLIC, SOMEWHERE) or rights & set(rule):
            assert code not in REFUSED, (name, details)
        else:
            assert code is grpc.StatusCode.PERMISSION_DENIED, (name, code, details)
            assert details.startswith(f"{name!r} does not have "), details
            assert details.endswith(" for instance 'main'")
            assert any(right.name.lower() in details for right in rule)
    code, details = ask(channel, method, handler, request, "nl_all")
    assert code not in REFUSED, details
    code, details = ask(channel, method, handler, request, "nl_elsewhere")
    if rule in (PUBLIC, SOMEWHERE):
        assert code not in REFUSED
    else:
        assert code is grpc.StatusCode.PERMISSION_DENIED
    code, details = ask(channel, method, handler, request)
    if rule == PUBLIC:
        assert code not in REFUSED
    else:
        assert code is grpc.StatusCode.UNAUTHENTICATED
        assert details.endswith("needs credentials; none were given")
    assert ask(channel, method, handler, request, "nl_wrong")[0] is grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize("method", [method for method, rule in RULES.items() if rule != PUBLIC])
def test_what_strangers_send_is_not_even_looked_at(table, server, method):
    """Reading 16 MB of digests is 0.4 s of work, and what is wrong with a request tells something of the server."""
    _, channel = server
    kind = table[method].cardinality
    names = ["stream" if each else "unary" for each in (kind.client_streaming, kind.server_streaming)]
    junk = b"\xff" * 20
    with pytest.raises(grpc.RpcError) as caught:
        reply = getattr(channel, "_".join(names))(f"/{method}")(iter([junk]) if kind.client_streaming else junk)
        next(reply)
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED, caught.value.details()


@pytest.mark.parametrize("method", [method for method, rule in RULES.items() if rule not in (PUBLIC, SOMEWHERE)])
def test_an_instance_that_is_not_there_looks_like_one_that_is_not_for_you(table, server, method):
    _, channel = server
    if method.endswith("/ConnectWorker"):
        return  # names no instance
    last = method.rpartition("/")[2]
    answers = [
        ask(channel, method, table[method], requests(instance)[last], "nl_elsewhere")
        for instance in ("main", "nowhere")
    ]
    assert answers[0][0] is answers[1][0] is grpc.StatusCode.PERMISSION_DENIED
    assert answers[0][1] == answers[1][1].replace("nowhere", "main")
    code, details = ask(channel, method, table[method], requests("nowhere")[last], "nl_all")
    assert code is grpc.StatusCode.NOT_FOUND, details


def test_capabilities_say_what_one_may_have_done(table, server):
    _, channel = server

    def capabilities(token):
        call = channel.unary_unary(
            f"/{REAPI}.Capabilities/GetCapabilities", response_deserializer=lambda data: data
        )
        data = encode(reapi.GetCapabilitiesRequest(instance_name="main"))
        reply = reapi.ServerCapabilities.parse(call(data, metadata=[("authorization", f"Bearer nl_{token}")]))
        update = reply.cache_capabilities.action_cache_update_capabilities
        return bool(update and update.update_enabled), reply.execution_capabilities.exec_enabled

    expected = {name: (Right.WRITE_AC in rights, Right.EXECUTE in rights) for name, rights in RIGHTS.items()}
    assert {name: capabilities(name) for name in RIGHTS} == expected
    assert capabilities("all") == (True, True)


def test_who_may_not_read_blobs_gets_none_inlined_into_results(server):
    """Whoever may write results could name any blob in one."""
    _, channel = server

    def call(method, request, token):
        metadata = [("authorization", f"Bearer nl_{token}")]
        return channel.unary_unary(f"/{REAPI}.{method}")(encode(request), metadata=metadata)

    upload = requests("main")["BatchUpdateBlobs"]
    call("ContentAddressableStorage/BatchUpdateBlobs", upload, "all")
    file = reapi.OutputFile(path="f", digest=DIGEST)
    update = reapi.UpdateActionResultRequest(
        instance_name="main", action_digest=DIGEST,
        action_result=reapi.ActionResult(stdout_digest=DIGEST, stderr_digest=DIGEST, output_files=[file]),
    )  # fmt: skip
    call("ActionCache/UpdateActionResult", update, "write_ac")
    wanted = reapi.GetActionResultRequest(
        instance_name="main", action_digest=DIGEST, inline_stdout=True, inline_stderr=True, inline_output_files=["f"]
    )
    for token, expected in (("all", BLOB), ("execute", BLOB), ("read_ac", b"")):
        result = reapi.ActionResult.parse(call("ActionCache/GetActionResult", wanted, token))
        found = (result.stdout_raw, result.stderr_raw, result.output_files[0].contents)
        assert found == (expected,) * 3, token
        assert result.stdout_digest == DIGEST


HTTP_RULES = {"/status": PUBLIC}


def http(process, path, token=None):
    """(status, body)."""
    headers = {"Authorization": f"Bearer {token}"} if token is not None else {}
    try:
        with urllib.request.urlopen(urllib.request.Request(f"http://{process.target}{path}", headers=headers)) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as exc:
        with exc:
            return exc.code, exc.read().decode()


def test_every_route_has_a_rule_and_every_rule_a_route():
    parsed = load_text(config(1, "tokens"), source="x")
    assert set(routes(parsed.servers[0], StatusPage(HealthRegistry(), None, [], None, {}), None)) == set(HTTP_RULES)


def test_the_status_page_tells_probes_that_it_serves_and_administrators_the_rest(server):
    process, _ = server
    for token in (None, *(f"nl_{name}" for name in RIGHTS), "nl_elsewhere"):
        status, body = http(process, "/status", token)
        assert (status, json.loads(body)) == (200, {"status": "SERVING"}), token
    status, body = http(process, "/status", "nl_all")
    assert status == 200
    page = json.loads(body)
    assert {"stores", "services", "listeners", "auth"} <= set(page)
    assert page["auth"]["auth"]["tokens"] == len(TOKENS)
    assert not [name for name in TOKENS if f"nl_{name}" in body]
    assert http(process, "/status", "nl_wrong")[0] == 401


def test_nothing_of_a_token_was_logged(server):
    process, channel = server
    with pytest.raises(grpc.RpcError):
        channel.unary_unary(f"/{REAPI}.Capabilities/GetCapabilities")(b"", metadata=[("authorization", "nl_SECRET")])
    text = process.log_text()
    assert "wrong credentials from 127.0.0.1" in text
    for secret in ("nl_SECRET", "Bearer", *(f"nl_{name}" for name in (*TOKENS, "wrong"))):
        assert secret not in text, secret
