"""Pseudonyms of subjects: keyed hashes, which only the holder of the key can tie to identifiers again."""

from __future__ import annotations

import hmac
import os
import secrets
from pathlib import Path

from mmfusion.errors import ManifestError, OptionError, ReadError
from mmfusion.files import refuse_special, temporary_path

_LEAST_KEY = 32  # characters: 128 bits, if they are hexadecimal digits as those that are made here
_DIGITS = 12  # 48 bits: among 10,000 subjects two collide with a probability of 2e-7


class Pseudonyms:
    """Gives every identifier its pseudonym: ``S`` and the first 12 hexadecimal digits of HMAC-SHA256 (RFC 2104).

    Without the key a pseudonym cannot be found from an identifier, not even by trying all identifiers there could be,
    as it can with a plain hash. The same key and identifier always give the same pseudonym.

    Args:
        key: the secret.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._identifiers: dict[str, str] = {}

    def __call__(self, identifier: str) -> str:
        """The pseudonym of a subject.

        Raises:
            ManifestError: it is already that of another subject.
        """
        pseudonym = f"S{hmac.new(self._key, identifier.encode(), 'sha256').hexdigest()[:_DIGITS]}"
        if self._identifiers.setdefault(pseudonym, identifier) != identifier:
            raise ManifestError(
                f"two subjects have the pseudonym {pseudonym}, by bad luck; index the study with another key file"
            )
        return pseudonym


def read_pseudonyms(key_file: str | Path, tree: Path) -> Pseudonyms:
    """Pseudonyms by the key in a file, which is made (64 random hexadecimal digits, mode 0600) if it is not there.

    Args:
        key_file: where the key is, or is to be.
        tree: the folder of scans; the key must not lie in it, or it would be given away with the scans.

    Raises:
        OptionError: the file lies inside ``tree``.
        ReadError: the file cannot be read or made, or holds fewer than 32 characters.
    """
    path = Path(key_file)
    if path.resolve().is_relative_to(tree.resolve()):
        raise OptionError(f"key file {path} lies inside {tree}: who gets the scans gets the key. Keep it elsewhere")
    try:
        if not path.exists():
            _make_key(path)
        refuse_special(path)
        key = path.read_bytes().strip()
    except OSError as error:
        raise ReadError(f"key file {path} cannot be read or made: {error.strerror}") from None
    if len(key) < _LEAST_KEY:
        raise ReadError(
            f"key file {path} holds {len(key)} characters, at least {_LEAST_KEY} are needed. "
            "Name a file that does not exist, and a key is made"
        )
    return Pseudonyms(key)


def _make_key(path: Path) -> None:
    """Write a new key, whole or not at all, that nobody else may read; one that is there by now stays."""
    temporary = temporary_path(path)
    try:
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)  # Path.open sets no mode
        with os.fdopen(handle, "w") as file:
            file.write(secrets.token_hex(32) + "\n")
        try:
            os.link(temporary, path)  # which never replaces a file, as renaming does
        except FileExistsError:
            pass
        except OSError:  # no hard links there, as on memory sticks
            if not path.exists():
                temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)
