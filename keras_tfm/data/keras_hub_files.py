"""KerasHub's tokenizers as data, and as the files that `transformers` reads."""

from __future__ import annotations

import base64
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from keras_tfm.data.keras_hub_tokenizer import KerasHubTokenizer

logger = logging.getLogger("keras_tfm")
SETTINGS = "tokenizer_config.json"
# A family's SentencePiece file, where it is not tokenizer.model, and what transformers must be told to read it as it is.
SENTENCEPIECE: dict[str, tuple[str, dict[str, Any]]] = {
    "AlbertTokenizer": ("spiece.model", {"do_lower_case": False, "keep_accents": True}),
    "FNetTokenizer": ("spiece.model", {"do_lower_case": False, "keep_accents": True}),
    "T5Tokenizer": ("spiece.model", {}),
    "DebertaV3Tokenizer": ("spm.model", {"do_lower_case": False}),
    "XLMRobertaTokenizer": ("sentencepiece.bpe.model", {}),
    "LlamaTokenizer": ("tokenizer.model", {"tokenizer_class": "LlamaTokenizer"}),
    "MistralTokenizer": ("tokenizer.model", {"tokenizer_class": "LlamaTokenizer"}),
}
# KerasHub's WordPiece: words end at ASCII space, control and format characters; punctuation and CJK stand alone.
SPACE = r"[ \t\n\r\f]|\p{Cc}|\p{Cf}"
ALONE = r"[!-/]|[:-@]|[\[-`]|[{-~]|\p{P}"
CJK = (
    r"|[\x{4E00}-\x{9FFF}]|[\x{3400}-\x{4DBF}]|[\x{20000}-\x{2A6DF}]|[\x{2A700}-\x{2B73F}]|[\x{2B740}-\x{2B81F}]"
    r"|[\x{2B820}-\x{2CEAF}]|[\x{F900}-\x{FAFF}]|[\x{2F800}-\x{2FA1F}]"
)
UNSEEN = (
    r"[\x{34F}\x{115F}\x{1160}\x{17B4}\x{17B5}\x{180B}-\x{180F}\x{3164}\x{FE00}-\x{FE0F}\x{FFA0}\x{E0100}-\x{E01EF}]"
)
SAMPLES = (
    "A first text, with 1234 words -- isn't it?",
    "  two\n\nlines\t",
    "Straße, naïve ﬁn…",
    "日本語 한국어 😀",
    "",
)


def described(tokenizer: Any) -> dict[str, Any]:
    """A KerasHub tokenizer as plain data: class, config and vocabulary, in memory rather than in files.

    Raises:
        ValueError: for a class that `keras_hub.tokenizers` does not have.
    """
    name = type(tokenizer).__name__
    if _class(name) is not type(tokenizer):
        raise ValueError(
            f"{name} cannot be saved: only classes of keras_hub.tokenizers can be made again. Take one of those, or "
            f"save the model with tokenizer=None."
        )
    config = {**tokenizer.get_config(), "dtype": tokenizer.compute_dtype}
    if hasattr(tokenizer, "split_on_cjk"):
        config["split_on_cjk"] = tokenizer.split_on_cjk  # which KerasHub forgets
    # Llama 3's depend on arguments that KerasHub forgets too.
    special = {attribute: getattr(tokenizer, attribute) for attribute in getattr(tokenizer, "_special_token_attrs", ())}
    data: dict[str, Any] = {"class_name": name, "config": config, "special_tokens": special}
    if hasattr(tokenizer, "proto"):
        data["proto"] = base64.b64encode(tokenizer.proto).decode("ascii")
    elif hasattr(tokenizer, "merges"):
        data |= {"vocabulary": dict(tokenizer.vocabulary), "merges": list(tokenizer.merges)}
    elif hasattr(tokenizer, "vocabulary"):
        data["vocabulary"] = list(tokenizer.vocabulary)
    return data


def rebuilt(data: dict[str, Any]) -> Any:
    """The inverse of `described`.

    Raises:
        ImportError: without KerasHub; names the extra.
        ValueError: for a class that this version of KerasHub does not have.
    """
    cls = _class(data["class_name"])
    if cls is None:
        raise ValueError(f"This version of KerasHub has no {data['class_name']}; it has to be updated.")
    tokenizer = cls.from_config(dict(data["config"]))
    if data["special_tokens"]:
        tokenizer._special_token_attrs = list(data["special_tokens"])
        for attribute, token in data["special_tokens"].items():
            setattr(tokenizer, attribute, token)
    if "proto" in data:
        tokenizer.set_proto(base64.b64decode(data["proto"]))
    elif "merges" in data:
        tokenizer.set_vocabulary_and_merges(data["vocabulary"], data["merges"])
    elif "vocabulary" in data:
        tokenizer.set_vocabulary(data["vocabulary"])
    return tokenizer


def _class(name: str) -> Any:
    """The class of that name; None without one."""
    try:
        from keras_hub import tokenizers
    except ImportError as error:
        raise ImportError(
            f"The tokenizer is KerasHub's {name}, and KerasHub is not installed: pip install 'keras_tfm[nlp]'"
        ) from error
    found = getattr(tokenizers, name, None)
    return found if isinstance(found, type) and issubclass(found, tokenizers.Tokenizer) else None


def converted(ours: KerasHubTokenizer) -> Any:
    """The same as a `tokenizers.Tokenizer` with its special tokens, of WordPiece and byte pairs; None of others.

    Exact but for WordPiece on words longer than 100 bytes that are not ASCII, on texts that spell out a special token
    (which is read as one), and, in lower case, on Cherokee, Greek with iota subscript and characters younger than
    `tokenizers`' tables. A warning tells of a version of KerasHub that does otherwise.
    """
    from tokenizers import AddedToken
    from tokenizers.processors import TemplateProcessing

    tokenizer = ours.tokenizer
    if hasattr(tokenizer, "merges"):
        base = _byte_pairs(tokenizer)
    elif hasattr(tokenizer, "suffix_indicator"):
        base = _word_piece(tokenizer)
    else:
        return None
    names = dict.fromkeys(token for role in ("pad", "unk", "bos", "eos", "mask") if (token := ours.special_token(role)))
    base.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    start = [ours.special_token("bos")] if ours.add_start_token else []
    end = [ours.special_token("eos")] if ours.add_end_token else []
    between = [ours.special_token("eos")] * ours.frame.separators
    kind = int(ours.frame.types)
    single: list[Any] = [*start, "$A", *end]
    pair = [*start, "$A", *between, f"$B:{kind}", *(f"{token}:{kind}" for token in end)]
    used = {token: base.token_to_id(token) for token in [*start, *between, *end]}
    base.post_processor = TemplateProcessing(single=single, pair=pair, special_tokens=list(used.items()))
    theirs = [encoding.ids for encoding in ours.encode(list(SAMPLES), max_length=1 << 30)]
    if [encoding.ids for encoding in base.encode_batch(list(SAMPLES))] != theirs:
        logger.warning("%s: the tokenizer.json written for it reads some texts otherwise.", type(tokenizer).__name__)
    return base


def _byte_pairs(tokenizer: Any) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    inside = getattr(tokenizer, "_tokenizer", None)
    if inside is not None:
        return Tokenizer.from_str(inside.to_str())
    # Elsewhere KerasHub follows GPT-2's rules in TensorFlow.
    merges = [tuple(merge.split(" ")) for merge in tokenizer.merges if "#version:" not in merge]
    base = Tokenizer(models.BPE(vocab=dict(tokenizer.vocabulary), merges=merges))
    base.add_special_tokens(list(tokenizer.unsplittable_tokens))
    base.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=tokenizer.add_prefix_space)
    base.decoder = decoders.ByteLevel()
    return base


def _word_piece(tokenizer: Any) -> Any:
    """KerasHub folds case after it has split, and "…" folds to three points: so the splits are marked first."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    vocabulary = {token: i for i, token in enumerate(tokenizer.vocabulary)}
    model = models.WordPiece(vocabulary, unk_token=tokenizer.oov_token, max_input_chars_per_word=100)
    model.continuing_subword_prefix = tokenizer.suffix_indicator
    base = Tokenizer(model)
    alone = ALONE + CJK if tokenizer.split_on_cjk else ALONE
    steps: list[Any] = []
    if tokenizer.strip_accents:
        steps += [normalizers.NFD(), normalizers.Replace(Regex(r"\p{Mn}"), "")]
    # Not before the first character: what is inserted there ends `tokenizers` at the next step.
    around = Regex(rf"(?<=[\s\S])(?={alone})|(?<={alone})")
    steps += [normalizers.Replace(Regex(SPACE), "\0"), normalizers.Replace(around, "\0")]
    if tokenizer.lowercase:
        steps += [normalizers.NFKC(), normalizers.Lowercase()]
        steps += [normalizers.Replace("ß", "ss"), normalizers.Replace("ς", "σ")]
        steps += [normalizers.Replace(Regex(UNSEEN), ""), normalizers.NFKC()]
    base.normalizer = normalizers.Sequence(steps)
    base.pre_tokenizer = pre_tokenizers.Split("\0", "removed")
    base.decoder = decoders.WordPiece(prefix=tokenizer.suffix_indicator, cleanup=False)
    return base


def write_sentencepiece(tokenizer: Any, directory: Path) -> tuple[str, dict[str, Any]]:
    """Write the SentencePiece file under the family's usual name; that name, and settings to read it with."""
    names = (cls.__name__ for cls in type(tokenizer).__mro__)
    file, settings = next((SENTENCEPIECE[name] for name in names if name in SENTENCEPIECE), ("tokenizer.model", {}))
    (directory / file).write_bytes(tokenizer.proto)
    return file, settings
