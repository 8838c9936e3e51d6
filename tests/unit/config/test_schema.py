"""The JSON schema and the reference, made from the structs."""

import re
from typing import get_args

import json5
import pytest

from nl.config.convert import store_spec
from nl.config.descriptions import describe, describe_fields
from nl.config.document import Config
from nl.config.fields import Conversion, fields_of, walk
from nl.config.reference import config_reference
from nl.config.registry import StoreKinds
from nl.config.schedulers import SCHEDULER_KINDS
from nl.config.schema import _SchemaBuilder, config_schema
from nl.config.types import Options
from tests.unit.config.kinds import DiskOptions, EverythingOptions, MemOptions, kinds


@pytest.fixture(scope="module")
def schema():
    return config_schema(kinds())


def test_unknown_keys_are_refused_everywhere(schema):
    structs = [schema, *schema["$defs"].values()]
    assert all(struct["additionalProperties"] is False for struct in structs)
    assert len(structs) > 20


def test_a_store_is_one_of_the_installed_kinds(schema):
    store, named = schema["$defs"]["Store"], schema["$defs"]["NamedStore"]
    assert sorted(store["properties"]) == kinds().names()
    assert (store["minProperties"], store["maxProperties"]) == (1, 1)
    assert sorted(named["properties"]) == sorted([*kinds().names(), "name"])
    assert (named["required"], named["maxProperties"]) == (["name"], 2)


def test_every_reference_leads_to_a_definition(schema):
    def references(value):
        if isinstance(value, dict):
            if "$ref" in value:
                yield value["$ref"]
            for inner in value.values():
                yield from references(inner)
        elif isinstance(value, list):
            for inner in value:
                yield from references(inner)

    found = set(references(schema))
    assert found == {f"#/$defs/{name}" for name in schema["$defs"]}


def test_fields_have_description_default_and_requirement(schema):
    disk = schema["$defs"]["DiskOptions"]
    assert disk["required"] == ["content_path", "temp_path"]
    assert disk["description"] == "Blobs in a directory.\n\nSeveral lines."
    assert disk["properties"]["content_path"] == {"type": "string", "description": "Where the blobs lie."}
    assert disk["properties"]["read_buffer_size"]["default"] == 32768
    assert disk["properties"]["read_buffer_size"]["description"] == "The size of reads; two lines."


def test_every_type_has_a_schema(schema):
    properties = schema["$defs"]["EverythingOptions"]["properties"]
    assert set(properties) == {one.key for one in fields_of(EverythingOptions)}
    assert properties["choice"]["enum"] == ["a", "b"]
    assert {"type": "null"} in properties["maybe"]["anyOf"]
    assert properties["texts"]["items"] == {"type": "string"}
    assert properties["sizes"]["additionalProperties"]["anyOf"][0] == {"type": "integer", "minimum": 0}


def test_descriptions_are_the_literals_after_the_fields():
    assert describe_fields(DiskOptions) == {
        "content_path": "Where the blobs lie.", "read_buffer_size": "The size of reads; two lines."}
    assert describe(MemOptions) == ""


def test_inherited_fields_keep_their_descriptions():
    class More(DiskOptions):
        """More."""

        extra: int = 0
        """Extra."""

    assert list(describe_fields(More)) == ["content_path", "read_buffer_size", "extra"]


def structs_of(cls, found):
    if isinstance(cls, type) and issubclass(cls, Options) and cls is not Options and cls not in found:
        found.add(cls)
        for one in fields_of(cls):
            structs_of(one.annotation, found)
    for inner in get_args(cls):
        structs_of(inner, found)
    return found


def test_every_option_of_the_server_is_described():
    for cls in structs_of(Config, set()).union(*(structs_of(kind, set()) for kind in SCHEDULER_KINDS.values())):
        assert describe(cls), cls
        assert set(describe_fields(cls)) == {one.attribute for one in fields_of(cls)}, cls


@pytest.mark.parametrize("name", StoreKinds.of_project().names())
def test_every_option_of_a_built_in_store_is_described_and_its_example_loads(name):
    found = StoreKinds.of_project()
    options = found.options(name, name)
    assert describe(options)
    assert set(describe_fields(options)) == {one.attribute for one in fields_of(options)}
    spec = store_spec(json5.loads(options.EXAMPLE), "example", Conversion({}, found.options))
    assert spec.kind == name
    assert len(list(walk(spec, "example"))) > 1


def test_the_reference_has_every_kind_and_every_key():
    text = config_reference(kinds())
    for name in kinds().names():
        assert f"### Store kind `{name}`" in text
    for cls in (Config, DiskOptions, EverythingOptions, *SCHEDULER_KINDS.values()):
        for one in fields_of(cls):
            assert f"| `{one.key}` |" in text
    assert "| `content_path` | text | required | Where the blobs lie. |" in text
    assert "| `read_buffer_size` | size | 32 KiB | The size of reads; two lines. |" in text
    assert "```json5\n{ disk: { content_path: \"/x\", temp_path: \"/y\" } }\n```" in text
    assert text.endswith("\n")


def test_links_of_the_reference_lead_to_headings():
    text = config_reference(kinds())
    headings = {re.sub(r"[^a-z0-9 _-]", "", line.lstrip("# ").lower()).replace(" ", "-")
                for line in text.splitlines() if line.startswith("#")}
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) <= headings


def test_a_schema_says_what_it_is_and_has_its_definitions_in_order(schema):
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert (schema["title"], schema["type"]) == ("nl config", "object")
    assert schema["description"] == describe(Config)
    assert list(schema["$defs"]) == sorted(schema["$defs"])
    assert schema["properties"]["stores"]["items"] == {"$ref": "#/$defs/NamedStore"}
    assert schema["properties"]["schedulers"]["items"] == {"$ref": "#/$defs/NamedScheduler"}


def test_an_option_that_may_be_absent_may_be_null_and_one_that_may_not_may_not(schema):
    listener = schema["$defs"]["HttpListener"]["properties"]
    assert listener["tls"]["anyOf"] == [{"$ref": "#/$defs/TlsOptions"}, {"type": "null"}]
    assert "default" not in listener["tls"]
    assert "anyOf" not in listener["advanced_http"]
    assert (listener["freebind"]["default"], listener["unix_socket_mode"]["default"]) == (False, "0600")
    assert "default" not in listener["socket_address"]
    assert schema["$defs"]["HttpListener"]["required"] == ["socket_address"]


def test_what_has_no_effect_or_is_not_supported_says_so(schema):
    listener = schema["$defs"]["AdvancedHttpOptions"]["properties"]
    assert listener["experimental_http2_adaptive_window"]["description"].endswith(
        "No effect: windows are fixed here."
    )
    services = schema["$defs"]["ServicesOptions"]["properties"]
    fetch = services["fetch"]
    assert "Not supported: the Remote Asset API is not served." in fetch["description"]
    assert fetch["anyOf"][1] == {"type": "object", "maxProperties": 0}
    assert services["cas"]["description"].endswith('(Loads also the older { "<instance>": { ... } }.)')
    assert {"type": "object", "maxProperties": 0} not in services["cas"]["anyOf"]


def test_a_kind_and_a_name_are_all_that_a_store_has(schema):
    named, plain = schema["$defs"]["NamedStore"], schema["$defs"]["Store"]
    assert named["properties"]["name"] == {"type": "string", "minLength": 1}
    assert named["properties"]["disk"] == plain["properties"]["disk"] == {"$ref": "#/$defs/DiskOptions"}
    assert (named["minProperties"], "required" in plain, "name" in plain["properties"]) == (2, False, False)


def test_structs_of_one_name_are_told_apart():
    builder = _SchemaBuilder(kinds())
    made = [type(Options)("Same", (Options,), {"__module__": module, "__doc__": "x"}) for module in ("one", "two")]
    assert [builder._name(each) for each in (*made, *made)] == ["Same", "two.Same", "Same", "two.Same"]


def test_a_struct_without_description_or_requirement_has_none(schema):
    mem = schema["$defs"]["MemOptions"]
    assert "description" not in mem
    assert "required" not in mem
