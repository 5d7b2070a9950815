"""The `clip-med` command: parse, call one function, format errors.

Nothing heavy is imported here, so that `clip-med --help` answers at once; each command imports what it runs.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from clip_med import __version__
from clip_med.commands import (
    compare,
    concepts,
    config,
    data,
    demo,
    evaluate,
    explain,
    export,
    knowledge,
    merge,
    merge_compare,
    pretrain,
    probe,
    robustness,
    slurm,
    tune,
    vqa,
)


def build_parser() -> argparse.ArgumentParser:
    """The whole command line; each command module adds its own part and sets `call`."""
    parser = argparse.ArgumentParser(
        prog="clip-med",
        description="Contrastive pretraining, adaptation and evaluation for medical images and text. "
        "Research software, not a medical device.",
        epilog="example: clip-med data verify shards/train",
    )
    parser.add_argument("--version", action="version", version=f"clip-med {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in (
        demo,
        data,
        pretrain,
        evaluate,
        compare,
        robustness,
        explain,
        vqa,
        concepts,
        export,
        merge,
        merge_compare,
        tune,
        probe,
        knowledge,
        slurm,
        config,
    ):
        command.add_parser(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command: 0 on success, 1 on a failed check, 2 on bad input (one line on standard error)."""
    parser = build_parser()
    namespace, rest = parser.parse_known_args(arguments)
    if rest and not getattr(namespace, "takes_overrides", False):
        parser.error(f"unrecognised arguments: {' '.join(rest)}")
    # Words of the form --key.path value, which change values of a configuration.
    namespace.overrides = rest
    # The command as it was given: a job on another machine runs it again, with a part of the work.
    namespace.words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return namespace.call(namespace)
    except BrokenPipeError:
        # The reader of our output has left (`| head`): nothing went wrong. The interpreter must not flush into it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError) as error:
        print(f"clip-med: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("clip-med: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
