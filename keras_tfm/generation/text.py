"""Ids to text as they come: no piece splits a character or gives away the beginning of a stop string."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

INCOMPLETE = "\ufffd"  # what a decoder makes of the first bytes of a character


class TextStream:
    """The text of one row.

    Args:
        tokenizer: With `decode(ids)`.
        prompt: Ids before the text, for tokenizers that join tokens by what precedes them.
        stops: Strings that end the text; they are not part of it.

    Attributes:
        text: What is certain so far.
        stopped: A stop string was met; nothing follows.
        used: How many ids went into `text` and the stop string.
    """

    CONTEXT = 8  # ids of the prompt that are decoded along

    def __init__(self, tokenizer: Any, prompt: Sequence[int] = (), stops: Sequence[str] = ()):
        self.tokenizer, self.stops = tokenizer, list(stops)
        self.text, self.stopped, self.used = "", False, 0
        self._ids = [int(token) for token in prompt[-self.CONTEXT :]]
        self._begin, self._read = 0, len(self._ids)  # ids that are decoded together; those of them already in the text
        self._pending = ""  # decoded, and perhaps the beginning of a stop string

    def feed(self, token_ids: Iterable[int], last: bool = False) -> str:
        """The piece that these further ids make certain; with `last`, all that is left."""
        if self.stopped:
            return ""
        piece = ""
        for token in token_ids:
            self._ids.append(int(token))
            self.used += 1
            piece += self._settle(self._decoded(), last=False)
            if self.stopped:
                return piece
        if last:
            piece += self._settle(self._decoded(last=True), last=True)
        return piece

    def _decoded(self, last: bool = False) -> str:
        """Text of the ids that are not in the text yet, as far as it is certain."""
        before = self.tokenizer.decode(self._ids[self._begin : self._read])
        both = self.tokenizer.decode(self._ids[self._begin :])
        if not last and (both.endswith(INCOMPLETE) or len(both) <= len(before)):
            return ""
        self._begin, self._read = self._read, len(self._ids)
        if self._begin == self._read:  # nothing new: keep what the next ids are to be decoded with
            self._begin = max(0, self._read - 1)
        return both[len(before) :]

    def _settle(self, more: str, last: bool) -> str:
        """Move text from what is pending to what is certain."""
        self._pending += more
        found = [(self._pending.find(stop), stop) for stop in self.stops if stop in self._pending]
        if found:
            place = min(found)[0]
            piece, self._pending, self.stopped = self._pending[:place], "", True
        else:
            held = 0 if last else max((self._overlap(stop) for stop in self.stops), default=0)
            cut = len(self._pending) - held
            piece, self._pending = self._pending[:cut], self._pending[cut:]
        self.text += piece
        return piece

    def _overlap(self, stop: str) -> int:
        """How much of the end of what is pending might become `stop`."""
        longest = min(len(stop) - 1, len(self._pending))
        return next((n for n in range(longest, 0, -1) if self._pending.endswith(stop[:n])), 0)
