# SPDX-License-Identifier: Apache-2.0
"""The service's routes that the page calls, with real explanations and faults on demand."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Callable, Mapping
from email.parser import BytesParser
from email.policy import HTTP
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast

import numpy as np

import cae_fast as cf
from cae_fast.classifier_outputs import softmax
from cae_fast.maps import MapKind
from cae_fast.pictures import image_png
from cae_fast.report.case import cases, sentence

PAGE = Path(cf.__file__).resolve().parent / "serving" / "page"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


class PageStub:
    """A loopback server of the page.

    Attributes:
        url: Where the page is.
        refusals: (status, Retry-After or message) of the next requests to explain, first to last.
        alter: Called with each answer before it is sent.
        questions: The fields of each request to explain.
        answers: What was answered.
        delay: Seconds that each explanation takes longer.
        second_try: As in `cf.Explainer.explain`.
        token: Bearer token asked for; empty for none.
        class_names: Names sent instead of the model's.
    """

    def __init__(self, folder: Path) -> None:
        """Serves a model folder: model.safetensors, classifier.onnx, bank.csv, samples/."""
        self._explainer = cf.Explainer(
            cf.CAE.load(folder / "model.safetensors"),
            folder / "classifier.onnx",
            bank=folder / "bank.csv",
            backend="cpu",
        )
        self.name = folder.name
        self._samples = sorted((folder / "samples").glob("*.png"))
        bank = self._explainer.bank
        assert bank is not None
        self._labels = bank.labels
        self._mean = bank.codes.mean(axis=0)
        _, sizes, axes = np.linalg.svd(bank.codes - self._mean, full_matrices=False)
        self._axes = axes[:2].T
        self._share = (sizes**2 / (sizes**2).sum())[:2]
        self._bank = bank
        self.reset()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_port}/"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def reset(self) -> None:
        """Forgets all faults, questions and answers."""
        self.refusals: list[tuple[int, float | str | None]] = []
        self.alter: Callable[[dict[str, Any]], None] = lambda answer: None
        self.questions: list[dict[str, str]] = []
        self.answers: list[dict[str, Any]] = []
        self.delay = 0.0
        self.second_try = False
        self.token = ""
        self.class_names = list(self._explainer.class_names)

    def close(self) -> None:
        """Ends the server."""
        self._server.shutdown()
        self._server.server_close()

    def _flat(self, codes: Any) -> list[list[float]]:
        return ((np.asarray(codes) - self._mean) @ self._axes).round(5).tolist()  # type: ignore[no-any-return]

    def models(self) -> dict[str, Any]:
        config = self._explainer.model.config
        one = {
            "name": self.name,
            "class_names": self.class_names,
            "image_size": config.image_size,
            "in_channels": config.in_channels,
            "samples": [path.name for path in self._samples],
        }
        return {"models": [one]}

    def manifold(self) -> dict[str, Any]:
        points = [
            [*at, int(k)] for at, k in zip(self._flat(self._bank.codes), self._labels, strict=True)
        ]
        return {
            "points": points,
            "class_names": self.class_names,
            "axes": "first two principal components",
            "explained": self._share.tolist(),
        }

    def explain(self, fields: Mapping[str, str], image: bytes) -> cf.Explanation:
        config = self._explainer.model.config
        images = cf.load_images([image], size=config.image_size, channels=config.in_channels)
        target = fields.get("target", "")
        return self._explainer.explain(
            images,
            target=int(target) if target.isdecimal() else target or None,
            tolerance=float(fields["tolerance"]),
            saliency=cast(MapKind, fields["saliency"]),
            frames=int(fields["frames"]),
            exemplars="nearest",  # one of them: some paths do not flip, which is to be shown too
            k=1,
            reach=1,
            second_try=self.second_try,
        )

    def answer(self, said: cf.Explanation) -> dict[str, Any]:
        def picture(image: Any) -> str:
            return base64.b64encode(image_png(image)).decode()

        def plain(values: Any) -> Any:
            if isinstance(values, list):
                return [plain(value) for value in values]
            return values if np.isfinite(values) else None

        case = cases(said)[0]
        code = self._explainer.encode(said.images).class_code
        row = int(said.exemplar[0, 0])
        ends = np.concatenate([code, self._bank.codes[[row]] if row >= 0 else code])
        frames = range(0 if said.frame_t is None else len(said.frame_t))
        frame_images = np.empty((0, *said.images.shape[1:]), np.float32)
        if said.path_images is not None:
            frame_images = said.path_images[0]
        labels = said.path_logits[0]
        return {
            "request_id": "stub-1",
            "model": self.name,
            "status": case.status,
            "status_text": sentence(case),
            "map": case.map_name,
            **{
                f"{which}_class": {"index": k, "name": self.class_names[k] if k >= 0 else None}
                for which, k in (
                    ("source", case.source_index),
                    ("target", case.target_index),
                    ("reached", case.reached_index),
                    ("reconstructed", int(said.reconstructed_class[0])),
                )
            },
            "second_path": case.second_path,
            "t_flip": plain(float(said.t_flip[0])),
            "bracket": plain(said.bracket[0].tolist()),
            "evaluations": int(said.evaluations[0]),
            "probabilities_source": plain(softmax(said.logits_source[0]).tolist()),
            "probabilities_counterfactual": plain(softmax(said.logits_counterfactual[0]).tolist()),
            "class_names": self.class_names,
            "path": {
                "t": said.path_t[0].tolist(),
                "probabilities": plain(softmax(labels).tolist()),
            },
            "images": {
                "image": picture(said.images[0]),
                "reconstruction": picture(said.reconstruction[0]),
                "counterfactual": picture(said.counterfactual[0]),
                "saliency": picture(said.saliency[0][None] * 2 - 1),
            },
            "frames": {
                "t": [] if said.frame_t is None else said.frame_t.tolist(),
                "probabilities": plain(
                    softmax(self._explainer.classifier(frame_images)).tolist() if frames else []
                ),
                "png": [picture(frame_images[i]) for i in frames],
            },
            "exemplar": {
                "rows": [row],
                "names": list(said.exemplar_names[0]),
                "labels": [],
                "t": 1 / said.reach,
            },
            "code": {
                "image": self._flat(ends)[0],
                "path": self._flat(ends) if row >= 0 else [],
                "exemplar": self._flat(ends)[1] if row >= 0 else None,
            },
            "seconds": {"queue": 0.0, "explain": said.meta["seconds"]["total"], "total": 0.1},
            "meta": {},
        }

    def _handler(stub) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                path = self.path.split("?")[0]
                if path == "/" or path.startswith("/page/"):
                    name = path.removeprefix("/page/").removeprefix("/") or "index.html"
                    self._send((PAGE / name).read_bytes(), _TYPES[Path(name).suffix])
                elif self._locked():
                    self._refuse(401, "a token is needed")
                elif path == "/v1/models":
                    self._json(stub.models())
                elif path.endswith("/manifold"):
                    self._json(stub.manifold())
                elif "/samples/" in path:
                    index = int(path.rsplit("/", 1)[1])
                    self._send(stub._samples[index].read_bytes(), "image/png")
                else:
                    self._refuse(404, "there is nothing here")

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
                message = BytesParser(policy=HTTP).parsebytes(head + body)
                parts = {
                    part.get_param("name", header="content-disposition"): part.get_payload(
                        decode=True
                    )
                    for part in message.iter_parts()
                }
                fields = {k: v.decode() for k, v in parts.items() if k != "image"}
                stub.questions.append(fields)
                time.sleep(stub.delay)
                if self._locked():
                    self._refuse(401, "a token is needed")
                elif stub.refusals:
                    self._refuse(*stub.refusals.pop(0))
                else:
                    self._explain(fields, parts["image"])

            def _explain(self, fields: dict[str, str], image: bytes) -> None:
                try:
                    said = stub.explain(fields, image)
                except cf.ImageDecodeError:
                    self._refuse(400, "image: not an image that can be read")
                    return
                if fields["format"] == "html":
                    from cae_fast.report.page import html_fragment, page

                    text = page("Explanation", html_fragment(said, said.images))
                    self._send(text.encode(), _TYPES[".html"])
                    return
                answer = stub.answer(said)
                stub.alter(answer)
                stub.answers.append(answer)
                self._json(answer)

            def _locked(self) -> bool:
                wanted = f"Bearer {stub.token}"
                return bool(stub.token) and self.headers.get("Authorization") != wanted

            def _json(self, value: Any) -> None:
                self._send(json.dumps(value, allow_nan=False).encode(), "application/json")

            def _refuse(self, status: int, what: str | float | None = None) -> None:
                said = {"message": f"refused {status}", "request_id": "stub-2"}
                if isinstance(what, str):
                    said["message"] = what
                extra = {"Retry-After": f"{what:g}"} if isinstance(what, int | float) else {}
                body = json.dumps({"error": said}).encode()
                self._send(body, "application/json", status, extra)

            def _send(
                self, body: bytes, kind: str, status: int = 200, extra: Mapping[str, str] = {}
            ) -> None:
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.send_header("Content-Security-Policy", "default-src 'self'")
                self.send_header("X-Content-Type-Options", "nosniff")
                for name, value in extra.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                return

        return Handler
