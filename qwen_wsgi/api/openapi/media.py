"""Pictures, videos, speech and transcripts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from qwen_wsgi.api.openapi.headers import OF_PARTS, OF_VIDEOS
from qwen_wsgi.api.openapi.json_schema import (
    Schema,
    answer,
    anything,
    array,
    either,
    file,
    flag,
    integer,
    mapping,
    maybe,
    number,
    page,
    ref,
    request,
    text,
)
from qwen_wsgi.api.openapi.operations import (
    EVENTS,
    FORM,
    JSON,
    Answer,
    Operation,
    Query,
    events,
    paged,
)
from qwen_wsgi.protocol.images.request import MOST_PICTURES
from qwen_wsgi.protocol.speech.request import CONTENT_TYPES, MOST_CHARACTERS
from qwen_wsgi.protocol.transcription.request import FORMATS

_MODEL: Final = text("The model; `GET /v1/models` lists them.")
_USER: Final = text("Names the end user; not passed on.")
_METADATA: Final = anything("Not passed on.")
_PICTURE: Final = anything("A picture, or several: a URL, a data URL, or an object with one.")

#: Qwen's own members of pictures and videos.
_NEGATIVE: Final = text("What must not be there.")
_SEED: Final = integer("The same seed makes the same more likely.")
_EXTEND: Final = flag("The host may make a better prompt of it.")
_WATERMARK: Final = flag("The host's mark is in a corner.")

#: The members of a request for pictures, in JSON or as the fields of a form.
IMAGES: Final[Mapping[str, Schema]] = {
    "model": _MODEL,
    "prompt": text("What is to be seen."),
    "n": integer("How many pictures.", minimum=1, maximum=MOST_PICTURES),
    "size": text("`1024x1024`, `1K`, `2K`, `4K`, `auto`."),
    "response_format": text("Whether the picture itself is sent, or its URL.", "url", "b64_json"),
    "image": _PICTURE,
    "image[]": _PICTURE,
    "images": _PICTURE,
    "input_image": _PICTURE,
    "negative_prompt": _NEGATIVE,
    "prompt_extend": _EXTEND,
    "watermark": _WATERMARK,
    "seed": _SEED,
    "prompt_extend_mode": anything("Of some models: how the prompt is made better."),
    "thinking_mode": anything("Of some models: think before the picture is made."),
    "enable_sequential": anything("Of some models: pictures that follow one another."),
    "enable_interleave": anything("Of some models: texts between the pictures."),
    "bbox_list": anything("Of some models: where in the pictures."),
    "color_palette": anything("Of some models: which colours."),
    "quality": anything("OpenAI's; no model has it."),
    "style": anything("OpenAI's; no model has it."),
    "background": anything("OpenAI's; no model has it."),
    "output_compression": anything("OpenAI's; no model has it."),
    "moderation": anything("OpenAI's; no model has it."),
    "input_fidelity": anything("OpenAI's; no model has it."),
    "output_format": anything("Pictures are PNG."),
    "stream": anything("Not supported."),
    "partial_images": anything("Not supported."),
    "mask": anything("Not supported: say in the prompt what is to be changed."),
    "user": _USER,
    "metadata": _METADATA,
    "extra_body": _METADATA,
}

#: The members of a request for a video.
VIDEOS: Final[Mapping[str, Schema]] = {
    "model": _MODEL,
    "prompt": text("What is to be seen; not needed where a picture or `media` says it."),
    "seconds": anything("How long it is; −1 lets the model choose."),
    "duration": anything("The same, by its other name."),
    "size": text("`1280x720`, `auto`."),
    "resolution": text("`480P`, `720P`, `1080P`, in place of `size`."),
    "ratio": text("`16:9`, `9:16`, `1:1`, `4:3`, `3:4`, `adaptive`: with `resolution`."),
    "input_reference": _PICTURE,
    "image_url": _PICTURE,
    "image": _PICTURE,
    "n": anything("Videos are made one at a time."),
    "async": anything("Of the older form: answer at once."),
    "negative_prompt": _NEGATIVE,
    "audio_url": text("The URL of a sound for the video."),
    "media": anything("Qwen's list of pictures, videos and sounds: `[{type, url}]`."),
    "img_url": text("The URL of the first picture."),
    "reference_urls": anything("URLs of pictures and videos to follow."),
    "first_frame_url": text("The URL of the first picture."),
    "last_frame_url": text("The URL of the last picture."),
    "audio": anything("Whether the video has sound."),
    "seed": _SEED,
    "prompt_extend": _EXTEND,
    "watermark": _WATERMARK,
    "shot_type": text("`single` or `multi`."),
    "user": _USER,
    "metadata": _METADATA,
    "extra_body": _METADATA,
    "response_format": _METADATA,
}

SPEECH: Final[Mapping[str, Schema]] = {
    "model": _MODEL,
    "input": text("What is spoken.", maxLength=MOST_CHARACTERS),
    "voice": anything("The name of a voice: of Qwen's, or of OpenAI's."),
    "response_format": text("How the sound is coded.", *CONTENT_TYPES),
    "speed": number("How fast it is spoken.", minimum=0.25, maximum=4),
    "instructions": text("How it is to be spoken, in words."),
    "stream_format": text("The sound itself, or events with pieces of it.", "audio", "sse"),
    "stream": anything("Not needed: the sound is always sent as it is made."),
    "language_type": anything("Qwen's: the language of the text."),
    "language_hints": anything("Qwen's: languages of the text."),
    "optimize_instructions": anything("Qwen's: the host may make better instructions."),
    "seed": anything("The same seed makes the same sound more likely."),
    "sample_rate": anything("Qwen's: samples per second."),
    "volume": anything("Qwen's: how loud, from 0 to 100."),
    "rate": anything("Qwen's: how fast, from 0.5 to 2."),
    "pitch": anything("Qwen's: how high."),
    "bit_rate": anything("Qwen's: of mp3 and opus."),
    "enable_ssml": anything("Qwen's: the text has marks of SSML."),
    "user": _USER,
    "extra_body": _METADATA,
}

_GRANULARITIES: Final = array(text("", "word", "segment"), "Which times, of `verbose_json`.")
TRANSCRIPTIONS: Final[Mapping[str, Schema]] = {
    "file": file("The sound; its kind is read from its first bytes."),
    "model": _MODEL,
    "language": text("`en`, `zh`, …"),
    "prompt": text("Words that are likely, as names."),
    "response_format": text("The form of the transcript.", *FORMATS),
    "stream": text("Answer with events; not with a form that tells times.", "true", "false"),
    "timestamp_granularities": _GRANULARITIES,
    "timestamp_granularities[]": _GRANULARITIES,
    "enable_itn": text("Qwen's: numbers as digits.", "true", "false"),
    "disfluency_removal_enabled": text("Qwen's: leave out 'er'.", "true", "false"),
    "temperature": text("OpenAI's; no model has it."),
    "chunking_strategy": text("OpenAI's; no model has it."),
    "user": _USER,
}

_FAILURE: Final = answer({"code": text(), "message": text()})

SCHEMAS: Final[Mapping[str, Schema]] = {
    "images": answer(
        {
            "created": integer(),
            "data": array(
                answer(
                    {
                        "url": text("Where the picture is, for 24 hours."),
                        "b64_json": text("The picture itself, in base64."),
                        "revised_prompt": text("The prompt that the host made of the client's."),
                    },
                    optional=("url", "b64_json", "revised_prompt"),
                )
            ),
            "output_format": text("", "png"),
            "size": text(),
            "usage": mapping(),
        },
        optional=("size", "usage"),
    ),
    "video": answer(
        {
            "id": text(),
            "object": text("", "video"),
            "created_at": integer(),
            "status": text("", "queued", "in_progress", "completed", "failed"),
            "progress": integer("0, 50 or 100: hosts tell nothing in between."),
            "model": text(),
            "size": text(),
            "seconds": text(),
            "completed_at": maybe(integer()),
            "expires_at": maybe(integer("When the video will be gone.")),
            "error": maybe(_FAILURE),
            "prompt": maybe(text()),
            "remixed_from_video_id": maybe(text()),
        }
    ),
    "videos": page(ref("video")),
    "deleted_video": answer({"id": text(), "object": text("", "video.deleted"), "deleted": flag()}),
    "video_generation": answer(
        {
            "id": text(),
            "object": text("", "video.generation"),
            "created": integer(),
            "status": text("", "queued", "in_progress", "completed", "failed"),
            "model": text(),
            "data": array(answer({"url": text("Where the video is, for 24 hours.")})),
            "error": _FAILURE,
        },
        optional=("error",),
    ),
    "transcript": answer({"text": text(), "usage": mapping()}, optional=("usage",)),
    "timed_transcript": answer(
        {
            "task": text("", "transcribe"),
            "language": text(),
            "duration": number("Seconds."),
            "text": text(),
            "words": array(answer({"word": text(), "start": number(), "end": number()})),
            "segments": array(mapping()),
            "usage": mapping(),
        },
        optional=("words", "segments", "usage"),
    ),
    "transcript_event": answer({"type": text("", "transcript.text.delta", "transcript.text.done")}),
    "speech_event": answer({"type": text("", "speech.audio.delta", "speech.audio.done")}),
}

_PICTURES_TAG: Final = "Pictures"
_VIDEOS_TAG: Final = "Videos"
_SOUND_TAG: Final = "Speech"

_IMAGES: Final = Answer("The pictures.", {JSON: ref("images")})
_VIDEO: Final = Answer("The video, with its status now.", {JSON: ref("video")}, OF_VIDEOS)
_GENERATION: Final = Answer("The video, with its status now.", {JSON: ref("video_generation")})

#: No answer is good where there is only a refusal.
_NEVER: Final[tuple[Answer, ...]] = ()


def _both(
    members: Mapping[str, Schema], *files: str, required: tuple[str, ...] = ()
) -> dict[str, Schema]:
    """A body that may be JSON or a form, some of whose fields may be files."""
    fields = {
        name: either(file(), schema) if name in files else schema
        for name, schema in members.items()
    }
    return {
        JSON: request(members, required=required),
        FORM: request(fields, required=required),
    }


def _refused(path: str, tag: str, summary: str) -> Operation:
    return Operation("POST", path, tag, summary, _NEVER, errors=(400,))


OPERATIONS: Final = (
    Operation(
        "POST",
        "/v1/images/generations",
        _PICTURES_TAG,
        "Make pictures",
        (_IMAGES,),
        example={"model": "qwen-image-plus", "prompt": "A red boat"},
        body=_both(IMAGES, required=("prompt",)),
        asks_upstream=True,
    ),
    Operation(
        "POST",
        "/v1/images/edits",
        _PICTURES_TAG,
        "Make pictures of pictures",
        (_IMAGES,),
        example={
            "model": "qwen-image-edit-plus",
            "prompt": "Make the boat blue",
            "image": "https://example.com/boat.png",
        },
        body=_both(IMAGES, "image", "image[]", required=("prompt",)),
        asks_upstream=True,
    ),
    _refused(
        "/v1/images/variations",
        _PICTURES_TAG,
        "Refused: no model varies a picture without a prompt",
    ),
    Operation(
        "POST",
        "/v1/videos",
        _VIDEOS_TAG,
        "Begin a video",
        (_VIDEO,),
        example={"model": "wan2.6-t2v", "prompt": "A boat at sea", "seconds": "5"},
        body=_both(VIDEOS, "input_reference", "image"),
        asks_upstream=True,
    ),
    Operation(
        "GET",
        "/v1/videos",
        _VIDEOS_TAG,
        "The client's videos",
        (Answer("A page of the list.", {JSON: ref("videos")}),),
        query=paged(),
        asks_upstream=True,
    ),
    Operation(
        "GET",
        "/v1/videos/{id}",
        _VIDEOS_TAG,
        "A video",
        (_VIDEO,),
        asks_upstream=True,
    ),
    Operation(
        "DELETE",
        "/v1/videos/{id}",
        _VIDEOS_TAG,
        "Forget a video",
        (Answer("It is forgotten, and cancelled if possible.", {JSON: ref("deleted_video")}),),
        asks_upstream=True,
    ),
    Operation(
        "GET",
        "/v1/videos/{id}/content",
        _VIDEOS_TAG,
        "The video itself",
        (
            Answer("The video.", {"video/*": None}, OF_PARTS),
            Answer("A part of the video.", {"video/*": None}, OF_PARTS, status=206),
        ),
        query=(Query("variant", text("", "video")),),
        errors=(416,),
        asks_upstream=True,
    ),
    *(
        _refused(path, _VIDEOS_TAG, "Refused: no model changes a video by its id")
        for path in (
            "/v1/videos/edits",
            "/v1/videos/extensions",
            "/v1/videos/characters",
            "/v1/videos/{id}/remix",
        )
    ),
    Operation(
        "POST",
        "/v1/videos/generations",
        _VIDEOS_TAG,
        "Make a video, and wait for it",
        (_GENERATION,),
        description="The older form. With `async` the answer does not wait. While it is waited "
        "for, spaces are sent before the JSON; a failure after that is an `error` with status 200 "
        "and a closed connection.",
        example={"model": "wan2.6-t2v", "prompt": "A boat at sea"},
        body=_both(VIDEOS, "input_reference", "image"),
        asks_upstream=True,
    ),
    Operation(
        "GET",
        "/v1/videos/generations/{id}",
        _VIDEOS_TAG,
        "A video, in the older form",
        (_GENERATION,),
        asks_upstream=True,
    ),
    Operation(
        "POST",
        "/v1/audio/speech",
        _SOUND_TAG,
        "Speak a text",
        (
            Answer(
                "The sound as it is made, or events with pieces of it.",
                {
                    **dict.fromkeys(CONTENT_TYPES.values()),
                    EVENTS: events("Pieces in base64.", "speech_event", "error.envelope"),
                },
            ),
        ),
        example={"model": "qwen3-tts-flash", "input": "Hello.", "voice": "Cherry"},
        body={JSON: request(SPEECH, required=("input",))},
        asks_upstream=True,
    ),
    Operation(
        "POST",
        "/v1/audio/transcriptions",
        _SOUND_TAG,
        "Write down what is spoken",
        (
            Answer(
                "The transcript.",
                {
                    JSON: either(ref("timed_transcript"), ref("transcript")),
                    "text/plain": text("As text, srt or vtt."),
                    EVENTS: events("Pieces of it.", "transcript_event", "error.envelope"),
                },
            ),
        ),
        body={FORM: request(TRANSCRIPTIONS, required=("file", "model"))},
        asks_upstream=True,
    ),
    _refused("/v1/audio/translations", _SOUND_TAG, "Refused: no model translates what is spoken"),
)
