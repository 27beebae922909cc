"""A stand-in for a vLLM server: its requests and replies, with a real model behind them, for tests in seconds."""

import json
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from groupwise.model.drawing import SamplingParams
from groupwise.model.engine import LogprobEngine
from groupwise.model.policy import Policy
from groupwise.model.sampling import sample_completions
from groupwise.sections import LoraSection, ModelSection
from groupwise.servers.fingerprint import text_logprobs


class StandIn(ThreadingHTTPServer):
    """Answers for a base and for adapters of one rank that are loaded at run time."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, model: Path, *, rank: int, most: int = 128) -> None:
        super().__init__(("127.0.0.1", 0), type("Bound", (_Handler,), {"server_": self}))
        self.base = str(model)
        self.rank = rank
        self.most = most
        self.api_key: str | None = None
        self.run_time_lora = True
        self.processed = True
        self.answered = 0
        self.paths: dict[str, str] = {}
        self.loads: list[str] = []  # names that it was asked to load
        self._lock = threading.Lock()
        policy = Policy.load(ModelSection(path=str(model)), LoraSection(rank=rank), seed=0, device="cpu")
        self._engine = LogprobEngine(policy)
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: object, client_address: object) -> None:
        """The other side has hung up: that is what is tried here."""

    def reply(self, path: str, body: Mapping[str, Any]) -> tuple[int, object]:
        with self._lock:
            if path == "/v1/models":
                base = {"id": self.base, "parent": None, "max_model_len": self.most}
                return 200, {"data": [base, *({"id": name, "parent": self.base} for name in self.paths)]}
            if path == "/v1/completions":
                return self._complete(body)
            if not self.run_time_lora:
                return 404, {"detail": "Not Found"}
            if path == "/v1/unload_lora_adapter":
                return (200, "ok") if self.paths.pop(body["lora_name"], None) else (404, "cannot be found")
            return self._load(body["lora_name"], body["lora_path"])

    def _load(self, name: str, path: str) -> tuple[int, object]:
        self.loads.append(name)
        if name in self.paths:
            return 400, f"The lora adapter {name!r} has already been loaded."
        if not (Path(path) / "adapter_config.json").is_file():
            return 404, f"Loading lora {name} failed: No adapter found for {path}"
        rank = json.loads((Path(path) / "adapter_config.json").read_text())["r"]
        if rank > self.rank:
            return 400, f"LoRA rank {rank} is greater than max_lora_rank {self.rank}."
        self.paths[name] = path
        return 200, "ok"

    def _complete(self, body: Mapping[str, Any]) -> tuple[int, object]:
        name, policy = body["model"], self._engine.policy
        if name not in (self.base, *self.paths):
            return 404, {"error": f"The model `{name}` does not exist."}
        if name == self.base:
            with policy.base():
                return 200, self._answer(body)
        policy.restore(Path(self.paths[name]))
        return 200, self._answer(body)

    def _answer(self, body: Mapping[str, Any]) -> object:
        self.answered += 1
        ids: list[int] = body["prompt"]
        if "prompt_logprobs" in body:
            found = zip(ids[1:], text_logprobs(self._engine, ids), strict=True)
            entries = [None, *({str(i): {"logprob": value}} for i, value in found)]
            return {"model": body["model"], "choices": [{"prompt_logprobs": entries}]}
        top_k = body.get("top_k", -1)
        params = SamplingParams(
            temperature=body["temperature"],
            top_k=None if top_k < 1 else top_k,
            top_p=body.get("top_p", 1.0),
            max_new_tokens=body["max_tokens"],
            stop=tuple(body.get("stop", ())),
        )
        (drawn,) = sample_completions(
            self._engine,
            [ids],
            n=body.get("n", 1),
            params=params,
            end_ids=body.get("stop_token_ids", []),
            seed=body.get("seed", 0),
        )
        choices: list[object] = []
        for index, one in enumerate(drawn):
            logp_T = one.drawn_logp if self.processed and one.drawn_logp is not None else one.sampled_logp
            assert logp_T is not None
            choices.append(
                {
                    "index": index,
                    "token_ids": list(one.token_ids),
                    "prompt_token_ids": ids,
                    "logprobs": {"token_logprobs": logp_T.tolist()},
                    "finish_reason": "stop" if one.finished else "length",
                    "stop_reason": params.stop[0] if params.stop and one.finished else None,
                }
            )
        return {"model": body["model"], "choices": choices}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_: StandIn

    def handle_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        key = self.server_.api_key
        if key is not None and self.headers.get("Authorization") != f"Bearer {key}":
            code, reply = 401, {"error": "Unauthorized"}
        else:
            code, reply = self.server_.reply(self.path, json.loads(body or b"{}"))
        text = json.dumps(reply).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_GET = do_POST = handle_any

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on the terminal."""
