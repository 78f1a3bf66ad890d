"""The routes, who may use them, and the headers of every response."""

import hashlib
import hmac
from collections.abc import Awaitable, Callable

from aiohttp import web

from nvlm_train.serving.completions import House, complete
from nvlm_train.serving.page import Page
from nvlm_train.serving.problems import Refusal

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_OPEN = ("/", "/health")    # without a key: a page that asks for it, and what load balancers look at


def make_app(house: House, page: Page) -> web.Application:
    """All routes of a server."""
    app = web.Application(client_max_size=int(house.limits.max_body_mb * 2**20),
                          middlewares=[_in_openai_form, _keyed(house.key)])

    async def show_page(_: web.Request) -> web.Response:
        return web.Response(text=page.html, content_type="text/html", headers={"Content-Security-Policy": page.policy})

    async def health(_: web.Request) -> web.Response:
        return web.json_response({"status": "stopping" if house.closing else "ok"}, status=503 if house.closing else 200)

    async def models(_: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [_described(house)]})

    async def model(request: web.Request) -> web.Response:
        if request.match_info["name"] != house.name:
            raise Refusal(f"this server has {house.name!r}", "model", "model_not_found", 404)
        return web.json_response(_described(house))

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(text=house.counters.text(), content_type="text/plain")

    async def completions(request: web.Request) -> web.StreamResponse:
        return await complete(house, request)

    app.add_routes([web.get("/", show_page), web.get("/health", health), web.get("/metrics", metrics),
                    web.get("/v1/models", models), web.get("/v1/models/{name}", model),
                    web.post("/v1/chat/completions", completions)])
    app.on_response_prepare.append(_harden)
    return app


def _described(house: House) -> dict:
    """The model as OpenAI's API lists it, with what a client may want to know beforehand in `nvlm`."""
    limits, encoder = house.limits, house.encoder
    about = {"architecture": encoder.model.architecture, "tile_size": encoder.geometry.tile_size,
             "max_tiles": encoder.data.max_tiles, "tags": encoder.model.tags.kind, "max_tokens": encoder.max_tokens, "max_new_tokens": limits.max_new_tokens,
             "max_images": 0 if house.blind else limits.max_images, "max_pixels": limits.max_pixels,
             "max_body_bytes": int(limits.max_body_mb * 2**20)}
    return {"id": house.name, "object": "model", "created": house.created, "owned_by": "nvlm", "nvlm": about}


@web.middleware
async def _in_openai_form(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refusals, and what aiohttp itself refuses (no such path, another method), as `{"error": …}`."""
    try:
        return await handler(request)
    except Refusal as refusal:
        problem, headers = refusal, refusal.headers
    except web.HTTPError as error:
        problem = Refusal(f"{request.method} {request.path[:80]}: {error.reason}", None, None, error.status)
        headers = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}
    response = web.json_response(problem.body, status=problem.status, headers=headers)
    if not request.content.at_eof():    # the rest of a body that nobody will read
        response.force_close()
    return response


def _keyed(key: str | None):
    """Everything but the page wants the key, if there is one. Digests are compared, in constant time: the length is hidden too."""
    digest = None if key is None else _digest(key)

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        if digest is not None and request.path not in _OPEN:
            scheme, _, given = request.headers.get("Authorization", "").partition(" ")
            if not hmac.compare_digest(_digest(given.strip()), digest) or scheme.lower() != "bearer":
                raise Refusal("no key, or not this server's: send Authorization: Bearer KEY", None, "invalid_api_key", 401)
        return await handler(request)

    return check


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


async def _harden(_: web.Request, response: web.StreamResponse) -> None:
    response.headers.setdefault("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Referrer-Policy"] = "no-referrer"
    response.headers["Server"] = "nvlm"
