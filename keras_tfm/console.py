"""Writing and talking at the terminal: `keras-tfm generate` and `keras-tfm chat`."""

from __future__ import annotations

import argparse
import sys
from typing import Any


def add_commands(commands: Any) -> None:
    """Add both to the parser's commands."""
    generate = commands.add_parser("generate", help="write on from a prompt")
    generate.add_argument("source", metavar="DIR", help="a Hugging Face directory or hub id, or a .keras file")
    generate.add_argument("prompt", nargs="?", help="default: what comes on standard input")
    generate.add_argument("--stream", action="store_true", help="print as it is written")
    generate.add_argument("--prompt-too", action="store_true", help="print the prompt before what follows")
    chat = commands.add_parser("chat", help="talk with a chat model")
    chat.add_argument("source", metavar="DIR", help="a Hugging Face directory or hub id, or a .keras file")
    chat.add_argument("--system", help="what the model is told before the conversation")
    for command in (generate, chat):
        command.add_argument("--max-new-tokens", type=int, metavar="N", help="default: 128, or what there is room for")
        command.add_argument("--temperature", type=float, metavar="T", help="0: the most likely token (default)")
        command.add_argument("--top-k", type=int, metavar="K", help="draw among so many of the most likely")
        command.add_argument("--top-p", type=float, metavar="P", help="draw among the fewest with this probability")
        command.add_argument("--repetition-penalty", type=float, metavar="R", help="above 1: fewer repetitions")
        command.add_argument("--seed", type=int, metavar="S", help="of the draws")
        command.add_argument("--stop", action="append", default=[], metavar="TEXT", help="ends it; may be repeated")
        command.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], help="of the weights")
        command.add_argument("--revision", help="branch, tag or commit of a hub id")


def _load(args: argparse.Namespace) -> Any:
    import keras

    import keras_tfm
    from keras_tfm.models.generative import Generative

    if str(args.source).endswith(".keras"):
        if args.dtype or args.revision:
            raise ValueError("--dtype and --revision are for directories; a .keras file is as it is.")
        model = keras.saving.load_model(args.source)
    else:
        options = {"dtype": args.dtype, "revision": args.revision}
        model = keras_tfm.from_pretrained(args.source, **{name: v for name, v in options.items() if v is not None})
    if not isinstance(model, Generative):
        raise ValueError(
            f"{args.source} holds {type(model).__name__}, which writes no text; CausalLM and Seq2SeqLM do."
        )
    return model


def _options(args: argparse.Namespace) -> dict[str, Any]:
    names = ("max_new_tokens", "temperature", "top_k", "top_p", "repetition_penalty", "seed")
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    return {**given, "stop": args.stop}


def run_generate(args: argparse.Namespace) -> None:
    """`keras-tfm generate`."""
    prompt = sys.stdin.read() if args.prompt is None else args.prompt
    model = _load(args)
    if args.prompt_too:
        print(prompt, end="", flush=True)
    if not args.stream:
        print(model.generate(prompt, **_options(args)))
        return
    _, whole = _print_stream(model.stream(prompt, **_options(args)))
    if not whole:
        raise KeyboardInterrupt


def run_chat(args: argparse.Namespace) -> None:
    """`keras-tfm chat`: a line from you, an answer from it; an empty line or the end of input leaves."""
    from keras_tfm.generation.chat import has_template

    model = _load(args)
    if not has_template(model.tokenizer):
        raise ValueError(f"{args.source} has no chat template; use `keras-tfm generate`.")
    messages = [{"role": "system", "content": args.system}] if args.system else []
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "")
        except EOFError:
            return
        if not line.strip():
            return
        messages.append({"role": "user", "content": line})
        answer, _ = _print_stream(model.stream(messages, **_options(args)))
        messages.append({"role": "assistant", "content": answer})


def _print_stream(pieces: Any) -> tuple[str, bool]:
    """Print pieces as they come. The text, and whether that came to its end, not to Ctrl-C."""
    text, whole = "", True
    try:
        for piece in pieces:
            text += piece
            print(piece, end="", flush=True)
    except KeyboardInterrupt:
        whole = False
    print(flush=True)
    return text, whole
