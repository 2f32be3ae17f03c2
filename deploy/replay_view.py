"""A replay in the terminal: what was answered, kept, compared, matched, appended, and what each token learns."""

from __future__ import annotations

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from deploy.replay import difference
from protocol.config import RunConfig
from protocol.contracts import Shape
from protocol.replay import Mask, Replay
from protocol.traces import RolloutTrace

_CONTEXT_TOKENS = 12
"""Tokens shown on either side of an offence."""
MASK_STYLES = {
    Mask.CONTEXT: "white",
    Mask.COORD: "bold cyan",
    Mask.CE: "bold green",
    Mask.IGNORED: "dim magenta",
}


def print_replay(
    seen: Replay,
    config: RunConfig,
    about: str,
    trace: RolloutTrace | None = None,
    *,
    max_pairs: int = 40,
    console: Console | None = None,
) -> None:
    """Prints every section, in the order in which the decisions were made; `trace` is what a run decided."""
    console = console or Console()
    console.print(_title(seen, config, about, trace))
    console.print(_completion(seen))
    console.print(_objects(seen))
    if seen.parsed.rejects:
        console.print(_rejects(seen))
    console.print(_candidates(seen, config.matching.maskiou_gate, max_pairs))
    console.print(_truths(seen))
    console.print(_target(seen, config))
    for line in _verdict(seen, trace):
        console.print(line)


def _title(seen: Replay, config: RunConfig, about: str, trace: RolloutTrace | None) -> RenderableType:
    matching = config.matching
    places = dict.fromkeys((about, seen.record.source, *seen.record.images))
    lines = [" · ".join(places)]
    if trace is not None:
        policy = f"{trace.first_version}" + (
            f"..{trace.last_version}" if trace.last_version > trace.first_version else ""
        )
        lines.append(f"policy version {policy} · seed {trace.seed} · finished by {trace.finish_reason}")
    lines.append(
        f"gate {matching.maskiou_gate:g} · top_k {matching.candidate_top_k} · fp_cost {matching.fp_cost:g} · "
        f"fn_cost {matching.fn_cost:g} · prefix_policy {matching.prefix_policy}"
        + (" · teach_format" if matching.teach_format else "")
    )
    return Panel(Text("\n".join(lines)), title=str(seen.key), title_align="left")


def _completion(seen: Replay) -> RenderableType:
    """The answer as it was generated; predictions green where matched, yellow where not, rejects red."""
    matched = {pair.prediction for pair in seen.match.pairs}
    styles = {
        **{r.token_span: "red" for r in seen.parsed.rejects},
        **{p.token_span: "green" if at in matched else "yellow" for at, p in enumerate(seen.parsed.predictions)},
    }
    text, position = Text(), 0
    for (start, end), style in sorted(styles.items()):
        text.append(_between(seen, position, start), "dim")
        text.append(_between(seen, max(start, position), end), style)
        position = max(position, end)
    text.append(_between(seen, position, len(seen.pieces)), "dim")
    state = "truncated: the JSON is open at its end" if seen.parsed.truncated else "closed"
    legend = Text.assemble(("matched", "green"), " ", ("unmatched", "yellow"), " ", ("rejected", "red"))
    return Panel(Group(text, legend), title=f"completion, {len(seen.pieces)} tokens, {state}", title_align="left")


def _between(seen: Replay, start: int, end: int) -> str:
    return "".join(seen.pieces[start:end])


def _objects(seen: Replay) -> RenderableType:
    table = _table("parsed objects", "#", "key", "verdict", "desc", "shape", "tokens", "matched")
    pairs = {pair.prediction: pair for pair in seen.match.pairs}
    for at, item in enumerate(seen.parsed.predictions):
        pair = pairs.get(at)
        match = (
            Text("no", "yellow") if pair is None else Text(f"gt {pair.ground_truth} at {pair.mask_iou:.3f}", "green")
        )
        table.add_row(
            str(at),
            item.key,
            Text("kept", "green"),
            Text(item.desc),
            shape_text(item.shape),
            _span(item.token_span),
            match,
        )
    for reject in seen.parsed.rejects:
        table.add_row(
            "",
            reject.key,
            Text(f"rejected: {reject.reason}", "red"),
            Text(reject.detail),
            "",
            _span(reject.token_span),
            "",
        )
    return table if table.row_count else Text("no objects in the answer", "red")


def _rejects(seen: Replay) -> RenderableType:
    """Each reject in its surroundings, the offending tokens underlined."""
    text = Text()
    for reject in seen.parsed.rejects:
        start, end = reject.token_span
        text.append("... " if start > _CONTEXT_TOKENS else "", "dim")
        text.append(_between(seen, max(0, start - _CONTEXT_TOKENS), start), "dim")
        text.append(_between(seen, start, end), "red underline")
        text.append(_between(seen, end, end + _CONTEXT_TOKENS), "dim")
        text.append(f"\n{reject.key}: {reject.reason}: {reject.detail}\n")
    text.rstrip()
    return Panel(text, title="why they were rejected", title_align="left")


def _candidates(seen: Replay, gate: float, most: int) -> RenderableType:
    table = _table(f"candidate pairs, gate {gate:g}", "prediction", "ground truth", "maskIoU", "gate", "assigned")
    ranked = sorted(seen.candidates, key=lambda c: (not c.assigned, -c.mask_iou))
    for each in sorted(ranked[:most], key=lambda c: (c.prediction, c.ground_truth)):
        prediction, truth = seen.parsed.predictions[each.prediction], seen.record.objects[each.ground_truth]
        table.add_row(
            Text(f"{each.prediction} {prediction.desc}"),
            Text(f"{each.ground_truth} {truth.desc}"),
            f"{each.mask_iou:.3f}",
            Text("passed", "green") if each.passed else Text("below", "red"),
            Text("yes", "bold green") if each.assigned else "",
        )
    if not seen.candidates:
        return Text("no candidate pairs: nothing was predicted, or there is no ground truth", "yellow")
    hidden = len(seen.candidates) - most
    return Group(table, Text(f"{hidden} more with smaller maskIoU; --pairs shows more", "dim")) if hidden > 0 else table


def _truths(seen: Replay) -> RenderableType:
    table = _table("ground truth", "#", "desc", "shape", "answered by", "appended as")
    pairs = {pair.ground_truth: pair for pair in seen.match.pairs}
    for at, truth in enumerate(seen.record.objects):
        pair, place = pairs.get(at), seen.appended_keys.get(at, "")
        found = (
            Text("missed", "yellow") if pair is None else Text(seen.parsed.predictions[pair.prediction].key, "green")
        )
        table.add_row(str(at), Text(truth.desc), shape_text(truth.shape), found, place)
    return table if table.row_count else Text("no ground truth", "dim")


def _target(seen: Replay, config: RunConfig) -> RenderableType:
    text = Text()
    for token in seen.tokens:
        text.append(token.text, MASK_STYLES[token.mask])
        if token.bin is not None and f"<|coord_{token.bin}|>" != token.text:
            text.append(f"→{token.bin}", "bold yellow")
    legend = Text.assemble(*[part for mask in Mask for part in ((mask.words, MASK_STYLES[mask]), "   ")])
    counts = {mask: sum(token.mask is mask for token in seen.tokens) for mask in Mask}
    stats = seen.target.stats
    title = (
        f"target: {stats.prefix_len} prefix + {stats.train_len - stats.prefix_len} appended tokens; "
        f"{counts[Mask.CE]} CE, {counts[Mask.COORD]} coordinates"
    )
    parts: list[RenderableType] = [text, Text(), legend]
    if seen.target.oversize:
        limit = f"{stats.encoded_len} tokens, global_max_length is {config.global_max_length}"
        parts.append(Text(f"too long to be trained on: {limit}", "bold red"))
    return Panel(Group(*parts), title=title, title_align="left")


def _verdict(seen: Replay, trace: RolloutTrace | None) -> list[Text]:
    pairs, predicted, truths = len(seen.match.pairs), len(seen.parsed.predictions), len(seen.record.objects)
    lines = [
        Text(
            f"{pairs} of {predicted} predictions match, {pairs} of {truths} objects found, F1 {seen.f1:.3f}; "
            f"{len(seen.appended)} appended, {seen.duplicates} duplicates, "
            f"{seen.match.gating_rejections} pairs below the gate"
        )
    ]
    if trace is not None and (differs := difference(seen, trace)):
        lines.append(Text(differs, "yellow"))
    return lines


def shape_text(shape: Shape) -> Text:
    """`bbox 10 20 30 40`."""
    return Text(f"{'bbox' if shape.geometry == 'bbox_2d' else 'poly'} {' '.join(map(str, shape.bins))}")


def _span(span: tuple[int, int]) -> str:
    return f"{span[0]}..{span[1]}"


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table
