"""The commands ``tesserec serve`` and ``tesserec service …``: a bundle as a service, and what its operators do.

What another process does, such as publishing or making a key, a running service of the same home folder notices within
a second or two.
"""

from __future__ import annotations

import dataclasses
import datetime
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from tesserec.errors import RecipeError, ResourceError, ServiceError, StoreError
from tesserec.terminal import JsonOption, bars, out, print_json, say, say_lines

if TYPE_CHECKING:
    from tesserec.serving.batcher import Fault
    from tesserec.serving.config import ServiceConfig
    from tesserec.serving.rungs import Rung
    from tesserec.serving.versions import Versions

__all__ = ["serve", "service_app"]

service_app = typer.Typer(no_args_is_help=True, help="Operate a service: keys, versions, the nightly run, backups.")
key_app = typer.Typer(no_args_is_help=True, help="API keys: make, list and revoke them.")
service_app.add_typer(key_app, name="key")

HomeOption = Annotated[Path, typer.Option("--home", help="Folder in which the service keeps what it knows.")]
NamespaceOption = Annotated[str, typer.Option("--namespace", help="The shop that is meant.")]
StoreOption = Annotated[str | None, typer.Option(help="postgresql://… or redis://…; SQLite in the home folder.")]


def serve(
    bundle: Annotated[Path, typer.Argument(help="Folder that `tesserec fit` wrote: the first version of the shop.")],
    *,
    home: Annotated[
        Path | None, typer.Option(help="Where events, items, keys and versions are kept; BUNDLE.service without it.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file of settings.")] = None,
    host: Annotated[str | None, typer.Option(help="Where to listen; beyond 127.0.0.1 a key is needed.")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Instead of the settings' port, 8000.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of the model.")] = None,
    namespace: NamespaceOption = "default",
    store: StoreOption = None,
    fault: Annotated[
        list[str] | None,
        typer.Option(
            help="RUNG=SECONDS or RUNG=fails, to see the fall-backs work; with :N for its first N batches; repeatable."
        ),
    ] = None,
) -> None:
    """Serve a bundle over HTTP."""
    try:
        from tesserec.serving.config import read_service_config
        from tesserec.serving.opening import begin
        from tesserec.serving.server import run
        from tesserec.serving.service import Service
    except ModuleNotFoundError as error:
        raise ResourceError(f"{error.name} is not installed: pip install 'tesserec[serve]'") from None

    settings = _with_options(read_service_config(config), namespace, host=host, port=port, threads=threads, store=store)
    place = home or bundle.with_name(f"{bundle.resolve().name}.service")
    with Service(place, settings, faults=_faults(fault or [])) as service:
        if not begin(place, namespace, bundle):
            say(
                f"{place} has versions already, and the live one answers; `tesserec service publish` makes another live"
            )
        run(service)


@service_app.command("publish")
def publish(
    bundle: Annotated[Path, typer.Argument(help="Folder that `tesserec fit` wrote.")],
    *,
    home: HomeOption,
    namespace: NamespaceOption = "default",
    store: StoreOption = None,
    force: Annotated[bool, typer.Option("--force", help="Do not ask the gate.")] = False,
) -> None:
    """Make a bundle the live version, if the gate lets it through."""
    from tesserec.serving.open_store import open_store
    from tesserec.serving.release import release

    with closing(open_store(store, home, namespace)) as opened:
        released = release(bundle, _versions(home, namespace), opened, force=force)
    if released.report is not None:
        say_lines(released.report.text())
    typer.echo(released.version)


@service_app.command("rollback")
def rollback(*, home: HomeOption, namespace: NamespaceOption = "default", store: StoreOption = None) -> None:
    """Make the version live that was before."""
    live = _versions_there(home, namespace).rollback().live
    _note(home, namespace, store, "rollback", version=live)
    typer.echo(live)


@service_app.command("versions")
def versions(*, home: HomeOption, namespace: NamespaceOption = "default", as_json: JsonOption = False) -> None:
    """List the versions on disk."""
    infos = _versions_there(home, namespace).infos()
    if as_json:
        rows = [
            {
                "version": one.version,
                "roles": list(one.roles),
                "created": one.manifest.created,
                "method": one.manifest.method,
            }
            for one in infos
        ]
        print_json(rows)
        return
    table = Table("version", "is", "made", "method")
    for one in infos:
        table.add_row(one.version, ", ".join(one.roles), one.manifest.created, one.manifest.method)
    out().print(table)


@service_app.command("canary")
def canary(
    version: Annotated[str | None, typer.Argument(help="A version on disk; none ends the canary.")] = None,
    *,
    home: HomeOption,
    namespace: NamespaceOption = "default",
    share: Annotated[float, typer.Option(help="Share of the users that it answers, in (0, 1].")] = 0.05,
    store: StoreOption = None,
) -> None:
    """Let a version answer a share of the users, or end that."""
    pointer = _versions_there(home, namespace).canary(version, share)
    _note(
        home,
        namespace,
        store,
        "end canary" if version is None else "canary",
        version=version,
        share=share if version else None,
    )
    typer.echo("no canary" if pointer.canary is None else f"{pointer.canary.version} {pointer.canary.share:g}")


@service_app.command("nightly")
def nightly(
    *,
    home: HomeOption,
    namespace: NamespaceOption = "default",
    store: StoreOption = None,
    full: Annotated[bool, typer.Option("--full", help="Fit anew, with new codebooks.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Do not ask the gate.")] = False,
) -> None:
    """Fit the live version on from what the service has seen since, and publish it if the gate lets it pass."""
    from tesserec.serving.nightly import NightlyConfig, run_nightly

    settings = NightlyConfig(full=full, force=force)
    with bars() as progress:
        report = run_nightly(home, namespace, store_url=store, config=settings, progress=progress, tell=say)
    say_lines(report.text())
    typer.echo(report.version or "nothing new")


@service_app.command("backup")
def backup(
    file: Annotated[Path, typer.Argument(help="Where the copy is written.")],
    *,
    home: HomeOption,
    namespace: NamespaceOption = "default",
    store: StoreOption = None,
) -> None:
    """Copy what the store of a shop knows, while the service goes on."""
    from tesserec.serving.open_store import open_store

    _versions_there(home, namespace)
    with closing(open_store(store, home, namespace)) as opened:
        opened.backup(file)
    typer.echo(str(file))


@service_app.command("restore")
def restore(
    file: Annotated[Path, typer.Argument(help="What `tesserec service backup` wrote.")],
    *,
    home: HomeOption,
    namespace: NamespaceOption = "default",
    store: StoreOption = None,
) -> None:
    """Make the store of a shop from a backup; the service must not run."""
    from tesserec.serving.durable import try_lock
    from tesserec.serving.open_store import restore_backup

    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    with try_lock(home / "service.lock") as free:
        if not free:
            raise ServiceError(f"a service has {home}: stop it, then restore")
        restore_backup(file, home, namespace, store)
    say(f"restored: {namespace}")


@key_app.command("create")
def create_key(
    name: Annotated[str, typer.Argument(help="What a person calls it.")],
    *,
    home: HomeOption,
    scope: Annotated[list[str] | None, typer.Option(help="read, write or admin; repeatable; all without it.")] = None,
    namespace: Annotated[
        list[str] | None, typer.Option(help="Shops that it opens; repeatable; all without it.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make a key and print it, this once: it is kept as a digest only."""
    from tesserec.serving.keys import SCOPES, KeyRing

    is_new = not home.is_dir()
    key, text = KeyRing(home / "keys.json").create(name, scope or SCOPES, namespace)
    if is_new:
        say(f"{home} was not there and is now: start the service with this --home")
    if as_json:
        print_json({"key_id": key.key_id, "scopes": list(key.scopes), "namespaces": key.namespaces, "key": text})
        return
    typer.echo(text)
    say(f"key {key.key_id} ({', '.join(key.scopes)}): keep it, it is shown this once")


@key_app.command("list")
def list_keys(*, home: HomeOption, as_json: JsonOption = False) -> None:
    """List the keys that were ever made."""
    from tesserec.serving.keys import KeyRing

    keys = KeyRing(_there(home) / "keys.json").all()
    if as_json:
        rows = [dataclasses.asdict(key) for key in keys]
        print_json([{name: value for name, value in row.items() if name != "digest"} for row in rows])
        return
    table = Table("key", "name", "scopes", "shops", "made", "revoked")
    for key in keys:
        shops = "all" if key.namespaces is None else ", ".join(key.namespaces)
        table.add_row(key.key_id, key.name, ", ".join(key.scopes), shops, _moment(key.created), _moment(key.revoked))
    out().print(table)


@key_app.command("revoke")
def revoke_key(key_id: Annotated[str, typer.Argument(help="As `key list` shows it.")], *, home: HomeOption) -> None:
    """Let a key open nothing any more."""
    from tesserec.serving.keys import KeyRing

    typer.echo(KeyRing(_there(home) / "keys.json").revoke(key_id).key_id)


def _with_options(
    settings: ServiceConfig,
    namespace: str,
    *,
    host: str | None,
    port: int | None,
    threads: int | None,
    store: str | None,
) -> ServiceConfig:
    """Settings with what the command line says instead."""
    server = dataclasses.replace(
        settings.server,
        host=settings.server.host if host is None else host,
        port=settings.server.port if port is None else port,
    )
    ladder = settings.ladder if threads is None else dataclasses.replace(settings.ladder, threads=threads)
    names = settings.namespaces if namespace in settings.namespaces else (*settings.namespaces, namespace)
    if settings.namespaces == ("default",):
        names = (namespace,)
    where = settings.store if store is None else store
    return dataclasses.replace(settings, server=server, ladder=ladder, namespaces=names, store=where)


def _faults(texts: list[str]) -> dict[Rung, Fault]:
    from tesserec.serving.batcher import Fault
    from tesserec.serving.rungs import RUNGS

    faults: dict[Rung, Fault] = {}
    for text in texts:
        name, _, rest = text.partition("=")
        what, _, batches = rest.partition(":")
        rung = next((one for one in RUNGS[:-1] if one == name), None)
        known = what == "fails" or what.replace(".", "", 1).isdigit()
        if rung is None or not known or (batches and not batches.isdigit()):
            raise RecipeError(
                f"--fault {text}: expected one of {', '.join(RUNGS[:-1])}, =, seconds or `fails`, and perhaps : and a "
                "number of batches"
            )
        times = int(batches) if batches else None
        faults[rung] = Fault(0.0 if what == "fails" else float(what), fails=what == "fails", batches=times)
    return faults


def _note(home: Path, namespace: str, store: str | None, action: str, **detail: str | float | None) -> None:
    """Keep in the audit log what was done; a store that is down stops nobody, and is told."""
    from tesserec.serving.open_store import open_store
    from tesserec.serving.records import Audit

    try:
        with closing(open_store(store, home, namespace)) as opened:
            opened.add_audit(Audit(time.time(), "command line", action, detail)).result()
    except StoreError as error:
        say(f"it is done, but not in the audit log: {error}")


def _versions(home: Path, namespace: str) -> Versions:
    from tesserec.serving.open_store import check_namespace
    from tesserec.serving.opening import folder_of
    from tesserec.serving.versions import Versions

    check_namespace(namespace)
    return Versions(folder_of(home, namespace))


def _versions_there(home: Path, namespace: str) -> Versions:
    """Versions of a shop that there is, so that a misspelt name does not make one."""
    from tesserec.serving.open_store import check_namespace
    from tesserec.serving.opening import folder_of

    check_namespace(namespace)
    if not folder_of(_there(home), namespace).is_dir():
        shops = ", ".join(sorted(one.name for one in folder_of(home, "").glob("*/"))) or "none"
        raise ServiceError(
            f"there is no shop {namespace!r} in {home}: check --home and --namespace, there are: {shops}"
        )
    return _versions(home, namespace)


def _there(home: Path) -> Path:
    if not home.is_dir():
        raise ServiceError(f"there is no folder {home}: give as --home that of `tesserec serve`")
    return home


def _moment(time: float | None) -> str:
    return "" if time is None else f"{datetime.datetime.fromtimestamp(time, datetime.UTC):%Y-%m-%d %H:%M}"
