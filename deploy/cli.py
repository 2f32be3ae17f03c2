"""The command line: `rollmatch COMMAND --config run.yaml [--base_config base.yaml] [dotted.key=value ...]`.

Exit codes: 0 done; 1 the run failed; 2 the configuration or the data is wrong; 130 interrupted. Nearly all that is
wrong is found before anything is changed or started; a port that is taken, room that the cluster can never have, and
what a learner rank finds when it builds or loads, only after that.
"""

from __future__ import annotations

import argparse
import json
import logging
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from protocol.config import RunConfig, load_config
from protocol.errors import ConfigError, Interrupted, RecordError, RollmatchError

DONE, FAILED, WRONG_INPUT, INTERRUPTED = 0, 1, 2, 130

ATTEST = (
    "compare an engine that is sent this checkpoint's export with one that is started on it: weights, greedy answers "
    "and probabilities; exit code 1 when they differ, and when the probes cannot tell"
)

OUTPUT = "keep every answer in this folder, for `rollmatch report FOLDER` and `rollmatch replay --run FOLDER`"


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the console script."""
    arguments = parse(argv)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    logging.getLogger("rollmatch").setLevel(logging.DEBUG if getattr(arguments, "verbose", False) else logging.INFO)
    try:
        return int(arguments.run(arguments))
    except (ConfigError, RecordError) as error:
        print(f"rollmatch: {error}", file=sys.stderr)
        return WRONG_INPUT
    except KeyboardInterrupt as error:
        print(f"rollmatch: {str(error) or 'interrupted'}", file=sys.stderr)
        return INTERRUPTED
    except Interrupted as error:
        go_on = "go on with: the same command and --resume auto"
        print(f"rollmatch: {error}; the checkpoint is written; {go_on}", file=sys.stderr)
        return INTERRUPTED
    except SystemExit as error:
        if error.code != signal.SIGTERM:
            raise
        print("rollmatch: interrupted", file=sys.stderr)  # Ray's handler, which leaves with the signal's number
        return INTERRUPTED
    except OSError as error:
        logging.getLogger("rollmatch").debug("traceback", exc_info=True)
        text = "is a disk full, or a folder gone? --verbose shows where"
        print(f"rollmatch: {type(error).__name__}: {error}; {text}", file=sys.stderr)
        return FAILED
    except RollmatchError as error:
        logging.getLogger("rollmatch").debug("traceback", exc_info=True)
        print(f"rollmatch: {type(error).__name__}: {error}", file=sys.stderr)
        return FAILED


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Overrides may stand anywhere: argparse takes positional arguments from one place only, and leaves the others."""
    parser = build_parser()
    arguments, left = parser.parse_known_args(argv)
    stray = [word for word in left if word.startswith("-") or not hasattr(arguments, "overrides")]
    if stray:
        parser.error(f"unrecognized arguments: {' '.join(stray)}; rollmatch COMMAND --help lists what there is")
    if left:
        arguments.overrides = [*arguments.overrides, *left]
    return arguments


def build_parser() -> argparse.ArgumentParser:
    """All commands; heavy modules are imported only by the command that needs them."""
    parser = argparse.ArgumentParser(prog="rollmatch", description="Rollout-matching SFT for vision-language models.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, run, text in (
        ("train", _train, "run the loop: rollouts, matching, training, weight sync"),
        ("evaluate", _evaluate, "score a checkpoint on custom.val_jsonl; trains nothing"),
        ("check", _check, "report everything that is wrong with config, data and model; starts nothing"),
    ):
        _with_config(commands.add_parser(name, help=text, description=text)).set_defaults(run=run)
    commands.choices["train"].add_argument(
        "--resume", metavar="auto|PATH", help="go on from the newest checkpoint of the run, or from this one"
    )
    commands.choices["check"].add_argument(
        "--contact-sheet", type=Path, metavar="PICTURE", help="draw some records with their objects into this image"
    )
    _add_plan(commands)
    _add_render(commands)
    evaluate = commands.choices["evaluate"]
    what = evaluate.add_mutually_exclusive_group()
    what.add_argument("-o", "--output", type=Path, metavar="FOLDER", help=OUTPUT)
    what.add_argument("--attest", type=Path, metavar="CHECKPOINT", help=ATTEST)
    evaluate.add_argument(
        "--attest_records", type=int, default=8, help="validation records that both engines answer (default 8)"
    )
    _add_submit(commands)
    _add_tools(commands)
    return parser


def _with_config(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.add_argument("--config", type=Path, required=True, help="YAML file of the run")
    parser.add_argument("--base_config", type=Path, help="YAML file merged under --config")
    parser.add_argument("--debug", action="store_true", help="the short variant of the run: its `debug` section")
    parser.add_argument("--verbose", action="store_true", help="log everything, show tracebacks")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="dotted overrides: training.max_steps=3")
    return parser


def _load(arguments: argparse.Namespace) -> RunConfig:
    overrides, resume = list(arguments.overrides), getattr(arguments, "resume", None)
    if resume is not None:  # quoted as YAML reads it, which joins no surrogates
        overrides.append(f"training.resume={json.dumps(resume, ensure_ascii=False)}")
    return load_config(arguments.config, base=arguments.base_config, overrides=overrides, debug=arguments.debug)


def _train(arguments: argparse.Namespace) -> int:
    from deploy.launch import train
    from deploy.tables import print_before_after, print_health

    summary = train(_load(arguments))
    if summary["before"]:
        print_before_after(summary["before"], summary["after"])
    print_health(Path(summary["run"]))
    long = ("before", "after", "versions_used")  # they are in summary.json
    print(json.dumps({key: value for key, value in summary.items() if key not in long}))
    return DONE


def _evaluate(arguments: argparse.Namespace) -> int:
    if arguments.attest is not None:
        return _attest(arguments)
    from deploy.evaluation import evaluate_checkpoint
    from deploy.tables import print_metrics

    metrics = evaluate_checkpoint(_load(arguments), arguments.output)
    print_metrics(metrics)
    print(json.dumps(metrics))
    return DONE


def _attest(arguments: argparse.Namespace) -> int:
    from deploy.attest import attest, print_attestation

    found = attest(_load(arguments), arguments.attest, arguments.attest_records)
    print_attestation(found)
    print(json.dumps(found.as_json()))
    return DONE if found.attested else FAILED


def _check(arguments: argparse.Namespace) -> int:
    from deploy.check import check_run, print_findings
    from deploy.contact_sheet import check_target, contact_sheet
    from deploy.inputs import record_files

    check_target(arguments.contact_sheet)
    config = _load(arguments)
    findings = check_run(config)
    print_findings(findings)
    if arguments.contact_sheet is not None:
        contact_sheet(record_files(config), arguments.contact_sheet)
    return WRONG_INPUT if any(finding.is_error for finding in findings) else DONE


def _add_plan(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    from deploy.plan import add_arguments

    text = "estimate memory and throughput of a run, and what cannot fit; starts nothing"
    parser = _with_config(commands.add_parser("plan", help=text, description=text))
    add_arguments(parser)
    parser.set_defaults(run=_plan)


def _plan(arguments: argparse.Namespace) -> int:
    from deploy.plan import plan

    findings = plan(_load(arguments), arguments)
    return WRONG_INPUT if any(finding.is_error for finding in findings) else DONE


def _add_render(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    text = "write the run as Kubernetes manifests: RayJob, RayCluster, monitoring"
    parser = _with_config(commands.add_parser("render", help=text, description=text))
    parser.add_argument(
        "-o", "--output", type=Path, help="folder to write to; without it, what the RayJob needs is printed"
    )
    parser.set_defaults(run=_render)


def _render(arguments: argparse.Namespace) -> int:
    from deploy.render import run

    return run(_load(arguments), arguments.output)


def _add_submit(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    text = "run `train` as a job on a Ray cluster that exists, and follow its log"
    parser = _with_config(commands.add_parser("submit", help=text, description=text))
    parser.add_argument("--address", required=True, help="the head's dashboard, such as http://head:8265")
    parser.add_argument("--no-wait", action="store_true", help="return when the job is accepted")
    stop = "what Ctrl-C does to the job; without a terminal, ask means detach"
    parser.add_argument("--on-interrupt", choices=("ask", "detach", "stop"), default="ask", help=stop)
    parser.set_defaults(run=_submit)


def _submit(arguments: argparse.Namespace) -> int:
    from deploy.submit import submit

    return submit(_load(arguments), arguments)


def _add_tools(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Commands without a run file."""
    from deploy import add_coordinates, import_coco, replay, watch
    from deploy.report import command as report

    for name, tool, text in (
        ("import-coco", import_coco, "turn COCO or LVIS instance files into training records"),
        ("add-coordinates", add_coordinates, "give an ordinary Qwen3-VL checkpoint the coordinate tokens, untrained"),
        ("replay", replay, "show every decision about one recorded rollout; no engine needed"),
        ("report", report, "write one HTML file about a run, or about several side by side"),
        ("watch", watch, "follow a run's health in the terminal; ends with the run"),
    ):
        parser = commands.add_parser(name, help=text, description=text)
        tool.add_arguments(parser)
        parser.set_defaults(run=tool.run)


if __name__ == "__main__":
    sys.exit(main())
