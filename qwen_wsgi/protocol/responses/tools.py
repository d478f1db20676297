"""Translates tools: OpenAI's many kinds to functions of chat, and the names of calls back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from qwen_wsgi.errors import BadRequest
from qwen_wsgi.protocol import validation
from qwen_wsgi.protocol.changes import Changes, header_token
from qwen_wsgi.protocol.responses.server_tools import image_tool, mcp_tool
from qwen_wsgi.protocol.responses.server_tools.image_tool import ImageOffer, ImageTool
from qwen_wsgi.protocol.server_tools import functions, openai_tools
from qwen_wsgi.protocol.server_tools.functions import name_in_chat
from qwen_wsgi.protocol.server_tools.offer import Offer, OfferedTool
from qwen_wsgi.protocol.translation import free_text
from qwen_wsgi.protocol.translation.tool_names import LONGEST, fits, fitting
from qwen_wsgi.protocol.validation import wrong_type

_NO_PARAMETERS: Final[Mapping[str, Any]] = {"type": "object", "properties": {}}

#: The types of tools that the client runs.
_CALLED: Final = ("function", "custom")

#: OpenAI's words for `tool_choice`.
_MODES: Final = ("none", "auto", "required")
_ALLOWED_MODES: Final = ("auto", "required")


@dataclass(frozen=True)
class Tool:
    """A tool as its client knows it.

    Attributes:
        custom: it takes one free text instead of JSON.
        server: the proxy runs it.
        offered: it is one of the operator's tools; None for all others.
        approve: the client wants to be asked before each call.
        container: in which the tool that runs Python does so.
    """

    name: str
    namespace: str | None = None
    custom: bool = False
    server: bool = False
    offered: OfferedTool | None = None
    approve: bool = False
    container: str | None = None


class Names:
    """Maps the tools of one request to their names in chat, and back.

    A tool in a namespace is named `namespace__name`. A name that chat does not take, or that
    another tool has, is cut and ends in a hash, the same in every request.

    Args:
        plain: names of tools without a namespace, which stay unchanged.
    """

    def __init__(self, plain: Iterable[str] = ()) -> None:
        self._plain = frozenset(plain)
        self._tools: dict[str, Tool] = {}
        self._names: dict[tuple[str | None, str], str] = {}

    def add(self, tool: Tool) -> str:
        """Add a tool; return its name in chat."""
        key = (tool.namespace, tool.name)
        name = self.in_chat(tool.name, tool.namespace)
        if key not in self._names and name in self._tools:
            name = fitting(name, f"{tool.namespace}\0{tool.name}")
        self._names[key] = name
        self._tools.setdefault(name, tool)
        return name

    def add_server(self, tool: Tool) -> str:
        """Add a tool that the proxy runs; return its name in chat. No tool of the client has it,
        and the client never calls it by a name."""
        if tool.offered is not None:
            taken = self._plain | self._tools.keys()
            name = name_in_chat(tool.offered.server, tool.offered.name, taken)
        else:
            name = tool.name
            if name in self._plain or name in self._tools:
                name = fitting(name, f"\0{name}")
        self._tools[name] = tool
        return name

    def server_names(self) -> frozenset[str]:
        """The names in chat of the tools that the proxy runs."""
        return frozenset(name for name, tool in self._tools.items() if tool.server)

    def of_server(self, tool_name: str) -> str:
        """The name in chat of a tool that the proxy runs, or ran in an earlier turn."""
        for name in self.server_names():
            if self._tools[name].name == tool_name and self._tools[name].offered is None:
                return name
        return fitting(tool_name, f"\0{tool_name}") if tool_name in self._plain else tool_name

    def of_offered(self, label: str, name: str) -> str:
        """The name in chat of one of the operator's tools, which may be of an earlier turn only."""
        for known, tool in self._tools.items():
            offered = tool.offered
            if offered is not None and (offered.server, offered.name) == (label, name):
                return known
        return name_in_chat(label, name, self._plain)

    def offered(self) -> dict[tuple[str, str], OfferedTool]:
        """The operator's tools of the request, by label and name."""
        return {
            (each.server, each.name): each
            for tool in self._tools.values()
            if (each := tool.offered) is not None
        }

    def in_chat(self, name: str, namespace: str | None = None) -> str:
        """The name in chat of a tool, which may be one of an earlier turn only."""
        namespace = namespace or None
        if (known := self._names.get((namespace, name))) is not None:
            return known
        if namespace is None:
            return name if fits(name) else fitting(name, name)
        # Codex's namespaces end so already: `mcp__server__`.
        full = namespace + ("" if namespace.endswith("__") else "__") + name
        if fits(full) and full not in self._plain:
            return full
        return fitting(full, f"{namespace}\0{name}")

    def customs(self) -> frozenset[str]:
        """The names in chat of the tools that take one free text."""
        return frozenset(name for name, tool in self._tools.items() if tool.custom)

    def tool_of(self, name: str) -> Tool:
        """The tool with this name in chat; a plain tool of that name if there is none."""
        return self._tools.get(name) or Tool(name)


@dataclass(frozen=True, eq=False)
class _Offered:
    """A tool for the model: as the client knows it, and as chat has it."""

    tool: Tool
    chat: dict[str, Any]


class Tools:
    """The tools of one request.

    Args:
        images: the model for pictures; None if there is none.
        offer: the operator's tools that the client may use; None if there are none.
        items: of the conversation, before which the tools are read.
        seed: for the id of a new container.

    Raises:
        BadRequest: the list, or a supported tool, is invalid.
        ApiError: one of the operator's tools cannot be used, or not with this key.

    Attributes:
        image: the tool that makes pictures, or None.
        listed: the operator's tools by the labels that the request names.
        later: after `members`, the tools of later turns, where the choice leaves some out of the
            first one only; else None.
    """

    def __init__(
        self,
        given: list[dict[str, Any]],
        changes: Changes,
        images: ImageOffer | None = None,
        offer: Offer | None = None,
        items: Sequence[Mapping[str, Any]] = (),
        seed: str = "",
    ) -> None:
        self._offer_of_tools = offer
        self._items, self._seed = items, seed
        self.listed: dict[str, list[OfferedTool]] = {}
        self.later: list[dict[str, Any]] | None = None
        self._changes = changes
        self._images = images
        self.image: ImageTool | None = None
        self.names = Names(
            name
            for each in given
            if each.get("type") in _CALLED and isinstance(name := each.get("name"), str)
        )
        self._offered: list[_Offered] = []
        self._taken: set[str] = set()
        self._searches = False
        #: The types of the tools that were dropped.
        self._dropped: set[str] = set()
        for index, each in enumerate(given):
            self._take(each, f"tools[{index}].")

    def _take(self, given: dict[str, Any], path: str) -> None:
        kind = validation.required_text(given, "type", path)
        if kind in _CALLED:
            self._offer(self._function(given, path))
        elif kind == "namespace":
            for each in self._namespace(given, path):
                self._offer(each)
        elif kind.startswith("web_search"):
            self._search(given, kind)
        elif kind == image_tool.NAME and self._images is not None:
            self._image(given, path, self._images)
        elif kind == openai_tools.MCP and self._offer_of_tools is not None:
            self._mcp(given, path, self._offer_of_tools)
        elif kind == openai_tools.CODE and (runs := self._python(path)) is not None:
            self._code(given, path, runs)
        else:
            self._dropped.add(kind)
            self._changes.lose(
                "tools",
                f"of type '{header_token(kind)}' are not available for Qwen's models",
                what=f"{header_token(kind)}-dropped",
            )

    def _offer(self, each: _Offered) -> None:
        """Add a tool, unless items of the conversation repeat it."""
        name = each.chat["function"]["name"]
        if name not in self._taken:
            self._taken.add(name)
            self._offered.append(each)

    def _function(
        self, given: dict[str, Any], path: str, namespace: str | None = None, about: str = ""
    ) -> _Offered:
        name = validation.required_name(given, path)
        custom = given.get("type") == "custom"
        described = [validation.text(given, "description", path) or "", about]
        if custom:
            parameters: Mapping[str, Any] = free_text.parameters()
            described.append(self._format(given, path))
        else:
            parameters = validation.mapping(given, "parameters", path) or _NO_PARAMETERS
            if given.get("strict"):
                self._changes.note("tools", "strict-dropped")
        tool = Tool(name, namespace, custom)
        function: dict[str, Any] = {"name": self.names.add(tool)}
        if description := "\n\n".join(each for each in described if each):
            function["description"] = description
        function["parameters"] = parameters
        return _Offered(tool, {"type": "function", "function": function})

    def _format(self, given: dict[str, Any], path: str) -> str:
        """The grammar of a plain text as a description: Qwen's hosts cannot enforce one."""
        form = validation.mapping(given, "format", path) or {}
        definition = validation.text(form, "definition", path + "format.")
        if form.get("type") != "grammar" or not definition:
            return ""
        self._changes.note("tools", "grammar-as-text")
        syntax = validation.text(form, "syntax", path + "format.") or ""
        return free_text.grammar_note(definition, syntax)

    def _namespace(self, given: dict[str, Any], path: str) -> Iterator[_Offered]:
        name = validation.required_name(given, path)
        about = validation.text(given, "description", path) or ""
        for index, each in enumerate(validation.objects(given, "tools", path)):
            where = f"{path}tools[{index}]."
            if validation.required_text(each, "type", where) not in _CALLED:
                raise validation.bad_value(where + "type", each["type"], _CALLED)
            # Only the first tool gets the namespace's description: there may be a hundred.
            yield self._function(each, where, name, "" if index else about)

    def _search(self, given: dict[str, Any], kind: str) -> None:
        if given.get("external_web_access") is False:
            # The host's own search is always live, and billed per call.
            self._dropped.add(kind)
            self._changes.lose(
                "tools", "of type 'web_search' always reads the live web", what="web_search-dropped"
            )
            return
        self._searches = True
        if given.get("filters") or given.get("user_location"):
            self._changes.lose(
                "tools",
                "of type 'web_search' takes no filters and no location",
                what="web_search-filters-dropped",
            )

    def _image(self, given: dict[str, Any], path: str, images: ImageOffer) -> None:
        if self.image is not None:
            return  # items of the conversation repeat it
        self.image = image_tool.parse_tool(given, path, images, self._changes)
        tool = Tool(image_tool.NAME, server=True)
        self._offered.append(_Offered(tool, self.image.function(self.names.add_server(tool))))

    def _mcp(self, given: dict[str, Any], path: str, offer: Offer) -> None:
        for each in mcp_tool.selected(given, path, offer, self._changes):
            tool = Tool(each.tool.name, server=True, offered=each.tool, approve=each.approve)
            if self._add_offered(tool, each.tool):
                self.listed.setdefault(each.tool.server, []).append(each.tool)

    def _python(self, path: str) -> OfferedTool | None:
        offer = self._offer_of_tools
        return None if offer is None else offer.python(path + "type")

    def _code(self, given: dict[str, Any], path: str, runs: OfferedTool) -> None:
        container = mcp_tool.container_of(given, path, self._items, self._changes)
        tool = Tool(
            runs.name, server=True, offered=runs, container=container or f"cntr_{self._seed}"
        )
        self._add_offered(tool, runs)

    def _add_offered(self, tool: Tool, offered: OfferedTool) -> bool:
        """Add one of the operator's tools, unless the request repeats it; whether it was added."""
        known = self.names.offered()
        if (offered.server, offered.name) in known:
            return False
        name = self.names.add_server(tool)
        self._offered.append(_Offered(tool, functions.function(offered, name)))
        functions.check_count(len(known) + 1, "tools")
        return True

    def members(self, choice: Any) -> dict[str, Any]:
        """The members `tools` and `tool_choice` of a chat request, if needed.

        Raises:
            BadRequest: the choice is invalid, does not name a tool of the request, or forces one
                that is not available.
        """
        if choice is None or isinstance(choice, str):
            if choice is not None and choice not in _MODES:
                raise validation.bad_value("tool_choice", choice, _MODES)
            return self._members(self._offered, self._searches, choice)
        if not isinstance(choice, dict):
            raise wrong_type("tool_choice", "a string or an object", choice)
        kind = validation.required_text(choice, "type", "tool_choice.")
        if kind == "allowed_tools":
            return self._allowed(choice)
        if kind in _CALLED:
            named = self._named(choice, "tool_choice.")
            chat = {"type": "function", "function": {"name": named.chat["function"]["name"]}}
            return self._members(self._offered, self._searches, chat)
        if kind.startswith("web_search") and self._searches:
            return self._members(self._offered, True, {"type": "web_search"})
        if kind == image_tool.NAME:
            return self._forced_image()
        if kind in openai_tools.TYPES and (chosen := self._chosen(choice)):
            if len(chosen) > 1:  # chat can force one function, or any of those that are offered
                self.later = self._members(self._offered, self._searches, None)["tools"]
                return self._members(chosen, False, "required")
            chat = {"type": "function", "function": {"name": chosen[0].chat["function"]["name"]}}
            return self._members(self._offered, self._searches, chat)
        raise validation.unsupported(
            "tool_choice",
            f"Tools of type '{header_token(kind)}' are not available for Qwen's models, so "
            "none can be forced. Choose 'auto' or a function.",
        )

    def _chosen(self, choice: Mapping[str, Any]) -> list[_Offered]:
        """Those of the operator's tools that a choice names."""
        wanted = (choice.get("server_label"), choice.get("name"))
        is_code = choice.get("type") == openai_tools.CODE
        return [
            each
            for each in self._offered
            if (offered := each.tool.offered) is not None
            and (each.tool.container is not None) == is_code
            and (is_code or (offered.server == wanted[0] and wanted[1] in (None, offered.name)))
        ]

    def _forced_image(self) -> dict[str, Any]:
        if self.image is not None:
            name = self.names.of_server(image_tool.NAME)
            choice = {"type": "function", "function": {"name": name}}
            return self._members(self._offered, self._searches, choice)
        if image_tool.NAME not in self._dropped:
            raise BadRequest(
                f"Tool choice '{image_tool.NAME}' not found in 'tools' parameter.",
                param="tool_choice",
                code="invalid_value",
            )
        raise validation.unsupported(
            "tool_choice",
            "No model for pictures is known, so 'image_generation' cannot be forced. Name one as "
            "'model' of the tool (GET /v1/models shows which have the capability 'image'), or have "
            "the operator of this proxy set QWEN_PROXY_IMAGE_MODEL.",
        )

    def _members(
        self, offered: list[_Offered], searches: bool, choice: str | dict[str, Any] | None
    ) -> dict[str, Any]:
        tools = [each.chat for each in offered]
        if searches:
            tools.append({"type": "web_search"})
        if choice == "required" and not offered and not searches:
            raise BadRequest(
                "Tool choice 'required' must be specified with the 'tools' parameter."
                if not self._dropped
                else "Tool choice 'required' cannot be met: none of the tools is available for "
                "Qwen's models.",
                param="tool_choice",
                code="invalid_value",
            )
        if not tools:
            return {}
        if choice == "required" and not offered:
            choice = {"type": "web_search"}
        return {"tools": tools} if choice is None else {"tools": tools, "tool_choice": choice}

    def _allowed(self, choice: dict[str, Any]) -> dict[str, Any]:
        """`{"type": "allowed_tools", "mode", "tools": [{"type", "name"?}]}`."""
        mode = validation.required_text(choice, "mode", "tool_choice.")
        if mode not in _ALLOWED_MODES:
            raise validation.bad_value("tool_choice.mode", mode, _ALLOWED_MODES)
        kept: list[_Offered] = []
        searches = False
        for index, each in enumerate(validation.objects(choice, "tools", "tool_choice.")):
            path = f"tool_choice.tools[{index}]."
            kind = validation.required_text(each, "type", path)
            if kind in _CALLED:
                kept.append(self._named(each, path))
            elif kind == "namespace":
                name = validation.required_name(each, path)
                kept += [other for other in self._offered if other.tool.namespace == name]
            elif kind.startswith("web_search"):
                searches = self._searches
            elif kind == image_tool.NAME:
                kept += [other for other in self._offered if _makes_pictures(other.tool)]
            elif kind in openai_tools.TYPES:
                kept += self._chosen(each)
        return self._members([each for each in self._offered if each in kept], searches, mode)

    def _named(self, choice: dict[str, Any], path: str) -> _Offered:
        name = validation.required_name(choice, path)
        namespace = validation.text(choice, "namespace", path)
        custom = choice.get("type") == "custom"
        for each in self._offered:
            tool = each.tool
            if tool.server:
                continue
            if tool.name == name and tool.custom == custom and namespace in (None, tool.namespace):
                return each
        raise BadRequest(
            f"Tool choice '{name[:LONGEST]}' not found in 'tools' parameter.",
            param="tool_choice",
            code="invalid_value",
        )


def _makes_pictures(tool: Tool) -> bool:
    return tool.server and tool.offered is None
