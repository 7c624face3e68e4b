"""`POST .../infer`: tensors in, tensors out."""

import time
from dataclasses import replace

from lacuna_kernels import Value
from lacuna_service.body import Body, offload
from lacuna_service.codecs.inference import InferRequest, decode_request, encode_answer, header_end
from lacuna_service.routes.endpoint import ClientWatch, Exchange, ModelEndpoint
from lacuna_service.routes.replies import Reply
from lacuna_service.signature import Signature, TensorSpec

HEADER_LENGTH = "inference-header-content-length"


class Infer(ModelEndpoint):
    """Inference requests of the Open Inference Protocol v2, JSON or binary."""

    async def answer(self, exchange: Exchange) -> Reply:
        """Answer with the outputs that the request names, or with all."""
        model, signature, began = exchange.model, self.signature(exchange.model), time.perf_counter()
        header_length = exchange.headers.get(HEADER_LENGTH)
        json_bytes = header_end(header_length, len(exchange.body))
        request, wanted, batch = await offload(json_bytes, decode, exchange.body, header_length, signature)
        exchange.spent("decode", began)

        with ClientWatch(exchange.receive):
            answer = await self.engine.infer(model, batch, timeout_s=request.timeout_s, priority=request.priority)
        exchange.items = answer.items
        exchange.seconds |= {"queue": answer.queue_seconds, "compute": answer.compute_seconds}

        began = time.perf_counter()
        tensors = signature.tensors(answer.values)
        outputs = {spec.name: (tensors[spec.name], binary) for spec, binary in wanted}
        size = sum(tensor.nbytes for tensor, binary in outputs.values() if not binary)
        encoded = await offload(
            size, encode_answer, model.name, model.version, request.id, outputs, exchange.parameters(answer)
        )
        exchange.spent("encode", began)
        if encoded.header_length is None:
            return Reply(encoded.body)
        headers = {HEADER_LENGTH: str(encoded.header_length)}
        return Reply(encoded.body, "application/octet-stream", headers=headers)


def decode(
    body: Body, header_length: str | None, signature: Signature
) -> tuple[InferRequest, list[tuple[TensorSpec, bool]], dict[str, Value]]:
    """What is asked, which outputs are wanted and whether in binary form, and the network's inputs; raises BadRequest.

    The request comes without its data: while it waits, parsed JSON would take many times the memory of the tensors.
    """
    request = decode_request(body, header_length)
    wanted, batch = signature.wanted(request), signature.batch(request)
    return replace(request, inputs=(), raw=None), wanted, batch
