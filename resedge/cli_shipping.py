"""The commands about devices: keys, one file of a bundle, ship, status, rollback."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from resedge.errors import UsageError

if TYPE_CHECKING:
    from resedge.artifacts import JsonValue
    from resedge.pipeline.fleets import Reaching

F = TypeVar("F", bound=Callable[..., Any])

_PATH = click.Path(path_type=Path)
_HOSTS = click.argument("hosts", nargs=-1, required=True, metavar="HOST…")


def _reaching(command: F) -> F:
    """Add how devices are reached."""
    for option in (
        click.option("--json", "json_file", type=_PATH, help="Also write what came of each to this file."),
        click.option(
            "--timeout",
            type=click.FloatRange(1),
            default=1800.0,
            show_default=True,
            help="Seconds for each device in all.",
        ),
        click.option(
            "--jobs", type=click.IntRange(1), default=16, show_default=True, help="Devices at once."
        ),
        click.option("--python", default="python3", show_default=True, help="The Python on the device."),
        click.option(
            "--root",
            metavar="DIR",
            help="resedge's folder there.  [default: $RESEDGE_DEVICE_ROOT or ~/.local/share/resedge-device]",
        ),
        click.option(
            "-i",
            "--identity",
            type=_PATH,
            help="The private key to log in with.  [default: the SSH agent's, and ~/.ssh]",
        ),
    ):
        command = option(command)
    return command


# --- keys ----------------------------------------------------------------------------------------


@click.group()
def keys() -> None:
    """Keys that devices trust: make one, sign a bundle with it, check who signed one."""


@keys.command()
@click.option("--out", type=_PATH, required=True, help="The folder for `resedge` and `resedge.pub`.")
def generate(out: Path) -> int:
    """Make an Ed25519 key pair: `resedge`, to be kept secret, and `resedge.pub`, for devices.

    A key that is there is never replaced.
    """
    from resedge.console import print_line
    from resedge.pipeline.keys import generate as run

    private, public = run(out)
    print_line(f"{private} signs, keep it secret; {public} is for devices.")
    return 0


@keys.command()
@click.argument("bundle", type=_PATH)
@click.option(
    "--key", type=_PATH, required=True, help="The private key, or the public one of an SSH agent's."
)
@click.option(
    "--expires",
    metavar="DAYS|DATE",
    help="When devices refuse to install it: days from now, or the end of a date in UTC.  [default: 90]",
)
def sign(bundle: Path, key: Path, expires: str | None) -> int:
    """Sign BUNDLE for devices.

    The agent that installs it there is put into it and signed, too; the bundle's counter grows.
    """
    from resedge.console import print_line
    from resedge.pipeline import keys as pipeline
    from resedge.shipping import moments

    now = moments.now()
    signed = pipeline.sign(bundle, key, pipeline.expiry(expires or str(pipeline.DEFAULT_DAYS), now), now)
    print_line(f"{bundle} signed by {signed.key}, {_dated(signed)}.")
    return 0


@keys.command()
@click.argument("bundle", type=_PATH)
@click.option("--key", type=_PATH, required=True, help="The public key that it must be signed by.")
def verify(bundle: Path, key: Path) -> int:
    """Check BUNDLE's signature, and every file of it against what was signed."""
    from resedge.console import print_line
    from resedge.pipeline.keys import verify as run
    from resedge.shipping import moments

    signed = run(bundle, key, moments.now())
    files = len(signed.bundle.manifest.files)
    print_line(f"{bundle} is signed by {signed.key}, {_dated(signed)}; {files} files, each as it was signed.")
    return 0


def _dated(signed: Any) -> str:  # noqa: ANN401 - Signed, imported when needed
    from resedge.shipping import moments

    times = f"{moments.to_text(signed.signed_at)}, expires {moments.to_text(signed.expires)}"
    return f"counter {signed.bundle.manifest.counter}, {times}"


# --- one file of a bundle ------------------------------------------------------------------------


@click.group()
def bundle() -> None:
    """One file of a bundle, and back."""


@bundle.command()
@click.argument("folder", metavar="BUNDLE", type=_PATH)
@click.option("--out", type=_PATH, help="The file.  [default: BUNDLE's name .tar, here]")
def pack(folder: Path, out: Path | None) -> int:
    """Write BUNDLE as one file, a tar; the same bundle gives the same bytes."""
    from resedge import bundle as bundles
    from resedge.console import print_line
    from resedge.shipping import pack as packing

    out = out or Path(f"{folder.absolute().name}{packing.SUFFIX}")
    packing.pack(bundles.read(folder), out)
    print_line(f"{out} written, {out.stat().st_size / 1e6:.1f} MB.")
    return 0


@bundle.command()
@click.argument("file", type=_PATH)
@click.option("--out", type=_PATH, help="The bundle's folder.  [default: FILE's name without .tar, here]")
def unpack(file: Path, out: Path | None) -> int:
    """Take a bundle out of FILE, which must be as `pack` writes it; every byte is checked."""
    from resedge.console import print_line
    from resedge.shipping import pack as packing

    out = out or Path(file.name.removesuffix(packing.SUFFIX))
    found = packing.unpack(file, out)
    print_line(f"{out} written, {len(found.manifest.files)} files, each as its manifest names it.")
    return 0


# --- devices -------------------------------------------------------------------------------------


@click.command()
@click.argument("folder", metavar="BUNDLE", type=_PATH)
@_HOSTS
@click.option(
    "--trust", type=_PATH, metavar="KEY.pub", help="Have devices trust this key that trust none yet."
)
@click.option("--replace-trust", is_flag=True, help="With --trust: in the place of the key that they trust.")
@click.option(
    "--backend",
    metavar="NAME:PRECISION",
    help="The engine to serve, such as openvino:int8.  [default: the best that the device has]",
)
@click.option("--max-p50-ms", type=click.FloatRange(0, min_open=True), help="Of the trial's calls, at most.")
@click.option("--max-p95-ms", type=click.FloatRange(0, min_open=True), help="Of the trial's calls, at most.")
@click.option("--max-memory-mb", type=click.FloatRange(0, min_open=True), help="Of the trial, at most.")
@click.option(
    "--confirm-command",
    metavar="CMD",
    help="Run there after the switch; where it fails, the device goes back to what served before.",
)
@click.option(
    "--bootstrap",
    type=_PATH,
    metavar="WHEELS",
    help="A folder of wheels that are installed there first, for devices without internet.",
)
@click.option(
    "--keep", type=click.IntRange(1), default=3, show_default=True, help="Good releases to keep there."
)
@click.option(
    "--dry-run", is_flag=True, help="Say what the devices are and what would be sent; send nothing."
)
@click.option("-q", "--quiet", is_flag=True, help="Print the table alone.")
@_reaching
def ship(
    folder: Path,
    hosts: Sequence[str],
    trust: Path | None,
    replace_trust: bool,
    backend: str | None,
    max_p50_ms: float | None,
    max_p95_ms: float | None,
    max_memory_mb: float | None,
    confirm_command: str | None,
    bootstrap: Path | None,
    keep: int,
    dry_run: bool,
    quiet: bool,
    json_file: Path | None,
    **reaching: Any,  # noqa: ANN401 - the options of `_reaching`
) -> int:
    """Bring a signed BUNDLE onto devices, have each prove it, and only then serve it.

    On each device the engine is built and replays the bundle's golden images; the old one serves until that
    is passed, and goes on serving if it is not. A shipment that was cut off goes on where it stopped: run the
    same command again. HOST is [user@]host[:port]; ~/.ssh/config is heeded, and a host key that is not in
    known_hosts is refused.

    Exit codes: that of the worst device; 1 is a trial that failed, 4 a device that cannot be reached.

    \b
    Example:
      resedge keys generate --out keys
      resedge keys sign mine.resedge --key keys/resedge
      resedge ship mine.resedge nano@10.0.0.7 --trust keys/resedge.pub
    """  # noqa: D301 - click reads the character, not its escape
    from resedge.console_shipping import Fleet, print_facts, print_shipped
    from resedge.pipeline import shipping
    from resedge.shipping import wheels, wire
    from resedge.shipping.delivery import Order

    if replace_trust and trust is None:
        raise UsageError("--replace-trust replaces by nothing.", cure="Name the key: --trust KEY.pub.")
    _check_place(json_file)
    memory = None if max_memory_mb is None else int(max_memory_mb * 1e6)
    order = Order(
        engine=_engine_of(backend),
        limits=wire.Limits(max_p50_ms, max_p95_ms, memory),
        confirm_command=confirm_command,
        trust=trust,
        replace_trust=replace_trust,
        wheels=wheels.read(bootstrap) if bootstrap else None,
        keep=keep,
        dry_run=dry_run,
    )
    with Fleet(hosts, quiet=quiet) as fleet:
        shipped = shipping.ship(folder, hosts, order, _reaching_of(reaching), fleet)
    if dry_run:
        print_facts(shipped.outcomes)
    print_shipped(shipped.outcomes)
    _write_json(json_file, shipped.document)
    return shipped.exit_code


@click.command()
@_HOSTS
@_reaching
def status(hosts: Sequence[str], json_file: Path | None, **reaching: Any) -> int:  # noqa: ANN401
    """Say what devices serve, since when, and how its last trial went."""
    from resedge.console_shipping import print_statuses
    from resedge.pipeline import shipping

    _check_place(json_file)
    asked = shipping.status(hosts, _reaching_of(reaching))
    print_statuses(asked)
    _write_json(json_file, shipping.answers_document(asked))
    return shipping.worst_of(asked)


@click.command()
@_HOSTS
@click.option(
    "--to",
    "digest",
    metavar="DIGEST",
    help="The release, or how its digest begins.  [default: the one that served before]",
)
@_reaching
def rollback(
    hosts: Sequence[str],
    digest: str | None,
    json_file: Path | None,
    **reaching: Any,  # noqa: ANN401 - the options of `_reaching`
) -> int:
    """Have devices serve a release again that was committed on them; nothing is sent.

    The highest counter stays: older bundles are still refused.
    """
    from resedge.console_shipping import print_rollbacks
    from resedge.pipeline import shipping

    _check_place(json_file)
    turned = shipping.rollback(hosts, digest, _reaching_of(reaching))
    print_rollbacks(turned)
    _write_json(json_file, shipping.answers_document(turned))
    return shipping.worst_of(turned)


# --- parsing and writing -------------------------------------------------------------------------


def _engine_of(text: str | None) -> tuple[str, str] | None:
    from resedge.pipeline.session import parse_engine

    return None if text is None else parse_engine(text)


def _reaching_of(options: dict[str, Any]) -> Reaching:
    from resedge.pipeline.fleets import Reaching

    root = options["root"]
    if root is not None and not root.startswith("/"):
        raise UsageError(f"{root} is not an absolute path.", where="--root")
    return Reaching(**options)


def _check_place(json_file: Path | None) -> None:
    """Refuse a place for the document before the work is done, not after."""
    if json_file is not None and not json_file.absolute().parent.is_dir():
        raise UsageError(f"{json_file.parent} is not a folder.", where="--json", cure="Make it first.")


def _write_json(json_file: Path | None, document: JsonValue) -> None:
    from resedge import files
    from resedge.artifacts import canonical_json

    if json_file is not None:
        files.write_bytes(json_file, canonical_json(document).encode())
