"""The checkpoint's tokenizer without transformers: what replay and dumps read tokens with, at a tenth of the memory."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer

from actors.codec import HubCodec
from deploy.model_files import model_file
from protocol.errors import ConfigError


class _FileTokenizer:
    """`tokenizer.json` with the four calls that the codec makes of a Hugging Face tokenizer."""

    def __init__(self, path: Path) -> None:
        self._tokenizer = Tokenizer.from_file(str(path))

    def get_vocab(self) -> dict[str, int]:
        vocabulary: dict[str, int] = self._tokenizer.get_vocab(with_added_tokens=True)
        return vocabulary

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def decode(self, ids: list[int], skip_special_tokens: bool, clean_up_tokenization_spaces: bool) -> str:
        assert not clean_up_tokenization_spaces, "pieces are decoded as they are"
        text: str = self._tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)
        return text


def load_codec(model: str) -> HubCodec:
    """The codec of `model.model`: a folder, or a name on the hub whose files are in the local cache.

    ConfigError where it has no tokenizer.json, or one without the coordinate tokens.
    """
    path = model_file(model, "tokenizer.json")
    if path is None:
        raise ConfigError(
            f"model.model: {model}/tokenizer.json is missing, and not in the hub's local cache either; "
            "run this where the checkpoint is, or name its folder: model.model=FOLDER"
        )
    try:
        return HubCodec(_FileTokenizer(path))
    except ValueError as error:
        raise ConfigError(f"model.model: {path}: {error}") from error
