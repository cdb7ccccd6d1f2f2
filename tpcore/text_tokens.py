"""Text to token ids and back, by the tokenizer.json that lies beside a model or bundle."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from graph.errors import PlanError

TOKENIZER_FILE = "tokenizer.json"
SETTINGS = (("generation_config.json", ()), ("genai_config.json", ("model",)), ("config.json", ()))
"""Files that name the token that ends a text, and where in them."""
BROKEN = "\ufffd"
"""What a decoder shows for a character of which tokens are still missing."""


class TextTokens:
    """A model's tokenizer."""

    def __init__(self, target: Path, given: Path | None = None) -> None:
        """Find and load the tokenizer of a model file or bundle. Raises PlanError."""
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            raise PlanError(
                "--prompt needs the package tokenizers, which is not installed. Install it with "
                "pip install 'tpcore[text]', or give token ids with --prompt-ids."
            ) from error
        path = given or _beside(target)
        self._tokenizer: Any = None
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:
            raise PlanError(
                f"tokenizer '{path}' cannot be read: {error}. Give another with --tokenizer."
            ) from error
        self.stops = _stops(path.parent)
        """Tokens that end a text."""

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, with the special ones that the model wants."""
        ids: list[int] = self._tokenizer.encode(text).ids
        return ids

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of token ids."""
        text: str = self._tokenizer.decode(list(tokens))
        return text


class Stream:
    """The text of one row, as far as its tokens so far decide it."""

    def __init__(self, tokens: TextTokens) -> None:
        self._decode = tokens.decode
        self._row: list[int] = []
        self._shown = 0

    def more(self, token: int) -> str:
        """What one more token adds to the text."""
        self._row.append(token)
        return self._take(held_back=self._decode(self._row).endswith(BROKEN))

    def rest(self) -> str:
        """What was held back, as no more tokens come."""
        return self._take(held_back=False)

    def _take(self, held_back: bool) -> str:
        text = self._decode(self._row)
        start = len(text) if held_back else self._shown
        self._shown = self._shown if held_back else len(text)
        return text[start:]


def _beside(target: Path) -> Path:
    """The tokenizer in a bundle's folder, or else beside the model or bundle."""
    folders = [target] if target.is_dir() else []
    folders.append(target.absolute().parent)
    for folder in folders:
        if (folder / TOKENIZER_FILE).is_file():
            return folder / TOKENIZER_FILE
    where = " or ".join(f"'{folder}'" for folder in folders)
    raise PlanError(
        f"no {TOKENIZER_FILE} lies in {where}, so --prompt cannot be read. Give one with "
        "--tokenizer, or token ids with --prompt-ids."
    )


def _stops(folder: Path) -> frozenset[int]:
    """The tokens that end a text, as the first file says that names any."""
    for name, keys in SETTINGS:
        try:
            found = json.loads((folder / name).read_text())
            for key in keys:
                found = found[key]
            token = found.get("eos_token_id")
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            continue
        tokens = token if isinstance(token, list) else [token]
        if all(isinstance(item, int) for item in tokens):
            return frozenset(tokens)
    return frozenset()
