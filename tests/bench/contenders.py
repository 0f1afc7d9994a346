"""The contenders: direct, nginx, this gateway, vllm-router and the LiteLLM proxy."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.bench.children import Child
from tests.bench.gateway_home import STREAM_MODEL, UNARY_MODEL, start_gateway
from tests.bench.peers import Peers, start_litellm, start_vllm_router
from tests.bench.upstreams import STREAM_SCRIPT, Upstreams, start_nginx_proxy

DIRECT, NGINX, GATEWAY, ROUTER, LITELLM = "direct", "nginx", "gateway", "vllm-router", "LiteLLM"
EVERY = (DIRECT, NGINX, GATEWAY, ROUTER, LITELLM)


@dataclass(frozen=True, slots=True)
class Target:
    """Where a load goes: base address without `/v1`, model name, headers and who serves it."""

    url: str
    model: str
    headers: dict[str, str] = field(default_factory=dict)
    child: Child | None = None

    @property
    def chat_url(self) -> str:
        """Address of chat completions."""
        return f"{self.url}/v1/chat/completions"

    def cpu_seconds(self) -> float:
        """CPU time of the server so far; nothing for the direct way."""
        return self.child.cpu_seconds() if self.child else 0.0

    def resident_mb(self) -> float:
        """Resident memory of the server, MB."""
        return self.child.resident_mb() if self.child else 0.0


@dataclass(frozen=True, slots=True)
class Contender:
    """One of those compared."""

    name: str
    unary: Target
    stream: Target


@dataclass(frozen=True, slots=True)
class Start:
    """What every contender is started with."""

    folder: Path
    upstreams: Upstreams
    peers: Peers | None
    stack: ExitStack

    def direct(self) -> Contender:
        """The upstreams themselves."""
        return Contender(
            DIRECT,
            Target(self.upstreams.unary, UNARY_MODEL),
            Target(self.upstreams.stream, STREAM_SCRIPT),
        )

    def nginx(self) -> Contender:
        """nginx as a plain proxy."""
        child, unary, stream = start_nginx_proxy(self.folder, self.upstreams)
        self._ready(child, unary, {})
        return Contender(
            NGINX, Target(unary, UNARY_MODEL, {}, child), Target(stream, STREAM_SCRIPT, {}, child)
        )

    def gateway(self) -> Contender:
        """One worker of this gateway: key checked, log on."""
        child, url, key = start_gateway(self.folder, self.upstreams)
        headers = {"authorization": f"Bearer {key}"}
        self._ready(child, url, headers)
        return Contender(
            GATEWAY,
            Target(url, UNARY_MODEL, headers, child),
            Target(url, STREAM_MODEL, headers, child),
        )

    def router(self) -> Contender:
        """vllm-router: one process for each upstream, as it balances over all that it is given."""
        assert self.peers is not None
        targets = []
        for kind, model in (("unary", UNARY_MODEL), ("stream", STREAM_SCRIPT)):
            upstream = getattr(self.upstreams, kind)
            child, url = start_vllm_router(self.peers, self.folder, kind=kind, upstream=upstream)
            self._ready(child, url, {})
            targets.append(Target(url, model, {}, child))
        return Contender(ROUTER, *targets)

    def litellm(self) -> Contender:
        """The LiteLLM proxy with one worker and its master key checked."""
        assert self.peers is not None
        child, url, key = start_litellm(self.peers, self.folder, self.upstreams)
        headers = {"authorization": f"Bearer {key}"}
        self._ready(child, url, headers)
        return Contender(
            LITELLM,
            Target(url, UNARY_MODEL, headers, child),
            Target(url, STREAM_MODEL, headers, child),
        )

    def _ready(self, child: Child, url: str, headers: dict[str, str]) -> None:
        self.stack.callback(child.stop)
        child.wait_until_answers(f"{url}/v1/models", seconds=120, headers=headers)


@contextmanager
def running(
    names: tuple[str, ...],
    folder: Path,
    upstreams: Upstreams,
    *,
    peers: Peers | None,
    say: Callable[[str], None],
) -> Iterator[list[Contender]]:
    """The named contenders, each answering."""
    with ExitStack() as stack:
        start = Start(folder, upstreams, peers, stack)
        ways = dict(
            zip(
                EVERY,
                (start.direct, start.nginx, start.gateway, start.router, start.litellm),
                strict=True,
            )
        )
        found = []
        for name in names:
            say(f"starting {name}")
            found.append(ways[name]())
        yield found
