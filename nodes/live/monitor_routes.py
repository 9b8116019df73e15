"""The browser's way to the runs of this process: by id, and nothing else."""

from __future__ import annotations

from aiohttp import web
from server import PromptServer

from .monitor import RUNS
from .run_monitor import RunMonitor

ACTIONS = {"finish": RunMonitor.finish, "pause": RunMonitor.pause, "resume": RunMonitor.resume}


async def list_runs(request: web.Request) -> web.Response:
    """GET /atelier/runs: id, node, prompt, workflow, started and status, the newest first."""
    return web.json_response([monitor.summary() for monitor in RUNS.newest_first()])


async def show_run(request: web.Request) -> web.Response:
    """GET /atelier/runs/{id}: all of it; changes nothing."""
    monitor = RUNS.get(request.match_info["id"])
    return _unknown() if monitor is None else web.json_response(monitor.report())


async def steer_run(request: web.Request) -> web.Response:
    """POST /atelier/runs/{id}/finish, pause or resume; 409 when the run has ended."""
    monitor = RUNS.get(request.match_info["id"])
    action = ACTIONS.get(request.match_info["action"])
    if monitor is None or action is None:
        return _unknown()
    if not action(monitor):
        return web.json_response({"error": "This run has ended."}, status=409)
    return web.json_response(monitor.summary())


def _unknown() -> web.Response:
    return web.json_response({"error": "There is no such run."}, status=404)


def register() -> None:
    """Add the routes to the server, where there is one. Must happen while packs are loaded."""
    server = getattr(PromptServer, "instance", None)
    if server is not None:
        server.routes.get("/atelier/runs")(list_runs)
        server.routes.get("/atelier/runs/{id}")(show_run)
        server.routes.post("/atelier/runs/{id}/{action}")(steer_run)
