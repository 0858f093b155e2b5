"""Words -> ids, with the tokenizer of the backbone: template pieces and label words, tokenised separately."""

from tokenizers import Tokenizer

from ptexport.runtime.errors import ModelError


class WordTokenizer:
    """The tokenizer of a backbone, for separate pieces of a template and label words.

    Attributes:
        space_matters: whether a space before a word is part of its token (byte-level BPE) or not (WordPiece,
            SentencePiece, which add or ignore it themselves).
    """

    def __init__(self, tokenizer_json: str) -> None:
        self.tokenizer = Tokenizer.from_str(tokenizer_json)
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        whole, first, second = self._ids("a b"), self._ids("a"), self._ids("b")
        self.space_matters = whole != first + second
        if self.space_matters and whole != first + self._ids(" b"):
            raise ModelError("the tokenizer splits 'a b' neither as 'a|b' nor as 'a| b'; not supported")

    def ids(self, words: str, *, spaced: bool) -> list[int]:
        """Tokenise words separately; a space before them is included if it belongs to their first token."""
        return self._ids(f" {words}" if spaced and self.space_matters else words)

    def single_words(self, *, spaced: bool) -> list[str]:
        """Return all words that are a single token, except special tokens, in the order of their ids."""
        ids = sorted(self.tokenizer.get_vocab().values())
        words = [word.strip() for word in self.tokenizer.decode_batch([[id_] for id_ in ids])]
        space = " " if spaced and self.space_matters else ""
        again = self.tokenizer.encode_batch([space + word for word in words], add_special_tokens=False)
        return [word for id_, word, got in zip(ids, words, again, strict=True) if word and got.ids == [id_]]

    def single_word(self, name: str, *, spaced: bool) -> str | None:
        """Return a name, or the name in lower case, whichever first is a single token that spells it; None: neither."""
        for word in (name, name.lower()):
            ids = self.ids(word, spaced=spaced)
            if len(ids) == 1 and self.tokenizer.decode(ids).strip().casefold() == word.casefold():
                return word
        return None

    def name(self, id_: int) -> str:
        """Return the name of a token in the vocabulary."""
        name = self.tokenizer.id_to_token(id_)
        assert name is not None, id_  # ids come from this tokenizer
        return name

    def id(self, name: str) -> int:
        """Return the id of a token.

        Raises:
            ModelError: the tokenizer has no such token.
        """
        id_ = self.tokenizer.token_to_id(name)
        if id_ is None:
            raise ModelError(f"the tokenizer lists {name!r} as a special token, but has no id for it; not supported")
        return id_

    def surrounding(self) -> tuple[list[int], list[int]]:
        """Return the ids that the post-processor of the backbone puts before and after one text."""
        encoding = self.tokenizer.encode("a")
        inner = [i for i, special in enumerate(encoding.special_tokens_mask) if not special]
        return encoding.ids[: inner[0]], encoding.ids[inner[-1] + 1 :]

    def surrounding_pair(self) -> tuple[list[int], list[int], list[int]]:
        """Return the ids that the post-processor of the backbone puts before, between and after two texts."""
        encoding = self.tokenizer.encode("a", "a")
        of = encoding.sequence_ids
        first, second = ([i for i, number in enumerate(of) if number == which] for which in (0, 1))
        ids = encoding.ids
        return ids[: first[0]], ids[first[-1] + 1 : second[0]], ids[second[-1] + 1 :]

    def added_ids(self) -> dict[str, int]:
        """Return the ids of tokens added to the vocabulary of the tokenizer model, by name."""
        return {token.content: id_ for id_, token in self.tokenizer.get_added_tokens_decoder().items()}

    def check_unspellable(self, model: str, vocab: int) -> None:
        """Check that no text can produce the id of a virtual token.

        That takes an id past the embedding table, or a word that contains a space, as in the name `[P 0]`.

        Args:
            model: name of the backbone, for messages.
            vocab: rows of its embedding table.

        Raises:
            ModelError: the tokenizer can produce either.
        """
        last = max(self.tokenizer.get_vocab().values())
        if last >= vocab:
            raise ModelError(
                f"{model}: its tokenizer has ids up to {last}, its embedding table has {vocab} rows; resize it"
            )
        name = "[P 0]"
        normalizer, splitter = self.tokenizer.normalizer, self.tokenizer.pre_tokenizer
        text = name if normalizer is None else normalizer.normalize_str(name)
        pieces = [text] if splitter is None else [piece for piece, _ in splitter.pre_tokenize_str(text)]
        if any(name in piece for piece in pieces):
            raise ModelError(
                f"{model}: its tokenizer keeps spaces inside words, so a text could contain {name}; not supported"
            )

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids
