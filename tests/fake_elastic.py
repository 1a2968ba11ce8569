"""A small server that speaks the REST calls of Elasticsearch that raggd makes, over HTTP.

It scores by the formula of BM25 with exact lengths. It is not Elasticsearch: what it checks is that
raggd's client sends sound requests and reads the answers, not what a real server finds.
"""

from __future__ import annotations

import json
import math
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class FakeElastic:
    """The server with its indexes; `down` makes it close every connection."""

    def __init__(self) -> None:
        self.indexes: dict[str, dict[str, Any]] = {}
        self.documents: dict[str, dict[str, dict[str, Any]]] = {}
        self.requests: list[str] = []
        self.down = False
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: Any) -> None:
                pass

            def _serve(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                body = self.rfile.read(length).decode()
                if fake.down:
                    self.close_connection = True
                    self.connection.close()
                    return
                path = self.path.split("?")[0]
                fake.requests.append(f"{self.command} {path}")
                status, answer = fake.answer(self.command, path, body)
                data = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("X-Elastic-Product", "Elasticsearch")
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(data)

        for verb in ("GET", "POST", "PUT", "HEAD"):
            setattr(Handler, f"do_{verb}", Handler._serve)
        return Handler

    def answer(self, verb: str, path: str, body: str) -> tuple[int, Any]:
        name, _, call = path.strip("/").partition("/")
        if verb == "PUT" and not call:
            self.indexes[name] = json.loads(body)
            self.documents[name] = {}
            return 200, {"acknowledged": True}
        if name not in self.indexes:
            return 404, {"error": {"type": "index_not_found_exception"}, "status": 404}
        held = self.documents[name]
        if call == "_bulk":
            lines = [json.loads(line) for line in body.splitlines() if line]
            for action, source in zip(lines[::2], lines[1::2], strict=True):
                held[action["index"]["_id"]] = source
            return 200, {"errors": False, "items": []}
        if call == "_count":
            return 200, {"count": len(held)}
        if call == "_mget":
            docs = [
                {"_id": i, "found": True, "_source": held[i]} if i in held else {"_id": i}
                for i in json.loads(body)["ids"]
            ]
            return 200, {"docs": docs}
        if call == "_search":
            return 200, self._search(self.indexes[name], held, json.loads(body))
        return 200, {}

    def _search(self, index: Any, held: dict[str, Any], body: Any) -> Any:
        query = body["query"]
        if "term" in query:
            row = query["term"]["row"]["value"]
            hits = [{"_source": s} for s in held.values() if s["row"] == row]
            return {"hits": {"hits": hits[: body["size"]]}}
        rules = index["settings"]["index"]["similarity"]["raggd"]
        words = {name: Counter(source["terms"].split()) for name, source in held.items()}
        mean = sum(c.total() for c in words.values()) / len(words)
        asked = [clause["term"]["terms"]["value"] for clause in query["bool"]["should"]]
        without = {i for c in query["bool"].get("must_not", []) for i in c["terms"]["id"]}
        scores: dict[str, float] = {}
        for term in asked:
            df = sum(term in c for c in words.values())
            idf = math.log(1 + (len(words) - df + 0.5) / (df + 0.5))
            for name, c in words.items():
                if c[term] and name not in without:
                    norm = rules["k1"] * (1 - rules["b"] + rules["b"] * c.total() / mean)
                    scores[name] = scores.get(name, 0.0) + idf * c[term] / (c[term] + norm)
        assert body["sort"] == [{"_score": "desc"}, {"id": "asc"}]
        best = sorted(scores, key=lambda name: (-round(scores[name], 6), name))[: body["size"]]
        hits = [{"_id": n, "_score": scores[n], "_source": held[n]} for n in best]
        return {"hits": {"hits": hits}}
