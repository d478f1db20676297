"""The storage of the web API: gives places for files, and takes files that are signed for them."""

from __future__ import annotations

import hashlib
import hmac
import re
import uuid
from collections.abc import Iterator
from typing import Any, Final
from urllib.parse import urlsplit

from qwen_wsgi.sandbox import faults
from qwen_wsgi.sandbox.journal import Record
from qwen_wsgi.sandbox.replies import faulty
from qwen_wsgi.sandbox.steps import Step, whole
from qwen_wsgi.sandbox.wire import Request
from qwen_wsgi.sandbox.world import Json, Reply, World, spec_for

BUCKET: Final = "sandbox-webui"
_REGION: Final = "oss-ap-southeast-1"
_TYPES: Final = ("image", "video", "audio", "file")
_SIGNED: Final = re.compile(
    r"OSS4-HMAC-SHA256 Credential=([^/,]+)/(\d{8})/([a-z0-9-]+)/oss/aliyun_v4_request, ?"
    r"Signature=([0-9a-f]{64})"
)


def place(world: World, user: str, body: Json) -> Json | None:
    """A place for a file; None if the request does not say what it needs to."""
    name, size = body.get("filename"), body.get("filesize")
    if not isinstance(name, str) or not isinstance(size, int) or body.get("filetype") not in _TYPES:
        return None
    id, secret = str(uuid.uuid4()), uuid.uuid4().hex
    path = f"{user}/{id}_{name}"
    world.web.places[path] = (user, size, secret)
    return {
        "access_key_id": f"STS.{id[:8]}",
        "access_key_secret": secret,
        "security_token": f"sts-{id}",
        "file_url": f"{world.origin()}/{BUCKET}/{path}?x-oss-expires=1",
        "file_path": path,
        "bucketname": BUCKET,
        "region": _REGION,
        "file_id": id,
        # As the SDK has it, an address with a scheme has the bucket in the path.
        "endpoint": world.web.endpoint or world.origin(),
    }


def put(world: World, request: Request, record: Record) -> Reply:
    """Take a file, as OSS does: by its signature alone."""
    spec = spec_for(world, request, record, [faults.spec_in_text("")])

    def steps() -> Iterator[Step]:
        path = request.path.removeprefix(f"/{BUCKET}/")
        given = world.web.places.get(path)
        why = "NoSuchPlace" if given is None else _complaint(request, path, *given[1:])
        if why or given is None:
            xml = f"<Error><Code>{why}</Code></Error>".encode()
            return whole(403, xml, "application/xml")
        kind = request.header("content-type") or ""
        world.web.objects[path] = (given[0], kind, request.body)
        return whole(200, b"", None)

    return Reply(faulty(world, spec, steps, None), spec)


def url_is_known(world: World, user: str, url: Any) -> bool:
    """Whether a URL is that of a file that the user has uploaded, or leads elsewhere."""
    parts = urlsplit(url if isinstance(url, str) else "")
    if f"{parts.scheme}://{parts.netloc}" != world.origin():
        return parts.scheme in ("http", "https")
    kept = world.web.objects.get(parts.path.removeprefix(f"/{BUCKET}/"))
    return kept is not None and kept[0] == user


def _complaint(request: Request, path: str, size: int, secret: str) -> str:
    """Why a request is refused, in OSS' words; "" if it is not."""
    found = _SIGNED.fullmatch(request.header("authorization") or "")
    moment = request.header("x-oss-date") or ""
    if found is None or found[3] != _REGION[4:] or found[2] != moment[:8]:
        return "InvalidArgument"
    if not (request.header("x-oss-security-token") or "").startswith("sts-"):
        return "InvalidSecurityToken"
    if len(request.body) != size:
        return "EntityTooLarge"
    names = sorted(
        name.lower()
        for name, _ in request.headers
        if name.lower() in ("content-type", "content-md5") or name.lower().startswith("x-oss-")
    )
    lines = "".join(f"{name}:{(request.header(name) or '').strip()}\n" for name in names)
    target = urlsplit(request.target).path
    payload = request.header("x-oss-content-sha256") or ""
    canonical = f"{request.method}\n{target}\n\n{lines}\n\n{payload}"
    scope = f"{found[2]}/{found[3]}/oss/aliyun_v4_request"
    hashed = hashlib.sha256(canonical.encode()).hexdigest()
    key = f"aliyun_v4{secret}".encode()
    for part in (found[2], found[3], "oss", "aliyun_v4_request"):
        key = hmac.new(key, part.encode(), "sha256").digest()
    text = f"OSS4-HMAC-SHA256\n{moment}\n{scope}\n{hashed}"
    right = hmac.new(key, text.encode(), "sha256").hexdigest()
    return "" if hmac.compare_digest(right, found[4]) else "SignatureDoesNotMatch"
