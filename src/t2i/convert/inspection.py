"""`python -m t2i inspect FILE`: whose a file is, its sizes, and what in it is not a tensor. Nothing in it runs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from t2i.checkpoint import safetensors_io
from t2i.config.messages import shown
from t2i.convert.dfgan import nets, read_generator
from t2i.convert.kinds import WRAPPERS, kind_of
from t2i.convert.outline import Content, Named, flat, outline
from t2i.convert.stackgan import read_stage1, read_stage2
from t2i.convert.tensors import STANDINS, first, shape, size
from t2i.convert.tokenizers import READERS

LISTED = 24  # values that are not tensors, and names
MANY = 4  # of them under one key
SIZES = ("image_size", "noise_dim", "text_dim", "condition_dim")
KNOWN = {name for _, name in STANDINS}  # of code, that a file may hold


def _nodes(node: Any, name: str) -> Iterator[str]:
    """A line for each node with `_target_`: its class and its plain arguments."""
    if not isinstance(node, Mapping):
        return
    if "_target_" in node:
        plain = [f"{key}={value}" for key, value in node.items()
                 if key != "_target_" and value is not None and not isinstance(value, Mapping)]
        yield f"{name}: {str(node['_target_']).rpartition('.')[2]} {' '.join(plain)}".rstrip()
    for key, value in node.items():
        yield from _nodes(value, f"{name}.{key}")


def _count(net: nn.Module) -> str:
    parts = {name: sum(p.numel() for p in child.parameters()) for name, child in net.named_children()}
    listed = ", ".join(f"{name} {number:,}" for name, number in parts.items() if number)
    return f"{sum(p.numel() for p in net.parameters()):,} ({listed})"


def _group(keys: tuple[str, ...]) -> str:
    """Under which heading a tensor is counted: a net, a part, or what beside the weights it belongs to."""
    if keys[:2] == (safetensors_io.KEY, "parts"):
        return f"part {keys[2]}"
    first, second = (key.removeprefix("module.").partition(".")[0] for key in (*keys, "")[:2])
    return f"{keys[0]}.{second}" if keys[0] in WRAPPERS and second else first if len(keys) == 1 else keys[0]


def _groups(held: Any) -> list[str]:
    """Tensors and their numbers by the first part of their names, the largest groups first."""
    tensors: Counter[str] = Counter()
    numbers: Counter[str] = Counter()
    kinds: dict[str, set[str]] = {}
    for keys, value in flat(held):
        if isinstance(value, Tensor):
            group = _group(keys) if keys else "the whole file"
            tensors[group] += 1
            numbers[group] += value.numel()
            kinds.setdefault(group, set()).add(str(value.dtype).removeprefix("torch."))
    rows = [f"{group}: {number:,} numbers in {tensors[group]:,} tensor{'s' * (tensors[group] > 1)}"
            f" ({', '.join(sorted(kinds[group]))})" for group, number in numbers.most_common()]
    return rows[:LISTED] + ([f"and {len(rows) - LISTED} more groups"] if len(rows) > LISTED else [])


def _ours(section: Mapping[str, Any]) -> list[str]:
    config = section.get("config")
    lines = list(_nodes(config.get("model") if isinstance(config, Mapping) else None, "model"))
    parts = section.get("parts")
    for name, part in parts.items() if isinstance(parts, Mapping) else ():
        if not isinstance(part, Mapping):
            lines.append(f"part {name}: no table, the file is damaged")
            continue
        carried = "its weights are inside" if "state_dict" in part else "named only, not inside"
        lines += [f"{line} ({carried})" for line in _nodes(part.get("config"), f"part {name}")]
    return lines


def _sizes(system: str, held: Any, path: Path) -> list[str]:
    """What the reader of that system makes of the shapes; ValueError where they do not fit."""
    if system in READERS:
        tokenizer = READERS[system](held, str(path))
        rows, columns = tokenizer.grid
        return [*_nodes(tokenizer.config, "tokenizer"), f"parameters: {_count(tokenizer)}",
                f"a picture is {rows} x {columns} codes at {tokenizer.image_size} pixels, the size it was likely"
                f" trained with; any multiple of {tokenizer.autoencoder.factor} is taken"]
    if system == "damsm":
        words, width = shape(held, "encoder.weight", 2) or (0, 0)
        hidden = size(held, "rnn.weight_hh_l0", 2, 1) or 0
        return [f"words: {words:,} of {width} numbers; sentences: {2 * hidden} numbers"]
    made: tuple[nn.Module, ...] = ()
    if system == "dfgan":
        made = (read_generator(nets(held, str(path))["netG"], str(path)),)
    elif system == "stackgan1":
        made = (read_stage1(held, str(path)),)
    elif system == "stackgan2":
        made = read_stage2(held, str(path))
    return [f"{type(net).__name__} {' '.join(f'{k}={getattr(net, k)}' for k in SIZES if hasattr(net, k))},"
            f" parameters: {_count(net)}" for net in made]


def _whose(content: Content, path: Path) -> tuple[str, list[str]]:
    """Whose it is, in words, and lines on its sizes."""
    held = content.held
    section = held.get(safetensors_io.KEY) if isinstance(held, Mapping) else None
    if isinstance(section, Mapping):
        form = "exported" if content.form == "safetensors" else "a checkpoint"
        return f"this project's: a {section.get('kind')} ({form}, format {section.get('format')})", _ours(section)
    if isinstance(held, list | tuple) and len(held) == 4 and isinstance(held[3], Mapping):
        return f"a vocabulary of DAMSM with {len(held[3]):,} words", []
    kind = kind_of(held)
    if kind is None:
        return f"not known; it holds {first(held)}", []
    if not kind.system:
        return f"{kind.text}; it is not read here", []
    try:
        return kind.text, _sizes(kind.system, held, path)
    except ValueError as error:
        return f"{kind.text}, but not one that can be read", [str(error)]


def _shown(value: Any) -> str:
    text = f"<{value.name}>" if isinstance(value, Named) else repr(value)
    return text if len(text) <= 100 else f"{text[:97]}…"


def _others(held: Any) -> list[str]:
    """What is no tensor; of a key with much inside the first, and how many."""
    under: dict[str, list[str]] = {}
    for keys, value in flat(held):
        if not isinstance(value, Tensor) and keys[:1] != (safetensors_io.KEY,):
            line = f"{'.'.join(keys) or 'the whole file'} = {_shown(value)}"
            under.setdefault(keys[0] if keys else "", []).append(line)
    found = [line if i < MANY - 1 or len(lines) <= MANY else f"{key}: {len(lines) - MANY + 1:,} more values"
             for key, lines in under.items() for i, line in enumerate(lines[:MANY])]
    return found[:LISTED] + ([f"and {len(found) - LISTED:,} more"] if len(found) > LISTED else [])


def _names(content: Content) -> list[str]:
    known = [name for name in content.foreign if name in KNOWN]
    strange = [name for name in content.foreign if name not in KNOWN]
    lines = [f"{name}: known, left out when the file is read" for name in known[:LISTED]]
    return lines + [f"{name}: not known; the file is refused, since reading it would need this. Nothing was executed"
                    for name in strange[:LISTED]]


def inspected(path: str | Path) -> str:
    """The report on a file or an exported folder; ValueError where it is no such file, or damaged."""
    found = safetensors_io.weights_file(path)
    content = outline(found)
    try:
        for _ in flat(content.held):
            pass  # that there is an end to it, before anything goes through it
        whose, sizes = _whose(content, found)
        blocks = {"sizes": sizes, "tensors": _groups(content.held), "not tensors": _others(content.held),
                  "names of code": _names(content)}
    except (ValueError, RecursionError) as error:
        what = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise ValueError(f"{found} cannot be looked through: {what}") from error
    lines = [str(found), f"what: {whose}", f"file: {content.form}, {found.stat().st_size:,} bytes"]
    for title, rows in blocks.items():
        lines += [f"{title}:", *(f"  {row}" for row in rows)] if rows else [f"{title}: none"]
    return "\n".join(shown(line, 400) for line in lines)
