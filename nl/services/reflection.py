"""Server reflection, v1 and v1alpha: how grpcurl and its like learn what is served here, if they have any right here.

The two versions are one protocol under two names; each request gets one answer, failures are answers too and leave
the stream open (grpc/reflection/v1). Not here: the descriptors themselves, `nl.services.descriptor_index`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any

import grpclib.const

from nl.errors import Code
from nl.pb import reflection_v1, reflection_v1alpha
from nl.rpc.contract import ServerStream
from nl.services.descriptor_index import DescriptorIndex, FileDescriptor
from nl.services.requests import refuse_strangers

_VERSIONS: dict[str, ModuleType] = {"v1": reflection_v1, "v1alpha": reflection_v1alpha}


class ReflectionService:
    """Answers for the services named, from a serialised FileDescriptorSet read on first use."""

    def __init__(self, service_names: Iterable[str], *, load_descriptors: Callable[[], bytes]) -> None:
        self._service_names = sorted(service_names)
        self._load = load_descriptors

    @functools.cached_property
    def _index(self) -> DescriptorIndex:
        return DescriptorIndex(self._load())

    async def _serve(self, pb: Any, stream: ServerStream[Any, Any]) -> None:
        refuse_strangers(stream)
        async for request in stream:
            await stream.send_message(self._answer(pb, request))

    def _answer(self, pb: Any, request: Any) -> Any:
        reply = pb.ServerReflectionResponse(valid_host=request.host, original_request=request)
        if request.list_services is not None:
            services = [pb.ServiceResponse(name=name) for name in self._service_names]
            reply.list_services_response = pb.ListServiceResponse(service=services)
        elif request.file_by_filename is not None:
            self._describe(pb, reply, what=f"file {request.file_by_filename[:200]!r}",
                           files=self._index.file(request.file_by_filename))
        elif request.file_containing_symbol is not None:
            self._describe(pb, reply, what=f"symbol {request.file_containing_symbol[:200]!r}",
                           files=self._index.file_of_symbol(request.file_containing_symbol))
        elif request.file_containing_extension is not None or request.all_extension_numbers_of_type is not None:
            # None of the APIs served here declares or accepts an extension.
            _fail(pb, reply, Code.NOT_FOUND, "there are no extensions of any type here")
        else:
            _fail(pb, reply, Code.INVALID_ARGUMENT, "the request asks for nothing that this server knows")
        return reply

    @staticmethod
    def _describe(pb: Any, reply: Any, *, what: str, files: list[FileDescriptor] | None) -> None:
        if files is None:
            _fail(pb, reply, Code.NOT_FOUND, f"unknown {what}")
        else:
            encoded = [file.encoded for file in files]
            reply.file_descriptor_response = pb.FileDescriptorResponse(file_descriptor_proto=encoded)

    def __mapping__(self) -> dict[str, grpclib.const.Handler]:
        return {
            f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo": grpclib.const.Handler(
                functools.partial(self._serve, pb),
                grpclib.const.Cardinality.STREAM_STREAM,
                pb.ServerReflectionRequest,
                pb.ServerReflectionResponse,
            )
            for version, pb in _VERSIONS.items()
        }


def _fail(pb: Any, reply: Any, code: Code, message: str) -> None:
    reply.error_response = pb.ErrorResponse(error_code=int(code), error_message=message)
