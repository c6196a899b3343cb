"""The "Stability" tab of TensorBoard: its routes. TensorBoard imports this at its start, so it imports little and does less.

All answers are JSON from `stabkit.dashboard.views` by way of a process beside TensorBoard; what is not known within a moment is
answered as not known yet, and the tab asks again. Replies go through TensorBoard's own `Respond`, whose headers (no sniffing,
a content policy, no foreign origin) they thus have.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial, wraps
from importlib.resources import files
from typing import Any

from tensorboard.backend import http_util
from tensorboard.plugins import base_plugin
from werkzeug.wrappers import Request, Response

from stabkit.dashboard.desk import Desk
from stabkit.dashboard.logs import Logs, Run, roots_of

__all__ = ["StabilityPlugin"]

_JAVASCRIPT, _CSS, _JSON = "text/javascript", "text/css", "application/json"
_ASSETS = {
    **{name: ("stabkit.dashboard", "static", name) for name in (
        "index.js", "tab.js", "ask.js", "closer.js", "compare.js", "runs.js", "findings.js", "map.js", "tensor.js",
        "style.css")},
    **{name: ("stabkit.report", "page", name) for name in ("chart.js", "heatmap.js", "curves.js", "page.css")},
}  # fmt: skip
_NUMBERS = {"tensor": ("optimizer", "row")}
"""What a view needs; and below, what it may be told besides."""
_OPTIONS = {"timeline": ("first", "last"), "heatmaps": ("first", "last", "quick"), "tensor": ("first", "last")}


class StabilityPlugin(base_plugin.TBPlugin):  # type: ignore[misc]
    """The plugin.

    Args:
        context: What TensorBoard tells its plugins: the log directory above all.
    """

    plugin_name = "stabkit"

    def __init__(self, context: base_plugin.TBContext) -> None:
        flags = context.flags
        logdir = context.logdir or getattr(flags, "logdir", "")
        self._logs = Logs(roots_of(logdir, getattr(flags, "logdir_spec", "")))
        self._desk = Desk()

    def get_plugin_apps(self) -> dict[str, Any]:
        """The routes, below data/plugin/stabkit."""
        apps: dict[str, Any] = {f"/{name}": _app(partial(_asset, *place)) for name, place in _ASSETS.items()}
        apps["/runs"] = _app(self._serve_runs)
        for what in ("timeline", "heatmaps", "verdict", "tensor"):
            apps[f"/{what}"] = _app(partial(self._serve_view, what))
        apps["/rule"] = _app(self._serve_rule)
        return apps

    def is_active(self) -> bool:
        """Whether there is any run of ours."""
        return bool(self._logs.runs())

    def frontend_metadata(self) -> base_plugin.FrontendMetadata:
        """The tab is a page of its own in a frame, begun by index.js."""
        return base_plugin.FrontendMetadata(es_module_path="/index.js", tab_name="Stability")

    def _serve_runs(self, request: Request) -> Response:
        runs = []
        for run in self._logs.runs().values():
            stamp, size = run.state()
            runs.append({"key": run.key, "name": _shown(run.name), "stamp": stamp, "bytes": size})
        return _respond(request, {"runs": runs})

    def _serve_view(self, what: str, request: Request) -> Response:
        run = self._logs.runs().get(request.args.get("run", ""))
        if run is None:
            return _respond(request, {"error": "there is no such run (any more)"}, 404)
        needed, options = _NUMBERS.get(what, ()), _OPTIONS.get(what, ())
        try:
            numbers = {name: int(request.args[name]) for name in (*needed, *(set(options) & set(request.args)))}
        except (KeyError, ValueError):
            return _respond(request, {"error": f"{what} asks for whole numbers: {', '.join(needed + options)}"}, 400)
        return self._ask(request, {"what": what, "path": str(run.path), **numbers}, run)

    def _serve_rule(self, request: Request) -> Response:
        return self._ask(request, {"what": "rule", "code": request.args.get("code", "")[:16]})

    def _ask(self, request: Request, question: Mapping[str, Any], run: Run | None = None) -> Response:
        reply = self._desk.ask(question, run.stamp() if run else "")
        about = f'{{"stamp":"{reply.stamp}","busy":{str(reply.busy).lower()},"data":'.encode()
        return _respond(request, about + (reply.body or b"null") + b"}")


def _app(serve: Callable[[Request], Response]) -> Any:
    """A route that only reads, answers no page of another site, and whose faults are its own."""

    @wraps(serve)
    def handle(request: Request) -> Response:
        if request.method not in ("GET", "HEAD"):
            return _respond(request, {"error": "only GET"}, 405)
        if request.headers.get("Sec-Fetch-Site", "same-origin") == "cross-site":
            return _respond(request, {"error": "not for pages of other sites"}, 403)
        try:
            return serve(request)
        except Exception as error:
            return _respond(request, {"error": f"a fault of stabkit itself ({type(error).__name__}: {error})"}, 500)

    return Request.application(handle)


def _asset(package: str, folder: str, name: str, request: Request) -> Response:
    kind = _CSS if name.endswith(".css") else _JAVASCRIPT
    reply: Response = http_util.Respond(request, (files(package) / folder / name).read_bytes(), kind)
    return reply


def _respond(request: Request, content: Any, code: int = 200) -> Response:
    reply: Response = http_util.Respond(request, content, _JSON, code=code)
    return reply


def _shown(name: str) -> str:
    """The name as text that every browser can hold: file names need not be UTF-8."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")
