"""The command `otel-mlops`: the demo, the doctor, profiles, and what is rendered."""

from __future__ import annotations

import argparse
import errno
import io
import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, TextIO


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0 if all is well, 1 if not, 2 for a wrong argument.

    Errors:  SystemExit for a wrong argument, and after --help and --version.
    """
    arguments = _parser().parse_args(argv)
    for stream in (sys.stdout, sys.stderr):
        _let_write_anything(stream)
    try:
        code = int(arguments.run(arguments))
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.EIO):
            raise
        # Who read the output (`| head`, a terminal) has gone; what Python writes at its exit must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="otel-mlops", description="Observability for machine-learning services.")
    parser.add_argument("--version", action=_Version)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    demo = commands.add_parser("demo", help="a service with traffic, its page and a live table", description=(
        "Runs a service with a scikit-learn model, asks it good and bad things, and shows what its page says, "
        "until Ctrl-C or for a time. Where Prometheus is installed, one reads the page. Nothing is left running."
    ))  # fmt: skip
    demo.set_defaults(run=_demo)
    _add(demo, "--seconds", "DEMO_SECONDS", None, _positive, "seconds after which it ends by itself")
    _add(demo, "--rate", "DEMO_RATE", 20, _positive, "requests a second, on average")
    _add(demo, "--host", "DEMO_HOST", "127.0.0.1", str, "where everything listens")
    _add(demo, "--port", "DEMO_PORT", 8000, _port, "the service's port; 0 is a free one")
    _add(demo, "--page-port", "OTEL_EXPORTER_PROMETHEUS_PORT", 8001, _port, "the page's port; 0 is a free one")
    _add(demo, "--prometheus-port", "DEMO_PROMETHEUS_PORT", 0, _port, "Prometheus' port; 0 is a free one")
    demo.add_argument("--no-prometheus", action="store_true", help="start no Prometheus")

    doctor = commands.add_parser("doctor", help="what works here and what does not", description=(
        "Looks at the packages, shared memory, the page's port, GPUs, what is pushed to, and the settings. "
        "Ends with 0 if what is needed works, with 1 if something is to be put right."
    ))  # fmt: skip
    doctor.set_defaults(run=_doctor)
    doctor.add_argument("--json", action="store_true", help="for programs")

    profile = commands.add_parser("profile", help="make a model's profile of its training data", description=(
        "Reads a CSV or Parquet file and writes what the model saw in training, for drift to be told in service. "
        "Columns that no option names are features."
    ))  # fmt: skip
    profile.set_defaults(run=_profile)
    profile.add_argument("data", help="the CSV or Parquet file")
    profile.add_argument("-o", "--output", required=True, metavar="FILE", help="where to write the profile")
    for option, meaning in {
        "prediction": "what the model answers",
        "truth": "what was right",
        "score": "the probability of the positive class; of several classes, of the answer",
        "time": "when the row came: seconds since 1970 or ISO 8601",
    }.items():
        profile.add_argument(f"--{option}", metavar="COLUMN", help=meaning)
    profile.add_argument("--categorical", metavar="A,B", type=_names, default=[], help="columns of categories")
    profile.add_argument("--drop", metavar="A,B", type=_names, default=[], help="columns to leave out")
    profile.add_argument("--bins", type=int, default=10, help="bins of a feature of numbers (10)")
    profile.add_argument("--type", choices=["regression", "classification"], help="what kind of model it is")
    profile.add_argument("--positive", metavar="LABEL", help="the label that the scores are of (the later of two)")
    profile.add_argument("--block", choices=["hour", "day", "week"], default="day", help="how time is cut (day)")
    profile.add_argument("--model-name", metavar="NAME")
    profile.add_argument("--model-version", metavar="VERSION")

    render = commands.add_parser("render", help="write what is derived from metrics, settings and rules", description=(
        "Writes docs and rules of a checkout that are not as the metrics, settings and rules say."
    ))  # fmt: skip
    render.set_defaults(run=_render)
    render.add_argument("--check", action="store_true", help="write nothing; fail if a file is stale")
    return parser


def _demo(arguments: argparse.Namespace) -> int:
    from otel_mlops.demo.options import DemoError, Options
    from otel_mlops.demo.show import run

    options = Options(
        host=arguments.host,
        port=arguments.port,
        page_port=arguments.page_port,
        prometheus_port=arguments.prometheus_port,
        seconds=arguments.seconds,
        rate=arguments.rate,
        prometheus=not arguments.no_prometheus,
    )
    try:
        run(options, sys.stdout)
    except DemoError as fault:
        print(f"otel-mlops demo: {fault}", file=sys.stderr)
        return 1
    return 0


def _doctor(arguments: argparse.Namespace) -> int:
    from otel_mlops.doctor import examine

    report = examine(os.environ)
    if arguments.json:
        print(json.dumps(report.as_json(), indent=2))
    else:
        print("\n".join(report.lines()))
    return 1 if report.faults else 0


def _profile(arguments: argparse.Namespace) -> int:
    from otel_mlops.profile.from_file import Plan, profile_of

    plan = Plan(arguments.prediction, arguments.truth, arguments.score, arguments.time, arguments.drop)
    kept = ("bins", "block", "categorical", "model_name", "model_version", "positive", "type")
    try:
        profile = profile_of(arguments.data, plan, **{name: getattr(arguments, name) for name in kept})
        profile.save(arguments.output)
    except (ValueError, OSError) as error:
        print(f"otel-mlops profile: {error}", file=sys.stderr)
        return 1
    scores = "".join([f", {name} {value:.4g}" for name, value in profile.training.items()])
    print(f"{arguments.output}: {len(profile.features)} features, {profile.rows} rows{scores}, {profile.digest}")
    return 0


def _render(arguments: argparse.Namespace) -> int:
    from otel_mlops import render

    try:
        return render.main(["--check"] if arguments.check else [])
    except FileNotFoundError as error:
        print(f"otel-mlops render: {error.filename} is not there: it works in a checkout only.", file=sys.stderr)
        return 1
    except (ValueError, OSError) as error:
        print(f"otel-mlops render: {error}", file=sys.stderr)
        return 1


# --- Arguments --------------------------------------------------------------------------------------------


def _add(
    parser: argparse.ArgumentParser, flag: str, variable: str, default: Any, read: Callable[[str], Any], meaning: str
) -> None:
    """Add an option that a variable of the environment gives as well; an empty one is as good as none."""

    def read_or_refuse(text: str) -> Any:
        try:
            return read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{text!r}, expected {error} ({flag} or {variable})") from None

    told = "" if default is None else f", else {default}"
    parser.add_argument(
        flag,
        type=read_or_refuse,
        default=os.environ.get(variable, "").strip() or default,
        metavar=flag.rpartition("-")[2].upper(),
        help=f"{meaning} (or {variable}{told})",
    )


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65_535:
        raise ValueError("a port from 0 to 65535")
    return int(text)


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def _positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise ValueError("a number above 0")
    return number


class _Version(argparse.Action):
    """Tells the version, which is looked up only if it is asked for."""

    def __init__(self, option_strings: Sequence[str], dest: str) -> None:
        super().__init__(option_strings, dest, nargs=0, help="tell the version")

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from otel_mlops.doctor import own_version

        print(f"otel-mlops {own_version()}")
        parser.exit()


def _let_write_anything(stream: TextIO) -> None:
    """Let a terminal that lacks a character show another instead of ending the program."""
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="replace")


if __name__ == "__main__":
    sys.exit(main())
