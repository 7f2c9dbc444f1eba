"""This machine: Python, the settings, the data directory and the disk."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Iterator, Mapping

from entrypoints.cli.checks.finding import Finding
from infrastructure.embedded.data_directory import BadDataDirectory, DataDirectory
from infrastructure.settings.cautions import cautions, is_open_to_others
from infrastructure.settings.environment import links_in
from infrastructure.settings.settings import Settings

FULL = 200 * 2**20
NEARLY_FULL = 2 * 2**30
"""Bytes free: below the first PostgreSQL may stop within minutes, as it keeps up to 1 GiB of write-ahead log."""


def python() -> Finding:
    if sys.version_info < (3, 11):  # noqa: UP036 - with an older one the check should say so
        return Finding("python", "fail", platform.python_version(), "Install Python 3.11 or newer.")
    return Finding("python", "ok", platform.python_version())


def look_at_settings(settings: Settings, environ: Mapping[str, str]) -> Iterator[Finding]:
    """What is legal, and probably not meant."""
    if links := links_in(environ):
        yield Finding("settings", "ok", f"ignored, as they come from Kubernetes or Docker: {', '.join(links)}")
    odd = [(one.says, one.advice) for one in cautions(settings)]
    if settings.database_url is not None and settings.admin_token is None:
        odd.append(("REGISTRAR_ADMIN_TOKEN is not set", "Without it the admin routes are off."))
    if settings.mail_servers and "mail_from" not in settings.model_fields_set:
        odd.append(("REGISTRAR_MAIL_FROM is not set", "Real mail servers refuse the default sender; set it."))
    if settings.host not in {"127.0.0.1", "::1", "localhost"} and "public_url" not in settings.model_fields_set:
        odd.append(("REGISTRAR_PUBLIC_URL is not set", "Mails name it as the service's address; set it."))
    if settings.reveal_duplicates:
        odd.append(("REGISTRAR_REVEAL_DUPLICATES is on", "Anyone can find out who has an account; unset it."))
    for says, advice in odd:
        yield Finding("settings", "warn", says, advice)
    if not odd:
        yield Finding("settings", "ok", f"{len(settings.model_fields_set)} set, the rest as by default")


def host_names(settings: Settings) -> Finding:
    """The names that requests may call the service by. Whether a proxy passes on another one cannot be seen from here:
    health routes, the only ones that may be asked for as often as one likes, answer to any name."""
    names = settings.host_names
    if names is None:
        return Finding("host names", "ok", "any")
    says = f"{', '.join(sorted(names))}, and IP addresses"
    if settings.allowed_hosts:
        return Finding("host names", "ok", says)
    behind = "a proxy that sends another as Host gets 421, unless REGISTRAR_ALLOWED_HOSTS has it"
    return Finding("host names", "ok", f"{says} (of REGISTRAR_PUBLIC_URL); {behind}")


def data_directory(settings: Settings) -> Finding:
    path = settings.data_dir
    try:
        if not path.exists():
            return Finding("data directory", "ok", f"{path} is not there yet; `registrar up` makes it")
        if any(path.iterdir()):  # an empty one may be adjusted by the check, and that is for `up` to do
            DataDirectory(path, adjust=False)
        for secret in (path / "master.key", path / "admin.token"):
            if secret.exists() and is_open_to_others(secret):
                return Finding("data directory", "fail", f"{secret} can be read by others", f"`chmod 600 {secret}`")
    except BadDataDirectory as error:
        return Finding("data directory", "fail", str(error))
    except OSError as error:
        return Finding("data directory", "fail", f"{path}: {error.strerror}", "Run as its owner, or name another.")
    return Finding("data directory", "ok", str(path.resolve()))


def disk(settings: Settings) -> Finding:
    path = settings.data_dir.absolute()
    while not os.access(path, os.F_OK):  # `exists` would raise where a directory above is closed to us
        path = path.parent
    free = shutil.disk_usage(path).free
    says = f"{free / 2**30:.1f} GiB free for {settings.data_dir}"
    if free < NEARLY_FULL:
        return Finding("disk", "fail" if free < FULL else "warn", says, "Make room: a full disk stops the database.")
    return Finding("disk", "ok", says)
