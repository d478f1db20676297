"""Files: the official OpenAI package, and uploads by hand, against the running server."""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from qwen_wsgi.sandbox import Sandbox
from tests.fakes.file_host import FileHost
from tests.kit import uploads
from tests.kit.processes import memory_kb
from tests.kit.proxy import UPSTREAM_KEY, Proxy, start
from tests.kit.secrets import secret
from tests.kit.servers import wait_until

pytestmark = pytest.mark.server

ONE, TWO = secret("client-one"), secret("client-two")
MIB = 1024 * 1024
CONTENT = b'{"custom_id": "1"}\n--dashes--\r\n' * 3
FORM = uploads.field("purpose", "batch") + uploads.file(CONTENT) + uploads.END


def environment(base_url: str, **more: str) -> dict[str, str]:
    return {
        "DASHSCOPE_BASE_URL": base_url,
        "DASHSCOPE_API_KEY": UPSTREAM_KEY,
        "QWEN_PROXY_API_KEYS": f"{ONE},{TWO}",
        "QWEN_PROXY_BODY_TIMEOUT": "1",
        **more,
    }


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("files")


@pytest.fixture(scope="module")
def proxy(upstream: Sandbox, place: Path) -> Iterator[Proxy]:
    running = start(place, environment(upstream.base_url, QWEN_PROXY_FIRST_BYTE_TIMEOUT="5"))
    yield running
    running.stop()


def sdk(proxy: Proxy, key: str = ONE) -> openai.OpenAI:
    return openai.OpenAI(base_url=proxy.base_url, api_key=key, max_retries=0, timeout=20)


def in_flight(proxy: Proxy) -> int:
    request = urllib.request.Request(
        proxy.origin + "/health", headers={"Authorization": f"Bearer {ONE}"}
    )
    with urllib.request.urlopen(request, timeout=20) as response:
        return int(json.load(response)["in_flight"])


def uploads_at(sandbox: Sandbox) -> int:
    return sum(each.route == "files" and each.method == "POST" for each in sandbox.requests)


# --- as the official package does it -------------------------------------------------------------


def test_the_official_package_drives_files(proxy: Proxy, sandbox: Sandbox) -> None:
    client = sdk(proxy)

    made = client.files.create(file=("lines.jsonl", CONTENT), purpose="batch")

    assert (made.bytes, made.filename, made.purpose) == (len(CONTENT), "lines.jsonl", "batch")
    assert made.object == "file" and made.status == "processed"
    assert client.files.retrieve(made.id) == made
    assert client.files.content(made.id).content == CONTENT
    assert [each.id for each in client.files.list(purpose="batch")] == [made.id]
    assert list(client.files.list(purpose="user_data")) == []
    assert client.files.delete(made.id).deleted
    assert list(client.files.list()) == []
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(made.id)


def test_a_list_has_pages(proxy: Proxy, sandbox: Sandbox) -> None:
    client = sdk(proxy, TWO)
    ids = [client.files.create(file=(f"{n}", b"x"), purpose="batch").id for n in range(5)]

    page = client.files.list(limit=2)

    assert [each.id for each in page.data] == ids[:2:-1] and page.has_more
    assert [each.id for each in client.files.list(limit=2)] == ids[::-1]
    assert [each.id for each in client.files.list(limit=2, order="asc")] == ids
    with pytest.raises(openai.BadRequestError):
        client.files.list(after="file-of-nobody")
    for id in ids:
        client.files.delete(id)


def test_a_document_has_the_host_s_purpose(proxy: Proxy, sandbox: Sandbox) -> None:
    raw = sdk(proxy).files.with_raw_response.create(
        file=("a.pdf", b"%PDF"),
        purpose="user_data",
        expires_after={"anchor": "created_at", "seconds": 9999},
    )

    assert json.loads(raw.content)["purpose"] == "file-extract"
    changed = raw.headers["x-qwen-proxy-changed"]
    assert changed == "purpose:file-extract, expires_after:dropped"


@pytest.mark.parametrize("purpose", ["vision", "fine-tune", "evals", "nonsense"])
def test_a_purpose_that_hosts_do_not_have_is_refused_first(
    proxy: Proxy, sandbox: Sandbox, purpose: str
) -> None:
    with pytest.raises(openai.BadRequestError) as told:
        sdk(proxy).files.create(file=("a", b"x"), purpose=purpose)  # type: ignore[arg-type]  # the point

    assert told.value.param == "purpose"
    assert uploads_at(sandbox) == 0


# --- whose files they are ------------------------------------------------------------------------


def test_nobody_gets_at_the_files_of_another_key(proxy: Proxy, sandbox: Sandbox) -> None:
    mine = sdk(proxy).files.create(file=("a", CONTENT), purpose="batch")
    other = sdk(proxy, TWO).files

    for attempt in (other.retrieve, other.content, other.delete):
        with pytest.raises(openai.NotFoundError):
            attempt(mine.id)
    assert mine.id not in [each.id for each in other.list()]
    assert sdk(proxy).files.content(mine.id).content == CONTENT


def test_a_file_that_was_not_uploaded_here_is_nobody_s(proxy: Proxy, sandbox: Sandbox) -> None:
    """Another program uploaded it with the account's key."""
    theirs = openai.OpenAI(base_url=sandbox.base_url, api_key=UPSTREAM_KEY).files.create(
        file=("a", b"secret"), purpose="batch"
    )

    for key in (ONE, TWO):
        with pytest.raises(openai.NotFoundError):
            sdk(proxy, key).files.content(theirs.id)


@pytest.mark.parametrize("dialect", ["chat", "responses", "messages"])
def test_a_model_reads_files_of_its_caller_alone(
    proxy: Proxy, sandbox: Sandbox, dialect: str
) -> None:
    """The account would give it any file that it has."""
    mine = sdk(proxy).files.create(file=("a.pdf", CONTENT), purpose="user_data")
    # Written so that the bytes of the body do not show it.
    named = json.dumps(f"fileid://{mine.id}").replace("fileid:/", "file\\u0069d:\\/")
    said = '[{"role": "user", "content": "What does it say?"}]'
    system = f'{{"role": "system", "content": {named}}}'
    body = {
        "chat": f'{{"model": "qwen-doc-turbo", "messages": [{system}, {said[1:]}}}',
        "responses": f'{{"model": "qwen-doc-turbo", "instructions": {named}, "input": "What?"}}',
        "messages": f'{{"model": "qwen-doc-turbo", "max_tokens": 9, "system": {named}, '
        f'"messages": {said}}}',
    }[dialect]
    path = {"chat": "chat/completions"}.get(dialect, dialect)

    def ask(key: str) -> int:
        request = urllib.request.Request(
            f"{proxy.base_url}/{path}",
            body.encode(),
            {"Authorization": f"Bearer {key}", "Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=20) as response:
                return int(response.status)
        except urllib.error.HTTPError as error:
            return error.code

    assert (ask(ONE), ask(TWO)) == (200, 404)
    (chat,) = sandbox.chats
    assert chat.body and f"fileid://{mine.id}" in json.loads(chat.body)["messages"][0]["content"]


def test_files_are_known_after_a_restart(tmp_path: Path, sandbox: Sandbox) -> None:
    first = start(tmp_path, environment(sandbox.base_url))
    made = sdk(first).files.create(file=("a", CONTENT), purpose="batch")
    first.stop()
    second = start(tmp_path, environment(sandbox.base_url))
    try:
        assert sdk(second).files.content(made.id).content == CONTENT
        with pytest.raises(openai.NotFoundError):
            sdk(second, TWO).files.content(made.id)
    finally:
        second.stop()


def test_the_client_chooses_the_account(proxy: Proxy, sandbox: Sandbox) -> None:
    options = {"x-qwen-account": "nobody"}
    with pytest.raises(openai.BadRequestError, match="no account 'nobody'"):
        sdk(proxy).files.create(file=("a", b"x"), purpose="batch", extra_headers=options)
    sdk(proxy).files.create(
        file=("a", b"x"), purpose="batch", extra_headers={"x-qwen-account": "dashscope"}
    )


# --- forms ---------------------------------------------------------------------------------------


def test_the_purpose_may_come_behind_the_file(proxy: Proxy, sandbox: Sandbox) -> None:
    """So the official package for Node sends it."""
    form = uploads.file(CONTENT) + uploads.field("purpose", "batch") + uploads.END

    status, _, told = uploads.post(proxy, ONE, form)

    assert (status, told["purpose"], told["bytes"]) == (200, "batch", len(CONTENT))
    assert sdk(proxy).files.content(told["id"]).content == CONTENT


@pytest.mark.parametrize(
    ("form", "param"),
    [
        (uploads.file(CONTENT) + uploads.END, "purpose"),
        (uploads.file(CONTENT) + uploads.field("purpose", "vision") + uploads.END, "purpose"),
        (FORM.replace(uploads.END, uploads.file(b"second") + uploads.END), "file"),
        (uploads.field("purpose", "batch") + uploads.END, "file"),
        (uploads.field("purpose", "batch") + uploads.file(b"x", name="data") + uploads.END, "file"),
        (uploads.END, "file"),
        (FORM[: -len(uploads.END)], None),
        (FORM[:20], None),
        (b"no form at all", None),
        (uploads.field("purpose", "b" * 70_000) + uploads.END, None),
        (uploads.field("x", "y") * 40 + FORM, None),
        (b"--" + uploads.BOUNDARY.encode() + b"\r\nX: " + b"y" * 300_000, None),
        (b"p" * 300_000, None),
    ],
    ids=lambda value: repr(value[-30:]) if isinstance(value, bytes) else str(value),
)
def test_a_wrong_form_is_refused_and_no_file_is_made(
    proxy: Proxy, sandbox: Sandbox, form: bytes, param: str | None
) -> None:
    status, _, told = uploads.post(proxy, ONE, form)

    assert (status, told["error"]["param"]) == (400, param)
    wait_until(lambda: all(each.ended_s for each in sandbox.requests), "the sandbox is done")
    theirs = openai.OpenAI(base_url=sandbox.base_url, api_key=UPSTREAM_KEY)
    assert theirs.files.list().data == []


@pytest.mark.parametrize(
    "type", ["application/json", "multipart/form-data", "multipart/form-data; boundary="]
)
def test_an_upload_is_a_multipart_form(proxy: Proxy, sandbox: Sandbox, type: str) -> None:
    status, _, told = uploads.post(proxy, ONE, FORM, type=type)

    assert (status, told["error"]["code"]) == (400, "invalid_content_type")


def test_a_name_cannot_break_out_of_its_head(proxy: Proxy, sandbox: Sandbox) -> None:
    form = uploads.field("purpose", "batch")
    form += uploads.file(CONTENT, filename='a\\"; name=\\"purpose') + uploads.END

    status, _, told = uploads.post(proxy, ONE, form)

    assert (status, told["purpose"], told["bytes"]) == (200, "batch", len(CONTENT))


def test_an_upload_in_chunks_is_taken(proxy: Proxy, sandbox: Sandbox) -> None:
    with uploads.Client(proxy, ONE, length=None) as client:
        for start_at in range(0, len(FORM), 7):
            piece = FORM[start_at : start_at + 7]
            client.send(b"%x\r\n%b\r\n" % (len(piece), piece))
        client.send(b"0\r\n\r\n")
        status, _, told = client.answer()

    assert (status, told["bytes"]) == (200, len(CONTENT))


# --- failures of the host ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        ("throttle", 429),
        ("too-large", 413),
        ("internal", 500),
        ("overload", 503),
        ("html-502", 502),
    ],
)
@pytest.mark.parametrize("early", ["", "early, "])
def test_what_the_host_says_is_told(
    proxy: Proxy, sandbox: Sandbox, fault: str, status: int, early: str
) -> None:
    sandbox.control(faults={"files": early + fault})
    proxy.forget_troubles()

    got, _, told = uploads.post(
        proxy, ONE, uploads.field("purpose", "batch") + uploads.file(b"x" * (8 * MIB)) + uploads.END
    )

    proxy.forget_troubles()
    assert got == status, told
    assert uploads_at(sandbox) == 1


def test_an_upload_whose_answer_is_lost_is_not_repeated(tmp_path: Path, sandbox: Sandbox) -> None:
    patient = start(tmp_path, environment(sandbox.base_url, QWEN_PROXY_RETRY_BUDGET="20"))
    try:
        sandbox.control(faults={"files": "lost-answer"})

        status, headers, told = uploads.post(patient, ONE, FORM)

        assert (status, told["error"]["code"]) == (502, "upstream_closed")
        assert "not known whether" in told["error"]["message"]
        assert headers["x-should-retry"] == "false"
        assert uploads_at(sandbox) == 1
        # A refusal is told as well, although the call has time left.
        sandbox.control(faults={"files": "internal"})
        patient.forget_troubles()
        assert uploads.post(patient, ONE, FORM)[0] == 500
        assert uploads_at(sandbox) == 2
    finally:
        patient.stop()


def test_a_host_that_cannot_be_reached_is_told_before_the_file_is_read(tmp_path: Path) -> None:
    with FileHost() as host:
        gone = host.base_url
    running = start(tmp_path, environment(gone))
    try:
        with uploads.Client(running, ONE, length=100 * MIB) as client:
            client.send(uploads.field("purpose", "batch") + uploads.file_head())
            client.send(b"x" * MIB)
            status, _, told = client.answer()
    finally:
        running.stop()

    assert (status, told["error"]["code"]) == (502, "upstream_unreachable")


def test_a_download_that_breaks_off_is_cut(proxy: Proxy, sandbox: Sandbox) -> None:
    made = sdk(proxy).files.create(file=("a", b"x" * MIB), purpose="batch")
    sandbox.control(faults={"files": "cut-after"})

    with pytest.raises(openai.APIConnectionError):
        sdk(proxy).files.content(made.id)


# --- large, slow, gone ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def host() -> Iterator[FileHost]:
    with FileHost() as made:
        yield made


@pytest.fixture(scope="module")
def streaming(host: FileHost, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """A proxy in front of the host that holds nothing."""
    running = start(
        tmp_path_factory.mktemp("streaming"),
        environment(host.base_url, QWEN_PROXY_MAX_UPLOAD="201m"),
    )
    yield running
    running.stop()


def worker_pss(proxy: Proxy) -> int:
    """The memory of the worker, in bytes."""
    return int(memory_kb(proxy.workers()) * 1024)


def send_large(client: uploads.Client, size: int) -> None:
    client.send(uploads.field("purpose", "batch") + uploads.file_head())
    piece = b"0123456789abcde\n" * (MIB // 16)
    for _ in range(size // MIB):
        client.send(piece)
    client.send(b"\r\n" + uploads.END)


def form_bytes(size: int) -> int:
    return len(uploads.field("purpose", "batch") + uploads.file_head() + uploads.END) + 2 + size


@pytest.mark.timeout(120)
def test_200_megabytes_go_through_in_less_than_4(streaming: Proxy, host: FileHost) -> None:
    assert uploads.post(streaming, ONE, FORM)[0] == 200
    before, peak = worker_pss(streaming), 0
    stop = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not stop.wait(0.05):
            peak = max(peak, worker_pss(streaming))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        with uploads.Client(streaming, ONE, length=form_bytes(200 * MIB)) as client:
            client.sock.settimeout(90)
            send_large(client, 200 * MIB)
            status, _, told = client.answer()
    finally:
        stop.set()
        watcher.join()

    assert status == 200 and told["bytes"] > 200 * MIB
    assert peak - before < 4 * MIB


def test_a_slow_host_slows_its_client_who_is_not_blamed(streaming: Proxy, host: FileHost) -> None:
    """The client's body may pause for a second; the host takes nothing for longer."""
    host.open.clear()
    before, taken = host.received, 0
    with uploads.Client(streaming, ONE, length=form_bytes(60 * MIB)) as client:
        sender = threading.Thread(target=send_large, args=(client, 60 * MIB))
        sender.start()
        time.sleep(2.5)
        taken = host.received - before
        assert sender.is_alive()
        host.open.set()
        sender.join(30)
        status, _, told = client.answer()

    assert status == 200 and told["bytes"] > 60 * MIB
    assert taken < 40 * MIB


def test_a_client_that_goes_in_the_middle_frees_both_sides(
    streaming: Proxy, host: FileHost
) -> None:
    cut, complete = host.cut, host.complete
    with uploads.Client(streaming, ONE, length=form_bytes(50 * MIB)) as client:
        client.send(uploads.field("purpose", "batch") + uploads.file_head() + b"x" * (3 * MIB))
        wait_until(lambda: in_flight(streaming) == 1, "the upload runs")

    wait_until(lambda: host.cut == cut + 1, "the host sees a body without its end")
    wait_until(lambda: in_flight(streaming) == 0, "its place is free")
    assert host.complete == complete


def test_a_client_that_pauses_is_refused_and_the_host_is_let_go(
    streaming: Proxy, host: FileHost
) -> None:
    cut = host.cut
    with uploads.Client(streaming, ONE, length=form_bytes(50 * MIB)) as client:
        client.send(uploads.field("purpose", "batch") + uploads.file_head() + b"x" * MIB)
        status, headers, told = client.answer()

    assert (status, told["error"]["code"]) == (408, "request_timeout")
    assert headers["connection"] == "close"
    wait_until(lambda: host.cut == cut + 1, "the host sees a body without its end")


@pytest.mark.parametrize("chunked", [False, True])
def test_an_upload_beyond_the_limit_is_refused(
    streaming: Proxy, host: FileHost, chunked: bool
) -> None:
    complete = host.complete

    with uploads.Client(streaming, ONE, length=None if chunked else 202 * MIB) as client:
        sender = threading.Thread(target=_send_chunks, args=(client,))
        if chunked:
            sender.start()
        status, _, told = client.answer()
        if chunked:
            sender.join(20)

    assert (status, told["error"]["code"]) == (413, "request_too_large")
    assert "QWEN_PROXY_MAX_UPLOAD" in told["error"]["message"]
    assert host.complete == complete


def _send_chunks(client: uploads.Client) -> None:
    piece = uploads.field("purpose", "batch") + uploads.file_head()
    try:
        client.send(b"%x\r\n%b\r\n" % (len(piece), piece))
        piece = b"x" * MIB
        for _ in range(210):
            client.send(b"%x\r\n%b\r\n" % (len(piece), piece))
    except OSError:
        pass  # refused while it was sending
