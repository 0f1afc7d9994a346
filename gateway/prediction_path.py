"""The path of a prediction, from its arrival to its row in the log.

    authenticate → read → parse → understand → route → intend → ask → reply → settle

The form of the request (`gateway.prediction_forms`) decides how it is understood and answered;
keys, splits, log, metrics and cost are those of any other request.
"""

import time
from urllib.parse import quote

from gateway.errors import BadRequest, ModelServerAway, NoVersion, UpstreamBroken
from gateway.exchange import Disconnected
from gateway.inference import Inference
from gateway.logged_endpoint import LoggedEndpoint, Services
from gateway.prediction_forms import PREDICT, Form, Question, parse_predicted
from gateway.records import Status, usd_text
from gateway.upstream import Call, refusal
from gateway.wire import MODEL_CHARACTERS

BINARY = b"inference-header-content-length"


class PredictionEndpoint(LoggedEndpoint):
    """One form as an ASGI callable, for every path of `before`, a model's name and `after`."""

    def __init__(self, form: Form, path: tuple[str, str], services: Services):
        super().__init__(form.name, services)
        self.form = form
        self.before, self.after = path

    def answers(self, path: str) -> bool:
        """Whether `path` is one of its own."""
        named = path.startswith(self.before) and path.endswith(self.after)
        return named and len(path) > len(self.before) + len(self.after)

    async def serve(self, work: Inference) -> None:
        """The path, top to bottom."""
        self._admit(work)
        self._authenticate(work)
        await self._read(work)
        await self._parse(work)
        question = self._understand(work)
        self._route(work)
        call = self._intend(work, question)
        data = await self._ask(work, call)
        await self._reply(work, question, data)

    def _understand(self, work: Inference) -> Question:
        started = time.perf_counter()
        assert work.body is not None
        if BINARY in work.exchange.headers:
            raise BadRequest(
                "Tensors are taken as JSON here, without the binary extension (binary_data=False).",
                code="not_supported",
            )
        record, path = work.record, work.exchange.path
        record.model = path[len(self.before) : len(path) - len(self.after)][:MODEL_CHARACTERS]
        question = self.form.read(work.body, work.snapshot.configuration.limits)
        record.user = question.user or record.user
        record.episode_id = question.episode_id
        record.tags = dict(question.tags)
        work.tag_client_id()
        work.spend(started)
        return question

    def _route(self, work: Inference) -> None:
        started = time.perf_counter()
        assert work.key is not None and work.record.model is not None
        asked = work.record.model
        target = work.target = work.snapshot.routes.resolve(asked, work.key)
        split = self.services.splits.current.get(asked)
        if split is not None:
            target = self._vary(work, target, split)
        if target.upstream.kind != "kserve":
            raise BadRequest(
                f"{asked!r} is no tabular model; ask it at POST /v1/chat/completions.",
                param="model",
                code="not_tabular",
            )
        version = (work.variant and work.variant.adapter) or target.settings.model
        if version is None:
            raise NoVersion(asked)
        work.record.adapter, work.record.target = version, target.name
        work.spend(started)

    def _intend(self, work: Inference, question: Question) -> Call:
        if work.exchange.connection.closed:
            raise Disconnected
        started = time.perf_counter()
        assert work.target is not None and work.record.adapter is not None
        upstream, request_id = work.target.upstream, work.record.request_id
        headers = {"content-type": "application/json", "x-request-id": request_id}
        if work.target.credential:
            headers["authorization"] = f"Bearer {work.target.credential}"
        call = Call(
            f"{upstream.url.rstrip('/')}/models/{quote(work.record.adapter, safe='')}/infer",
            headers,
            question.as_body(request_id),
            upstream.timeouts,
            stream=False,
            connections=upstream.connections,
        )
        self._begin(work)
        work.spend(started)
        return call

    async def _ask(self, work: Inference, call: Call) -> bytes:
        try:
            answer = await self.services.transport.send(call)
        except UpstreamBroken as error:
            raise ModelServerAway(
                f"The model server of {work.record.model!r} cannot be reached; try again."
            ) from error
        try:
            data = await answer.read()
        finally:
            answer.close()
        if answer.status == 404:
            raise ModelServerAway(
                f"The model server does not have {work.record.adapter!r} loaded; the controller "
                "loads it when it comes round: try again; if that does not help, its log "
                "(llmops logs-of controller) says why.",
                code="version_not_loaded",
            )
        if answer.status == 503:
            raise ModelServerAway(refusal(400, {}, data).message, code="model_server_not_ready")
        if not 200 <= answer.status < 300:
            refused = refusal(answer.status, answer.headers, data)
            if refused.code == BadRequest.code:  # the caller's mistake is no failure of the model
                raise BadRequest(refused.message, param=refused.param)
            raise refused
        return data

    async def _reply(self, work: Inference, question: Question, data: bytes) -> None:
        """The answer in the request's form: priced and logged, then sent."""
        answered = time.perf_counter()
        record, ledger = work.record, self.services.ledger
        record.ttft_ms = work.elapsed_ms()
        names = (record.request_id, record.model or "", record.adapter or "")
        predicted = parse_predicted(data, question.rows, names)
        sent = self.form.write(question, predicted)
        logged = sent if self.form is PREDICT else PREDICT.write(question, predicted)
        ledger.price_predictions(work, question.rows)
        work.spend(answered)
        ledger.settle(work, Status.OK, 200, logged)
        await ledger.durable()
        headers = work.headers()
        headers.append((b"x-response-cost", usd_text(record.cost_nano_usd).encode()))
        await work.exchange.answer(200, headers, sent)
