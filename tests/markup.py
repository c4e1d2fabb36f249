"""Reads pages strictly, for the tests of what is shown."""

from __future__ import annotations

from html.parser import HTMLParser

VOID = {"meta", "br", "wbr", "rect", "path"}


class Markup(HTMLParser):
    """A page, or a piece of one, in which every element is closed where it was opened."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.svgs: list[tuple[str, list[tuple[str, dict[str, str]]]]] = []
        self.pieces: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.elements.append((tag, given))
        if tag == "svg":
            self.svgs.append((given.get("aria-label", ""), []))
        elif "svg" in self.open:
            self.svgs[-1][1].append((tag, given))
        if tag not in VOID:
            self.open.append(tag)
        if tag != "wbr":
            self.pieces.append(" ")

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.pieces.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.pieces).split())
