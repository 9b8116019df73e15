"""Start a real ComfyUI server with this pack in it, and talk to it as a browser would.

    with HostServer(base_directory) as server:
        result = server.queue(prompt, on_event=show)
        picture = server.image(result.images()[0])

The server gets a base directory of its own (models, input, output, user, custom_nodes), so it
never reads or writes the files of the ComfyUI it runs from. The demo and the tests both use it.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import websocket

from bootstrap import ROOT, comfyui_path, venv_python

PACK_NAME = "lora-atelier"
FOLDERS = ("models/checkpoints", "models/loras", "input", "output", "temp", "user", "custom_nodes")

Event = Callable[[str, Any], None]
"""Called with the event's name and its data; for the binary kind, "binary" and the bytes."""


class HostError(RuntimeError):
    """The server did not start, died, or did not answer; the message ends with its log."""


@dataclass(frozen=True)
class NodeError:
    """An exception that a node raised while it ran."""

    node_id: str
    node_type: str
    exception_type: str
    exception_message: str


END_TOLD_WITHIN = 10
"""Seconds of silence after the history of a prompt is there."""
NODE_ERROR_FIELDS = tuple(NodeError.__dataclass_fields__)


@dataclass(frozen=True)
class Result:
    """What became of one queued prompt."""

    prompt_id: str
    status: str
    """success, error, interrupted, or rejected (validation refused the prompt)."""
    errors: list[NodeError] = field(default_factory=list)
    node_errors: dict[str, Any] = field(default_factory=dict)
    """ComfyUI's validation report by node id; its text is in `message`."""
    message: str = ""
    outputs: dict[str, dict[str, Any]] = field(default_factory=dict)
    """The `ui` values by node id; nodes served from the cache are included."""
    cached: list[str] = field(default_factory=list)
    """Nodes that did not run because ComfyUI still had their result."""
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        return self.status == "success"

    def images(self, node_id: str | None = None) -> list[dict[str, str]]:
        """References (filename, subfolder, type) for `HostServer.image`."""
        chosen = self.outputs.values() if node_id is None else [self.outputs.get(node_id, {})]
        return [image for output in chosen for image in output.get("images", [])]

    def check(self) -> Result:
        """Self, or HostError with the messages when the prompt did not succeed."""
        if not self.ok:
            raise HostError(f"prompt {self.status}: {self.message}")
        return self


class HostServer:
    """A ComfyUI process of our own. Usable as a context manager.

    Args:
        base_directory: folder for models, inputs and outputs; made if it is missing, never removed.
        cpu: run on the CPU; None decides by whether torch finds CUDA.
        pack: folder to link into custom_nodes; None leaves the pack out.
        extra_model_paths: the content of an extra_model_paths.yaml as a mapping, or such a file.
        comfyui, python: which ComfyUI and interpreter; None takes those of `bootstrap`.
        arguments: more command line arguments for ComfyUI's main.py.
        environment: variables to add.
        log: file for the server's output; None is `<base_directory>/server.log`.
        start_timeout: seconds until the server has to answer.
    """

    def __init__(
        self,
        base_directory: str | os.PathLike[str],
        *,
        cpu: bool | None = None,
        pack: Path | None = ROOT,
        extra_model_paths: Mapping[str, Any] | Path | None = None,
        comfyui: Path | None = None,
        python: Path | None = None,
        arguments: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        log: Path | None = None,
        start_timeout: float = 180.0,
    ) -> None:
        self.base = Path(base_directory).resolve()
        self.comfyui = comfyui or comfyui_path()
        self.python = python or venv_python()
        self.cpu = cpu
        self.pack = pack
        self.extra_model_paths = extra_model_paths
        self.arguments = list(arguments)
        self.environment = dict(environment or {})
        self.log = log or self.base / "server.log"
        self.start_timeout = start_timeout
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._log_start = 0

    # Life

    def __enter__(self) -> HostServer:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> HostServer:
        """Start the process and wait until it answers. After `stop` or `kill`, starts it again."""
        if self.running:
            return self
        self._prepare_base()
        self.port = _free_port()
        self._log_start = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command(),
                cwd=self.comfyui,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            self._wait_until_ready()
        except BaseException:
            self.kill()
            raise
        return self

    def stop(self, timeout: float = 15.0) -> None:
        """End the process politely, and by force after `timeout` seconds."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """End the process at once (SIGKILL), as a crash or the system's memory guard would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        if self._process is None:
            raise HostError("the server was not started")
        return self._process.pid

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def rss_bytes(self) -> int:
        """Resident memory of the server process."""
        if sys.platform == "linux":
            pages = Path(f"/proc/{self.pid}/statm").read_text(encoding="ascii").split()[1]
            return int(pages) * os.sysconf("SC_PAGE_SIZE")
        import psutil  # every ComfyUI has it

        return psutil.Process(self.pid).memory_info().rss

    def log_text(self) -> str:
        """What the server has written since its last start."""
        with self.log.open("rb") as log:
            log.seek(self._log_start)
            return log.read().decode(errors="replace")

    def log_tail(self, lines: int = 40) -> str:
        return "\n".join(self.log_text().splitlines()[-lines:])

    # Work

    def queue(
        self, prompt: Mapping[str, Any], *, on_event: Event | None = None, timeout: float = 600.0
    ) -> Result:
        """Run a prompt in API format and wait for its end.

        Args:
            prompt: node id -> {"class_type": ..., "inputs": {...}}.
            on_event: gets every message of the server, custom ones too. It may call `interrupt`
                or `kill`; after `kill` this raises HostError.
            timeout: seconds; after them the prompt is interrupted and TimeoutError raised.

        A refused prompt and a node that raised are results, not exceptions: see `Result.check`.
        """
        started = time.monotonic()
        client = uuid.uuid4().hex
        events = _Events(f"ws://127.0.0.1:{self.port}/ws?clientId={client}")
        try:
            answer = self._submit(prompt, client)
            if "prompt_id" not in answer:
                return _rejected(answer)
            prompt_id = str(answer["prompt_id"])
            self._follow(events, prompt_id, on_event, started + timeout)
        finally:
            events.close()
        seconds = time.monotonic() - started
        # Some outputs of a prompt can be refused while the others run.
        refused = answer.get("node_errors") or {}
        return _result(prompt_id, self._history(prompt_id), refused, seconds)

    def interrupt(self) -> None:
        """Cancel, as the button does."""
        self._post("/interrupt")

    def free(self) -> None:
        """Ask for models and cached results to be dropped; the server does it when it is idle."""
        self._post("/free", {"unload_models": True, "free_memory": True})

    def object_info(self) -> dict[str, Any]:
        """The schema of every node, by node id."""
        return self.json("/object_info")

    def image(self, reference: Mapping[str, str]) -> bytes:
        """The file of an image that a node returned."""
        return self.get("/view?" + urllib.parse.urlencode(dict(reference)))

    def put_input(self, source: Path | bytes, name: str) -> str:
        """Copy a file, a folder or bytes to `input/<name>` and return the name."""
        target = self.base / "input" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(source, bytes):
            target.write_bytes(source)
        elif source.is_dir():
            shutil.copytree(source, target, dirs_exist_ok=True)
        else:
            shutil.copyfile(source, target)
        return name

    def put_model(self, source: Path, name: str, kind: str = "checkpoints") -> str:
        """Link (or copy) a model file to `models/<kind>/<name>` and return the name."""
        target = self.base / "models" / kind / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        try:
            os.link(source, target)
        except OSError:  # another disk, or a file system without links
            shutil.copyfile(source, target)
        return name

    def get(self, path: str) -> bytes:
        return self._request(urllib.request.Request(self.url + path))

    def json(self, path: str) -> Any:
        return json.loads(self.get(path))

    # Parts of the above

    def _prepare_base(self) -> None:
        for folder in FOLDERS:
            (self.base / folder).mkdir(parents=True, exist_ok=True)
        self.log.parent.mkdir(parents=True, exist_ok=True)
        if self.pack is not None:
            _link_folder(self.pack.resolve(), self.base / "custom_nodes" / PACK_NAME)

    def _command(self) -> list[str]:
        command = [str(self.python), str(self.comfyui / "main.py")]
        command += ["--base-directory", str(self.base), "--port", str(self.port)]
        # The default database lies inside the ComfyUI that we only borrow.
        command += ["--database-url", f"sqlite:///{self.base / 'user' / 'comfyui.db'}"]
        command += ["--disable-auto-launch", "--disable-api-nodes"]
        if self.cpu or (self.cpu is None and not _has_cuda(str(self.python))):
            command.append("--cpu")
        if self.extra_model_paths is not None:
            command += ["--extra-model-paths-config", str(self._extra_model_paths_file())]
        return command + self.arguments

    def _extra_model_paths_file(self) -> Path:
        if isinstance(self.extra_model_paths, Path):
            return self.extra_model_paths.resolve()
        path = self.base / "extra_model_paths.yaml"
        path.write_text(json.dumps(self.extra_model_paths), encoding="utf-8")  # JSON is YAML
        return path

    def _environment(self) -> dict[str, str]:
        dropped = ("PYTHONPATH", "PYTHONHOME", "PYTHONSAFEPATH")
        environment = {k: v for k, v in os.environ.items() if k not in dropped}
        return environment | {"PYTHONNOUSERSITE": "1", "PYTHONUNBUFFERED": "1"} | self.environment

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + self.start_timeout
        while time.monotonic() < deadline:
            self._check_alive()
            try:
                self.get("/system_stats")
                return
            except OSError:  # not listening yet
                time.sleep(0.2)
        raise HostError(
            f"ComfyUI did not answer within {self.start_timeout:.0f} s.\n{self.log_tail()}"
        )

    def _check_alive(self) -> None:
        if not self.running:
            code = None if self._process is None else self._process.returncode
            raise HostError(f"ComfyUI is not running (exit code {code}).\n{self.log_tail()}")

    def _submit(self, prompt: Mapping[str, Any], client: str) -> dict[str, Any]:
        try:
            return json.loads(self._post("/prompt", {"prompt": prompt, "client_id": client}))
        except urllib.error.HTTPError as error:
            if error.code != 400:
                raise
            return json.loads(error.read())

    def _follow(
        self, events: _Events, prompt_id: str, on_event: Event | None, deadline: float
    ) -> None:
        """Pass events on until the prompt is in the history and its end was told."""
        ended, patience = False, END_TOLD_WITHIN
        while True:
            if time.monotonic() > deadline:
                self.interrupt()
                raise TimeoutError(f"the prompt did not end in time.\n{self.log_tail()}")
            self._check_alive()
            message = events.receive(timeout=0.05 if ended else 1.0)
            if message is not None:
                ended = ended or _is_end(*message, prompt_id)
                if on_event is not None:
                    on_event(*message)
            elif self._history(prompt_id):  # asked in every silence: nobody may tell the end
                patience -= 1  # but a busy machine may tell it late
                if ended or patience < 0:
                    return

    def _history(self, prompt_id: str) -> dict[str, Any]:
        return self.json(f"/history/{prompt_id}").get(prompt_id, {})

    def _post(self, path: str, payload: Any = None) -> bytes:
        body = json.dumps(payload if payload is not None else {}).encode()
        headers = {"Content-Type": "application/json"}
        return self._request(urllib.request.Request(self.url + path, body, headers))

    def _request(self, request: urllib.request.Request) -> bytes:
        # A proxy from the environment must not see requests to this machine.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=60) as response:
            return response.read()


def _is_end(name: str, data: Any, prompt_id: str) -> bool:
    ends = ("execution_success", "execution_error", "execution_interrupted")
    return name in ends and data.get("prompt_id") == prompt_id


def _rejected(answer: Mapping[str, Any]) -> Result:
    error = answer.get("error") or {}
    node_errors = answer.get("node_errors") or {}
    lines = [str(error.get("message", "the prompt was refused")), *_validation_lines(node_errors)]
    return Result("", "rejected", node_errors=node_errors, message="\n".join(lines))


def _validation_lines(node_errors: Mapping[str, Any]) -> list[str]:
    return [
        f"node {node_id} ({report['class_type']}): {error['message']}: {error.get('details', '')}"
        for node_id, report in node_errors.items()
        for error in report["errors"]
    ]


def _result(
    prompt_id: str, history: Mapping[str, Any], refused: dict[str, Any], seconds: float
) -> Result:
    status, cached = "success", []
    errors: list[NodeError] = []
    for event, data in history["status"]["messages"]:
        if event == "execution_error":
            status = "error"
            errors.append(NodeError(**{key: str(data[key]) for key in NODE_ERROR_FIELDS}))
        elif event == "execution_interrupted":
            status = "interrupted"
        elif event == "execution_cached":
            cached = list(data["nodes"])
    lines = _validation_lines(refused) + [
        f"node {e.node_id} ({e.node_type}): {e.exception_type}: {e.exception_message}"
        for e in errors
    ]
    outputs = history.get("outputs", {})
    return Result(prompt_id, status, errors, refused, "\n".join(lines), outputs, cached, seconds)


@lru_cache
def _has_cuda(python: str) -> bool:
    code = "import sys, torch; sys.exit(0 if torch.cuda.is_available() else 3)"
    return subprocess.run([python, "-I", "-c", code], capture_output=True).returncode == 0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _link_folder(source: Path, target: Path) -> None:
    if target.exists() and target.resolve() == source:
        return
    if target.is_symlink():
        target.unlink()
    try:
        target.symlink_to(source, target_is_directory=True)
    except OSError:
        if sys.platform != "win32":
            raise
        # Windows lets only some users make symlinks, but everyone make junctions.
        command = ["cmd", "/c", "mklink", "/J", str(target), str(source)]
        subprocess.run(command, check=True, capture_output=True)


class _Events:
    """ComfyUI's event stream."""

    def __init__(self, url: str) -> None:
        self._socket = websocket.create_connection(url, timeout=30, http_no_proxy=["127.0.0.1"])

    def receive(self, timeout: float) -> tuple[str, Any] | None:
        """The next event as (type, data), or None after `timeout` seconds of silence."""
        self._socket.settimeout(timeout)
        try:
            opcode, payload = self._socket.recv_data()
        except websocket.WebSocketTimeoutException:
            return None
        except (OSError, websocket.WebSocketConnectionClosedException):
            # The end of the server is noticed by whoever watches the process.
            time.sleep(timeout)
            return None
        if opcode == websocket.ABNF.OPCODE_BINARY:
            return "binary", payload
        if opcode != websocket.ABNF.OPCODE_TEXT:
            return None
        event = json.loads(payload)
        return event["type"], event.get("data")

    def close(self) -> None:
        self._socket.close()
