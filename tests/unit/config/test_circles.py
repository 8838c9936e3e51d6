"""A store whose server is the listener that serves it is found when the config is read."""

from __future__ import annotations

import pytest

from nl.config.loader import load_value
from nl.config.registry import StoreKinds
from nl.errors import ConfigError


def grpc(address, kind="cas", **more):
    return {"grpc": {"endpoints": [{"address": address}], "store_type": kind, **more}}


def load(*, stores, listeners=("127.0.0.1:50051",), services=None, **server):
    services = services or [{"cas": [{"cas_store": "A"}], "bytestream": [{"cas_store": "A"}]}] * len(listeners)
    return load_value(
        {
            "stores": [{"name": name, **store} for name, store in stores.items()],
            "servers": [
                {"listener": {"http": {"socket_address": address}}, "services": each, **server}
                for address, each in zip(listeners, services, strict=True)
            ],
        },
        env={}, kinds=StoreKinds.built_in(), on_warning=pytest.fail,
    )


@pytest.mark.parametrize(
    ("listens", "address"),
    [
        ("127.0.0.1:50051", "grpc://127.0.0.1:50051"), ("0.0.0.0:50051", "http://localhost:50051"),
        ("[::]:50051", "grpc://[::1]:50051"), ("10.1.2.3:50051", "10.1.2.3:50051"), ("0.0.0.0:80", "grpc://localhost"),
        ("0.0.0.0:443", "https://localhost"), ("0.0.0.0:443", "grpcs://localhost"), ("0.0.0.0:80", "http://localhost/"),
        ("unix:/run/nl.sock", "unix:/run/nl.sock"), ("unix:///run/nl.sock", "unix:/run/nl.sock"),
    ],
)
def test_a_store_of_its_own_listener_is_refused_with_its_place(listens, address):
    with pytest.raises(ConfigError) as caught:
        load(stores={"A": grpc(address)}, listeners=(listens,))
    assert str(caught.value) == (
        f'stores[0].grpc.endpoints[0].address: "{address}" is servers[0], which serves this very store '
        "(instance ''); expected another server"
    )


def test_it_is_found_behind_other_stores_and_names():
    behind = {"fast_slow": {"fast": {"memory": {}}, "slow": {"ref_store": {"name": "B"}}}}
    with pytest.raises(ConfigError, match=r"stores\[1\]\.verify\.backend\.grpc\.endpoints\[0\]\.address"):
        load(stores={"A": behind, "B": {"verify": {"backend": grpc("grpc://localhost:50051")}}})


def test_another_listener_port_instance_or_sort_is_no_circle():
    ours = "grpc://127.0.0.1:50051"
    memory = {"memory": {}}
    both = ({"cas": [{"cas_store": "M"}], "bytestream": [{"cas_store": "M"}]}, {"cas": [{"cas_store": "A"}]})
    load(stores={"A": grpc(ours), "M": memory}, listeners=("127.0.0.1:50051", "127.0.0.1:50052"), services=both)
    load(stores={"A": grpc("grpc://127.0.0.1:50052")})
    load(stores={"A": grpc("grpc://elsewhere:50051")})
    load(stores={"A": grpc("https://localhost")}, listeners=("127.0.0.1:80",))
    load(stores={"A": grpc("grpc://localhost")}, listeners=("127.0.0.1:443",))
    load(stores={"A": grpc(ours, instance_name="other")})
    load(stores={"A": grpc(ours, kind="ac")})


def test_a_name_that_is_served_as_the_empty_one_is_a_circle():
    with pytest.raises(ConfigError, match="this very store"):
        load(stores={"A": grpc("grpc://127.0.0.1:50051", instance_name="other")}, any_instance_name=True)


OURS = "grpc://127.0.0.1:50051"


@pytest.mark.parametrize(
    ("services", "kind"),
    [
        ({"cas": [{"cas_store": "A"}]}, "cas"), ({"bytestream": [{"cas_store": "A"}]}, "cas"),
        ({"ac": [{"ac_store": "A"}]}, "ac"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("instance", ["", "main"])
def test_each_service_can_close_a_circle_for_its_own_instance_and_sort(services, kind, instance):
    named = {key: [{"instance_name": instance, **entry} for entry in entries] for key, entries in services.items()}
    with pytest.raises(ConfigError, match=rf"servers\[0\], which serves this very store \(instance '{instance}'\)"):
        load(stores={"A": grpc(OURS, kind=kind, instance_name=instance)}, services=[named])
    load(stores={"A": grpc(OURS, kind="ac" if kind == "cas" else "cas", instance_name=instance)}, services=[named])
    load(stores={"A": grpc(OURS, kind=kind, instance_name="another")}, services=[named])


def test_where_any_name_is_served_one_that_is_configured_is_still_only_itself():
    services = [{"cas": [{"cas_store": "A"}, {"instance_name": "b", "cas_store": "M"}]}]
    stores = {"A": grpc(OURS, instance_name="b"), "M": {"memory": {}}}
    load(stores=stores, services=services, any_instance_name=True)
    stores["A"] = grpc(OURS, instance_name="c")
    with pytest.raises(ConfigError, match="this very store"):
        load(stores=stores, services=services, any_instance_name=True)
    load(stores=stores, services=services)
