# SPDX-License-Identifier: Apache-2.0
"""`cf.Client(url)`: explanations by a service, in the form in which `cf.Explainer` gives them."""

from __future__ import annotations

import io
import json
import os
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from .arrays import to_numpy
from .errors import CAEError, ServiceError, missing_extra
from .explanation import Explanation
from .pictures import png_bytes

_AGAIN = (429, 502, 503)
_PARALLEL = 8
_ROWS = (
    *("counterfactual", "reconstruction", "saliency", "t_flip", "bracket"),
    *("source_class", "target_class", "reached_class", "logits_source"),
    *("logits_counterfactual", "evaluations", "exemplar"),
)


class Client:
    """A service's client. It may be used by several threads, and in a `with` block.

    Attributes:
        url: Where the service is.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        *,
        token: str | None = None,
        timeout_s: float = 60.0,
        retries: int = 4,
    ) -> None:
        """Connects when first asked.

        Args:
            url: The service's address.
            token: Bearer token, where it asks for one.
            timeout_s: Longest wait for one answer, tries included.
            retries: Times that a request is sent again when the service is full (503), starting, or
                the connection broke. Explaining changes nothing, so asking twice is harmless.

        Raises:
            CAEError: `url` is none, or a number is out of range.
            MissingExtra: httpx is not installed.
        """
        try:
            import httpx
        except ImportError:
            raise missing_extra("client", "httpx") from None
        if not url.startswith(("http://", "https://")):
            raise CAEError(f"url must begin with http:// or https://, got {url!r}")
        if not timeout_s > 0 or retries < 0:
            raise CAEError(
                f"timeout_s must be positive and retries >= 0, got {timeout_s}, {retries}"
            )
        self.url = url.rstrip("/")
        self._timeout_s, self._retries = timeout_s, retries
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        self._http = httpx.Client(base_url=self.url, headers=headers, timeout=timeout_s)

    def __repr__(self) -> str:
        """The address."""
        return f"Client({self.url!r})"

    def __enter__(self) -> Client:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes connections."""
        self.close()

    def close(self) -> None:
        """Closes connections."""
        self._http.close()

    def explain(
        self,
        images: Any,
        target: Any = None,
        *,
        model: str | None = None,
        path: str = "line",
        tolerance: float = 1 / 256,
        k: int | None = None,
        reach: float | None = None,
        second_try: bool = True,
        search: str = "bisection",
        saliency: str = "difference",
        min_probability: float = 0.0,
        frames: int = 0,
    ) -> Explanation:
        """Explains images, as :meth:`cf.Explainer.explain` does.

        Args:
            images: An image file (path or bytes), a PIL image, a uint8 array [H, W] or [H, W, C],
                or a list of these; or a batch, float32 [N, C, S, S] in [-1, 1] of the model's size.
            target: None, a class index or name, or "any"; or a list of these, one for each image.
            model: Its name at the service; None is the first.
            path: As in :meth:`cf.Explainer.explain`; so are `tolerance`, `reach`, `search`,
                `saliency`, `min_probability` and `frames`.
            tolerance: Width of the final bracket.
            k: Nearest exemplars averaged; None: as the service has it for this model.
            reach: Length of the path over the distance to them.
            second_try: Whether a second path is tried where the first explains nothing.
            search: "bisection" or "margin".
            saliency: Kind of map.
            min_probability: Of a flip.
            frames: Pictures along each path.

        Returns:
            One explanation of all images; arrays are NumPy. Frames are 8-bit pixels, as floats.

        Raises:
            ServiceError: The service refused, or could not be reached in time.
            ValueError: `images` is nothing that can be sent.
        """
        bodies = list(_bodies(images))
        if not bodies:
            raise CAEError("images is empty: got no image to explain")
        wished = _each(target, len(bodies))
        query = {
            "model": model,
            "path": path,
            "tolerance": tolerance,
            "k": k,
            "reach": reach,
            "second_try": None if second_try is True else str(second_try).lower(),
            "search": search,
            "saliency": saliency,
            "min_probability": min_probability,
            "frames": frames,
            "format": "npz",
        }

        def one(item: tuple[tuple[bytes, str], Any]) -> dict[str, Any]:
            (body, kind), goal = item
            asked = {**query, "target": goal}
            params = {key: str(value) for key, value in asked.items() if value is not None}
            response = self._send(
                "POST", "/explain", params=params, content=body, headers={"Content-Type": kind}
            )
            return _unpacked(response.content)

        items = list(zip(bodies, wished, strict=True))
        if len(items) == 1:
            return _joined([one(items[0])])
        with ThreadPoolExecutor(min(_PARALLEL, len(items))) as pool:
            return _joined(list(pool.map(one, items)))

    def models(self) -> list[dict[str, Any]]:
        """Models on offer: name, class names, image size, samples, hashes."""
        models: list[dict[str, Any]] = self._send("GET", "/v1/models").json()["models"]
        return models

    def ready(self) -> bool:
        """Whether the service says that it can explain; false as well where it does not answer."""
        import httpx

        try:
            return bool(self._http.get("/v2/health/ready").status_code == 200)
        except httpx.TransportError:
            return False

    def health(self) -> dict[str, Any]:
        """`{"live": bool, "ready": bool, "reason": why not, or empty}`; tries once.

        Raises:
            ServiceError: It does not answer.
        """
        live = self._once("GET", "/v2/health/live")
        ready = self._once("GET", "/v2/health/ready")
        reason = "" if ready.status_code == 200 else _refusal(ready).args[0]
        return {
            "live": live.status_code == 200,
            "ready": ready.status_code == 200,
            "reason": reason,
        }

    def _once(self, method: str, address: str, **content: Any) -> Any:
        import httpx

        try:
            return self._http.request(method, address, **content)
        except httpx.TransportError as error:
            raise ServiceError(f"{self.url}: {type(error).__name__}: {error}") from None

    def _send(self, method: str, address: str, **content: Any) -> Any:
        """One request, sent again where that may help."""
        import httpx

        end = time.monotonic() + self._timeout_s
        for attempt in range(self._retries + 1):
            failure: ServiceError
            wait_s = min(0.1 * 2**attempt, 5.0) * random.uniform(0.5, 1.0)
            try:
                left = max(end - time.monotonic(), 0.001)
                response = self._http.request(method, address, timeout=left, **content)
                if response.is_success:
                    return response
                failure = _refusal(response)
                if response.status_code not in _AGAIN:
                    raise failure
                wait_s = max(wait_s, _seconds(response.headers.get("Retry-After")))
            except httpx.TimeoutException:
                raise ServiceError(f"{self.url}: no answer within {self._timeout_s:g} s") from None
            except httpx.TransportError as error:
                failure = ServiceError(f"{self.url}: {type(error).__name__}: {error}")
            if attempt == self._retries or time.monotonic() + wait_s > end:
                raise failure
            time.sleep(wait_s)
        raise AssertionError("the loop returns or raises")


def _seconds(text: str | None) -> float:
    try:
        return min(max(float(text or 0), 0.0), 60.0)
    except ValueError:
        return 0.0


def _refusal(response: Any) -> ServiceError:
    """The service's words as an error."""
    try:
        said = response.json()
    except ValueError:
        said = {}
    error = said.get("error") if isinstance(said, dict) else None
    if isinstance(error, Mapping):
        message, code = str(error.get("message", "")), str(error.get("code", ""))
    else:
        code = str(said.get("code", "")) if isinstance(said, dict) else ""
        message = str(error or "")
    request_id = response.headers.get("X-Request-Id", "")
    text = message or f"the service answered {response.status_code}"
    return ServiceError(
        f"{text} ({response.status_code}, request {request_id})",
        status=response.status_code,
        code=code,
        request_id=request_id,
    )


def _bodies(images: Any) -> Iterator[tuple[bytes, str]]:
    """Images as bodies with their content types."""
    if isinstance(images, str | bytes | os.PathLike) or not hasattr(images, "__len__"):
        images = [images]
    elif not isinstance(images, Sequence):
        array = to_numpy(images)
        if array.dtype.kind == "f":
            if array.ndim != 4:
                raise CAEError(
                    f"images must be float32 [N, C, S, S] in [-1, 1], got {list(array.shape)}"
                )
            for image in array:
                yield np.ascontiguousarray(image, dtype="<f4").tobytes(), "application/x-float32"
            return
        images = list(array) if array.ndim == 4 else [array]
    for image in images:
        yield _file_of(image), "application/octet-stream"


def _file_of(image: Any) -> bytes:
    """An image file's bytes."""
    if isinstance(image, bytes):
        return image
    if isinstance(image, str | os.PathLike):
        return Path(image).read_bytes()
    if hasattr(image, "save"):  # a PIL image
        buffer = io.BytesIO()
        image.save(buffer, format="PNG")
        return buffer.getvalue()
    array = to_numpy(image)
    if array.dtype != np.uint8 or array.ndim not in (2, 3):
        raise CAEError(
            "images must be files, PIL images, uint8 arrays [H, W] or [H, W, C], or float32 "
            f"[N, C, S, S], got {array.dtype} {list(array.shape)}"
        )
    return png_bytes(array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array)


def _each(target: Any, count: int) -> list[Any]:
    """One wish for each image."""
    if not isinstance(target, list | tuple | np.ndarray):
        return [target] * count
    if len(target) != count:
        raise CAEError(f"target must be one class, or one for each of {count}, got {len(target)}")
    return [value.item() if isinstance(value, np.generic) else value for value in target]


def _unpacked(content: bytes) -> dict[str, Any]:
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    return arrays | {"said": json.loads(str(arrays.pop("meta")))}


def _of_second_paths(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Fields that older services do not send."""
    if not all("second_path" in part for part in parts):
        return {}
    return {
        "reconstructed_class": np.stack([part["reconstructed_class"] for part in parts]),
        "second_path": [part["second_path"] for part in parts],
    }


def _joined(parts: list[dict[str, Any]]) -> Explanation:
    """One explanation of all images."""
    first = parts[0]["said"]
    fields: dict[str, Any] = {name: np.stack([part[name] for part in parts]) for name in _ROWS}
    status = np.array([part["said"]["status"] for part in parts])
    images = np.stack([part["image"] for part in parts])
    base = np.where(
        (status == "reconstruction_flips")[:, None, None, None], images, fields["reconstruction"]
    )
    decoded = ~np.isin(status, ("already_target", "non_finite", "rejected"))
    difference = np.zeros_like(images)
    difference[decoded] = fields["counterfactual"][decoded] - base[decoded]
    frames = None
    if "frames" in parts[0]:
        pixels = np.stack([part["frames"] for part in parts]).astype(np.float32)
        frames = (pixels / np.float32(127.5) - 1).transpose(0, 1, 4, 2, 3)
    reasons = {
        i: part["said"]["status_text"] for i, part in enumerate(parts) if status[i] == "rejected"
    }
    return Explanation(
        status=status,
        difference=difference,
        path_t=[part["path_t"] for part in parts],
        path_logits=[part["path_logits"] for part in parts],
        images=images,
        names=[f"image {i}" for i in range(len(parts))],
        class_names=tuple(first["class_names"]),
        meta=first["meta"] | {"rejected": reasons, "service_seconds": first["seconds"]},
        exemplar_names=[tuple(part["said"]["exemplar"]["names"]) for part in parts],
        **_of_second_paths(parts),
        frame_t=parts[0].get("frame_t"),
        path_images=frames,
        **fields,
    )
